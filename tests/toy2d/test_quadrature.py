"""The error of a Gauss rule: closed forms, and what two rules that agree by chance would hide."""

import math

import pytest
import torch

from toy2d.quadrature import gauss_hermite


@pytest.mark.parametrize("k", [4, 6, 9])
def test_the_highest_coefficients_are_null_rules(k):
    """0 for every polynomial of degree below k - 2 in both axes; the coefficient itself else."""
    rule = gauss_hermite(k)
    x, y = rule.points.unbind(-1)
    low = (1 + x) ** (k - 3) * (2 - y) ** (k - 3)
    assert (low @ rule.highest.mT).abs().max() < 1e-9 * low.abs().max()
    for n in (k - 1, k - 2):  # He_n has the leading coefficient 1 and the norm sqrt(n!)
        assert (x**n * y @ rule.highest.mT).norm() == pytest.approx(math.factorial(n) ** 0.5)
    assert rule.expect(low)[1] < 1e-9 * rule.expect(low.abs())[0]  # both rules are exact


@pytest.mark.parametrize(("first", "second"), [(0.8, 1.4), (1.0, 1.5), (1.2, 1.6), (0.9, 1.3)])
@pytest.mark.parametrize("shift", [0, 0.5, 1])
@pytest.mark.parametrize("k", [6, 8])
def test_rules_that_agree_by_chance_still_state_an_error(k, shift, first, second):
    """f = cos(a x + s) + c cos(b y + s), c such that the rules of k and k - 2 points agree exactly.

    E cos(a x + s) = exp(-a^2 / 2) cos(s).
    """
    rule = gauss_hermite(k)
    x, y = rule.points.unbind(-1)
    f, g = (first * x + shift).cos(), (second * y + shift).cos()
    apart = [float(v @ (rule.weights[0] - rule.weights[1])) for v in (f, g)]
    c = -apart[0] / apart[1]
    true = math.cos(shift) * (math.exp(-(first**2) / 2) + c * math.exp(-(second**2) / 2))
    mean, error = rule.expect(f + c * g)
    assert abs(float((f + c * g) @ (rule.weights[0] - rule.weights[1]))) < 1e-12
    off = abs(float(mean) - true)
    assert 1e-12 < off < float(error)


def test_a_mixtures_coefficients_are_those_of_the_mean_over_components():
    rule = gauss_hermite(5)
    x, y = rule.points.unbind(-1)
    f = torch.stack([(x + 0.5 * y).exp(), (y - x).sin()])
    both = rule.per_component(2).expect(f.flatten())
    torch.testing.assert_close(both, rule.expect(f.mean(0)))
