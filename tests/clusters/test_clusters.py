"""Ray and SLURM, each as a real cluster of this one machine: a comparison whose worker is killed
gives the same records.

Slow. A cluster that is not installed is skipped: `pip install ray`, or Debian's slurmctld, slurmd,
slurm-client and munge (as root).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPARE = (
    *("compare", "--quick", "--runs", "standard", "prior:0.1", "--max_train_steps", "24"),
    *("--checkpointing_steps", "4", "--inference_steps", "4", "--prompts_each", "1"),
)
TIMINGS = {"seconds", "class_seconds", "total_seconds", "peak_memory", "folder", "engine"}


def personalize(out: Path, *more: str, **environment: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "personalize", *COMPARE, "--output_dir", str(out), *more]
    return subprocess.Popen(
        words,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said[-3000:]
    return said


def without_timings(value):
    """The records without what depends on the clock, the machine or the folder."""
    if isinstance(value, dict):
        return {
            k: without_timings(v)
            for k, v in value.items()
            if k not in TIMINGS and "seconds" not in k
        }
    return [without_timings(v) for v in value] if isinstance(value, list) else value


def records(out: Path) -> list:
    metrics = json.loads(Path(f"{out}-quick", "metrics.json").read_text())
    return without_timings(metrics["runs"])


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "compare"
    finished(personalize(out, "--workers", "1"))
    return records(out)


def kill_a_worker(out: Path, words: str, deadline: float = 600.0) -> None:
    """kill -9 on the process that trains, once a run has saved its first checkpoint."""
    until = time.monotonic() + deadline
    while time.monotonic() < until:
        if list(Path(f"{out}-quick").glob("runs/*/*/*/train/checkpoints/step-*/manifest.json")):
            status = next(Path(f"{out}-quick").glob("runs/*/*/*/train/status.json"))
            pid = json.loads(status.read_text())["pid"]
            os.kill(pid, signal.SIGKILL)
            return
        time.sleep(0.05)
    pytest.fail(f"no run saved a checkpoint within {deadline:.0f} s; looked for {words}")


@pytest.fixture
def slurm(tmp_path_factory):
    if os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "srun", "munged"))):
        pytest.skip("no SLURM here, or not root")
    folder = tmp_path_factory.mktemp("slurm")
    subprocess.run([HERE / "slurm.sh", "start", folder], check=True, timeout=120)
    yield {"SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run([HERE / "slurm.sh", "stop", folder], check=True, timeout=60)


@pytest.fixture
def ray():
    pytest.importorskip("ray")
    folder = Path("/tmp/driftlab-ray")  # Ray's sockets need a short path
    environment = os.environ | {"PYTHON": sys.executable}
    subprocess.run([HERE / "ray.sh", "start", folder], check=True, timeout=120, env=environment)
    yield {"RAY_TMPDIR": str(folder)}
    subprocess.run([HERE / "ray.sh", "stop", folder], check=False, timeout=60, env=environment)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_comparison_on_slurm_whose_worker_is_killed(slurm, of_one_process, tmp_path):
    out = tmp_path / "compare"
    process = personalize(out, "--engine", "slurm:here", **slurm)
    kill_a_worker(out, "a SLURM job")
    assert "goes on from its checkpoint" in finished(process)
    assert records(out) == of_one_process


@pytest.mark.slow
def test_a_comparison_on_ray_whose_worker_is_killed(ray, of_one_process, tmp_path):
    out = tmp_path / "compare"
    process = personalize(out, "--engine", "ray:auto", **ray)
    kill_a_worker(out, "a Ray task")
    finished(process)  # Ray itself asks another worker for a task whose worker died
    assert records(out) == of_one_process
