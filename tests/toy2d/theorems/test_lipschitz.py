"""Theorem 6.7 of lecture 6b: path KL <= (sum_t w_t L_t^2) ||theta - theta_star||^2."""

import pytest
import torch

from toy2d.core.drift import path_kl
from toy2d.core.schedule import Schedule
from toy2d.theorems import lipschitz
from toy2d.theorems.lipschitz import lipschitz_bound, output_gram, worst_direction


def constant_of(pair, course):
    return lipschitz.lipschitz_constant(
        pair.net, pair.theta_star, pair.theta, pair.schedule, course.chain(0), course.cond
    )


@pytest.mark.parametrize("spec", ["standard", "prior:1", "l2:1", "output:1"])
def test_path_kl_is_below_the_lipschitz_bound(course, pair, spec):
    (row,) = lipschitz_bound(pair(spec), course.chain(0), course.cond)
    assert row.holds
    assert row.curve["constant"] > 0


def test_the_bound_is_tight_along_the_worst_direction_of_a_point(course, pair, monkeypatch):
    """All of it is used; a constant 1 % too small fails."""
    one = pair("standard")
    for n in (1, 20, 39):
        row = worst_direction(one, course.chain(0)[n, 0], n, int(course.cond[0]))
        assert row.holds
        assert row.lhs / row.rhs == pytest.approx(1, abs=1e-5)
    exact = lipschitz.output_gram
    monkeypatch.setattr(lipschitz, "output_gram", lambda *a: 0.99 * exact(*a))
    assert worst_direction(one, course.chain(0)[1, 0], 1, int(course.cond[0])).is_bug


def test_gram_without_a_jacobian_is_the_jacobians(course):
    net, theta = course.net, {k: p.double() for k, p in course.base(0).items()}
    x, t, c = torch.randn(6, 2).double(), torch.arange(6), torch.arange(6) % 5

    def eps(theta, x, t, c):
        return net(theta, x[None, None], t[None, None], c[None, None])[0, 0]

    J = torch.func.vmap(torch.func.jacrev(eps), in_dims=(None, 0, 0, 0))(theta, x, t, c)
    flat = torch.cat([p.flatten(2) for p in J.values()], -1)
    torch.testing.assert_close(output_gram(net, theta, x, t, c), flat @ flat.mT)


def test_infinite_weights_and_single_chains_are_refused(course, pair, monkeypatch):
    one, chain, cond = pair("standard"), course.chain(0), course.cond
    parts = (one.net, one.theta_star, one.theta, one.schedule)
    with pytest.raises(ValueError, match="at least 2 chains"):
        lipschitz.lipschitz_constant(*parts, chain[:, :1], cond[:1])
    infinite = lambda self, variance="beta": self.alpha_bar / 0  # noqa: E731
    monkeypatch.setattr(Schedule, "path_weights", infinite)
    with pytest.raises(ValueError, match="infinite weights"):
        constant_of(one, course)
    with pytest.raises(ValueError, match="infinite weights"):
        path_kl(one.tuned, one.star, one.schedule, chain[:, None], cond, runs=1)
