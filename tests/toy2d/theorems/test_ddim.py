"""Exact law of DDIM (eta = 0): log p(x_{t-1}) = log p(x_t) - log |det(a_t I + b_t d eps / dx)|."""

import math

import pytest
import torch

from toy2d.core.likelihood import ddim_log_prob, log_prob
from toy2d.core.sample import ddim
from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon


@pytest.fixture(scope="module")
def world():
    return Pentagon(Schedule.log_snr(60, 5.0, -15.0))


def test_one_gaussian_in_closed_form(world):
    """eps is linear, so DDIM is a linear map, known by where it sends 0 and a unit vector."""
    cond = torch.tensor(2)
    start = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).double()
    zero, one = ddim(world.eps, world.schedule, start, cond)
    scale = float((one - zero).norm())
    x = zero + scale * torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    closed = -((x - zero) ** 2).sum(-1) / (2 * scale**2) - math.log(2 * math.pi * scale**2)
    torch.testing.assert_close(ddim_log_prob(world.eps, world.schedule, x, cond), closed)


def test_a_linear_map_that_turns_and_shears(world):
    """eps = M x for any matrix: x_0 = L x_T, so the law is N(0, L L')."""
    M = torch.tensor([[0.5, 0.3], [-0.2, 0.4]], dtype=torch.float64)

    def eps(x, steps, cond):
        return x @ M.T

    L = ddim(eps, world.schedule, torch.eye(2, dtype=torch.float64), None).T
    law = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), L @ L.T)
    x = law.sample((20,))
    torch.testing.assert_close(ddim_log_prob(eps, world.schedule, x, None), law.log_prob(x))


def test_a_network_s_ddim_law_integrates_to_1(course):
    """Grid of spacing 0.15 over [-6, 6]^2, one member of a stack of one, float32."""
    axis = torch.arange(-6, 6, 0.15)
    x = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(1, -1, 2)
    predict = course.net.bind(course.base(0))
    log_p = ddim_log_prob(predict, course.schedule, x, torch.tensor(0), runs=1)
    assert float(log_p.double().exp().sum() * 0.15**2) == pytest.approx(1, abs=5e-3)


def test_it_tends_to_the_flow_s_law_as_steps_shrink(course):
    """Euler's method: the gap to the ODE's law halves with the step (order 1)."""
    gaps = []
    for T in (30, 60, 120):
        world = Pentagon(Schedule.log_snr(T, 5.0, -15.0))
        x = world.sample(0, 12, torch.Generator().manual_seed(0), t=0).double()
        cond = torch.tensor(0)
        args = (world.eps, world.schedule, x, cond)
        gap = ddim_log_prob(*args) - log_prob(*args)
        gaps.append(float(gap.abs().mean()))
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.4)
    assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.25)


def test_a_step_that_newton_does_not_invert_is_said(world):
    """One iteration is too few for eps that is no straight line."""
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    with pytest.raises(ValueError, match="step 1 cannot be inverted"):
        ddim_log_prob(lambda x, t, c: x.sin(), world.schedule, x, None, iterations=1)


def test_a_sampler_that_folds_the_plane_is_refused(world):
    """eps with slope c makes det(a I + b c I) negative for large negative b c."""
    steep, x = torch.tensor([60.0, 1.0]).double(), torch.randn(5, 2).double()
    with pytest.raises(ValueError, match="not positive"):
        ddim_log_prob(lambda x, t, c: x * steep, world.schedule, x, None)
