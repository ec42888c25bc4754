"""Dual ascent on measured drift: how the weight answers, and what is said of the outcome."""

import itertools
import math
import re

import pytest
import torch

from toy2d.runs.target import LEAST, MOST, DriftTarget, in_words, wrong_target


def settled(weight: float, strength: float = 1.0) -> float:
    """Path KL of a quadratic loss under L2, trained to its minimum: 10 (a / (a + w))^2 nats."""
    return 10 * (strength / (strength + weight)) ** 2


@pytest.mark.parametrize("start", [1e-3, 0.05, 1.0, 100.0])
@pytest.mark.parametrize("nats", [0.01, 0.5, 5.0])
def test_on_a_quadratic_it_comes_from_one_side_and_arrives(start, nats):
    """Never past the target, at every measurement nearer, and within 2 % after 60."""
    target, weight = DriftTarget(nats, start), start
    gaps = []
    for _ in range(60):
        gaps.append(math.log(settled(weight) / nats))
        weight = float(target.next_weight(weight, settled(weight)))
    assert all(a * b >= -1e-12 for a, b in itertools.pairwise(gaps))
    assert all(abs(b) <= abs(a) + 1e-12 for a, b in itertools.pairwise(gaps))
    assert abs(gaps[-1]) < 0.02 or weight == pytest.approx(LEAST * start)


def test_twice_the_rate_would_overshoot():
    """Why the rate is 1/2: path KL may answer with the power -2, and then 1 jumps to the other
    side of the target."""
    nats, weight = 0.01, 100.0
    ratio = settled(weight) / nats
    half = float(DriftTarget(nats, 1.0).next_weight(weight, settled(weight)))
    assert (math.log(ratio) > 0) == (math.log(settled(half) / nats) > 0)
    assert (math.log(ratio) > 0) != (math.log(settled(weight * ratio) / nats) > 0)


def test_the_weight_is_bounded_and_falls_more_slowly_than_it_rises():
    target, weight = DriftTarget(1.0, 2.0), 2.0
    assert target.next_weight(weight, 1e-9) == pytest.approx(2 * math.exp(-0.1))
    assert target.next_weight(weight, 1e9) == pytest.approx(2 * math.exp(2.0))
    for drift, bound in ((1e9, MOST), (0.0, LEAST)):
        for _ in range(300):
            weight = float(target.next_weight(weight, drift))
        assert weight == pytest.approx(2 * bound)


def test_a_stack_moves_as_its_members_and_a_missing_measurement_moves_nothing():
    start, drift = torch.tensor([0.1, 1.0, 10.0]), torch.tensor([3.0, math.nan, 0.5])
    moved = DriftTarget(1.0, start).next_weight(start, drift)
    for w, d, m in zip(start, drift, moved, strict=True):
        assert m == DriftTarget(1.0, float(w)).next_weight(float(w), float(d))
    assert moved[1] == 1.0


@pytest.mark.parametrize(
    ("reached", "verdict", "said"),
    [
        (20.6, "kept", "20.6 .* for at most 20 nats, 3% .* above; weight 7: the target was kept"),
        (40.0, "exceeded", "100% .* above; .* the target was not reached: measure path KL more"),
        (21.8, "kept", "the target was kept"),
        (22.5, "undecided", "the error is too large to say"),
        (3.0, "not needed", "85% .* below; .* drifted less than it was allowed to"),
    ],
)
def test_the_sentence_says_what_was_reached(reached, verdict, said):
    summary = DriftTarget(20.0, 1.0).summary(reached, 0.8, 7.0)
    assert summary["verdict"] == verdict
    assert summary["overshoot"] == pytest.approx(reached / 20 - 1)
    assert re.search(said, in_words(summary))


@pytest.mark.parametrize("number", [0.0, -1.0, math.nan, math.inf])
def test_a_target_is_a_positive_number(number):
    assert "must be a number of nats above 0" in wrong_target(number)
    assert wrong_target(20.0) is None
