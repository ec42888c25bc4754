"""Run many tasks on an engine: on this machine, or on the workers of a cluster.

    local               processes of this machine (joblib's loky); with one worker, this process
    dask:ADDRESS        the workers of a dask scheduler, e.g. dask:tcp://10.0.0.1:8786;
                        start them with --nthreads 1, one for each GPU
    ray:ADDRESS         a ray cluster, e.g. ray:auto
    slurm[:PARTITION]   one job for each task, as a job array (slurm.py)

A task is a picklable call without arguments. It keeps its work in a folder of its own and resumes
from there. So when a worker dies nothing is lost: all tasks are started again, finished ones
return at once, the others resume from their checkpoints. Where tasks run does not change what they
compute. Remote workers must see the same paths.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed, parallel_config

from personalize.compare import slurm
from toy2d.runs.files import RunFailure, UserError

Task = Callable[[], Any]
Submit = Callable[[Sequence[Task]], list]
Connection = tuple[Submit, type[BaseException]]  # and what it raises when a worker dies
ATTEMPTS = 3


def run_all(
    tasks: Sequence[Task],
    engine: str = "local",
    workers: int = 1,
    say=print,
    logs: Path = Path("runs/slurm"),
) -> list:
    """The tasks' results, in order.

    `workers`: local processes, or SLURM jobs at a time; dask and ray know their own number.
    Raises UserError for an engine that is not there, RunFailure when workers died ATTEMPTS times;
    exceptions of a task pass through.
    """
    name, _, address = engine.partition(":")
    if name not in ENGINES:
        raise UserError(f"--engine {engine}: choose {', '.join(ENGINES)}")
    with ENGINES[name](address, workers, logs) as (submit, died):
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return submit(tasks)
            except died as e:
                if attempt == ATTEMPTS:
                    raise RunFailure(
                        f"workers of --engine {engine} died {ATTEMPTS} times ({_first_line(e)}); "
                        "perhaps memory is short: try fewer --workers. "
                        "The same command goes on from the checkpoints"
                    ) from e
                say(f"a worker died ({_first_line(e)}): its run goes on from its checkpoint")
    return []


def _through_joblib(tasks: Sequence[Task]) -> list:
    return Parallel()(delayed(task)() for task in tasks)


def _call(task: Task):
    return task()


def _first_line(e: BaseException) -> str:
    return str(e).strip().split("\n")[0][:120] or type(e).__name__


def _require(module: str, engine: str, package: str):
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise UserError(f"--engine {engine} needs {package}: pip install {package}") from e


# ---- engines
Engine = contextlib.AbstractContextManager[Connection]


@contextlib.contextmanager
def _local(address: str, workers: int, logs: Path) -> Iterator[Connection]:
    if address:
        raise UserError(f"--engine local:{address}: local takes no address")
    with parallel_config("loky", n_jobs=workers):
        yield _through_joblib, BrokenProcessPool


@contextlib.contextmanager
def _dask(address: str, workers: int, logs: Path) -> Iterator[Connection]:
    distributed = _require("distributed", "dask", "distributed")
    try:
        client = distributed.Client(address, timeout="5s")
    except (OSError, ValueError) as e:
        reason = f"no scheduler answers there ({_first_line(e)})"
        raise UserError(f"--engine dask:{address}: {reason}") from e
    with client, parallel_config("dask"):
        yield _through_joblib, distributed.KilledWorker


@contextlib.contextmanager
def _ray(address: str, workers: int, logs: Path) -> Iterator[Connection]:
    ray = _require("ray", "ray", "ray")
    try:
        ray.init(address=address or "auto", log_to_driver=False)
    except ConnectionError as e:
        reason = f"no cluster answers there ({_first_line(e)})"
        raise UserError(f"--engine ray:{address}: {reason}") from e

    def submit(tasks: Sequence[Task]) -> list:
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        call = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=ATTEMPTS - 1)(_call)
        jobs = [call.remote(task) for task in tasks]
        ray.wait(jobs, num_returns=len(jobs))  # all: a second attempt must not meet live runs
        try:
            return ray.get(jobs)
        except ray.exceptions.RayTaskError as e:  # the task itself raised
            raise e.cause from None

    try:
        yield submit, ray.exceptions.WorkerCrashedError
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _slurm(address: str, workers: int, logs: Path) -> Iterator[Connection]:
    def submit(tasks: Sequence[Task]) -> list:
        return slurm.submit(tasks, address, workers, logs)

    yield submit, slurm.JobDied


ENGINES: dict[str, Callable[[str, int, Path], Engine]] = {
    "local": _local,
    "dask": _dask,
    "ray": _ray,
    "slurm": _slurm,
}
