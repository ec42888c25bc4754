"""`personalize study`: the report's arms, trained and scored alike, then a page of verdicts.

    config.json status.json metrics.json report.html
    shared/SIZE-PRECISION/             class images and the base's pictures, once for all arms
    ARM/runs/SUBJECT/RUN/seedK/        as in a folder of `personalize compare`

Arms that go on from another one's checkpoint train in the task of that one, because recording a
run deletes its checkpoints.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from personalize.compare.benchmark_plan import Planned as Counted
from personalize.compare.benchmark_plan import counted
from personalize.compare.jobs import Job, train_config
from personalize.compare.record import NOTHING
from personalize.compare.run import all_or_failure, fleet_of
from personalize.compare.tasks import (
    Failed,
    identity,
    judges,
    or_failed,
    preparations,
    silent,
    work,
)
from personalize.config.recipes.studies import Study
from personalize.study.conclusions import verdicts
from personalize.study.page import page, shown
from personalize.study.plan import Planned, planned
from personalize.study.scores import as_near_as_new_pictures, scores_of
from personalize.train import experiment
from personalize.train.guard import Diverged
from toy2d.runs.cli import to_stderr
from toy2d.runs.files import UserError, write_atomic, write_json
from toy2d.runs.folder import RunFolder

NOT_OF_THE_NUMBERS = ("engine", "workers", "json", "dry_run")


def run(s: Study, say: Callable[[str], None] = print) -> Path:
    """Start or resume the study; if it is done, say so. Returns its folder."""
    todo = planned(s)
    if s.dry_run:
        for line in counted(Counted(todo.path, todo.jobs, [], None, [])):
            say(line)
        return todo.path
    jobs = [job for of_arm in todo.jobs.values() for job in of_arm]
    asked = {k: v for k, v in asdict(s).items() if k not in NOT_OF_THE_NUMBERS}
    folder = RunFolder(todo.path, asked | {"scales": s.scales}, "--output_dir")
    with folder.open():
        if folder.status == "done":
            say(f"{todo.path} is done already")
            return todo.path
        first = jobs[0].compare
        for note in judges(first).left_out:
            say(f"note: {note}")
        say(f"{todo.path}: {len(jobs)} runs, {len(todo.arms)} arms")
        fleet = fleet_of(first, todo.path, say)
        all_or_failure(fleet(preparations(by_class_images(jobs))))
        found = fleet([partial(line_of_runs, line) for line in todo.lines()])
        write_results(s, todo, all_or_failure([r for line in found for r in line]))
    return todo.path


def by_class_images(jobs: list[Job]) -> list[Job]:
    """The largest set last: it is the one that is made, and smaller ones are its beginning."""

    def size(job: Job) -> int:
        c = train_config(job)
        return c.num_class_images if c.needs_class_images else 0

    return sorted(jobs, key=size)


def line_of_runs(line: list[tuple[str, Job]]) -> list[dict | Failed]:
    """Train all, then record all: each arm after the first goes on from the first's checkpoint."""
    lost = False
    for _, job in line if len(line) > 1 else []:
        if not (job.folder / "record.json").exists() and not lost:
            ended = or_failed(trained, job, job.title)
            if isinstance(ended, Failed):
                return [ended]
            lost = not ended and job is line[0][1]
    out: list[dict | Failed] = []
    for i, (arm, job) in enumerate(line):
        record = not_begun(job) if lost and i else work(job, None)
        if isinstance(record, Failed):
            return [record]
        before = out[0]["curve"] if i else []
        out.append({"arm": arm} | record | scores_of(job, record, before))
    return out


def trained(job: Job) -> bool:
    """Train it; False if it diverged."""
    root = Path(job.compare.each.output_dir)
    try:
        experiment.run(train_config(job), silent, root / "chains" / f"{job.shared}.safetensors")
    except Diverged:
        return False
    return True


def not_begun(job: Job) -> dict:
    stopped = f"{job.title}: the run that it goes on from diverged"
    return identity(job) | NOTHING | {"stopped": stopped, "curve": []}


def write_results(s: Study, todo: Planned, records: list[dict]) -> None:
    """metrics.json and report.html."""
    first = next(iter(todo.jobs.values()))[0].compare
    order = [a.name for a in todo.arms]
    subjects = {j.subject.name: j.subject for of_arm in todo.jobs.values() for j in of_arm}
    metrics = {
        "study": s.name,
        "model": s.pretrained_model_name_or_path,
        "mini": s.mini,
        "scales": s.scales,
        "evaluators": judges(first).describe(),
        "arms": {a.name: settings_of(todo.jobs[a.name][0]) | {"after": a.after} for a in todo.arms},
        "subjects": {
            name: as_near_as_new_pictures(subject, judges(first))
            for name, subject in subjects.items()
        },
        "runs": sorted(records, key=lambda r: order.index(r["arm"])),
        "left_out": judges(first).left_out,
    }
    metrics["conclusions"] = verdicts(metrics)
    write_json(todo.path / "metrics.json", metrics)
    write_atomic(todo.path / "report.html", page(todo.path, metrics))


def settings_of(job: Job) -> dict:
    """What was trained, as it was trained here."""
    c = train_config(job)
    return {
        "steps": c.max_train_steps,
        "learning_rate": c.learning_rate,
        "schedule": c.lr_scheduler,
        "run": job.run,
        "class_images": c.num_class_images if c.needs_class_images else 0,
        "text_encoder": c.train_text_encoder,
    }


def study(s: Study) -> None:
    """The command: run, then print the table and the verdicts."""
    if problems := s.problems():
        raise UserError("; ".join(problems))
    path = run(s, to_stderr if s.json else print)
    if s.dry_run:
        return
    if s.json:
        print((path / "metrics.json").read_text())
    else:
        shown(json.loads((path / "metrics.json").read_text()), path)
