"""The bench runs, and its memory column shows that no objective holds a second network."""

import json

import pytest
import torch

from personalize.config.commands import Bench
from personalize.cost import measuring
from personalize.cost.speed import bench
from toy2d.runs.files import UserError

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("objective", "kind", "samples"),
    [("standard", "lora", 64), ("fisher", "full", 96), ("prior+l2", "lora", 130)],
)
def test_measurings_share_is_its_samples_over_the_steps(objective, kind, samples):
    """A forward pass of 1 s beside 500 steps of 4 s."""
    assert measuring.share(objective, kind, 4.0, 1.0) == pytest.approx(samples / 2000)


@pytest.mark.slow
def test_bench_on_a_very_small_network(tmp_path):
    out = tmp_path / "bench.json"
    numbers = bench(Bench(width=16, resolution=64, steps=2, out=str(out)))
    assert json.loads(out.read_text())["steps_by_kind"] == numbers["steps_by_kind"]
    full, lora = (numbers["steps_by_kind"][k] for k in ("full", "lora"))
    held = {name: r["held"] for name, r in full.items()}
    base = held["standard"]  # weights, two moments, the parked VAE
    assert abs(held["prior"] - base) < 0.1
    assert abs(held["output"] - base) < 0.1  # the base's answers, not the base
    assert abs(held["l2"] - base - 1) < 0.1  # theta_star
    assert abs(held["fisher"] - base - 2) < 0.1  # theta_star and F
    for name in ("l2", "output", "prior"):
        assert abs(lora[name]["held"] - lora["standard"]["held"]) < 0.1
    assert full["prior"]["ratio"] > 1.4
    assert all(0 < r["drift"] < 0.2 for r in (*full.values(), *lora.values()))
    assert set(numbers["to_a_model"]["full"]) == {*full, "usual prior"}


@pytest.mark.slow
def test_the_dry_run_foretells_the_peak_of_a_run(capsys):
    """Within a fifth. Times depend on what else this machine does and are only printed."""
    numbers = bench(Bench(memory=True, width=32, resolution=128, presets=("paper_sd15_full",)))
    record = numbers["memory"]["paper_sd15_full"]
    assert abs(record["peak"]["error"]) < 0.2
    assert set(record) == {"peak", "step", "seconds"}
    assert "paper_sd15_full" in capsys.readouterr().out


def test_presets_belong_to_the_memory_table():
    with pytest.raises(UserError, match="--presets has no effect without --memory"):
        bench(Bench(presets=("overfit",), parts=(), kinds=()))
