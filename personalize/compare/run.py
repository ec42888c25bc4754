"""Run a comparison: every run trained and evaluated, in one folder with one table.

    config.json env.json status.json history.csv metrics.json
                             as in every run folder; the last two hold all runs
    class/CLASS-seedK/       the base's class images: made once, shared by the objectives
    base/  chains/           the base's pictures and chains, once for all runs
    runs/SUBJECT/RUN/seedK/  train/ (a run folder of `personalize train`)  evaluation/  record.json

The same command continues an interrupted comparison; runs that are done are kept.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from personalize.compare.engines import run_all
from personalize.compare.frontier import (
    JUDGED_BY_PICTURES,
    frontier_table,
    trajectories,
    verdicts,
)
from personalize.compare.jobs import ComparedSubject, Job, evaluation_prompts, image_seeds, plan
from personalize.compare.table import terminal, time_table
from personalize.compare.tasks import Failed, device, judges, open_base, preparations, work
from personalize.config.compare_config import CompareConfig
from personalize.data.photos import scan
from personalize.mini.shipped import is_mini
from personalize.train.experiment import PACKAGES
from toy2d.runs.cli import to_stderr
from toy2d.runs.files import RunFailure, UserError, read_csv, read_record, write_csv, write_json
from toy2d.runs.folder import RunFolder, environment

NOT_OF_THE_NUMBERS = ("engine", "workers", "quick", "tune", "keep_weights", "json", "shared")


def run(config: CompareConfig, say: Callable[[str], None] = print) -> Path:
    """Start or resume the comparison; if it is done, say so. Returns its folder.

    Raises UserError before anything trains, RunFailure naming the runs that stopped.
    """
    c, subjects, jobs = plan(config)
    path = Path(c.each.output_dir)
    folder = RunFolder(path, recorded(c, subjects), "--output_dir")
    with folder.open():
        if folder.status == "done":
            say(f"{path} is done already")
            return path
        check_identity(c, subjects, path)
        for note in (notes := judges(c).left_out):
            say(f"note: {note}")
        names = ", ".join(s.name for s in subjects)
        say(f"{path}: {len(jobs)} runs of {c.each.max_train_steps} steps on {names}")
        fleet = fleet_of(c, path, say)
        seconds = dict(all_or_failure(fleet(preparations(jobs))))
        tasks = [partial(work, job, seconds.get(job.shared, 0.0)) for job in jobs]
        write_results(c, subjects, jobs, all_or_failure(fleet(tasks)), notes)
    return path


def all_or_failure(results: list) -> list:
    """`results`, or RunFailure if a task failed; the results of the others are kept on disk."""
    failed = [r for r in results if isinstance(r, Failed)]
    if failed:
        more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise RunFailure(
            f"{failed[0].title}: {failed[0].reason}{more}. All others are kept; "
            "the same command goes on with these"
        )
    return results


def recorded(c: CompareConfig, subjects: list[ComparedSubject]) -> dict:
    """What config.json holds: every setting that can change a number, and the subjects."""
    kept = {k: v for k, v in asdict(c).items() if k not in NOT_OF_THE_NUMBERS}
    return kept | {"subjects": [s._asdict() for s in subjects]}


def fleet_of(c: CompareConfig, path: Path, say: Callable[[str], None]) -> Callable[[list], list]:
    """Tasks -> their results, on the comparison's engine; logs go to the folder `path`.

    Raises UserError for --workers below 1.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of several workers would overlap
    at = {"engine": c.engine, "workers": workers_of(c), "logs": path / "logs"}
    return partial(run_all, say=say, **at)


def workers_of(c: CompareConfig) -> int:
    """How many runs at a time: one with a GPU, else one for each core (or `threads` of them)."""
    if c.workers is not None and c.workers < 1:
        raise UserError(f"--workers {c.workers}: at least 1")
    cores = len(os.sched_getaffinity(0)) // c.threads
    return c.workers or (1 if torch.cuda.is_available() else max(1, cores))


def check_identity(c: CompareConfig, subjects: list[ComparedSubject], path: Path) -> None:
    """Raise UserError if the base, the pictures or the judges are not those of env.json."""
    folders = [(s.name, s.folder) for s in subjects]
    folders += [(f"{s.name}, held out", s.held_out) for s in subjects if s.held_out]
    now = {
        "base_hash": open_base(c).hash(),
        "data_hash": {name: scan(folder, captions=False).hash() for name, folder in folders},
        "evaluators": json.loads(json.dumps(judges(c).describe())),
    }
    file = path / "env.json"
    if not file.exists():
        more = {"threads": c.threads, "device": device(), "seeds": c.seeds}
        write_json(file, environment(PACKAGES) | more | now)
    before = read_record(file)
    old, new = before.get("evaluators", now["evaluators"]), now["evaluators"]
    other = sorted(k for k in {**old, **new} if old.get(k) != new.get(k))
    names = {
        "base_hash": "the base model",
        "data_hash": "a subject's pictures",
        "evaluators": f"who judges the pictures ({', '.join(other)})",
    }
    if changed := [names[k] for k, v in now.items() if before.get(k, v) != v]:
        raise UserError(
            f"{' and '.join(changed)} changed since {path} was begun: "
            "put it back, or choose another --output_dir"
        )


# ---- results
def write_results(
    c: CompareConfig,
    subjects: list[ComparedSubject],
    jobs: list[Job],
    records: list[dict],
    notes: list[str],
) -> None:
    """Write history.csv and metrics.json: the rows and records of all runs."""
    path = Path(c.each.output_dir)
    write_csv(path / "history.csv", [row for job in jobs for row in history(job)])
    mini = is_mini(c.each.pretrained_model_name_or_path)
    metrics = {
        "model": c.each.pretrained_model_name_or_path,
        "mini": mini,
        "base_hash": json.loads((path / "env.json").read_text())["base_hash"],
        "evaluators": judges(c).describe(),
        "subjects": {s.name: about(c, s) for s in subjects},
        "image_seeds": image_seeds(c),
        "steps": c.each.max_train_steps,
        "equal_fidelity": c.equal_fidelity,
        "learning": c.learning,
        "runs": records,
        "left_out": notes,
    }
    write_json(path / "metrics.json", metrics)


def about(c: CompareConfig, subject: ComparedSubject) -> dict:
    """A subject's class word, and the prompts that its runs are evaluated on."""
    groups = evaluation_prompts(c, subject).groups
    return {"class_word": subject.class_word, "prompts": groups}


def history(job: Job) -> list[dict]:
    """The run's rows, with its subject and name; none if it diverged at once."""
    file = job.folder / "train" / "history.csv"
    name = {"subject": job.subject.name, "run": job.run}
    return [name | row for row in (read_csv(file) if file.exists() else [])]


def compare(config: CompareConfig) -> None:
    """`personalize compare`: the comparison, then its tables."""
    if config.json:
        print((run(config, to_stderr) / "metrics.json").read_text())
    else:
        show(run(config))


def show(path: Path) -> None:
    """Print the tables, and where to go from here."""
    metrics = json.loads((path / "metrics.json").read_text())
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(terminal(metrics, path.name), time_table(metrics))
    if frontier := frontier_table(metrics):
        console.print(frontier)
        for sentence in verdicts(trajectories(metrics)):
            print(sentence)
    else:
        print(JUDGED_BY_PICTURES)
    print(f"every number: {path / 'metrics.json'}; as a page: personalize report --full {path}")
