"""The notebooks' calls: the same numbers as the run's own records and the theorems' functions."""

import pytest
import torch

from toy2d.runs.statistics import old_kl
from toy2d.verify.lab import Lab


@pytest.fixture(scope="module")
def lab(folder):
    return Lab(folder, (0,))


@pytest.fixture(scope="module")
def models(lab):
    return lab.models("standard", "replay_all:1")


def test_path_kl_is_the_recorded_one_and_the_sum_of_its_terms(lab):
    model = lab.model("standard", seed=0)
    mean, error = model.path_kl
    assert mean == pytest.approx(model.record["path_kl"][0], rel=1e-4)
    assert 0 < error < mean
    terms = lab.path_kl_terms(model.theta, seed=0)
    assert terms[0] == 0
    assert float(terms.sum()) == pytest.approx(mean, rel=1e-4)


def test_drift_is_the_records_mean_over_old_classes(lab):
    record = lab.model("l2:0.1", seed=0).record
    assert lab.drift("l2:0.1") == {0: old_kl(record, "kl_base")}


def test_the_new_class_kl_is_the_recorded_one(lab):
    """The fixture's lab has 20 points of the new class, the run had 100: they differ by 0.12 %."""
    model = lab.model("standard", seed=0)
    assert lab.new_class_kl(model.theta) == pytest.approx(model.record["kl_new"][0], rel=5e-3)


def test_a_model_has_gained_on_new_points_and_its_base_has_not(lab):
    points = lab.world.sample(lab.world.new, 100, torch.Generator().manual_seed(0))
    mean, error = lab.gain_of(lab.model("standard", seed=0).theta, 0, points)
    assert mean > 4 * error
    assert lab.gain_of(lab.base(0), 0, points) == (0, 0)


def test_towards_begins_at_the_base_and_ends_at_the_model(lab):
    model = lab.model("standard", seed=0)
    for share, end in ((0.0, model.theta_star), (1.0, model.theta)):
        there = model.towards(share)
        assert all(torch.allclose(there[k], end[k], atol=1e-6) for k in end)


def test_the_new_row_alone_goes_far_and_does_not_drift(lab):
    theta = lab.train_new_row(0)
    assert lab.distance(theta, 0) > 0.1
    assert lab.path_kl_of(theta, 0) == (0, 0)


def test_theorems_hold_for_every_model(models):
    assert all(row.holds for row in models.lower_bound())
    assert all(row.holds for row in models.coverage())
    assert all(row.holds for row in models.theorem_1() if row.kind == "proved" and row.applies)


def test_coverage_reads_what_is_replayed_from_the_runs_name(models):
    assert [r.curve["replayed"] for r in models.coverage()] == [0, 0, 5, 5]


def test_the_half_plane_is_a_lower_bound(models):
    case = models.half_plane("standard", seed=0, prompt=2)
    assert 0 < case.bound < case.kl
    rows = [r for r in models.lower_bound() if r.curve["set"] == "a half-plane"]
    (row,) = [r for r in rows if r.curve["run"] == "standard" and r.curve["prompt"] == "class 2"]
    assert case.bound == pytest.approx(row.rhs)


def test_a_run_that_is_not_there_is_named(lab):
    with pytest.raises(ValueError, match="'l2:7' of seed 0"):
        lab.model("l2:7", seed=0)
