"""The sweep: every cell an ordinary run, one base a width, preservation compared at equal
adaptation.
"""

import json
from dataclasses import replace

import pytest

from toy2d import config
from toy2d.__main__ import main
from toy2d.config import Sweep, smoke
from toy2d.runs.files import UserError, read_csv
from toy2d.sweep import equal_adaptation, summarize, sweep
from toy2d.sweep import run as run_cell

PLAN = Sweep(
    name="s",
    runs=("standard", "l2:0.1", "l2_decoupled:10"),
    seeds=(0, 1),
    learning_rates=(1e-3,),
    steps=(4, 8),
    widths=(16,),
    levels=(0.001, 9.0),
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Cells on the smoke preset's small settings instead of the course's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "course", lambda: replace(smoke(), pretrain_steps=40))
        out = tmp_path_factory.mktemp("sweep")
        return sweep(PLAN, out, say=lambda s: None)


def test_every_setting_has_a_row_with_its_band(done):
    rows = read_csv(done / "sweep.csv")
    assert len(rows) == 3 * 2
    assert {r["steps"] for r in rows} == {4.0, 8.0}
    assert all(r["old_base_low"] <= r["old_base"] <= r["old_base_high"] for r in rows)
    assert (done / "sweep.png").stat().st_size > 10_000


def test_cells_of_one_width_share_their_base(done):
    bases = {(p / "base.safetensors").read_bytes() for p in done.parent.glob("s-*")}
    assert len(bases) == 1


def test_the_shared_base_is_the_one_that_the_cell_would_make(done, tmp_path):
    cell = json.loads((done.parent / "s-lr0.001-steps8-width16" / "config.json").read_text())
    cell |= {k: tuple(v) for k, v in cell.items() if isinstance(v, list)}
    alone = run_cell(config.ToyConfig(**cell), tmp_path, say=lambda s: None)
    assert (alone / "base.safetensors").read_bytes() == (
        done.parent / "s-lr0.001-steps8-width16" / "base.safetensors"
    ).read_bytes()


def test_levels_that_nothing_reached_say_so(done):
    best = json.loads((done / "sweep.json").read_text())["best"]
    assert all(b["best"] is None for b in best if b["level"] == 0.001)
    assert all(b["best"] is not None for b in best if b["level"] == 9.0)


def test_equal_adaptation_takes_the_least_drift_that_learnt_enough():
    def row(weight, new, old):
        return {"objective": "l2", "weight": weight, "kl_new": new, "old_base": old}

    rows = [row(1, 0.2, 3.0), row(2, 0.4, 1.0), row(3, 0.9, 0.1)]
    weights = [b["best"]["weight"] for b in equal_adaptation(rows, (0.3, 0.5, 1.0))]
    assert weights == [1, 2, 3]


def test_a_diverged_setting_has_no_mean_and_never_wins():
    record = {
        "run": "l2:1",
        "objective": "l2",
        "weight": 1.0,
        "learning_rate": 1.0,
        "steps": 1,
        "width": 1,
        "kl_new": None,
        "kl_base": None,
        "kl_truth": None,
        "path_kl": None,
        "delta_theta": None,
    }
    summary = summarize([record])
    assert summary[0]["kl_new"] != summary[0]["kl_new"]
    assert equal_adaptation(summary, (10.0,))[0]["best"] is None


def test_dry_run_and_empty_lists(capsys, tmp_path):
    assert main(["sweep", "--dry-run", "--out", str(tmp_path)]) == 0
    assert "4 cells of 84 fine-tunings" in capsys.readouterr().out
    with pytest.raises(UserError, match="at least one value"):
        replace(PLAN, steps=()).cells()
