"""Proposition 6.10: a flow model has the sampler and the path KL of its variance-preserving twin.

Two exact flows v_i of N(m_i, std^2 I): x_t = (1 - s) x0 + s eps is Gaussian with mean (1 - s) m_i
and variance (1 - s)^2 std^2 + s^2.
"""

import pytest
import torch

from toy2d.core.drift import path_kl
from toy2d.core.sample import ancestral, ddim
from toy2d.core.schedule import Schedule

STD, APART = 0.5, 3.0


def grid(T: int) -> Schedule:
    """Even in log-SNR from 14 to -20, as a flow schedule."""
    return Schedule.log_snr(T, 14.0, -20.0, prediction="flow")


def flow_of(mean: float, schedule: Schedule):
    """v(x, t) = E[eps - x0 | x_t = x] of N((mean, 0), std^2 I)."""
    m = torch.tensor([mean, 0.0], dtype=torch.float64)

    def predict(x, t, cond):
        a, s = schedule.coefficients(t, x)
        x0 = m + a * STD**2 * (x - a * m) / (a**2 * STD**2 + s**2)
        return (x - a * x0) / s - x0

    return predict


def chains(schedule: Schedule, n: int, mean: float = 0.0, seed: int = 0):
    rng = torch.Generator().manual_seed(seed)
    x_T = torch.randn(n, 2, generator=rng, dtype=torch.float64)
    return ancestral(flow_of(mean, schedule), schedule, x_T, None, rng, chain=True)


def test_path_kl_tends_to_the_kl_of_two_gaussians():
    """18 = |m1 - m2|^2 / (2 std^2) at clean data, less at node 0's noise level; order 1 in 1/T."""
    errors = []
    for T in (200, 400):
        schedule = grid(T)
        base, moved = flow_of(0.0, schedule), flow_of(APART, schedule)
        mean, error = path_kl(moved, base, schedule, chains(schedule, 4), None)
        assert error < 1e-4  # eps_1 - eps_2 does not depend on x
        a, s = schedule.coefficients(torch.tensor([0]), torch.ones(1, 1).double())
        limit = float(a**2 * APART**2 / (2 * (a**2 * STD**2 + s**2)))
        errors.append(abs(float(mean) - limit) / limit)
    assert errors[1] < 0.03
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)


def test_path_kl_is_the_integral_of_the_flows_difference():
    """path KL -> integral of (1 - s) / s E||v_1 - v_2||^2 ds, on the nodes of the schedule."""
    schedule = grid(2000)
    base, moved = flow_of(0.0, schedule), flow_of(APART, schedule)
    chain = chains(schedule, 2)
    mean, _ = path_kl(moved, base, schedule, chain, None)
    t = torch.arange(len(schedule))
    s = schedule.coefficients(t, torch.ones(len(t), 1).double())[1][:, 0]
    x = torch.zeros(len(t), 2, dtype=torch.float64)  # the difference is the same at every x
    apart = ((moved(x, t, None) - base(x, t, None)) ** 2).sum(-1)
    integral = torch.trapezoid((1 - s) / s * apart, s)
    assert float(mean) == pytest.approx(float(integral), rel=0.01)


def test_no_other_noise_gives_a_smaller_path_kl():
    """dx = [v + g (x + (1 - s) v) / (2 s)] ds + sqrt(g) dw has the flow's marginals for all g >= 0.

    It costs (1 + g (1 - s) / (2 s))^2 / (2 g) ||v_1 - v_2||^2 (Girsanov): least at the twin's
    g = 2 s / (1 - s), and infinite for the ODE.
    """
    s = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)[:, None]
    best = 2 * s / (1 - s)
    cost = lambda g: (1 + g * (1 - s) / (2 * s)) ** 2 / (2 * g)  # noqa: E731
    torch.testing.assert_close(cost(best), (1 - s) / s)
    factors = torch.logspace(-2, 2, 41, dtype=torch.float64)
    assert (cost(best * factors) >= cost(best) - 1e-12).all()
    assert (cost(best * 1e-9) > 1e6).all()


def test_the_chain_is_the_twins_divided_by_k():
    """Same noise, same network: y_t = k_t x_t is the eps model's own chain."""
    flow = grid(40)
    twin = Schedule(flow.alpha_bar)
    v, k = flow_of(1.0, flow), flow.vp_scale

    def eps(y, t, cond):
        x = y / k[t][:, None]
        return flow.eps_from(v(x, t, cond), x, t)

    x = chains(flow, 5, mean=1.0, seed=3)
    rng = torch.Generator().manual_seed(3)
    y_T = torch.randn(5, 2, generator=rng, dtype=torch.float64) * k[-1]
    y = ancestral(eps, twin, y_T, None, rng, chain=True)
    for t in range(40):
        torch.testing.assert_close(k[t] * x[t], y[t])


def test_the_chain_ends_at_the_law_it_was_made_for():
    """Mean and variance at node 0: 5 standard errors, and the share of the discretization."""
    schedule, n = grid(300), 20_000
    x = chains(schedule, n, mean=APART)[0]
    a, s = (float(c) for c in schedule.coefficients(torch.tensor([0]), torch.ones(1, 1).double()))
    var = a**2 * STD**2 + s**2
    wanted = torch.tensor([a * APART, 0.0], dtype=torch.float64)
    assert (x.mean(0) - wanted).abs().max() < 5 * (var / n) ** 0.5 + 0.01
    assert float(x.var(0).mean()) == pytest.approx(var, rel=5 / n**0.5 + 0.05)


def test_ddim_is_eulers_method_on_the_flow():
    """diffusers' sampler of SD-3, from the same noise.

    It starts at s = 1, ours at the first node, so both are given our nodes.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    schedule = Schedule.log_snr(12, 6.0, -12.0, prediction="flow")
    v, x = flow_of(1.0, schedule), torch.randn(7, 2, dtype=torch.float64)
    t = torch.arange(len(schedule) - 1, -1, -1)
    s = schedule.coefficients(t, torch.ones(len(t), 1))[1][:, 0]
    theirs, y = FlowMatchEulerDiscreteScheduler(), x.float()
    theirs.set_timesteps(sigmas=s.tolist())
    for node, step in zip(t[:-1], theirs.timesteps, strict=False):
        output = v(y.double(), node.expand(7), None).float()
        y = theirs.step(output, step, y).prev_sample
    torch.testing.assert_close(ddim(v, schedule, x, None).float(), y, rtol=1e-4, atol=1e-5)
