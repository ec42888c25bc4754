"""Certificate: while the total loss has not risen above its start, lam ||theta - theta_star||^2 <= loss(theta_star), so
KL <= path KL <= (sum_t w_t L_t^2) loss(theta_star) / lam."""

import pytest
import torch

from toy2d.core.drift import path_kl, squared_distance
from toy2d.core.rng import generator
from toy2d.theorems.certificate import certificate, instance_losses
from toy2d.theorems.path_bound import lipschitz_constant


def rows_of(course, star, theta, lam):
    losses = [instance_losses(course.net, p, course.schedule, course.shots(0), course.world.new, generator(0, "loss")) for p in (star, theta)]  # fmt: skip
    constant = lipschitz_constant(course.net, star, theta, course.schedule, course.chain(0), course.cond)  # fmt: skip
    path, error = path_kl(course.net.bind(theta), course.net.bind(star), course.schedule, course.chain(0)[:, None], course.cond, runs=1)  # fmt: skip
    return certificate(*losses, lam, float(squared_distance(theta, star)), (float(path[0]), float(error[0])), constant, "test", 0)  # fmt: skip


@pytest.mark.parametrize("lam", [0.01, 0.1, 1])
def test_what_lam_guarantees(course, tuned, lam):
    rows = rows_of(course, *tuned(f"l2:{lam:g}"), lam)
    assert len(rows) == 2
    assert all(r.holds for r in rows)


def test_it_says_nothing_where_the_loss_has_risen(course, tuned):
    """Not a failure and not a pass: parameters blown up by hand."""
    star, theta = tuned("l2:0.1")
    far = {k: star[k] + 30 * (theta[k] - star[k]) for k in star}
    assert all(r.holds is None and "risen" in r.note for r in rows_of(course, star, far, 0.1))


def test_a_distance_beyond_the_budget_fails():
    """Negative control: a loss that pretends to have fallen cannot hide lam ||delta theta||^2 > loss(theta_star)."""
    start, end = (
        torch.ones(1000),
        -2 * torch.ones(1000),
    )  # no squared error is negative: instance >= 0 is broken
    rows = certificate(start, end, 1.0, 2.0, (0.1, 0.01), (1.0, 0.01), "test", 0)
    assert rows[0].is_bug


def test_lam_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        certificate(torch.ones(9), torch.ones(9), 0.0, 1.0, (0.1, 0.01), (1.0, 0.1), "test", 0)
