"""Theorem 6.9 of lecture 6b: while the total loss has not risen, lam bounds distance and drift."""

import pytest
import torch

from toy2d.core.drift import path_kl
from toy2d.core.rng import generator
from toy2d.theorems.certificate import certificate, condition, instance_losses
from toy2d.theorems.lipschitz import lipschitz_constant


def losses_of(course, pair):
    """Per draw, of the base and of the tuned model, with the same noise."""
    return [
        instance_losses(
            course.net, p, course.schedule, course.shots(0), course.world.new, generator(0, "loss")
        )
        for p in (pair.theta_star, pair.theta)
    ]


def rows_of(course, pair, lam):
    chain, cond = course.chain(0), course.cond
    constant = lipschitz_constant(pair.net, pair.theta_star, pair.theta, pair.schedule, chain, cond)
    path, error = path_kl(pair.tuned, pair.star, pair.schedule, chain[:, None], cond, runs=1)
    measured = (float(path[0]), float(error[0]))
    losses = losses_of(course, pair)
    return certificate(*losses, lam, pair.squared_distance, measured, constant, "test", 0)


@pytest.mark.parametrize("lam", [0.01, 0.1, 1])
def test_what_lam_guarantees(course, pair, lam):
    one = pair(f"l2:{lam:g}")
    rows = rows_of(course, one, lam)
    assert len(rows) == 2
    assert all(r.holds for r in rows)
    assert all(r.kind == "identity" for r in rows)  # they follow from the condition by arithmetic
    measured = condition(*losses_of(course, one), lam, one.squared_distance, "test", 0)
    assert measured.holds
    assert (
        measured.margin > 4
    )  # training with L2 has brought the total loss down, beyond the errors


def blown_up(course, pair):
    """The run's change, 30 times as far."""
    star, theta = pair.theta_star, pair.theta
    far = {k: star[k] + 30 * (theta[k] - star[k]) for k in star}
    return type(pair)(pair.world, pair.net, star, far, pair.name, pair.seed)


def test_it_says_nothing_where_the_loss_has_risen(course, pair):
    """Neither a failure nor a pass; the condition's own row says that it is not met."""
    far = blown_up(course, pair("l2:0.1"))
    assert all(r.holds is None and "risen" in r.note for r in rows_of(course, far, 0.1))
    row = condition(*losses_of(course, far), 0.1, far.squared_distance, "test", 0)
    assert row.holds is False
    assert not row.is_bug  # training need not obey it: an observation


def test_a_negative_loss_is_found_out():
    """Negative control: instance >= 0 is broken, so the arithmetic does not hold."""
    rows = certificate(
        torch.ones(1000), -2 * torch.ones(1000), 1.0, 2.0, (0.1, 0.01), (1.0, 0.01), "test", 0
    )
    assert rows[0].is_bug


def test_lam_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        certificate(torch.ones(9), torch.ones(9), 0.0, 1.0, (0.1, 0.01), (1.0, 0.1), "test", 0)
