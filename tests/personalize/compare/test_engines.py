"""A fleet computes what one process computes, and survives its workers."""

import os
from functools import partial
from pathlib import Path

import pytest
from fleet_tasks import square, train
from small import config, history, same

from personalize.compare.engines import run_all
from toy2d.runs.files import RunFailure, UserError
from toy2d.runs.folder import load_tensors


def weights(path: Path) -> dict:
    return load_tensors(path / "lora" / "pytorch_lora_weights.safetensors")


def test_results_come_in_the_order_of_the_tasks():
    assert run_all([partial(square, n) for n in range(5)]) == [0, 1, 4, 9, 16]


def test_a_local_worker_that_dies_is_replaced(tmp_path):
    said = []
    tasks = [partial(square, n, tmp_path / "died" if n == 1 else None) for n in range(4)]
    assert run_all(tasks, workers=2, say=said.append) == [0, 1, 4, 9]
    assert len(said) == 1
    assert "goes on from its checkpoint" in said[0]


def test_workers_that_always_die_end_in_one_clear_line(tmp_path):
    tasks = [partial(square, n, tmp_path / f"{n}{i}") for n in range(2) for i in range(8)]
    with pytest.raises(RunFailure, match=r"died 3 times.*fewer --workers"):
        run_all(tasks, workers=2, say=lambda text: None)


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [
        ("clouds", "choose local, dask, ray, slurm"),
        ("local:here", "takes no address"),
        ("dask:tcp://127.0.0.1:1", "no scheduler answers"),
        ("slurm", "there is no sbatch here"),
    ],
)
def test_an_engine_that_is_not_there_is_named(engine, complaint, tmp_path, monkeypatch):
    pytest.importorskip("distributed" if engine.startswith("dask") else "joblib")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=complaint):
        run_all([partial(square, 1)], engine, logs=tmp_path)


SBATCH = """#!/usr/bin/env bash
# an array's jobs as processes of this machine, one after another
echo 17
printf '%s\\n' "$@" > "$SAID"
while [ $# -gt 0 ]; do
  case $1 in
    --array) last=${2%\\%*}; last=${last#0-} ;;
    --wrap) wrap=$2 ;;
  esac
  shift
done
for n in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$n bash -c "$wrap"; done
"""


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """A program of that name; returns the file of the words it was called with."""
    file = tmp_path / "bin" / "sbatch"
    file.parent.mkdir()
    file.write_text(SBATCH)
    file.chmod(0o755)
    root = Path(__file__).parents[3]
    monkeypatch.setenv("PATH", str(file.parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", f"{root}{os.pathsep}{Path(__file__).parents[1]}")
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    return tmp_path / "said"


def test_slurm_runs_an_array_and_a_job_that_dies_is_started_again(sbatch, tmp_path):
    """Jobs as `sbatch --wait` starts them; tests/clusters runs the same on slurmctld."""
    said = []
    tasks = [partial(square, n, tmp_path / "died" if n == 3 else None) for n in (2, 3)]
    assert run_all(tasks, "slurm:gpus", 4, said.append, tmp_path / "logs") == [4, 9]
    assert "1 of 2 jobs left no result" in said[0]
    words = sbatch.read_text().split("\n")
    assert words[words.index("--partition") + 1] == "gpus"
    assert words[words.index("--array") + 1] == "0-1%4"
    assert words[words.index("--time") + 1] == "1-00:00:00"


def test_what_a_slurm_job_raises_is_raised_here(sbatch, tmp_path, monkeypatch):
    monkeypatch.setenv("SBATCH_TIMELIMIT", "10")  # the user's own: no flag beside it
    with pytest.raises(TypeError):
        run_all([partial(square, None)], "slurm", logs=tmp_path)
    assert "--time" not in sbatch.read_text()


def test_what_sbatch_refuses_is_said(sbatch, tmp_path):
    Path(tmp_path, "bin/sbatch").write_text("#!/bin/sh\necho invalid partition >&2\nexit 1\n")
    with pytest.raises(UserError, match="--engine slurm: invalid partition; run it on a machine"):
        run_all([partial(square, 1)], "slurm:nowhere", logs=tmp_path)


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as made:
        yield made


@pytest.mark.slow
def test_two_dask_workers_one_killed_mid_run_equal_the_sequential_run(tmp_path, cluster):
    """The killed run resumes on another worker; weights and histories are equal to the bit."""

    def runs(where):
        names = ("standard", "l2")
        return [config(tmp_path / where / n, n, checkpointing_steps=2) for n in names]

    alone, spread = runs("alone"), runs("spread")
    run_all([partial(train, c) for c in alone])
    said = run_all(
        [partial(train, c, tmp_path / "died" if c.objective == "l2" else None) for c in spread],
        f"dask:{cluster.scheduler_address}",
    )
    assert (tmp_path / "died").exists()
    assert any("resumed after step 2" in line for line in said[1])
    assert not any("resumed" in line for line in said[0])
    for a, b in zip(alone, spread, strict=True):
        assert same(weights(Path(a.output_dir)), weights(Path(b.output_dir)))
        assert history(a) == history(b)
