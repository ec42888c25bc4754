"""Ray and SLURM, each as a real cluster of this one machine: runs whose worker is killed half-way
end as those of one process do, weights and rows to the bit.

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
from functools import partial
from pathlib import Path

import fleet_tasks
import pytest
from small import config, history, same

from personalize.compare.engines import run_all
from toy2d.runs.files import read_csv, read_record
from toy2d.runs.folder import load_tensors

HERE = Path(__file__).parent
QUICK = [sys.executable, "-m", "personalize", "compare", "--quick"]
PATHS = os.pathsep.join(map(str, (HERE.parents[1], HERE.parent, HERE.parent / "personalize")))


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch):
    """Its name as an engine, while the cluster runs."""
    if os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "sbatch", "munged"))):
        pytest.skip("no SLURM here, or not root")
    folder = tmp_path_factory.mktemp("slurm")
    monkeypatch.setenv("PYTHONPATH", PATHS)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    subprocess.run([HERE / "slurm.sh", "start", folder], check=True, timeout=120)
    yield "slurm:here"
    subprocess.run([HERE / "slurm.sh", "stop", folder], check=True, timeout=60)


@pytest.fixture
def ray(monkeypatch):
    """Its name as an engine, while the cluster runs."""
    pytest.importorskip("ray")
    folder = Path("/tmp/driftlab-ray")  # Ray's sockets need a short path
    monkeypatch.setenv("PYTHONPATH", PATHS)
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    subprocess.run([HERE / "ray.sh", "start", folder], check=True, timeout=300)
    yield "ray:auto"
    subprocess.run([HERE / "ray.sh", "stop", folder], check=False, timeout=120)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["slurm", "ray"])
def test_runs_whose_worker_is_killed_end_as_those_of_one_process(cluster, tmp_path, request):
    engine = request.getfixturevalue(cluster)

    def runs(where):
        names = ("standard", "l2")
        return [config(tmp_path / where / n, n, checkpointing_steps=2) for n in names]

    alone, spread = runs("alone"), runs("spread")
    run_all([partial(fleet_tasks.train, c) for c in alone])
    died = tmp_path / "died"
    tasks = [partial(fleet_tasks.train, c, died if c.objective == "l2" else None) for c in spread]
    said = run_all(tasks, engine, workers=2, logs=tmp_path / "logs")
    assert died.exists()
    assert any("resumed after step 2" in line for line in said[1])
    for a, b in zip(alone, spread, strict=True):
        file = "lora/pytorch_lora_weights.safetensors"
        weights = [load_tensors(Path(c.output_dir, file)) for c in (a, b)]
        assert same(*weights)
        assert history(a) == history(b)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """`compare --quick` in one process: nine runs of the mini, three minutes."""
    folder = tmp_path_factory.mktemp("alone") / "mini"
    subprocess.run([*QUICK, "--workers", "1", "--output_dir", folder], check=True)
    return numbers(folder)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["slurm", "ray"])
def test_compare_quick_whose_worker_is_killed_is_that_of_one_process(
    cluster, tmp_path, request, alone
):
    engine, folder = request.getfixturevalue(cluster), tmp_path / "mini"
    command = [*QUICK, "--engine", engine, "--workers", "2", "--output_dir", folder]
    with subprocess.Popen(command) as comparison:
        kill_a_worker(Path(f"{folder}-quick", "runs"))
        assert comparison.wait() == 0
    assert numbers(folder) == alone


def kill_a_worker(runs: Path) -> None:
    """Wait for a run with a checkpoint, and kill its process."""
    while True:
        for checkpoint in runs.glob("*/*/*/train/checkpoints/*"):
            record = read_record(checkpoint.parents[1] / "status.json")
            if record["status"] == "running" and record["pid"] != os.getpid():
                return os.kill(record["pid"], signal.SIGKILL)
        time.sleep(0.05)


def numbers(folder: Path) -> dict:
    """Every number of a comparison but its seconds: records, and each run's rows."""
    place = Path(f"{folder}-quick")
    records = json.loads((place / "metrics.json").read_text())["runs"]
    rows = {}
    for record in records:
        rows[record["folder"]] = read_csv(place / record["folder"] / "train" / "history.csv")
        del record["seconds"], record["total_seconds"]
        for row in rows[record["folder"]]:
            del row["seconds"]
    return {"records": records, "rows": rows}


@pytest.mark.slow
def test_what_a_task_raises_on_ray_is_raised_here(ray):
    with pytest.raises(TypeError):
        run_all([partial(fleet_tasks.square, None)], ray)
