"""A row judges two sides by their errors, and only a failed proof is a bug."""

import math

import pytest

from toy2d.runs.files import RunFailure
from toy2d.theorems.row import Row, not_applicable
from toy2d.verify.table import refuse_bugs


def row(kind="proved", relation="<=", lhs=1.0, rhs=2.0, error=0.1, **more):
    sides = (lhs, rhs, error, 0.0)
    return Row("a_label", "a <= b", "somewhere", kind, relation, *sides, 7, rounding=0.0, **more)


def test_margin_is_the_gap_in_standard_errors():
    assert row().margin == pytest.approx(10)
    assert row(relation=">=").margin == pytest.approx(-10)
    assert row(relation="==").margin == pytest.approx(-10)


def test_holds_within_four_standard_errors_only():
    assert row(lhs=2.39).holds
    assert not row(lhs=2.41).holds


def test_without_error_one_decides_exactly():
    assert row(lhs=2.0, error=0.0).holds
    assert not row(lhs=2.0000001, error=0.0).holds


def test_not_applicable_neither_holds_nor_fails():
    assert not_applicable("a_label", "a <= b", "x", "proved", "no reason").holds is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_side_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="lhs"):
        row(lhs=value)


def test_only_a_failed_proof_is_a_bug_and_it_prints_its_command():
    refuse_bugs([row(), row("claim of the paper", lhs=9.0), row("observation", lhs=9.0)])
    with pytest.raises(RunFailure, match=r"seed 7.*toy2d verify --only a_label --seeds 7"):
        refuse_bugs([row(lhs=9.0)])
