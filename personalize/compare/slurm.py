"""SLURM: one job array for all tasks, submitted with `sbatch --wait`.

    FOLDER/N.task  N.result  N.log      of the array's job N, in a folder of the run's own

`sbatch --wait` returns when the array has ended, so nothing is polled and no accounting database
is needed. A job without a result died. sbatch's own variables say the rest, e.g.
SBATCH_TIMELIMIT, SBATCH_GRES and SBATCH_ACCOUNT.

Run as `python -m personalize.compare.slurm FOLDER` this is what a job does.
"""

import os
import pickle
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from toy2d.runs.files import UserError, write_atomic

REMEDY = "run it on a machine where sbatch reaches a cluster"
DAY = "1-00:00:00"


class JobDied(Exception):
    """A job ended without a result: killed, out of memory or out of time."""


def submit(
    tasks: Sequence[Callable[[], Any]], partition: str, at_once: int, logs: Path
) -> list[Any]:
    """Run each task in a job of its own, `at_once` of them at a time; returns their results.

    Raises UserError if SLURM does not take the jobs, JobDied if one died, and what a task raised.
    """
    logs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="jobs-", dir=logs.resolve()))
    for n, task in enumerate(tasks):
        write_atomic(folder / f"{n}.task", pickle.dumps(task))
    said = wait_for(command(folder, len(tasks), partition, at_once))
    results = [folder / f"{n}.result" for n in range(len(tasks))]
    if missing := [r for r in results if not r.exists()]:
        log = missing[0].with_suffix(".log")
        if len(missing) == len(tasks) and not log.exists():  # none was ever started
            raise UserError(f"--engine slurm: {said or 'sbatch ran no job'}; {REMEDY}")
        raise JobDied(f"{len(missing)} of {len(tasks)} jobs left no result; see {log}")
    found = [pickle.loads(r.read_bytes()) for r in results]
    for error in (e for _, e in found if e is not None):
        raise error
    return [value for value, _ in found]


def command(folder: Path, jobs: int, partition: str, at_once: int) -> list[str]:
    job = shlex.join([sys.executable, "-m", "personalize.compare.slurm", str(folder)])
    words = ["sbatch", "--wait", "--parsable", "--job-name", "driftlab"]
    words += ["--array", f"0-{jobs - 1}%{at_once}", "--output", f"{folder}/%a.log"]
    words += ["--partition", partition] if partition else []
    words += [] if "SBATCH_TIMELIMIT" in os.environ else ["--time", DAY]
    return [*words, "--wrap", f"exec {job}"]


def wait_for(words: list[str]) -> str:
    """Run sbatch to the end of its jobs; what it complained of. Interrupted, it cancels them."""
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError as e:
        raise UserError(f"--engine slurm: there is no sbatch here; {REMEDY}") from e
    job = process.stdout.readline().strip().split(";")[0]
    try:
        _, complaint = process.communicate()
    except BaseException:
        process.terminate()
        if job:
            subprocess.run(["scancel", job], check=False)
        raise
    return complaint.strip().split("\n")[0]


def work(folder: Path, n: int) -> None:
    """Run task `n` and keep (its value, what it raised)."""
    task = pickle.loads((folder / f"{n}.task").read_bytes())
    try:
        result = task(), None
    except Exception as e:
        result = None, e
    write_atomic(folder / f"{n}.result", pickle.dumps(result))


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(os.environ["SLURM_ARRAY_TASK_ID"]))
