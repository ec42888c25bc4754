"""Proposition 10.1: stopped gradient descent against L2's minimizer, on a quadratic loss."""

import math

import pytest
import torch


@pytest.mark.parametrize("h", [0.01, 0.3, 1.0, 5.0])
def test_what_each_leaves_undone(h):
    """Small gradient steps leave exp(-h tau), L2's minimizer 2 lam / (h + 2 lam).

    The minimizer is found by Newton's method on the loss itself.
    """
    lam, steps = 0.05, 100_000
    tau = 1 / (2 * lam)
    stopped = (1 - h * tau / steps) ** steps
    assert stopped == pytest.approx(math.exp(-h * tau), rel=2 * (h * tau) ** 2 / steps + 1e-9)
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)  # theta_star 0, theta_hat 1
    loss = h / 2 * (theta - 1) ** 2 + lam * theta**2
    (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, theta)
    minimizer = float((-slope / curvature).detach())
    assert 1 - minimizer == pytest.approx(2 * lam / (h + 2 * lam))
    assert stopped <= 1 - minimizer <= stopped + 0.2037


def test_the_largest_gap():
    u = torch.linspace(0, 50, 500_001, dtype=torch.float64)
    gap = 1 / (1 + u) - (-u).exp()
    assert float(gap.max()) == pytest.approx(0.2036, abs=1e-4)
    assert float(u[gap.argmax()]) == pytest.approx(2.513, abs=1e-3)
