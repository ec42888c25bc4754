"""Theorem 1 of the paper: KL(p* || p_base) < KL(p* || p_tuned). A theorem where KL(p* || base) < kl(delta || gamma), delta = p*(D),
gamma = p_tuned(D), D around the instance points; a claim elsewhere."""

import pytest
import torch

from toy2d.measure import truth_points
from toy2d.quadrature import gauss_hermite
from toy2d.theorems import lower_bound


@pytest.fixture(scope="module")
def rows(course):
    truth = truth_points(course.world, course.world.old, gauss_hermite(6), mixture=True)
    specs = ["standard", "output:1"]
    theta = {k: torch.cat([course.run(course.which(s)[0][0])[k] for s in specs]) for k in course.tuned}  # fmt: skip
    laws, base = (lower_bound.laws_of(course.world, course.net.bind(p), course.probe.ode, truth) for p in (theta, course.base(0)))  # fmt: skip
    regions = [lower_bound.Ball.around(course.shots(0))] * 2
    return lower_bound.theorem_1(course.world, laws, base, [0, 0], regions, specs, [0, 0])


def test_where_the_condition_is_met_the_conclusion_holds(rows):
    proved = [r for r in rows if r.kind == "proved" and r.applies]
    assert proved
    assert all(r.holds for r in proved)


def test_the_law_that_training_fits_meets_the_condition(rows):
    """The unconditional reading: p_tuned(. | new prompt) against the mixture of the old prompts."""
    row = next(
        r for r in rows if r.kind == "proved" and r.condition == "standard; target prompt's law"
    )
    assert row.applies
    assert row.rhs > 1


def test_where_it_is_not_met_the_row_says_why_instead_of_passing(rows):
    missing = [r for r in rows if r.kind == "proved" and not r.applies]
    assert missing
    assert all(r.holds is None and "condition is not met" in r.note for r in missing)


def test_without_the_condition_it_is_a_claim_that_may_fail(rows):
    """Every reading has a claim row; base-output preservation drifts so little that a claim there decides nothing about the theory."""
    claims = [r for r in rows if r.kind == "claim of the paper"]
    assert len(claims) == 2 * 7
    assert not any(r.is_bug for r in rows)
