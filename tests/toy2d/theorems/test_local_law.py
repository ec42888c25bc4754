"""Local law: KL(p_theta* || p_theta*+D) = 1/2 D'FD + O(D^3) <= 1/2 D'GD + O(D^3), G = sum_t 2 w_t E[J_t' J_t]; lam* = 1/2 lambda_max(G)."""

import numpy as np
import pytest
import torch

from toy2d.core.likelihood import log_prob
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon
from toy2d.measure import world_points
from toy2d.quadrature import gauss_hermite
from toy2d.theorems import local_law


@pytest.fixture(scope="module")
def direction(course):
    star, theta = course.base(0), course.run(course.which("standard")[0][0])
    return {k: theta[k] - star[k] for k in star}


@pytest.fixture(scope="module")
def scores(course, direction):
    cond = torch.tensor(course.world.old).repeat_interleave(1500)
    rng = generator(0, "test/scores")
    unit = local_law.unit(direction)
    return *local_law.path_scores(course.net, course.base(0), unit, course.schedule, cond, rng), cond  # fmt: skip


def test_the_path_score_has_mean_zero_and_variance_G(scores):
    """E S = 0 and E S^2 = D'GD = E sum_t 2 w_t |J_t D|^2, within 4 standard errors."""
    S, Q, x0, cond = scores
    assert abs(S.mean()) < 4 * S.std() / len(S) ** 0.5
    found = local_law.information(S, Q, x0, cond)
    (S2, s), (G, g) = found["S2"], found["G"]
    assert abs(S2 - G) < 4 * (s**2 + g**2) ** 0.5


def test_wrong_weights_break_the_score_identity(scores):
    """Negative control: w_t halved."""
    S, Q, x0, cond = scores
    (S2, s), (G, g) = (local_law.information(S, Q / 2, x0, cond)[k] for k in ("S2", "G"))
    assert abs(S2 - G) > 8 * (s**2 + g**2) ** 0.5


def test_information_contracts_from_paths_to_end_points(scores):
    """D'FD <= D'GD; and F by paired end points is positive beyond its error: the end does remember the path."""
    (F, f), (G, g) = (local_law.information(*scores)[k] for k in ("F", "G"))
    assert G + 4 * (f**2 + g**2) ** 0.5 > F
    assert 4 * f < F


def test_paired_end_points_give_a_known_information():
    """S = a x0 + b z with x0, z independent N(0, 1): E S^2 = a^2 + b^2, E[E[S | x0]^2] = a^2."""
    rng = torch.Generator().manual_seed(0)
    x0, z = torch.randn(8000, 2, generator=rng), torch.randn(8000, generator=rng)
    S = (0.6 * x0[:, 0] + 0.8 * z).double()
    found = local_law.information(S, S**2, x0, torch.zeros(8000))
    assert abs(found["F"][0] - 0.36) < 4 * found["F"][1] + 0.005  # neighbours are not identical
    assert abs(found["G"][0] - 1.0) < 4 * found["G"][1]


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
    np.testing.assert_allclose(operator @ v.numpy(), (G @ v).numpy(), rtol=2e-4, atol=2e-4 * float((G @ v).abs().max()))  # fmt: skip
    top, vector, residual = local_law.top_eigen(operator)
    assert top == pytest.approx(float(torch.linalg.eigvalsh(G)[-1]), rel=2e-3)
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert residual < 1e-2 * top


def test_rows_hold_on_the_course(course, direction):
    place = course.probe.base
    rows, top = local_law.spectrum(course.net, course.base(0), course.schedule, course.chain(0), course.cond, {"d": direction}, 0)  # fmt: skip
    for name, d in (("toward standard", direction), ("top", top)):
        rows += local_law.ladder(course.world, course.net, course.base(0), d, name, course.probe.ode, place, course.chain(0), course.cond, 0)  # fmt: skip
    assert all(r.holds for r in rows)


def test_slope_1_would_be_found_out(course, direction, monkeypatch):
    """Negative control: a drift linear in the distance (the paper's Theorem 2 taken literally) has slope 1 and fails the row."""
    exact = local_law.path_kl
    monkeypatch.setattr(local_law, "path_kl", lambda *a, **k: tuple(v.sqrt() for v in exact(*a, **k)))  # fmt: skip
    rows = local_law.ladder(course.world, course.net, course.base(0), direction, "d", course.probe.ode, course.probe.base, course.chain(0), course.cond, 0)  # fmt: skip
    slope = next(r for r in rows if "log path KL" in r.statement)
    assert slope.is_bug
    assert slope.lhs == pytest.approx(1, abs=0.1)


def test_shifting_all_means_gives_h_squared_over_two_variances():
    """KL / h^2 -> 1 / (2 s^2), here at t = 0's noise level, with the world's exact eps and the flow's likelihood."""
    schedule = Schedule.log_snr(60, 5.0, -16.0)
    world = Pentagon(schedule)
    ab = float(schedule.alpha_bar[0])
    variance = ab * 0.25 + 1 - ab
    rule, h = gauss_hermite(4), 0.05
    # at the origin: elsewhere the chain's end keeps sqrt(ab_T) of the mean, a cross term of 2 % at radius 3
    x = world_points(world, world.new, rule.points)

    def moved(x_t, t, cond):  # the same law with its mean h further along x
        at = schedule.alpha_bar[t].sqrt()[..., None] * torch.tensor([h, 0.0]).double()
        return world.eps(x_t - at, t, cond)

    gap = [log_prob(p, schedule, x, torch.tensor(world.new)) for p in (world.eps, moved)]
    kl, _ = rule.expect(gap[0] - gap[1])
    assert float(kl) == pytest.approx(ab * h**2 / (2 * variance), rel=3e-3)


def test_refusals(course, scores):
    S, Q, x0, cond = scores
    with pytest.raises(ValueError, match="needs"):
        local_law.information(S[:50], Q[:50], x0[:50], cond[:50])
    with pytest.raises(ValueError, match="length zero"):
        local_law.unit({"a": torch.zeros(3)})
