"""`personalize benchmark`: the paper's table, subjects x methods x objectives from one base.

    config.json status.json metrics.json   as in every run folder
    shared/SIZE-PRECISION/                  class images and the base's pictures, once for all
    METHOD/runs/SUBJECT/RUN/seedK/          as in a folder of `personalize compare`

Every method is a comparison (jobs.py, tasks.py) with the rate of its own recipe; all their runs go
to one engine together. IP-Adapter is one more job for each subject and seed that trains nothing.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from personalize.compare.benchmark_plan import counted, planned
from personalize.compare.jobs import Job, evaluation_plan, train_config
from personalize.compare.paper_table import show, table_rows
from personalize.compare.record import scores
from personalize.compare.run import all_or_failure, fleet_of
from personalize.compare.tasks import (
    base_folder,
    judges,
    open_base,
    or_failed,
    preparations,
    silent,
    work,
)
from personalize.config.recipes.benchmark import IP_ADAPTER, Benchmark
from personalize.data.decode import open_rgb
from personalize.data.photos import scan
from personalize.drift.measure import path_columns
from personalize.evaluate.image_prompt import with_image_prompt
from personalize.evaluate.model import evaluate_model
from toy2d.runs.cli import to_stderr
from toy2d.runs.files import UserError, write_json
from toy2d.runs.folder import RunFolder

NOT_OF_THE_NUMBERS = ("engine", "workers", "json", "dry_run")


def run(b: Benchmark, say: Callable[[str], None] = print) -> Path:
    """Start or resume the benchmark; if it is done, say so. Returns its folder."""
    todo = planned(b)
    jobs = [job for of_method in todo.trained.values() for job in of_method]
    if b.dry_run:
        for line in counted(todo):
            say(line)
        return todo.path
    asked = {k: v for k, v in asdict(b).items() if k not in NOT_OF_THE_NUMBERS}
    folder = RunFolder(todo.path, asked, "--output_dir")
    with folder.open():
        if folder.status == "done":
            say(f"{todo.path} is done already")
            return todo.path
        first = (jobs or todo.prompted)[0].compare
        for note in (notes := [*todo.notes, *judges(first).left_out]):
            say(f"note: {note}")
        say(f"{todo.path}: {len(jobs)} runs that train, {len(todo.prompted)} of IP-Adapter")
        fleet = fleet_of(first, todo.path, say)
        # one after the other: methods share their class images and the base's pictures
        seconds: dict[str, float | None] = {}
        for of_method in [*todo.trained.values(), *([todo.prompted] if todo.prompted else [])]:
            seconds |= dict(all_or_failure(fleet(base_tasks(of_method))))
        tasks = [partial(work, job, seconds.get(job.shared, 0.0)) for job in jobs]
        tasks += [partial(prompted, j, todo.adapter, b.ip_adapter_scale) for j in todo.prompted]
        records = all_or_failure(fleet(tasks))
        methods = [m for m, of_method in todo.trained.items() for _ in of_method]
        methods += [IP_ADAPTER] * len(todo.prompted)
        found = [{"method": m} | r for m, r in zip(methods, records, strict=True)]
        write_json(
            todo.path / "metrics.json",
            {
                "model": b.pretrained_model_name_or_path,
                "backbone": b.backbone or "mini",
                "evaluators": judges(first).describe(),
                "runs": found,
                "table": table_rows(found),
                "left_out": notes,
            },
        )
    return todo.path


def base_tasks(jobs: list[Job]) -> list:
    """Class images and the base's pictures of one method; IP-Adapter needs no class images."""
    plain = [job._replace(run="standard") if job.run == IP_ADAPTER else job for job in jobs]
    return preparations(plain)


def prompted(job: Job, adapter: str, scale: float):
    return or_failed(partial(prompted_record, adapter=adapter, scale=scale), job, job.title)


def prompted_record(job: Job, adapter: str, scale: float) -> dict:
    """Score the base under the subject's pictures, and keep it in record.json as runs are kept."""
    file, c = job.folder / "record.json", job.compare
    if file.exists():
        return json.loads(file.read_text())
    base, began = open_base(c), time.perf_counter()
    shown = [open_rgb(r.path) for r in scan(job.subject.folder, captions=False).require()]
    views = with_image_prompt(base, adapter, shown, c.identifier, scale)
    ready = round(time.perf_counter() - began, 2)
    asked = train_config(job._replace(run="standard"))
    held_out = asked if asked.held_out_data_dir else None
    wanted = replace(
        evaluation_plan(c, job.subject), chains=c.each.measure_chains, held_out=held_out
    )
    shared = base_folder(c)
    found = evaluate_model(
        views.model, wanted, judges(c), job.folder / "evaluation", views.base, shared, silent
    )
    found.write(job.folder / "evaluation")
    paths = {g: d["path_kl"] for g, d in found.drift.items() if d.get("path_kl")}
    groups = {g: (p["mean"], p["error"], p["n"]) for g, p in paths.items()}
    total, n = path_columns(groups), sum(p["n"] for p in paths.values())
    parts = {"class images": 0.0, "preparing": ready, "training": 0.0}
    record = {
        "run": f"{IP_ADAPTER}:{scale:g}",
        "objective": IP_ADAPTER,
        "weight": scale,
        "subject": job.subject.name,
        "seed": job.seed,
        "folder": str(job.folder.relative_to(c.each.output_dir)),
        "delta_theta": 0.0,
        "delta_eps": 0.0,
        "path_kl": [total["path_kl"], total["path_kl_error"], n],
        "path_kl_group": groups,
        "seconds": parts,
        "total_seconds": ready,
        "stopped": None,
        "curve": [],
    }
    record |= scores(found) | {"learning": found.summary.get("learning")}
    write_json(file, record)
    return record


def benchmark(b: Benchmark) -> None:
    """The command: run, then print the table."""
    if problems := b.problems():
        raise UserError("; ".join(problems))
    path = run(b, to_stderr if b.json else print)
    if b.dry_run:
        return
    if b.json:
        print((path / "metrics.json").read_text())
    else:
        show(path)
