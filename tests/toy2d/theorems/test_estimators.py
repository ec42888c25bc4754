"""kl of two Bernoulli laws: at known numbers, and from counts with the error that it states."""

import math

import pytest
import torch

from toy2d.theorems.estimators import Mass, binary_kl, counted_kl


def test_binary_kl_at_the_numbers_of_the_theory():
    assert binary_kl(0.1, 0.9) == pytest.approx(1.758, abs=5e-4)
    assert binary_kl(0.01, 0.99) == pytest.approx(4.503, abs=5e-4)
    assert binary_kl(0.3, 0.3) == 0
    assert binary_kl(0.0, 0.5) == pytest.approx(math.log(2))
    assert binary_kl(0.1, 0.0) == math.inf


def test_counted_kl_keeps_the_order_of_its_laws():
    """kl(0.1 || 0.6) = 0.551, kl(0.6 || 0.1) = 0.751."""
    assert counted_kl(Mass(0.1), Mass(0.6)) == (pytest.approx(0.5506, abs=1e-4), 0.0)
    assert counted_kl(Mass(0.6), Mass(0.1)) == (pytest.approx(0.7507, abs=1e-4), 0.0)


def test_counted_kl_has_the_spread_that_it_states():
    """The delta method's standard error against the spread of 400 repetitions (known to 3.5 %)."""
    rng = torch.Generator().manual_seed(0)

    def count(n, mass):
        return Mass.count(torch.rand(n, generator=rng) < mass)

    found = [counted_kl(count(2000, 0.1), count(1000, 0.6)) for _ in range(400)]
    values, errors = torch.tensor(found).unbind(1)
    assert abs(values.std() / errors.mean() - 1) < 4 * 0.035
    assert abs(values.mean() - binary_kl(0.1, 0.6)) < 4 * values.std() / 20


def test_counting_refuses_few_samples():
    with pytest.raises(ValueError, match="at least 100"):
        Mass.count(torch.ones(99, dtype=torch.bool))
