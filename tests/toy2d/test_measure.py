"""KL estimates: closed form, honest errors, one rule against the other on a trained base."""

import math

import pytest
import torch

from toy2d.core.likelihood import log_prob
from toy2d.core.objectives import STANDARD, Objective
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon, world_pool
from toy2d.kl import base_points, kl, log_prob_table, truth_points, world_points
from toy2d.measure import make_probe, measure
from toy2d.model import EpsMLP
from toy2d.quadrature import gauss_hermite, sobol
from toy2d.train import Group, Streams, fit

SCHEDULE = Schedule.log_snr(40, 5.0, -15.0)
WORLD = Pentagon(SCHEDULE)


@pytest.fixture(scope="module")
def base():
    """One lightly trained base model (a second): far from exact, so that there is something to
    measure.
    """
    torch.set_num_threads(1)
    net = EpsMLP(WORLD.tokens, 40, width=24, alpha_bar=tuple(SCHEDULE.alpha_bar.tolist()))
    theta = net.init([generator(0, "init")])
    g = Group(
        net,
        theta,
        theta,
        Objective.stack([STANDARD]),
        torch.tensor([0]),
        ["base"],
        {"instance": "old"},
        3e-3,
    )
    pool = {"old": world_pool(WORLD, WORLD.old, 500, (0,), "data")}
    fit([g], Streams(pool, (0,), 128, "pretrain"), SCHEDULE, 400)
    return net, {k: p.detach() for k, p in g.theta.items()}


def test_kl_of_gaussians_within_its_standard_error():
    rng = generator(0, "sample")
    x = torch.randn(20_000, 2, generator=rng, dtype=torch.float64)
    log_p, log_q = (-0.5 * ((x - m) ** 2).sum(-1) for m in (0.0, 0.5))
    mean, error = kl(log_p, log_q)
    assert abs(mean - 0.25) < 4 * error
    assert float(error) == pytest.approx(0.5**0.5 / 20_000**0.5, rel=0.05)
    with pytest.raises(ValueError, match="2 samples"):
        kl(log_p[:1], log_q[:1])


@pytest.mark.parametrize("rule", [gauss_hermite(6), sobol(64, 8)])
def test_rules_integrate_polynomials(rule):
    """E x^2 y^4 = 1 * 3: exact for Gauss-Hermite, within 4 standard errors for scrambled Sobol."""
    x, y = rule.points.unbind(-1)
    mean, error = rule.expect(x**2 * y**4)
    assert abs(float(mean) - 3) < max(1e-10, 4 * float(error))


def test_sobol_errors_are_honest():
    """(estimate - truth) / reported error over 100 seeds is nearly Student's t with 15 degrees: its
    mean square is near 15/13.
    """
    scores = []
    for seed in range(100):
        rule = sobol(16, 16, seed)
        mean, error = rule.expect((rule.points.sum(-1) * 0.3).exp())
        scores.append(float((mean - math.exp(0.09)) / error))
    assert (
        0.6 < sum(s**2 for s in scores) / 100 < 2.2
    )  # 4 standard errors: 4 * 1.15 * sqrt(2 / 100)


def test_world_points_have_the_noised_worlds_moments():
    rule = gauss_hermite(6)
    x = world_points(WORLD, 2, rule.points)
    ab = SCHEDULE.alpha_bar[0]
    mean, _ = rule.expect(x.mT)
    torch.testing.assert_close(mean, ab.sqrt() * WORLD.means[2, 0])
    var, _ = rule.expect(((x - mean) ** 2).mT)
    torch.testing.assert_close(var, (ab * 0.25 + 1 - ab).expand(2).clone())


def test_quadrature_equals_monte_carlo_on_the_base(base):
    """KL(p* || base) of every class: 52 Gauss-Hermite points against 3,000 samples, within 4
    standard errors of the latter; and the quadrature's own error is below 0.01 nat."""
    net, theta = base
    rule = gauss_hermite(6)
    points = truth_points(WORLD, WORLD.old, rule)
    table = log_prob_table(net.bind(theta), SCHEDULE, points.x, points.conds)
    for i, c in enumerate(WORLD.old):
        mean, error = rule.expect(points.log_p[0, i] - table[0, i, i])
        x = WORLD.sample(c, 3000, generator(7, "data"), t=0)
        log_q = log_prob(net.bind(theta), SCHEDULE, x[None], torch.tensor(c), runs=1)[0]
        monte_carlo, spread = kl(WORLD.log_prob(x, c, 0), log_q)
        assert abs(mean - monte_carlo) < 4 * spread
        assert error < 0.01


def test_kl_of_a_model_from_itself_is_zero(base):
    net, theta = base
    probe = make_probe(WORLD, net, theta, gauss_hermite(4), gauss_hermite(4), 4, 40)
    g = Group(net, theta, theta, Objective.stack([STANDARD]), torch.tensor([0]), ["same"], {})
    (record,) = measure(WORLD, g, probe)
    assert all(v[0] == 0 for v in record["kl_base"].values())
    assert record["delta_theta"] == record["delta_eps"][0] == record["path_kl"][0] == 0


def test_a_shift_of_the_whole_law_costs_what_the_formula_says(base):
    """The exact law moved by h: KL = h^2 / (2 var) for every class."""
    ab = SCHEDULE.alpha_bar[0]
    var = float(ab * 0.25 + 1 - ab)
    rule = gauss_hermite(6)
    x = world_points(WORLD, 0, rule.points)
    mean, _ = rule.expect(
        WORLD.log_prob(x, 0, 0)
        - WORLD.log_prob(x - torch.tensor([0.3, 0.0], dtype=torch.float64), 0, 0)
    )
    assert float(mean) == pytest.approx(0.09 / (2 * var), rel=1e-9)


def test_mixture_kl_is_at_most_the_mean_of_its_classes(base):
    """Convexity of KL:

    KL(mix p || mix q) <= mean_c KL(p_c || q_c), the drop being what the mixture hides.
    """
    net, theta = base
    probe = make_probe(WORLD, net, theta, gauss_hermite(6), gauss_hermite(6), 4, 40)
    g = Group(net, theta, theta, Objective.stack([STANDARD]), torch.tensor([0]), ["same"], {})
    (record,) = measure(WORLD, g, probe)
    classes = [v[0] for k, v in record["kl_truth"].items() if k != "mixture"]
    mixture, error, n = record["kl_truth"]["mixture"]
    assert mixture <= sum(classes) / 5 + 3 * error + 1e-3
    assert n == 5 * 52


def test_chunks_change_nothing(base):
    net, theta = base
    probe = make_probe(WORLD, net, theta, gauss_hermite(4), gauss_hermite(4), 4, 40)
    stack = {k: torch.cat([v, v * 1.01, v * 0.99]) for k, v in theta.items()}
    star = {k: torch.cat([v] * 3) for k, v in theta.items()}
    g = Group(
        net, stack, star, Objective.stack([STANDARD] * 3), torch.zeros(3).long(), list("abc"), {}
    )
    whole, parts = measure(WORLD, g, probe, chunk=10**6), measure(WORLD, g, probe, chunk=1)
    for a, b in zip(whole, parts, strict=True):
        assert a["kl_new"][0] == pytest.approx(b["kl_new"][0], rel=1e-4)
        assert a["kl_base"]["mixture"][0] == pytest.approx(
            b["kl_base"]["mixture"][0], rel=1e-3, abs=1e-5
        )


def test_points_of_the_base_follow_its_density(base):
    """The entropy of the base by scrambled Sobol and by quadrature, both through its ODE, agree
    within 4 standard errors.
    """
    net, theta = base
    points = base_points(net, theta, SCHEDULE, (0,), sobol(64, 8))
    entropy, error = points.rule.expect(-points.log_p[0, 0])
    other = base_points(net, theta, SCHEDULE, (0,), gauss_hermite(8))
    quadrature, _ = other.rule.expect(-other.log_p[0, 0])
    assert abs(entropy - quadrature) < 4 * error + 2e-3
