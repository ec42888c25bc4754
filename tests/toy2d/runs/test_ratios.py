"""Ratios and their verdicts: an interval that contains 1 decides nothing."""

import math

import pytest

from toy2d.runs.sentences import Scale, distance_sentence, drift_ratio
from toy2d.runs.statistics import Estimate, Ratio, estimate, ratio


@pytest.mark.parametrize(
    ("mean", "half", "verdict"),
    [
        (-0.3, 0.2, "supported"),  # 0.61 to 0.90
        (-0.3, 0.4, "undecided"),  # 0.50 to 1.11: it contains 1
        (0.3, 0.4, "undecided"),
        (0.3, 0.2, "contradicted"),
        (-0.3, math.nan, "undecided"),  # one run
        (math.nan, math.nan, "unknown"),
    ],
)
def test_a_verdict_needs_an_interval_that_excludes_1(mean, half, verdict):
    assert Ratio(Estimate(mean, half, 3)).verdict == verdict


def test_an_interval_is_students_with_the_sample_standard_deviation():
    """t(0.975, 2) = 4.303 and the standard deviation of (1, 2, 6) is the root of 7."""
    mean, half, n = estimate([1.0, 2.0, 6.0, None, math.nan])
    assert (mean, n) == (3.0, 3)
    assert half == pytest.approx(4.3027 * (7 / 3) ** 0.5, rel=1e-4)


def test_a_ratio_is_geometric_and_leaves_out_what_has_no_logarithm():
    found = Ratio.of([0.1, 10.0, 0.0, None, -1.0])
    assert found.log.n == 2
    assert found.log.mean == pytest.approx(0.0)


def record(objective: str, seed: int, **numbers) -> dict:
    run = objective if objective == "standard" else f"{objective}:1"
    return {"run": run, "objective": objective, "weight": 1.0, "seed": seed, "new": 0.1} | numbers


def scale(lost: dict, theta: dict) -> Scale:
    """Two seeds; drift and distance by objective, doubled on seed 1."""
    records = [
        record(o, seed, lost=v * (1 + seed), delta_theta=theta[o])
        for o, v in lost.items()
        for seed in (0, 1)
    ]
    best = {o: [r for r in records if r["objective"] == o] for o in lost}
    return Scale("a scale", records, best, "lost", "new", "nats", [], lambda r, n: math.nan)


def test_a_ratio_is_taken_within_each_seed():
    s = scale({"standard": 2.0, "l2": 1.0}, {"standard": 1.0, "l2": 1.0})
    found = ratio(s.best["l2"], s.best["standard"], lambda r: r["lost"])
    assert math.exp(found.log.mean) == pytest.approx(0.5)
    assert found.log.half == pytest.approx(0.0, abs=1e-12)  # the seeds' factor 2 drops out
    assert drift_ratio(s, "l2", "standard")[0] == "supported"
    assert drift_ratio(s, "standard", "l2")[0] == "contradicted"


def test_who_moved_further_and_drifted_less_is_named():
    """l2 drifts less and moved less; output drifts less and moved further: only it contradicts."""
    lost = {"standard": 2.0, "l2": 1.0, "output": 0.5, "prior": 3.0}
    theta = {"standard": 1.0, "l2": 0.4, "output": 1.5, "prior": 9.0}
    found = distance_sentence(scale(lost, theta))
    assert "1 of 3 settings moved theta further than standard and drifted less" in found
    assert "farthest output:1 (means: 1.5 against 1" in found
