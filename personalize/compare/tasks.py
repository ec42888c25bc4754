"""The tasks of a comparison: class images, the base's pictures, and each run with its evaluation.

A task keeps its work in a folder of its own and returns at once if that is finished. It may run in
a process of its own (engines.py). There is no second training loop: a run is
experiment.run(TrainConfig), its evaluation evaluate_model.
"""

import json
import shutil
import time
import traceback
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch

from personalize.compare.jobs import (
    ComparedSubject,
    Job,
    evaluation_plan,
    file_name,
    sampling,
    train_config,
)
from personalize.compare.record import NOTHING, curve, measured, no_scores, scores
from personalize.config.compare_config import CompareConfig
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
from personalize.train.guard import Diverged, Stopped
from toy2d.runs.files import RunFailure, UserError, write_atomic, write_json
from toy2d.runs.spec import parse_run


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def open_base(c: CompareConfig) -> Model:
    e = c.each
    name, dtype = e.pretrained_model_name_or_path, DTYPES[e.mixed_precision]
    return load(name, e.revision, e.variant, dtype, e.without_t5).to(device())


@cache
def evaluators_once(mini: bool, clip: str | None, dino: str | None) -> Evaluators:
    return evaluators_of(mini, clip, dino, device())


def judges(c: CompareConfig) -> Evaluators:
    """The networks that score pictures, loaded once in each process."""
    return evaluators_once(is_mini(c.each.pretrained_model_name_or_path), c.clip, c.dino)


def silent(text: str) -> None:
    """The `say` of a single run, whose messages would drown the comparison's."""


# ---- a task that fails does not stop the others
class Failed(NamedTuple):
    """What a task returns instead of raising."""

    title: str
    reason: str


def or_failed(task: Callable, job: Job, title: str):
    """`task(job)`, or Failed with the reason. Stopped passes through: a signal asks all to stop."""
    try:
        prepare_process(job)
        return task(job)
    except Stopped:
        raise
    except (UserError, RunFailure) as e:
        return Failed(title, str(e))
    except Exception as e:  # e.g. out of memory, or a bug in a library: only this task fails
        where = save_traceback(Path(job.compare.each.output_dir, "logs"), title)
        return Failed(title, f"{type(e).__name__}: {str(e)[:300]}{where}")


def prepare_process(job: Job) -> None:
    """Set the number of threads and silence libraries: a worker may be a fresh process."""
    torch.set_num_threads(job.compare.threads)
    quiet_libraries()


def save_traceback(folder: Path, title: str) -> str:
    """Save the current traceback; says where, or nothing where it cannot be written."""
    file = folder / f"{file_name(title)}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(file, traceback.format_exc())
    except (OSError, RunFailure):
        return ""
    return f" (traceback: {file})"


# ---- what is made of the base, once
def preparations(jobs: list[Job]) -> list[Callable[[], tuple[str, float | None] | Failed]]:
    """Tasks: class images of each class and seed, then the base's pictures.

    Each returns its name and its seconds.
    """
    replaying = {j.shared: j for j in jobs if train_config(j).needs_class_images}
    classes = {j.subject.class_word: j.subject for j in jobs}  # prompts depend on no more than that
    draw = partial(draw_base, subjects=list(classes.values()))
    tasks = [
        partial(or_failed, make_classes, job, f"class images of {shared}")
        for shared, job in replaying.items()
    ]
    return [*tasks, partial(or_failed, draw, jobs[0], "the base's pictures")]


def make_classes(job: Job) -> tuple[str, float | None]:
    """Seconds of the whole set, also if it was made in several calls; None if they are unknown."""
    c = train_config(job)
    file = Path(c.class_data_dir).with_suffix(".json")
    if not file.exists():
        model = open_base(job.compare)
        class_images(c, c.concepts[0], model, c.resolution or model.default_resolution)
        write_json(file, {"seconds": seconds_of(c.class_data_dir)})
    return job.shared, json.loads(file.read_text())["seconds"]


def draw_base(job: Job, subjects: list[ComparedSubject]) -> tuple[str, float]:
    """Draw the base's pictures of every prompt, in one task and one order.

    A picture depends, in its last bits, on the batch it is drawn in. If each class had its own
    task, a prompt that classes share would depend on which task came first.
    """
    c, began = job.compare, time.perf_counter()
    asked = [job for s in subjects for job in evaluation_plan(c, s).jobs()]
    wanted = dict.fromkeys((p, seed) for _, p, seeds in asked for seed in seeds)
    pictures(open_base(c), list(wanted), base_folder(c), sampling(c), say=silent)
    return "the base's pictures", time.perf_counter() - began


def base_folder(c: CompareConfig) -> Path:
    return Path(c.of_base, "base")


# ---- one run
def work(job: Job, class_seconds: float | None) -> dict | Failed:
    return or_failed(partial(recorded_run, class_seconds=class_seconds), job, job.title)


def recorded_run(job: Job, class_seconds: float | None) -> dict:
    """Train and evaluate, and keep the record in record.json.

    A run that diverged has a record too, without numbers.
    """
    file, began = job.folder / "record.json", time.perf_counter()
    if file.exists():
        return json.loads(file.read_text())
    root, c = Path(job.compare.each.output_dir), train_config(job)
    record = identity(job)
    resumed = was_prepared_by_another(job)
    try:
        path = experiment.run(c, silent, root / "chains" / f"{job.shared}.safetensors")
        record |= measured(path, class_seconds if c.needs_class_images else 0.0, resumed)
        record |= scores(evaluated(job, path)) if job.draws else no_scores()
        record |= {"stopped": None}
    except Diverged as e:
        record |= NOTHING | {"stopped": f"{job.title}: {e}"}
    record["curve"] = curve(job.folder / "train")
    write_json(file, record)
    tidy(job)
    done = len(list((root / "runs").glob("*/*/*/record.json")))
    print(f"  {done:3d} done: {job.title} ({time.perf_counter() - began:.0f} s)", flush=True)
    return record


def identity(job: Job) -> dict:
    """The keys of a record that say which run it is."""
    named = parse_run(job.run)
    return {
        "run": job.run,
        "objective": named.objective,
        "weight": named.weight,
        "subject": job.subject.name,
        "seed": job.seed,
        "folder": str(job.folder.relative_to(job.compare.each.output_dir)),
    }


def was_prepared_by_another(job: Job) -> bool:
    """Did a killed process leave the base's Fisher diagonal or answers in the run's cache?

    Then its seconds of preparing are lost, for this process only reads them. A mark in the folder
    remembers it.
    """
    train, mark = job.folder / "train", job.folder / "resumed"
    if list(train.glob("cache/*.safetensors")) and not (train / "metrics.json").exists():
        mark.touch()
    return mark.exists()


def evaluated(job: Job, path: Path) -> Evaluation:
    """Draw the tuned model's pictures and score them."""
    c, folder = job.compare, job.folder / "evaluation"
    model, base, _ = open_model(str(path), None, device(), DTYPES[c.each.mixed_precision])
    plan = evaluation_plan(c, job.subject)
    found = evaluate_model(model, plan, judges(c), folder, base, base_folder(c), silent)
    found.write(folder)
    return found


def tidy(job: Job) -> None:
    """Delete what the record makes needless: checkpoints, caches, and pipelines not to be kept."""
    for name in ("checkpoints", "cache", *(() if job.compare.keep_weights else ("pipeline",))):
        shutil.rmtree(job.folder / "train" / name, ignore_errors=True)
