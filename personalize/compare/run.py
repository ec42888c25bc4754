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
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from personalize.compare.engines import run_all
from personalize.compare.jobs import (
    Job,
    Subject,
    file_name,
    image_seeds,
    plan,
    prompts_of,
    sampling,
    train_config,
)
from personalize.compare.record import NOTHING, judged, measured
from personalize.compare.table import terminal, time_table
from personalize.config.compare_config import CompareConfig
from personalize.data.photos import scan
from personalize.evaluate.command import open_model
from personalize.evaluate.judges import Evaluators, evaluators_of
from personalize.evaluate.model import Evaluation, evaluate_model
from personalize.mini.shipped import is_mini
from personalize.pipeline.libraries import quiet_libraries
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from personalize.sample.class_images import seconds_of
from personalize.sample.gallery import pictures
from personalize.train import experiment
from personalize.train.from_base import DTYPES, class_images
from personalize.train.loop import Diverged, Stopped
from toy2d.runs.files import RunFailure, UserError, read_csv, write_atomic, write_csv, write_json
from toy2d.runs.folder import RunFolder, environment
from toy2d.runs.spec import parse_run

NOT_OF_THE_NUMBERS = ("engine", "workers", "quick", "tune", "keep_weights")


class Failed(NamedTuple):
    """What a task returns instead of raising: the other tasks must not suffer."""

    title: str
    reason: str


def kept_going(task: Callable, job: Job, title: str):
    """`task(job)`, or Failed with the reason. A signal goes through: it asks all of us to stop."""
    try:
        begin(job)
        return task(job)
    except Stopped:
        raise
    except (UserError, RunFailure) as e:
        return Failed(title, str(e))
    except Exception as e:  # memory, a library, a file that was cut: it is this task's
        kept = note_down(Path(job.compare.each.output_dir, "logs"), title)
        return Failed(title, f"{type(e).__name__}: {str(e)[:300]}{kept}")


def note_down(folder: Path, title: str) -> str:
    """The traceback that is being handled, into a file; where it is, in words, or nothing where it cannot be written."""
    file = folder / f"{file_name(title)}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(file, traceback.format_exc())
    except (OSError, RunFailure):
        return ""
    return f" (traceback: {file})"


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
    """env.json: the comparison goes on only with the base, the pictures and the judges it began with."""
    now = {
        "base_hash": base_of(c).hash(),
        "data_hash": {s.name: scan(s.folder, captions=False).hash() for s in subjects},
        "evaluators": json.loads(json.dumps(judges(c).describe())),
    }
    file = path / "env.json"
    if not file.exists():
        more = {"threads": c.threads, "device": device(), "seeds": c.seeds}
        write_json(file, environment(experiment.PACKAGES) | more | now)
    before = json.loads(file.read_text())
    old, new = before.get("evaluators", now["evaluators"]), now["evaluators"]
    other = sorted(k for k in {**old, **new} if old.get(k) != new.get(k))
    names = {"base_hash": "the base model", "data_hash": "a subject's pictures", "evaluators": f"who judges the pictures ({', '.join(other)})"}  # fmt: skip
    if changed := [names[k] for k, v in now.items() if before.get(k, v) != v]:
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
def preparations(jobs: list[Job]) -> list[Callable[[], tuple[str, float | None] | Failed]]:
    """Class images of each class and seed, then the base's pictures; every task tells its name and seconds."""
    replaying = {j.shared: j for j in jobs if train_config(j).needs_class_images}
    classes = {j.subject.class_word: j.subject for j in jobs}  # prompts depend on no more than that
    draw = partial(draw_base, subjects=list(classes.values()))
    return [
        *(partial(kept_going, make_classes, j, f"class images of {s}") for s, j in replaying.items()),
        partial(kept_going, draw, jobs[0], "the base's pictures"),
    ]  # fmt: skip


def make_classes(job: Job) -> tuple[str, float | None]:
    """Seconds of the whole set, also if it was made in parts; None if nobody knows."""
    c = train_config(job)
    file = Path(c.class_data_dir).with_suffix(".json")
    if not file.exists():
        model = base_of(job.compare)
        class_images(c, c.concepts[0], model, c.resolution or model.default_resolution)
        write_json(file, {"seconds": seconds_of(c.class_data_dir)})
    return job.shared, json.loads(file.read_text())["seconds"]


def draw_base(job: Job, subjects: list[Subject]) -> tuple[str, float]:
    """One task, one order: a prompt that classes share would else be drawn in the batch of whichever came first, equal to rounding only."""
    c, began = job.compare, time.perf_counter()
    wanted = dict.fromkeys((p, s) for x in subjects for _, p in prompts_of(c, x).jobs() for s in image_seeds(c))  # fmt: skip
    pictures(base_of(c), list(wanted), base_folder(c), sampling(c), say=quiet)
    return "the base's pictures", time.perf_counter() - began


def base_folder(c: CompareConfig) -> Path:
    return Path(c.each.output_dir, "base")


# ---- one run
def work(job: Job, class_seconds: float | None) -> dict | Failed:
    return kept_going(partial(recorded_run, class_seconds=class_seconds), job, job.title)


def recorded_run(job: Job, class_seconds: float | None) -> dict:
    """Train and evaluate; the record is kept in record.json. A diverged run has a record too, without numbers."""
    file, began = job.folder / "record.json", time.perf_counter()
    if file.exists():
        return json.loads(file.read_text())
    c, named = train_config(job), parse_run(job.run)
    record = {"run": job.run, "objective": named.objective, "weight": named.weight, "subject": job.subject.name, "seed": job.seed, "folder": str(job.folder.relative_to(job.compare.each.output_dir))}  # fmt: skip
    chains = Path(job.compare.each.output_dir, "chains", f"{job.shared}.safetensors")
    resumed = found_prepared(job)
    try:
        path = experiment.run(c, quiet, chains)
        cost = measured(path, class_seconds if c.needs_class_images else 0.0, resumed)
        record |= cost | judged(evaluated(job, path)) | {"stopped": None}
    except Diverged as e:
        record |= NOTHING | {"stopped": f"{job.title}: {e}"}
    write_json(file, record)
    tidy(job)
    done = len(list(Path(job.compare.each.output_dir, "runs").glob("*/*/*/record.json")))
    print(f"  {done:3d} done: {job.title} ({time.perf_counter() - began:.0f} s)", flush=True)
    return record


def found_prepared(job: Job) -> bool:
    """Did a process that was killed leave what the base was asked for (Fisher, answers)? Its seconds are lost: the next one only reads it."""
    train, mark = job.folder / "train", job.folder / "resumed"
    if list(train.glob("cache/*.safetensors")) and not (train / "metrics.json").exists():
        mark.touch()
    return mark.exists()


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
def compare(config: CompareConfig) -> None:
    """`personalize compare`: the comparison, then its tables."""
    show(run(config))


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
        file = job.folder / "train" / "history.csv"
        kept = read_csv(file) if file.exists() else []  # none: diverged at once
        rows += [name | row for row in kept]
    write_csv(path / "history.csv", rows)
    metrics = {
        "model": c.each.pretrained_model_name_or_path,
        "mini": is_mini(c.each.pretrained_model_name_or_path),
        "base_hash": json.loads((path / "env.json").read_text())["base_hash"],
        "evaluators": judges(c).describe(),
        "subjects": {s.name: {"class_word": s.class_word, "prompts": prompts_of(c, s).groups} for s in subjects},
        "image_seeds": image_seeds(c),
        "steps": c.each.max_train_steps,
        "equal_fidelity": c.equal_fidelity,
        "runs": records,
        "left_out": notes,
    }  # fmt: skip
    write_json(path / "metrics.json", metrics)
