"""Theorem 4.4: KL(p* || base) < KL(p* || tuned) where KL(p* || base) < kl(delta || gamma).

delta = p*(D), gamma = p_tuned(D), D around the instance points. Elsewhere it is a claim (Theorem 1
of the paper).
"""

import pytest
import torch

from toy2d.kl import truth_points
from toy2d.quadrature import gauss_hermite
from toy2d.theorems import lower_bound


@pytest.fixture(scope="module")
def rows(course):
    truth = truth_points(course.world, course.world.old, gauss_hermite(6), mixture=True)
    specs = ["standard", "output:1"]
    thetas = [course.run(course.which(s)[0][0]) for s in specs]
    theta = {k: torch.cat([t[k] for t in thetas]) for k in course.tuned}
    laws, base = (
        lower_bound.laws_of(course.world, course.net.bind(p), course.probe.ode, truth)
        for p in (theta, course.base(0))
    )
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
    """Every reading has a claim row, and a claim that fails is no bug."""
    claims = [r for r in rows if r.kind == "claim of the paper"]
    assert len(claims) == 2 * 7
    assert not any(r.is_bug for r in rows)
