"""The estimators behind the rows: right on Gaussians, honest about their bias, refusing what they cannot do."""

import math

import pytest
import torch

from toy2d.theorems.estimators import Mass, binary_kl, counted_kl, knn_control, knn_kl


def normal(n, seed, shift=0.0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)) + torch.tensor([shift, 0.0])  # fmt: skip


def test_binary_kl_at_the_numbers_of_the_theory():
    assert binary_kl(0.1, 0.9) == pytest.approx(1.758, abs=5e-4)
    assert binary_kl(0.01, 0.99) == pytest.approx(4.503, abs=5e-4)
    assert binary_kl(0.3, 0.3) == 0
    assert binary_kl(0.0, 0.5) == pytest.approx(math.log(2))
    assert binary_kl(0.1, 0.0) == math.inf


def test_counted_kl_has_the_spread_that_it_states():
    """Standard error by the delta method against the spread of 400 repetitions; their standard deviation is known to 3.5 %."""
    rng = torch.Generator().manual_seed(0)
    found = [counted_kl(Mass.count(torch.rand(2000, generator=rng) < 0.1), Mass.count(torch.rand(1000, generator=rng) < 0.6))
             for _ in range(400)]  # fmt: skip
    values, errors = torch.tensor(found).unbind(1)
    assert abs(values.std() / errors.mean() - 1) < 4 * 0.035
    assert abs(values.mean() - binary_kl(0.1, 0.6)) < 4 * values.std() / 20


@pytest.mark.parametrize("kl", [0.0, 0.1, 1.0])
def test_knn_kl_is_the_gaussian_kl_within_its_control(kl):
    """KL(N(0, I) || N(m, I)) = |m|^2 / 2; the control was drawn with other seeds."""
    value, error = knn_kl(normal(1500, 1), normal(1500, 2, math.sqrt(2 * kl)))
    bias, spread = knn_control(kl, 1500)
    assert abs(value - bias - kl) < 4 * max(error, spread)
    assert abs(bias) < 0.1


def test_knn_kl_underestimates_laws_far_apart_and_the_control_says_so():
    """KL = 18: no sample of q is near p, so the estimate is nats too low: never use it there without its control."""
    value, _ = knn_kl(normal(1500, 1), normal(1500, 2, 6.0))
    assert value < 14
    assert knn_control(18.0, 1500)[0] < -3


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (normal(100, 1), normal(1500, 2), "needs at least"),
        (normal(50, 1).repeat(8, 1), normal(400, 2), "repeated points"),
        (normal(400, 1) * math.nan, normal(400, 2), "not finite"),
    ],
)
def test_knn_kl_refuses(x, y, why):
    with pytest.raises(ValueError, match=why):
        knn_kl(x, y)


def test_counting_refuses_few_samples():
    with pytest.raises(ValueError, match="at least 100"):
        Mass.count(torch.ones(99, dtype=torch.bool))
