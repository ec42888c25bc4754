"""Ray and SLURM, each as a real cluster of this one machine: runs whose worker is killed half-way
end as those of one process do, weights and rows to the bit.

Slow. A cluster that is not installed is skipped: `pip install ray`, or Debian's slurmctld, slurmd,
slurm-client and munge (as root).
"""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import fleet_tasks
import pytest
from small import config, history, same

from personalize.compare.engines import run_all
from toy2d.runs.folder import load_tensors

HERE = Path(__file__).parent
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


@pytest.mark.slow
def test_what_a_task_raises_on_ray_is_raised_here(ray):
    with pytest.raises(TypeError):
        run_all([partial(fleet_tasks.square, None)], ray)
