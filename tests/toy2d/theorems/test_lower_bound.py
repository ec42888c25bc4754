"""Theorem 4.3 (Theorem 1'): KL(p* || q) >= kl(p*(D) || q(D)) for every set D."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import norm

from toy2d.kl import truth_points
from toy2d.quadrature import gauss_hermite
from toy2d.theorems import lower_bound
from toy2d.theorems.estimators import Mass, binary_kl, counted_kl


@pytest.fixture(scope="module")
def laws(course):
    truth = truth_points(course.world, course.world.old, gauss_hermite(6), mixture=True)
    specs = ("standard", "prior:1", "output:1")
    thetas = [course.run(course.which(s)[0][0]) for s in specs]
    theta = {k: torch.cat([t[k] for t in thetas]) for k in course.tuned}
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
    """With a half-plane as D, the bound on some prompt is a fifth of the KL or more."""
    rows = [r for r in rows_of(course, *laws) if r.curve["set"] == "a half-plane"]
    assert max(r.rhs / r.lhs for r in rows if r.condition.startswith("standard")) > 0.2


def test_a_kl_that_is_too_small_is_found_out(course, laws):
    """Negative control: a twentieth of the exact KL breaks the bound."""
    specs, exact = laws
    wrong = [{n: [v[0] / 20, *v[1:]] for n, v in kl.items()} for kl in exact.kl]
    assert any(r.is_bug for r in rows_of(course, specs, replace(exact, kl=wrong)))


def test_the_half_plane_finds_the_shift_of_a_gaussian_pair():
    """N(0, I) against N(3 e_x, I), KL = 4.5, counted on fresh samples: kl of {x > best}.

    Within 4 standard errors, and 0.05 nat because the plane's normal is off e_x by a degree.
    """
    rng = torch.Generator().manual_seed(0)
    p, q, fresh_p, fresh_q = (torch.randn(4000, 2, generator=rng) for _ in range(4))
    shift = torch.tensor([3.0, 0.0])
    plane = lower_bound.HalfPlane.telling_apart(p, q + shift)
    low, error = counted_kl(Mass.count(plane(fresh_p)), Mass.count(plane(fresh_q + shift)))
    at = plane.offset / float(plane.normal[0])
    assert abs(low - binary_kl(norm.sf(at), norm.sf(at - 3))) < 4 * error + 0.05
    assert 2 < low < 4.5


@pytest.fixture(scope="module")
def narrow_in_broad():
    """p* = N(0, I) and one run's q = N(0, 9 I) under two prompts: laws whose two KLs differ.

    KL(p* || q) = 2 ln 3 + 1/9 - 1 = 1.308. D = {|x| > 3.7}: p*(D) = exp(-3.7^2 / 2) = 0.0011 and
    q(D) = exp(-3.7^2 / 18) = 0.467, so kl(p*(D) || q(D)) = 0.622, and the wrong way round 2.5.
    """
    rng = torch.Generator().manual_seed(0)
    truth = torch.randn(2, 20_000, 2, generator=rng)
    samples = 3 * torch.randn(1, 2, 4000, 2, generator=rng)
    kl = 2 * math.log(3) + 1 / 9 - 1
    every = {name: [kl, 0.0, 1] for name in ("a", "b", "mixture")}
    laws = lower_bound.SampledLaws([every], samples, truth, [(kl, 0.0)], samples[:, 0])
    world = SimpleNamespace(old=(0, 1), names=("a", "b"))
    far = lower_bound.Ball(torch.zeros(2).double(), 3.7)
    return world, laws, lambda x: ~far(x), kl


def inside(row):
    p, q = math.exp(-(3.7**2) / 2), math.exp(-(3.7**2) / 18)
    return abs(row.rhs - binary_kl(p, q)) < 4.5 * row.rhs_error + 0.002  # counts are shrunk by 1/2n


def test_the_direction_is_truth_against_model(narrow_in_broad):
    """kl(q(D) || p*(D)) is 2.5 nats here, more than KL(p* || q): the wrong way round would fail."""
    world, laws, region, kl = narrow_in_broad
    rows = lower_bound.lower_bound(world, laws, [region], ["run"], [0])
    balls = [r for r in rows if "ball" in r.statement]
    assert len(balls) == 2
    assert all(r.holds and inside(r) for r in balls)
    assert binary_kl(0.467, 0.0011) > 1.5 * kl


def test_the_direction_of_theorem_1_and_of_coverage(narrow_in_broad):
    """What Theorem 4.4 needs is kl(delta || gamma); E of Corollary 5.1 is counted the same way."""
    world, laws, region, _ = narrow_in_broad
    start = replace(laws, kl=[{n: [1.0, 0.0, 1] for n in laws.kl[0]}])
    rows = lower_bound.theorem_1(world, laws, start, [0], [region], ["run"], [0])
    proved = [r for r in rows if r.kind == "proved"]
    # kl(delta || gamma) = 0.62 is below KL(p* || base) = 1: no conclusion, in none of the readings
    assert len(proved) == 4
    assert not any(r.applies for r in proved)
    covered = lower_bound.Ball(torch.zeros(2).double(), 3.7)
    found = lower_bound.coverage(world, laws, [covered], [()], ["run"], [0])
    assert all(r.holds and inside(r) for r in found)


def test_points_without_a_mixture_are_refused(course):
    truth = truth_points(course.world, course.world.old, gauss_hermite(4))
    with pytest.raises(ValueError, match="mixture"):
        lower_bound.laws_of(course.world, course.net.bind(course.base(0)), course.probe.ode, truth)


def test_the_ball_holds_the_shots_and_nothing_more_is_needed():
    shots = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    ball = lower_bound.Ball.around(shots)
    assert ball(shots).all()
    assert ball.radius == pytest.approx(math.sqrt(1 + 1 / 9))
