"""Theorem 2 and Remark 3 as printed (lecture 7): which constants they need, where they fail."""

import pytest

from toy2d.theorems.paper_theorem_2 import Drift, needed, paper_theorem_2


def drift(distance, kl, objective="standard", seed=0):
    return Drift(f"{objective}:1", objective, 1.0, seed, distance, kl)


QUADRATIC = [drift(d, 3 * d**2) for d in (0.01, 0.1, 1.0)]


def test_the_constant_that_a_quadratic_drift_needs():
    """KL = 3 D^2: the quadratic constant is 3 everywhere; the farthest model decides the linear."""
    assert needed(QUADRATIC, 2)[0] == pytest.approx(3)
    constant, worst = needed(QUADRATIC, 1)
    assert constant == pytest.approx(3)
    assert worst.distance == 1.0


def test_remark_3_fails_near_the_base():
    """lam D <= lam' D^2 needs D >= lam / lam' = 1 here."""
    rows = [r for r in paper_theorem_2(QUADRATIC, QUADRATIC) if r.statement.startswith("Remark 3")]
    assert [r.holds for r in rows] == [False, False, True]
    assert all(r.kind == "claim of the paper" and not r.is_bug for r in rows)


def test_one_quadratic_constant_fits_a_quadratic_drift_and_no_linear_one_does():
    rows = [r for r in paper_theorem_2(QUADRATIC, []) if "one constant" in r.statement]
    fits = {r.unit: r.holds for r in rows}
    assert fits == {"nats / distance^1": False, "nats / distance^2": True}


def test_the_course_needs_very_uneven_constants(course):
    """Base-output preservation moves about as far as standard and drifts far less."""
    rows = [r for r in paper_theorem_2(course.drifts, []) if "one constant" in r.statement]
    assert [r.holds for r in rows] == [False, False]


def test_models_that_have_not_moved_need_no_constant():
    with pytest.raises(ValueError, match="no model has moved"):
        needed([drift(0.0, 0.0)], 1)
