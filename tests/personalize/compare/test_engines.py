"""A fleet computes what one process computes, and survives its workers."""

from functools import partial
from pathlib import Path

import pytest
from fleet_tasks import square, train
from small import config, history, same

from personalize.compare import engines as fleet
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
        ("slurm", "srun"),
    ],
)
def test_an_engine_that_is_not_there_is_named(engine, complaint):
    pytest.importorskip({"dask": "distributed", "slur": "submitit"}.get(engine[:4], "joblib"))
    with pytest.raises(UserError, match=complaint):
        run_all([partial(square, 1)], engine)


def test_slurms_way_through_submitit_as_processes_of_this_machine(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
    monkeypatch.setitem(fleet.ENGINES, "slurm", partial(fleet._slurm, cluster="local"))
    assert run_all([partial(square, n) for n in (2, 3)], "slurm", logs=tmp_path) == [4, 9]


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
