"""The worlds answer exactly: density, noise prediction, samples."""

import math

import pytest
import torch
from scipy.stats import kstest

from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.data import WORLDS, Pentagon, draw, world_pool


def grid(lo=-8.0, hi=8.0, n=321):
    axis = torch.linspace(lo, hi, n, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("t", [None, 0, 40])
def test_densities_integrate_to_one(world, t):
    w, (x, area) = world(Schedule.log_snr(100, 5.0, -15.0)), grid()
    for cond in (w.old[0], w.new):
        assert float(w.log_prob(x, cond, t).exp().sum() * area) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_eps_is_minus_the_scaled_score(world):
    """eps = -sqrt(1 - ab_t) grad log p_t   (Tweedie), gradient by autograd."""
    w = world(Schedule.log_snr(100, 5.0, -15.0))
    x = (3 * torch.randn(200, 2, dtype=torch.float64)).requires_grad_()
    for t in (0, 30, 99):
        (score,) = torch.autograd.grad(w.log_prob(x, w.old[-1], t).sum(), x)
        b = (1 - w.schedule.alpha_bar[t]).sqrt()
        torch.testing.assert_close(w.eps(x.detach(), t, w.old[-1]), -b * score)


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@pytest.mark.parametrize("t", [None, 30])
def test_samples_follow_the_density(world, t):
    """-log p at samples has mean the entropy: two estimates of it, by sampling and by integration,
    within 5 standard errors.
    """
    w, (x, area) = world(Schedule.log_snr(100, 5.0, -15.0)), grid()
    log_p = w.log_prob(x, w.new, t)
    entropy = -float((log_p.exp() * log_p).sum() * area)
    values = -w.log_prob(w.sample(w.new, 20_000, generator(0, "data"), t), w.new, t)
    assert abs(float(values.mean()) - entropy) < 5 * float(values.std()) / 20_000**0.5


def test_a_batch_of_prompts_and_steps_equals_one_at_a_time():
    w = Pentagon()
    x, t, cond = torch.randn(6, 2), torch.arange(6) * 15, torch.arange(6)
    batch = w.eps(x, t, cond)
    for i in range(6):
        torch.testing.assert_close(batch[i], w.eps(x[i : i + 1], int(t[i]), int(cond[i]))[0])


def test_the_pentagon_is_the_papers():
    w = Pentagon()
    torch.testing.assert_close(w.means[:5, 0].norm(dim=-1), torch.full((5,), 3.0).double())
    assert (w.means[5] == 0).all()
    assert w.log_prob(torch.zeros(1, 2), w.new)[0] == pytest.approx(-math.log(2 * math.pi * 0.25))
    side = (w.means[0, 0] - w.means[1, 0]).norm()
    assert float(side) == pytest.approx(2 * 3 * math.sin(math.pi / 5))


def test_minibatches_depend_on_seed_and_role_only():
    w = Pentagon()
    pool = world_pool(w, w.old, 50, (3, 4), "data")
    alone = world_pool(w, w.old, 50, (4,), "data")
    assert torch.equal(pool.x0[1], alone.x0[0])
    both = draw(pool, [generator(3, "a"), generator(4, "a")], 8, 100)
    one = draw(alone, [generator(4, "a")], 8, 100)
    assert all(torch.equal(p[1], q[0]) for p, q in zip(both, one, strict=True))
    assert not torch.equal(both.eps[0], both.eps[1])


def test_steps_are_drawn_uniformly():
    pool = world_pool(Pentagon(), (0,), 10, (0,), "data")
    t = draw(pool, [generator(0, "a")], 20_000, 100).t[0].double()
    assert kstest((t + torch.rand(20_000).double()) / 100, "uniform").pvalue > 1e-4
