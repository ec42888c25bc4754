"""Theorem 2': for the ancestral sampler, KL(p_star || p_theta) <= path KL = sum_t w_t E ||eps_theta - eps_star||^2
<= (sum_t w_t L_t^2) ||theta - theta_star||^2, w_t = beta_t^2 / (2 s_t^2 alpha_t (1 - ab_t)). Equality for two equal Gaussians: 18.000."""

import pytest
import torch

from toy2d.core.drift import path_kl
from toy2d.core.rng import generator
from toy2d.core.sample import ancestral
from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon
from toy2d.theorems import path_bound
from toy2d.theorems.path_bound import _gaussian_laws, gaussian_pair, lipschitz_constant, output_gram


def test_gaussian_pair_gives_18():
    """s = .5, |m1 - m2| = 3: KL = path KL = 18.000 as T grows."""
    rows = gaussian_pair((100, 1000, 4000))
    assert all(r.holds for r in rows)
    finest = rows[-1]
    assert finest.lhs == pytest.approx(18.000, abs=5e-4)
    kl, path = _gaussian_laws(4000, 0.5, 3.0)
    assert 0 < path - kl < 1e-4


@pytest.mark.parametrize("factor", [0.5, 1.01])
def test_wrong_weights_break_the_equality(factor):
    """Negative control: w_t halved breaks the bound itself, 1 % too large breaks the limit."""
    rows = gaussian_pair((1000,), scale_weights=factor)
    assert any(r.is_bug for r in rows)
    assert all(r.is_bug for r in rows if r.relation == "<=") == (factor < 1)


def test_path_kl_of_the_exact_eps_is_the_closed_form():
    """drift.path_kl on sampled chains of the world's own eps; its variance is zero, for the difference does not depend on x."""
    schedule = Schedule.log_snr(200, 14.0, -20.0)
    world = Pentagon(schedule, std=0.5, radius=3.0)
    rng = generator(0, "test")
    x_T = torch.randn(64, 2, generator=rng)
    zero, five = (
        torch.tensor(0),
        torch.tensor(5),
    )  # a class at distance 3 from the origin, and the origin
    chain = ancestral(world.eps, schedule, x_T, zero, rng, chain=True)

    def other(x_t, t, cond):
        return world.eps(x_t, t, five)

    path, error = path_kl(other, world.eps, schedule, chain, zero)
    assert float(path) == pytest.approx(_gaussian_laws(200, 0.5, 3.0)[1], rel=1e-4)
    assert float(error) < 1e-4


@pytest.mark.parametrize("spec", ["standard", "l2:0.1", "output:1"])
def test_kl_of_the_ancestral_law_is_below_path_kl(course, tuned, spec):
    star, theta = tuned(spec)
    chain, cond = path_bound.star_chain(course.world, course.net, star, 0, n=600)
    rows = path_bound.path_bound(course.world, course.net, star, theta, chain, cond, spec, 0)
    assert len(rows) == 5
    assert all(r.holds for r in rows)


def test_a_bound_that_is_too_small_is_found_out(course, tuned, monkeypatch):
    """Negative control: path KL of a tenth of the weights is below the estimated KL of standard fine-tuning, beyond the errors."""
    star, theta = tuned("standard")
    chain, cond = path_bound.star_chain(course.world, course.net, star, 0, n=600)
    spoiled = Schedule.path_weights
    monkeypatch.setattr(Schedule, "path_weights", lambda self, v="beta": spoiled(self, v) / 10)
    rows = path_bound.path_bound(course.world, course.net, star, theta, chain, cond, "standard", 0)
    assert any(r.is_bug for r in rows)


@pytest.mark.parametrize("spec", ["standard", "prior:1", "l2:1", "output:1"])
def test_path_kl_is_below_the_lipschitz_bound(course, tuned, spec):
    star, theta = tuned(spec)
    (row,) = path_bound.lipschitz_bound(course.world, course.net, star, theta, course.chain(0), course.cond, spec, 0)  # fmt: skip
    assert row.holds
    assert row.curve["constant"] > 0


def test_lipschitz_bound_is_tight_along_the_top_singular_direction(course):
    """On one point, moving along the top right singular vector of J: ||delta eps||^2 = ||J||^2 h^2 (1 + O(h)); any other constant would show."""
    star = {k: p.double() for k, p in course.base(0).items()}
    x, t, c = course.chain(0)[5, :1].double(), torch.tensor([5]), course.cond[:1]
    _, J_t = torch.func.vjp(lambda p: course.net(p, x[None], t[None], c[None])[0, 0], star)
    values, vectors = torch.linalg.eigh(output_gram(course.net, star, x, t, c)[0])
    (top,) = J_t(vectors[:, -1])  # J' u, of length sqrt(value)
    h = 1e-6
    moved = {k: p + h * top[k] / values[-1].sqrt() for k, p in star.items()}
    step = course.net(moved, x[None], t[None], c[None]) - course.net(star, x[None], t[None], c[None])  # fmt: skip
    assert float((step**2).sum() / h**2) == pytest.approx(float(values[-1]), rel=1e-4)


def test_gram_without_a_jacobian_is_the_jacobians(course):
    net, theta = course.net, {k: p.double() for k, p in course.base(0).items()}
    x, t, c = torch.randn(6, 2).double(), torch.arange(6), torch.arange(6) % 5

    def eps(theta, x, t, c):
        return net(theta, x[None, None], t[None, None], c[None, None])[0, 0]

    J = torch.func.vmap(torch.func.jacrev(eps), in_dims=(None, 0, 0, 0))(theta, x, t, c)
    flat = torch.cat([p.flatten(2) for p in J.values()], -1)
    torch.testing.assert_close(output_gram(net, theta, x, t, c), flat @ flat.mT)


def test_infinite_weights_and_single_chains_are_refused(course, tuned, monkeypatch):
    star, theta = tuned("standard")
    chain, cond = course.chain(0), course.cond
    with pytest.raises(ValueError, match="at least 2 chains"):
        lipschitz_constant(course.net, star, theta, course.schedule, chain[:, :1], cond[:1])
    monkeypatch.setattr(Schedule, "path_weights", lambda self, v="beta": self.alpha_bar / 0)
    with pytest.raises(ValueError, match="infinite weights"):
        lipschitz_constant(course.net, star, theta, course.schedule, chain, cond)
    with pytest.raises(ValueError, match="infinite weights"):
        path_kl(course.net.bind(theta), course.net.bind(star), course.schedule, chain[:, None], cond, runs=1)  # fmt: skip
