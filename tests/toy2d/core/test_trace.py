"""The likelihood in any dimension: closed forms in 64, the exact trace in two, and error bars
that cover.
"""

import math

import pytest
import torch

from toy2d.core.likelihood import flow_sample, log_prob_with_error
from toy2d.core.schedule import Schedule
from toy2d.core.trace import eps_and_traces, log_prob_by_probes, ode_kl, rademacher
from toy2d.data import Pentagon

SCHEDULE = Schedule.log_snr(41, 6.0, -12.0)


class Gaussian:
    """The exact predictor of N(0, S) in d dimensions: eps = b (a^2 S + b^2 I)^-1 x, and its
    density.
    """

    def __init__(self, schedule, d: int, seed: int, twist: float = 1.0):
        rng = torch.Generator().manual_seed(seed)
        Q, _ = torch.linalg.qr(torch.randn(d, d, generator=rng, dtype=torch.float64))
        self.S = (Q * torch.linspace(0.1, 2.0, d, dtype=torch.float64)) @ Q.T * twist
        self.schedule = schedule

    def variance(self, ab) -> torch.Tensor:
        return ab * self.S + (1 - ab) * torch.eye(len(self.S), dtype=torch.float64)

    def __call__(self, x_t, steps, cond):
        ab = self.schedule.alpha_bar[int(steps[0])]
        return (1 - ab).sqrt() * torch.linalg.solve(self.variance(ab), x_t.T).T

    def log_prob(self, x0):
        V = self.variance(self.schedule.alpha_bar[0])
        zero = torch.zeros(len(V), dtype=torch.float64)
        return torch.distributions.MultivariateNormal(zero, V).log_prob(x0)

    def points(self, n, rng):
        L = torch.linalg.cholesky(self.variance(self.schedule.alpha_bar[0]))
        return torch.randn(n, len(L), generator=rng, dtype=torch.float64) @ L.T


def hadamard(d: int) -> torch.Tensor:
    """d orthogonal sign vectors: their mean of v' J v is the trace exactly."""
    H = torch.ones(1, 1, dtype=torch.float64)
    while len(H) < d:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H


def test_a_linear_predictor_in_64_dimensions_has_its_closed_form():
    """Orthogonal probes leave the ODE's error alone, which is below what is said, and small."""
    law, rng = Gaussian(SCHEDULE, 64, 0), torch.Generator().manual_seed(0)
    x0 = law.points(4, rng)
    found = log_prob_by_probes(law, SCHEDULE, x0, None, hadamard(64)[:, None].expand(64, 4, 64))
    apart = found.value - law.log_prob(x0)
    assert apart.abs().max() < 0.1
    assert (apart.abs() <= found.ode_error + 1e-3).all()


def test_random_probes_cover_the_closed_form():
    """400 points, 12 probes each: Student's 95 % intervals (11 degrees) hold the exact value 95
    % of the time.
    """
    law, rng = Gaussian(SCHEDULE, 64, 0), torch.Generator().manual_seed(0)
    x0 = law.points(400, rng)
    found = log_prob_by_probes(law, SCHEDULE, x0, None, rademacher(12, x0, rng))
    exact = log_prob_by_probes(law, SCHEDULE, x0[:1], None, hadamard(64)[:, None])
    bias = float(exact.value - law.log_prob(x0[:1]))  # of the ODE: the bar is about the probes
    inside = ((found.value - law.log_prob(x0) - bias).abs() <= 2.201 * found.probe_error).double()
    assert float(inside.mean()) == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 400) ** 0.5)
    assert float(found.probe_error.mean()) > 0.1  # else nothing was covered


def test_in_two_dimensions_it_is_the_exact_trace():
    """(1, 1) and (1, -1) are orthogonal: log_prob to rounding, at every point."""
    world = Pentagon(SCHEDULE)
    rng, cond = torch.Generator().manual_seed(0), torch.zeros(6, dtype=torch.long)
    x0 = torch.randn(6, 2, generator=rng, dtype=torch.float64)
    found = log_prob_by_probes(world.eps, SCHEDULE, x0, cond, hadamard(2)[:, None].expand(2, 6, 2))
    exact = log_prob_with_error(world.eps, SCHEDULE, x0, cond)
    torch.testing.assert_close(found.value, exact.value)
    torch.testing.assert_close(found.coarse.mean(0), exact.coarse)


def test_traces_are_those_of_the_jacobian():
    """A nonlinear predictor on data with three dimensions: v' J v, each sample by itself."""
    W = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def predict(x, t, cond):
        return (x.flatten(1) @ W).sin().reshape(x.shape)

    rng = torch.Generator().manual_seed(1)
    x = torch.randn(3, 2, 3, 2, generator=rng, dtype=torch.float64)
    v = rademacher(2, x, rng)
    assert set(v.unique().tolist()) == {-1.0, 1.0}
    v[1] *= 1.5  # a quadratic form, not only of signs
    _, traces = eps_and_traces(predict, SCHEDULE, x, torch.full((3,), 5), None, v)
    for i in range(3):
        J = torch.autograd.functional.jacobian(
            lambda y: predict(y[None], None, None)[0].flatten(), x[i]
        )
        J = J.reshape(12, 12)
        for k in range(2):
            u = v[k, i].flatten()
            assert float(traces[k, i]) == pytest.approx(float(u @ J @ u))


def test_a_flow_model_has_the_density_of_its_own_x():
    """The twin in eps lives at k x: p(x) = k^d p(k x)."""
    law = Gaussian(SCHEDULE, 4, 0)
    s = (1 - SCHEDULE.alpha_bar).sqrt() / (
        SCHEDULE.alpha_bar.sqrt() + (1 - SCHEDULE.alpha_bar).sqrt()
    )
    flow = Schedule.from_flow(s)

    def velocity(x, steps, cond):
        t = int(steps[0])
        return (law(x * flow.vp_scale[t], steps, cond) - x) / (1 - s[t])

    x0 = law.points(5, torch.Generator().manual_seed(0)) / flow.vp_scale[0]
    probes = hadamard(4)[:, None].expand(4, 5, 4)
    found = log_prob_by_probes(velocity, flow, x0, None, probes).value
    wanted = log_prob_by_probes(law, SCHEDULE, x0 * flow.vp_scale[0], None, probes).value
    torch.testing.assert_close(found, wanted + 4 * math.log(float(flow.vp_scale[0])))


def test_kl_of_two_gaussians_and_pairing():
    """KL(N(0, V1) || N(0, V2)) in closed form within 4 errors; a model against itself is 0 to
    the bit; pairing pays.
    """
    star, theta = Gaussian(SCHEDULE, 16, 0), Gaussian(SCHEDULE, 16, 0, twist=1.3)
    rng = torch.Generator().manual_seed(0)
    x0 = star.points(200, rng)
    probes = rademacher(2, x0, rng)
    kl = ode_kl(theta, star, SCHEDULE, x0, None, probes, 64, lambda cond, rows: None)
    V1, V2 = (law.variance(SCHEDULE.alpha_bar[0]) for law in (star, theta))
    zero = torch.zeros(16, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal
    exact = float(torch.distributions.kl_divergence(normal(zero, V1), normal(zero, V2)))
    assert abs(kl.mean - exact) < 4 * kl.error + kl.ode_error
    assert kl.n == 200
    assert ode_kl(star, star, SCHEDULE, x0, None, probes, 0, lambda c, r: None).mean == 0
    other = rademacher(2, x0, rng)
    a, b = (log_prob_by_probes(law, SCHEDULE, x0, None, probes).value for law in (star, theta))
    c = log_prob_by_probes(theta, SCHEDULE, x0, None, other).value
    assert (a - b).std() < 0.5 * (a - c).std()
    assert kl.mean == pytest.approx(float((a - b).mean()))
    assert kl.error == pytest.approx(float((a - b).std()) / 200**0.5)
    two = ode_kl(theta, star, SCHEDULE, x0[:2], None, probes[:, :2], 0, lambda c, r: None)
    assert two.n == 2
    with pytest.raises(ValueError, match="2 points"):
        ode_kl(theta, star, SCHEDULE, x0[:1], None, probes[:, :1], 0, lambda c, r: None)


def test_a_chunk_of_points_keeps_its_conditions():
    """Two laws, told apart by their condition: the KL of a law with itself is 0 in any chunks, and
    every point is measured under its own.
    """
    laws, rng = [Gaussian(SCHEDULE, 4, 0), Gaussian(SCHEDULE, 4, 1)], torch.Generator()

    def mixed(x, steps, cond):
        return torch.stack([laws[int(c)](x[i : i + 1], steps, None)[0] for i, c in enumerate(cond)])

    cond = torch.tensor([0, 1, 1, 0, 1])
    x0 = torch.randn(5, 4, generator=rng, dtype=torch.float64)
    probes = rademacher(2, x0, rng)
    found = [ode_kl(laws[0], mixed, SCHEDULE, x0, cond, probes, chunk) for chunk in (0, 2)]
    assert found[0] == pytest.approx(found[1])
    by_law = [log_prob_by_probes(law, SCHEDULE, x0, None, probes).value for law in laws]
    apart = torch.where(cond == 1, by_law[1] - by_law[0], 0.0)
    assert found[0].mean == pytest.approx(float(apart.mean()))


def test_points_of_the_base_have_the_bases_mean_log_density():
    """Sampled up, measured down: the mean of -log p over the ODE's own points is the Gaussian's
    entropy.
    """
    law, rng = Gaussian(SCHEDULE, 8, 0), torch.Generator().manual_seed(0)
    x0 = flow_sample(law, SCHEDULE, torch.randn(300, 8, generator=rng, dtype=torch.float64), None)
    found = log_prob_by_probes(
        law, SCHEDULE, x0, None, hadamard(8)[:, None].expand(8, 300, 8)
    ).value
    V = law.variance(SCHEDULE.alpha_bar[0])
    entropy = 0.5 * (8 * math.log(2 * math.pi * math.e) + float(torch.logdet(V)))
    assert abs(-float(found.mean()) - entropy) < 4 * float(found.std()) / 300**0.5 + 0.02
