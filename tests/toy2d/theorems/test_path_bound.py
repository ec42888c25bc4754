"""Theorem 6.2 of lecture 6: KL(p_star || p_theta) <= path KL, of the ancestral sampler's law.

w_t = beta_t^2 / (2 s_t^2 alpha_t (1 - ab_t)); equality for two equal Gaussians: 18.000.
"""

from dataclasses import replace

import pytest
import torch

from toy2d.core.drift import path_kl
from toy2d.core.rng import generator
from toy2d.core.sample import ancestral
from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon
from toy2d.theorems import path_bound
from toy2d.theorems.ancestral_law import point
from toy2d.theorems.path_bound import base_law, from_a_point, gaussian_laws, gaussian_pair
from toy2d.verify.power import WRONG_WEIGHTS, WrongWeights


def spoil(schedule, wrong):
    change = WRONG_WEIGHTS[wrong]
    return WrongWeights(schedule.alpha_bar, schedule.prediction, schedule.timesteps, change)


def spoiled(pair, wrong):
    """The same pair, measured with wrong path weights."""
    return replace(pair, world=replace(pair.world, schedule=spoil(pair.schedule, wrong)))


def point_at(course, n, cond):
    """All mass on a point of the base's chain at node n under that prompt."""
    return point(course.chain(0)[n, int((course.cond == cond).nonzero()[0])], n)


def test_gaussian_pair_gives_18():
    """s = 0.5, |m1 - m2| = 3: KL = path KL = 18.000 as T grows."""
    rows = gaussian_pair((100, 1000, 4000))
    assert all(r.holds for r in rows)
    assert rows[-1].lhs == pytest.approx(18.000, abs=5e-4)
    kl, path = gaussian_laws(path_bound.near_clean(4000), 0.5, 3.0)
    assert 0 < path - kl < 1e-4


@pytest.mark.parametrize("wrong", ["w_t x 0.98", "w_t x 0.5", "-w_t", "alpha for alpha_bar"])
def test_wrong_weights_break_the_gaussian_pair(wrong):
    """2 % too small breaks both the bound and the limit; a weight too large breaks the limit."""
    rows = gaussian_pair((1000,), schedule=lambda T: spoil(path_bound.near_clean(T), wrong))
    assert any(r.is_bug for r in rows)
    assert all(r.is_bug for r in rows) == (wrong != "alpha for alpha_bar")


def test_path_kl_of_the_exact_eps_is_the_closed_form():
    """`drift.path_kl` on sampled chains of the world's own eps.

    Its variance is zero, for the difference of the two eps does not depend on x.
    """
    schedule = Schedule.log_snr(200, 14.0, -20.0)
    world = Pentagon(schedule, std=0.5, radius=3.0)
    rng = generator(0, "test")
    x_T = torch.randn(64, 2, generator=rng)
    zero, five = torch.tensor(0), torch.tensor(5)  # a class 3 from the origin, and the origin
    chain = ancestral(world.eps, schedule, x_T, zero, rng, chain=True)

    def other(x_t, t, cond):
        return world.eps(x_t, t, five)

    path, error = path_kl(other, world.eps, schedule, chain, zero)
    assert float(path) == pytest.approx(gaussian_laws(schedule, 0.5, 3.0)[1], rel=1e-4)
    assert float(error) < 1e-4


@pytest.mark.parametrize("spec", ["standard", "l2:0.1", "output:1"])
def test_kl_of_the_ancestral_law_is_below_path_kl(course, pair, spec):
    one = pair(spec)
    for cond in (0, 3):
        row = path_bound.path_bound(one, base_law(one, cond))
        assert row.holds
        assert row.error < 0.01 * row.rhs + 1e-4  # the comparison is decided, not drowned in errors
        assert row.lhs > 0.3 * row.rhs


@pytest.mark.parametrize("wrong", ["w_t x 0.9", "w_t x 0.95", "w_t x 0.98"])
def test_a_weight_that_is_a_little_too_small_is_found_out(course, pair, wrong):
    """Negative control, trained network: from a point the bound is tight and 2 % are seen."""
    one, cond = pair("standard"), 0
    base = base_law(one, cond, point_at(course, 2, cond), density=1.0)
    assert path_bound.path_bound(one, base).holds
    assert path_bound.path_bound(spoiled(one, wrong), base).is_bug


def test_the_whole_chain_finds_a_weight_half_too_small(course, pair):
    """Negative control: what is lost between path and end point hides less than a factor of 2."""
    one = pair("standard")
    base = base_law(one, 0)
    kl = path_bound.law_kl(one, base)
    assert path_bound.path_bound(one, base, kl).holds
    assert path_bound.path_bound(spoiled(one, "w_t x 0.5"), base, kl).is_bug


@pytest.mark.parametrize("wrong", list(WRONG_WEIGHTS))
def test_one_step_from_a_point_is_an_equality_and_finds_every_wrong_weight(course, pair, wrong):
    one, cond = pair("standard"), 2
    chain = course.chain(0)[:, int((course.cond == cond).nonzero()[0])]
    assert all(r.holds for r in from_a_point(one, chain, cond))
    assert any(r.is_bug for r in from_a_point(spoiled(one, wrong), chain, cond))


def test_sampled_chains_give_the_grids_path_kl(course, pair):
    one = pair("standard")
    chain, cond = path_bound.star_chain(one)
    row = path_bound.sampled(one, base_law(one, 4), chain, cond)
    assert row.holds
    assert row.error < 0.05 * row.rhs


def test_chains_of_the_tuned_model_are_found_out(course, pair):
    """Negative control: expectation over the wrong model's chains (KL in the other direction)."""
    one = pair("standard")
    other = replace(one, theta_star=one.theta, theta=one.theta_star)
    chain, cond = path_bound.star_chain(other)
    assert path_bound.sampled(one, base_law(one, 0), chain, cond).is_bug
