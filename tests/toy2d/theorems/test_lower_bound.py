"""Theorem 1': KL(p* || q) >= kl(p*(D) || q(D)) for every set D (data processing: a bit carries no more than the point)."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import norm

from toy2d.measure import truth_points
from toy2d.quadrature import gauss_hermite
from toy2d.theorems import lower_bound
from toy2d.theorems.estimators import Mass, binary_kl, counted_kl


@pytest.fixture(scope="module")
def laws(course):
    truth = truth_points(course.world, course.world.old, gauss_hermite(6), mixture=True)
    specs = ("standard", "prior:1", "output:1")
    theta = {k: torch.cat([course.run(course.which(s)[0][0])[k] for s in specs]) for k in course.tuned}  # fmt: skip
    return specs, lower_bound.laws_of(course.world, course.net.bind(theta), course.probe.ode, truth)


def rows_of(course, specs, laws):
    regions = [lower_bound.Ball.around(course.shots(0))] * len(specs)
    return lower_bound.lower_bound(course.world, laws, regions, list(specs), [0] * len(specs))


@pytest.mark.parametrize("threshold", [-2.0, 0.0, 1.5, 4.0])
def test_gaussian_pair_obeys_it_for_every_half_space(threshold):
    """N(0, 1) against N(3, 1): KL = 4.5, D = {x > threshold}, everything in closed form."""
    assert binary_kl(norm.sf(threshold), norm.sf(threshold - 3)) <= 4.5


def test_the_best_half_space_of_a_gaussian_pair_gives_most_of_the_kl():
    best = max(binary_kl(norm.sf(x / 10), norm.sf(x / 10 - 3)) for x in range(-30, 60))
    assert 0.5 * 4.5 < best < 4.5


def test_every_run_and_prompt_obeys_it(course, laws):
    rows = rows_of(course, *laws)
    assert len(rows) == 3 * 5 * 2
    assert all(r.holds for r in rows)


def test_it_says_something_about_standard_fine_tuning(course, laws):
    """Not vacuous: with a half-plane as D, the bound on some prompt is a fifth of the KL or more."""
    rows = [r for r in rows_of(course, *laws) if r.condition.startswith("standard") and r.curve["set"] == "a half-plane"]  # fmt: skip
    assert max(r.rhs / r.lhs for r in rows) > 0.2


def test_a_kl_that_is_too_small_is_found_out(course, laws):
    """Negative control: a twentieth of the exact KL breaks the bound."""
    specs, exact = laws
    wrong = [{n: [v[0] / 20, *v[1:]] for n, v in kl.items()} for kl in exact.kl]
    assert any(r.is_bug for r in rows_of(course, specs, replace(exact, kl=wrong)))


def test_the_half_plane_finds_the_shift_of_a_gaussian_pair():
    """N(0, I) against N(3 e_x, I): KL = 4.5; the best half-plane's kl, counted on fresh samples, is that of {x > best} (4 standard errors)."""
    rng = torch.Generator().manual_seed(0)
    p, q, fresh_p, fresh_q = (torch.randn(4000, 2, generator=rng) for _ in range(4))
    shift = torch.tensor([3.0, 0.0])
    plane = lower_bound.HalfPlane.telling_apart(p, q + shift)
    low, error = counted_kl(Mass.count(plane(fresh_p)), Mass.count(plane(fresh_q + shift)))
    at = plane.offset / float(plane.normal[0])
    assert (
        abs(low - binary_kl(norm.sf(at), norm.sf(at - 3))) < 4 * error + 0.05
    )  # its normal is off e_x by a degree
    assert 2 < low < 4.5


def test_points_without_a_mixture_are_refused(course):
    truth = truth_points(course.world, course.world.old, gauss_hermite(4))
    with pytest.raises(ValueError, match="mixture"):
        lower_bound.laws_of(course.world, course.net.bind(course.base(0)), course.probe.ode, truth)


def test_the_ball_holds_the_shots_and_nothing_more_is_needed():
    shots = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    ball = lower_bound.Ball.around(shots)
    assert ball(shots).all()
    assert ball.radius == pytest.approx(math.sqrt(1 + 1 / 9))
