"""Lecture 7: far without drift, further yet closer, factors instead of their product."""

from dataclasses import replace

import pytest
import torch

from toy2d.core.drift import delta_theta, path_kl
from toy2d.theorems import counterexamples as counter
from toy2d.theorems.paper_theorem_2 import Drift


def new_row_only(course, theta):
    chain, cond = course.chain(0), course.cond
    return counter.new_row_only(course.world, course.net, course.base(0), theta, chain, cond, 0)


def test_training_only_the_new_words_row_drifts_exactly_nothing(course):
    """Exactly zero drift on the old classes, to the bit, though the model learns."""
    star = course.base(0)
    theta = counter.train_new_row(course.world, course.net, star, course.shots(0), 0, steps=60)
    assert float(delta_theta(theta, star)) > 0.1
    (row,) = new_row_only(course, theta)
    assert row.lhs == 0.0
    assert row.holds


def test_training_an_old_row_too_is_found_out(course):
    """Negative control: one old word's row moved by 1e-2."""
    star = course.base(0)
    token = star["token"].clone()
    token[:, 0] += 1e-2
    (row,) = new_row_only(course, {**star, "token": token})
    assert row.is_bug


def test_a_prompt_without_a_word_of_its_own_is_refused(course):
    world = replace(course.world, tokens=((0,), (1,), (2,), (3,), (4,), (0,)))
    with pytest.raises(ValueError, match="every word"):
        counter.train_new_row(world, course.net, course.base(0), course.shots(0), 0)


def test_permuting_and_rescaling_move_far_with_no_drift(course):
    chain, cond = course.chain(0), course.cond
    rows = counter.same_function(course.world, course.net, course.base(0), chain, cond, 0)
    assert len(rows) == 2
    assert all(r.holds for r in rows)


def test_rescaling_is_no_symmetry_of_silu(course):
    """Negative control: the same move on the SiLU network drifts."""
    star = course.base(0)
    moved = counter.rescaled(star, 10.0)
    predict, predict_star = course.net.bind(moved), course.net.bind(star)
    chain = course.chain(0)[:, None]
    path, _ = path_kl(predict, predict_star, course.schedule, chain, course.cond, runs=1)
    assert float(path[0]) > 0.1
    with pytest.raises(ValueError, match="c > 0"):
        counter.rescaled(star, -1.0)


def drift(run, distance, kl, weight=1.0):
    return Drift(run, run.split(":")[0], weight, 0, distance, kl, 1e-3)


def test_further_yet_closer():
    runs = [drift("standard", 1, 3), drift("output:1", 2, 0.01), drift("replay_all:1", 0.5, 0.1)]
    rows = counter.further_yet_closer(runs)
    assert [(r.holds, r.kind) for r in rows] == [(False, "observation"), (None, "observation")]


def test_not_monotone_in_lam_is_seen():
    weak, middle = drift("l2:0.01", 3, 4.0, 0.01), drift("l2:0.1", 2, 1.0, 0.1)
    rows = counter.monotone([drift("l2:1", 1, 2.0, 1.0), middle, weak])
    assert [r.holds for r in rows] == [True, False]


def test_lora_factors_are_not_their_product():
    """|BA| <= (|A|^2 + |B|^2) / 2 is proved, with equality in rank 1.

    That the factors' penalty measures the change is refuted twice.
    """
    random, tight, *claims = counter.lora_factors()
    assert random.holds
    assert tight.lhs == pytest.approx(tight.rhs, rel=1e-12)
    assert replace(tight, rhs=0.99 * tight.rhs).is_bug
    assert [c.holds for c in claims] == [False, False]
    torch.testing.assert_close(claims[0].rhs, random.rhs * 2)
