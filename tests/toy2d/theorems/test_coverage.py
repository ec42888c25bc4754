"""Corollary 5.1: KL(p* || p') >= kl(p*(E) || p'(E)), E = what neither subject nor replay covers."""

from dataclasses import replace

import pytest
import torch

from toy2d.kl import truth_points
from toy2d.quadrature import gauss_hermite
from toy2d.theorems import lower_bound

SPECS = ["standard", "prior:1", "replay_all:1"]


@pytest.fixture(scope="module")
def laws(course):
    truth = truth_points(course.world, course.world.old, gauss_hermite(6), mixture=True)
    thetas = [course.run(course.which(s)[0][0]) for s in SPECS]
    theta = {k: torch.cat([t[k] for t in thetas]) for k in course.tuned}
    return lower_bound.laws_of(course.world, course.net.bind(theta), course.probe.ode, truth)


@pytest.fixture(scope="module")
def rows(course, laws):
    return rows_of(course, laws)


def rows_of(course, laws):
    regions = [lower_bound.Ball.around(course.shots(0))] * 3
    replayed = [(), (0,), course.world.old]
    return lower_bound.coverage(course.world, laws, regions, replayed, SPECS, [0] * 3)


def test_every_run_obeys_it(rows):
    assert len(rows) == 6
    assert all(r.holds for r in rows)


def test_a_kl_that_is_too_small_is_found_out(course, laws):
    """Negative control: a thousandth of the target law's KL breaks the bound."""
    wrong = replace(laws, target=[(kl / 1000, error) for kl, error in laws.target])
    assert any(r.is_bug for r in rows_of(course, wrong))


def test_replaying_one_class_leaves_four_fifths_uncovered(rows):
    """p*(E) of five equal classes with one replayed; the subject's ball holds little old mass.

    Allowed: the replayed ball's 1 %, and 4 standard errors of the count.
    """
    note = next(r.note for r in rows if r.condition.startswith("prior:1"))
    uncovered = float(note.split("p*(E) = ")[1].split(",")[0])
    assert uncovered == pytest.approx(0.8, abs=0.8 * 0.01 + 4 * (0.8 * 0.2 / 100_000) ** 0.5)


def test_replaying_everything_leaves_nothing_to_say(rows):
    """The same budget spread over all prompts makes the bound about 0: M << N is not the cause."""
    mine = [r for r in rows if r.condition.startswith("replay_all") and "mixture" in r.statement]
    assert all(r.rhs < 0.02 for r in mine)
