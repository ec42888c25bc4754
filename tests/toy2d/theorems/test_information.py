"""Theorem 6.8 of lecture 6b: E S = 0, E S^2 = D'GD, and D'FD <= D'GD along a direction."""

import math

import pytest
import torch

from toy2d.core.rng import generator
from toy2d.theorems import information, local_law
from toy2d.theorems.information import Scores
from toy2d.theorems.pair import Pair
from toy2d.theorems.path_bound import base_law
from toy2d.verify.power import WRONG_WEIGHTS, WrongWeights


@pytest.fixture(scope="module")
def along(course):
    """Toward the standard run: a pair one unit apart, the direction, and its chains' scores."""
    star, theta = course.base(0), course.run(course.which("standard")[0][0])
    direction = local_law.unit({k: theta[k] - star[k] for k in star})
    pair = Pair(course.world, course.net, star, local_law.moved(star, direction, 1.0), "d", 0)
    return pair, direction, scores_of(course, direction, course.schedule)


def scores_of(course, direction, schedule):
    cond = torch.tensor(course.world.old).repeat_interleave(1500)
    rng = generator(0, "test/scores")
    return information.path_scores(course.net, course.base(0), direction, schedule, cond, rng)


@pytest.fixture(scope="module")
def rows(course, along):
    pair, _, scores = along
    here = scores.of(0)
    G = information.information(here)["G"][0]
    F = information.fisher_of_law(pair, base_law(pair, 0, density=1.0), math.sqrt(6e-3 / G))
    return information.contraction("d", "class 0", scores, here, F, 0)


def test_the_path_score_has_mean_zero(along):
    S = along[2].S
    assert abs(S.mean()) < 4 * S.std() / len(S) ** 0.5


def test_every_row_holds_and_is_decided(rows):
    """The errors are small: F / G is known to a few percent."""
    contracts, paired, identity = rows
    assert all(r.holds for r in rows)
    assert contracts.lhs_error < 0.02 * contracts.lhs
    assert paired.lhs_error < 0.1 * paired.rhs
    assert identity.error < 0.05 * identity.rhs


@pytest.mark.parametrize("wrong", ["w_t x 0.8", "w_t x 0.5", "-w_t"])
def test_wrong_weights_break_the_score_identity(course, along, rows, wrong):
    """Negative control: E[S^2] does not know w_t."""
    s = course.schedule
    spoiled = WrongWeights(s.alpha_bar, s.prediction, s.timesteps, WRONG_WEIGHTS[wrong])
    scores = scores_of(course, along[1], spoiled)
    *_, identity = information.contraction("d", "c", scores, scores.of(0), (1.0, 0.1), 0)
    assert identity.is_bug


def test_pairs_drawn_at_random_are_found_out(along):
    """Negative control: chains paired without regard to their ends share nothing, so F = 0."""
    scores = along[2].of(0)
    F = information.information(scores)["F"]
    mixed = scores.x0[torch.randperm(len(scores.x0), generator=generator(0, "mix"))]
    lost = information.information(Scores(scores.S, scores.Q, mixed, scores.cond))
    assert abs(lost["F"][0]) < 5 * lost["F"][1]
    fisher = (F[0], 0.01 * F[0])
    _, paired, _ = information.contraction("d", "c", scores, scores, fisher, 0)
    assert paired.holds
    broken = Scores(scores.S, scores.Q, mixed, scores.cond)
    _, paired, _ = information.contraction("d", "c", broken, broken, fisher, 0)
    assert paired.is_bug


def test_paired_end_points_give_a_known_information():
    """S = a x0 + b z with x0, z independent N(0, 1): E S^2 = a^2 + b^2, E[E[S | x0]^2] = a^2."""
    rng = torch.Generator().manual_seed(0)
    x0, z = torch.randn(8000, 2, generator=rng), torch.randn(8000, generator=rng)
    S = (0.6 * x0[:, 0] + 0.8 * z).double()
    found = information.information(Scores(S, S**2, x0, torch.zeros(8000)))
    assert abs(found["F"][0] - 0.36) < 4 * found["F"][1] + 0.005  # neighbours are not identical
    assert abs(found["G"][0] - 1.0) < 4 * found["G"][1]


def test_too_few_chains_are_refused(along):
    S = along[2]
    with pytest.raises(ValueError, match="needs"):
        information.information(Scores(S.S[:50], S.Q[:50], S.x0[:50], S.cond[:50]))
