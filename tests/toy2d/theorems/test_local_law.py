"""Theorem 6.8 of lecture 6b: near the base both KLs are quadratic; lam* = lambda_max(G) / 2."""

import numpy as np
import pytest
import torch

from toy2d.core.likelihood import log_prob
from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon
from toy2d.kl import world_points
from toy2d.quadrature import gauss_hermite
from toy2d.theorems import local_law
from toy2d.theorems.pair import Pair


@pytest.fixture(scope="module")
def direction(course):
    star, theta = course.base(0), course.run(course.which("standard")[0][0])
    return {k: theta[k] - star[k] for k in star}


@pytest.fixture(scope="module")
def operator(course):
    chain, cond = course.chain(0), course.cond
    return local_law.path_operator(course.net, course.base(0), course.schedule, chain, cond)


def ladder(course, direction, G, wrong_G=1.0):
    """The rows toward a run, with E[S^2] = G x `wrong_G` known to 2 %."""
    star, unit = course.base(0), local_law.unit(direction)
    pair = Pair(course.world, course.net, star, local_law.moved(star, unit, 1.0), "d", 0)
    S2 = (wrong_G * G, 0.02 * G)
    parts = (course.probe.ode, course.probe.base, course.chain(0), course.cond)
    return local_law.ladder(pair, "d", G, S2, *parts)


def test_the_operator_is_the_dense_G_and_lanczos_its_largest_eigenvalue(course):
    """On few chains and points: G from explicit Jacobians, numpy's eigenvalues."""
    chain, cond, theta = course.chain(0)[:6, :3], course.cond[:3], course.base(0)
    schedule = Schedule(course.schedule.alpha_bar[:6])
    operator = local_law.path_operator(course.net, theta, schedule, chain, cond)
    w, G = schedule.path_weights(), 0.0

    def eps(vector, x, t):
        p = local_law.unflatten(vector, theta)
        return course.net(p, x[None], torch.full((1, 3), t), cond[None])[0]

    for t in range(1, 6):
        J = torch.func.jacrev(eps)(local_law.flatten(theta), chain[t], t).double()
        G = G + 2 * w[t] * torch.einsum("nip,niq->pq", J, J) / 3
    v = torch.randn(len(G), generator=torch.Generator().manual_seed(0)).double()
    dense = (G @ v).numpy()
    np.testing.assert_allclose(operator @ v.numpy(), dense, rtol=2e-4, atol=2e-4 * abs(dense).max())
    top, vector, residual = local_law.top_eigen(operator)
    assert top == pytest.approx(float(torch.linalg.eigvalsh(G)[-1]), rel=2e-3)
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert residual < 1e-2 * top


def test_rows_hold_on_the_course(course, direction, operator):
    rows, top = local_law.spectrum(operator, {"d": direction}, course.base(0), 0)
    assert all(r.kind == "identity" for r in rows)  # one operator on both sides: no evidence
    for d in (direction, top):
        rows += ladder(course, d, local_law.quadratic_form(operator, d))
    assert all(r.holds for r in rows)


def test_a_wrong_height_is_found_out(course, direction, operator):
    """Negative control: path KL's prediction half or twice what it is."""
    G = local_law.quadratic_form(operator, direction)
    for factor in (0.5, 2.0):
        (row,) = (r for r in ladder(course, direction, G, factor) if "E[S^2]" in r.statement)
        assert row.is_bug


def test_slope_1_would_be_found_out(course, direction, operator, monkeypatch):
    """Negative control: a drift linear in the distance (Theorem 2 as printed) has slope 1."""
    exact = local_law.path_kl
    monkeypatch.setattr(
        local_law, "path_kl", lambda *a, **k: tuple(v.sqrt() for v in exact(*a, **k))
    )
    rows = ladder(course, direction, local_law.quadratic_form(operator, direction))
    slope = next(r for r in rows if "log path KL" in r.statement)
    assert slope.is_bug
    assert slope.lhs == pytest.approx(1, abs=0.1)


def test_shifting_all_means_gives_h_squared_over_two_variances():
    """KL / h^2 -> 1 / (2 s^2) at t = 0's noise level, with exact eps and the flow's likelihood."""
    schedule = Schedule.log_snr(60, 5.0, -16.0)
    world = Pentagon(schedule)
    ab = float(schedule.alpha_bar[0])
    variance = ab * 0.25 + 1 - ab
    rule, h = gauss_hermite(4), 0.05
    # at the origin: elsewhere the chain's end keeps sqrt(ab_T) of the mean, 2 % at radius 3
    x = world_points(world, world.new, rule.points)

    def moved(x_t, t, cond):  # the same law with its mean h further along x
        at = schedule.alpha_bar[t].sqrt()[..., None] * torch.tensor([h, 0.0]).double()
        return world.eps(x_t - at, t, cond)

    gap = [log_prob(p, schedule, x, torch.tensor(world.new)) for p in (world.eps, moved)]
    kl, _ = rule.expect(gap[0] - gap[1])
    assert float(kl) == pytest.approx(ab * h**2 / (2 * variance), rel=3e-3)


def test_a_direction_of_length_zero_is_refused():
    with pytest.raises(ValueError, match="length zero"):
        local_law.unit({"a": torch.zeros(3)})
