"""The GPU table on a CPU at a small width: its cells, and that a cut loses only one of them."""

import json

import pytest

from personalize.cost import gpu_table
from personalize.cost.gpu_table import Cell, GpuPlan, cells, main


def test_every_objective_is_in_the_table_and_variants_once():
    plan = GpuPlan()
    made = list(cells(plan))
    assert len(made) == len(set(made)) == 3 * 2 * (2 * (5 + 3) + 1)
    assert made[:5] == [Cell("sd15", "bf16", "lora", o) for o in plan.objectives]
    others = [c for c in made if c.variant not in ("plain", "class images")]
    assert {c.objective for c in others} == {"standard"}


def test_a_cut_loses_one_cell(tmp_path, monkeypatch):
    """Killed in the third cell with its line half written: the same command measures it again."""
    asked = []

    def measure(plan, cell):
        asked.append(cell)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return {"seconds": float(len(asked))}

    monkeypatch.setattr(gpu_table, "measured", measure)
    plan = GpuPlan(str(tmp_path / "gpu.jsonl"), ("sd15",), ("no",), ("lora",), variants=("plain",))
    with pytest.raises(KeyboardInterrupt):
        main(plan)
    with open(plan.out, "a") as file:
        file.write('{"cell": {"fam')
    records = main(plan)
    assert [r["cell"]["objective"] for r in records] == list(plan.objectives)
    assert asked[3] == asked[2]
    assert main(plan) == records
    assert len(asked) == 6


def test_no_cell_is_begun_after_the_time_is_up(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_table, "measured", lambda plan, cell: {"seconds": 1.0})
    assert main(GpuPlan(str(tmp_path / "gpu.jsonl"), minutes=-1.0)) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_it_measures_at_width_32_on_a_cpu(tmp_path, family):
    small = {"width": 32, "resolution": 64, "steps": 1, "objectives": ("standard", "output")}
    out = str(tmp_path / "gpu.jsonl")
    variants = ("plain", "usual", "class images")
    plan = GpuPlan(out, (family,), ("no",), ("lora",), variants=variants, **small)
    records = main(plan)
    *steps, pictures = records
    assert all(r["seconds"] > 0 and r["stays_bytes"] > 0 for r in steps)
    assert pictures["images_per_second"] > 0
    assert json.loads((tmp_path / "gpu.jsonl").read_text().splitlines()[0]) == records[0]
