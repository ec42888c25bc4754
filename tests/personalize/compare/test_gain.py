"""A comparison whose subject brings held-out pictures measures learning in nats along every run."""

import json

import pytest
from comparisons import config, shop
from photographs import photo

from personalize.compare.frontier import frontier_table, trajectories
from personalize.compare.jobs import plan
from personalize.compare.run import run, show
from toy2d.runs.files import UserError


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gain")
    (held := folder / "held").mkdir()
    for i in range(3):
        photo(80, 64, seed=10 + i).save(held / f"{i}.png")
    subject = f"{shop() / 'photos'}:dog:{held}"
    each = {"max_train_steps": 4, "path_kl_steps": 2, "log_every": 2, "gain_samples": 8}
    each |= {"train": "lora", "learning_rate": 1e-2}
    runs = ("standard", "l2:100")
    return run(config(folder / "c", runs, (0,), each, subjects=(subject,), picture_seeds=0))


def test_learning_and_drift_are_recorded_at_every_measured_step(done):
    metrics = json.loads((done / "metrics.json").read_text())
    for r in metrics["runs"]:
        assert [p["step"] for p in r["curve"]] == [0, 2, 4]
        assert r["curve"][0]["gain"] == 0.0  # the base has learnt nothing beyond itself
        assert r["curve"][-1]["gain"] != 0.0
        assert {"gain_error", "gain/detail", "gain/identity", "binding", "leak"} <= set(
            r["curve"][1]
        )
    found = trajectories(metrics)
    assert [(t.run, t.unit, len(t.step)) for t in found] == [
        ("standard", "photos", 3),
        ("l2:100", "photos", 3),
    ]


def test_another_column_may_be_the_axis(done):
    metrics = json.loads((done / "metrics.json").read_text())
    axis = trajectories(metrics | {"learning": "gain/detail"})[0].learnt
    assert axis == [p["gain/detail"] for p in metrics["runs"][0]["curve"]]


def test_the_terminal_shows_it(done, capsys):
    show(done)
    assert "equal learning" in capsys.readouterr().out
    assert frontier_table(json.loads((done / "metrics.json").read_text())).row_count == 1


def test_a_held_out_picture_that_trains_is_refused_before_anything_trains(tmp_path):
    same = f"{shop() / 'photos'}:dog:{shop() / 'photos'}"
    with pytest.raises(UserError, match="must not be trained on"):
        plan(config(tmp_path / "c", subjects=(same,)))
