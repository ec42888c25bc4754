"""run(CompareConfig) -> one folder: every run trained and evaluated, one table. Resumes by itself, run by run.

    config.json env.json status.json history.csv metrics.json      as every run folder; a record and the rows of each run
    class/CLASS-seedK/       the base's class images: made once, shared by the objectives that replay them
    base/  chains/           the base's pictures and chains, once for all runs
    runs/SUBJECT/RUN/seedK/  train/ (a run folder of `personalize train`)  evaluation/  record.json

There is no second training loop: a run is experiment.run(TrainConfig), an evaluation evaluate_model.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from personalize import experiment
from personalize.__main__ import quiet_libraries
from personalize.compare import CompareConfig
from personalize.evaluate import Evaluation, evaluate_model
from personalize.evaluate_run import is_mini, open_model
from personalize.evaluators import Evaluators, evaluators_of
from personalize.fleet import run_all
from personalize.gallery import pictures
from personalize.jobs import Job, Subject, image_seeds, plan, prompts_of, sampling, train_config
from personalize.model import Model, load
from personalize.photos import scan
from personalize.prepare import DTYPES, class_images
from personalize.record import NOTHING, judged, measured
from personalize.table import terminal, time_table
from personalize.train import Diverged
from toy2d.config import parse_run
from toy2d.runfolder import (
    RunFailure,
    RunFolder,
    UserError,
    environment,
    read_csv,
    write_csv,
    write_json,
)

NOT_OF_THE_NUMBERS = ("engine", "workers", "quick", "tune", "keep_weights")


class Failed(NamedTuple):
    """What a task returns instead of raising: the other tasks must not suffer."""

    title: str
    reason: str


def run(config: CompareConfig, say: Callable[[str], None] = print) -> Path:
    """Make, continue or find the comparison. Raises UserError before anything trains, RunFailure naming the runs that stopped."""
    c, subjects, jobs = plan(config)
    path = Path(c.each.output_dir)
    folder = RunFolder(path, recorded(c, subjects))
    with folder.open():
        if folder.status == "done":
            say(f"{path} is done already")
            return path
        check_identity(c, subjects, path)
        for note in (notes := judges(c).left_out):
            say(f"note: {note}")
        say(f"{path}: {len(jobs)} runs of {c.each.max_train_steps} steps on {', '.join(s.name for s in subjects)}")  # fmt: skip
        os.environ.setdefault("TQDM_DISABLE", "1")  # workers would draw their bars over each other
        fleet = partial(run_all, engine=c.engine, workers=workers_of(c), say=say, logs=path / "logs")  # fmt: skip
        seconds = dict(whole(fleet(preparations(jobs))))
        records = whole(fleet([partial(work, job, seconds.get(job.shared, 0.0)) for job in jobs]))
        write_results(c, subjects, jobs, records, notes)
    return path


def whole(results: list) -> list:
    """The results; RunFailure if a task failed. Everything else is done by then, and found by the same command."""
    failed = [r for r in results if isinstance(r, Failed)]
    if failed:
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise RunFailure(f"{failed[0].title}: {failed[0].reason}{more}. All others are kept; the same command goes on with these")  # fmt: skip
    return results


def recorded(c: CompareConfig, subjects: list[Subject]) -> dict:
    kept = {k: v for k, v in asdict(c).items() if k not in NOT_OF_THE_NUMBERS}
    return kept | {"subjects": [s._asdict() for s in subjects]}


def workers_of(c: CompareConfig) -> int:
    """A GPU serves one run at a time; cores are divided among the runs."""
    if c.workers is not None and c.workers < 1:
        raise UserError(f"--workers {c.workers}: at least 1")
    cores = len(os.sched_getaffinity(0)) // c.threads
    return c.workers or (1 if torch.cuda.is_available() else max(1, cores))


def check_identity(c: CompareConfig, subjects: list[Subject], path: Path) -> None:
    """env.json: the comparison goes on only with the base and the pictures it began with."""
    now = {
        "base_hash": base_of(c).hash(),
        "data_hash": {s.name: scan(s.folder, captions=False).hash() for s in subjects},
    }
    file = path / "env.json"
    if not file.exists():
        more = {"threads": c.threads, "device": device(), "seeds": c.seeds}
        write_json(file, environment(experiment.PACKAGES) | more | now)
    before = json.loads(file.read_text())
    names = {"base_hash": "the base model", "data_hash": "a subject's pictures"}
    if changed := [names[k] for k, v in now.items() if before[k] != v]:
        raise UserError(f"{' and '.join(changed)} changed since {path} was begun: put it back, or choose another --output_dir")  # fmt: skip


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def base_of(c: CompareConfig) -> Model:
    e = c.each
    name, dtype = e.pretrained_model_name_or_path, DTYPES[e.mixed_precision]
    return load(name, e.revision, e.variant, dtype, e.without_t5).to(device())


@cache
def evaluators_once(mini: bool, clip: str | None, dino: str | None) -> Evaluators:
    return evaluators_of(mini, clip, dino, device())


def judges(c: CompareConfig) -> Evaluators:
    return evaluators_once(is_mini(c.each.pretrained_model_name_or_path), c.clip, c.dino)


def quiet(text: str) -> None:
    """What a single run says would drown the comparison."""


def begin(job: Job) -> None:
    """A worker may be a fresh process: the run's number of threads, and no bars drawn over another worker's."""
    torch.set_num_threads(job.compare.threads)
    quiet_libraries()


# ---- what is made of the base, once
def preparations(jobs: list[Job]) -> list[Callable[[], tuple[str, float] | Failed]]:
    """Class images of each class and seed, the base's pictures for each class; every task tells its name and seconds."""
    replaying = {j.shared: j for j in jobs if train_config(j).needs_class_images}
    classes = {j.subject.class_word: j for j in jobs}
    makers = [(make_classes, j) for j in replaying.values()]
    return [partial(prepared, f, j) for f, j in [*makers, *((draw_base, j) for j in classes.values())]]  # fmt: skip


def prepared(make: Callable[[Job], tuple[str, float]], job: Job) -> tuple[str, float] | Failed:
    begin(job)
    try:
        return make(job)
    except (UserError, RunFailure) as e:
        return Failed(f"{make.__name__.replace('_', ' ')} for {job.shared}", str(e))


def make_classes(job: Job) -> tuple[str, float]:
    """Seconds of the whole set, also if it was made in parts: time for a picture x pictures."""
    c = train_config(job)
    file = Path(c.class_data_dir).with_suffix(".json")
    if not file.exists():
        model = base_of(job.compare)
        there = len(list(Path(c.class_data_dir).glob("[0-9]*.*")))
        began = time.perf_counter()
        class_images(c, c.concepts[0], model, c.resolution or model.default_resolution)
        each = (time.perf_counter() - began) / max(1, c.num_class_images - there)
        write_json(file, {"seconds": each * c.num_class_images})
    return job.shared, json.loads(file.read_text())["seconds"]


def draw_base(job: Job) -> tuple[str, float]:
    c, began = job.compare, time.perf_counter()
    wanted = [(p, s) for _, p in prompts_of(c, job.subject).jobs() for s in image_seeds(c)]
    pictures(base_of(c), wanted, base_folder(c), sampling(c), say=quiet)
    return f"base pictures for {job.subject.class_word}", time.perf_counter() - began


def base_folder(c: CompareConfig) -> Path:
    return Path(c.each.output_dir, "base")


# ---- one run
def work(job: Job, class_seconds: float) -> dict | Failed:
    """Train and evaluate; the record is kept in record.json. A diverged run has a record too, without numbers."""
    file, began = job.folder / "record.json", time.perf_counter()
    if file.exists():
        return json.loads(file.read_text())
    begin(job)
    c, named = train_config(job), parse_run(job.run)
    record = {"run": job.run, "objective": named.objective, "weight": named.weight, "subject": job.subject.name, "seed": job.seed, "folder": str(job.folder.relative_to(job.compare.each.output_dir))}  # fmt: skip
    chains = Path(job.compare.each.output_dir, "chains", f"{job.shared}.safetensors")
    try:
        path = experiment.run(c, quiet, chains)
        cost = measured(path, class_seconds if c.needs_class_images else 0.0)
        record |= cost | judged(evaluated(job, path)) | {"stopped": None}
    except Diverged as e:
        record |= NOTHING | {"stopped": f"{job.title}: {e}"}
    except (UserError, RunFailure) as e:
        return Failed(job.title, str(e))
    write_json(file, record)
    tidy(job)
    done = len(list(Path(job.compare.each.output_dir, "runs").glob("*/*/*/record.json")))
    print(f"  {done:3d} done: {job.title} ({time.perf_counter() - began:.0f} s)", flush=True)
    return record


def evaluated(job: Job, path: Path) -> Evaluation:
    c, folder = job.compare, job.folder / "evaluation"
    model, base, _ = open_model(str(path), None, device(), DTYPES[c.each.mixed_precision])
    found = evaluate_model(
        model, job.subject.folder, prompts_of(c, job.subject), judges(c), image_seeds(c), folder, base, base_folder(c),
        sampling=sampling(c), chains=0, say=quiet,
    )  # fmt: skip
    found.write(folder)
    return found


def tidy(job: Job) -> None:
    """What the record makes needless: checkpoints, caches, and full training's pipelines unless they are to be kept."""
    for name in ("checkpoints", "cache", *(() if job.compare.keep_weights else ("pipeline",))):
        shutil.rmtree(job.folder / "train" / name, ignore_errors=True)


# ---- results
def show(path: Path) -> None:
    """The tables at the terminal, and where to go from here."""
    metrics = json.loads((path / "metrics.json").read_text())
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(terminal(metrics, path.name), time_table(metrics))
    print(f"every number: {path / 'metrics.json'}; as a page: personalize report --full {path}")


def write_results(
    c: CompareConfig, subjects: list[Subject], jobs: list[Job], records: list[dict], notes: list[str]
) -> None:  # fmt: skip
    path, rows = Path(c.each.output_dir), []
    for job in jobs:
        name = {"subject": job.subject.name, "run": job.run}
        rows += [name | row for row in read_csv(job.folder / "train" / "history.csv")]
    write_csv(path / "history.csv", rows)
    metrics = {
        "model": c.each.pretrained_model_name_or_path,
        "mini": is_mini(c.each.pretrained_model_name_or_path),
        "base_hash": json.loads((path / "env.json").read_text())["base_hash"],
        "subjects": {s.name: {"class_word": s.class_word, "prompts": prompts_of(c, s).groups} for s in subjects},
        "image_seeds": image_seeds(c),
        "steps": c.each.max_train_steps,
        "equal_fidelity": c.equal_fidelity,
        "runs": records,
        "left_out": notes,
    }  # fmt: skip
    write_json(path / "metrics.json", metrics)
