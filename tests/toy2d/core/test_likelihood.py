"""The probability-flow ODE's log-likelihood: closed form, convergence order, a referee from another
library.
"""

import math
from dataclasses import replace

import pytest
import torch
from scipy.integrate import quad

from toy2d.config import course, paper
from toy2d.core.likelihood import (
    LogProb,
    adams,
    eps_and_divergence,
    flow_sample,
    log_prob,
    log_prob_with_error,
    ode_schedule,
)
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon
from toy2d.kl import kl
from toy2d.model import EpsMLP


def errors(schedule, n=400, std=0.5):
    """log_prob with a world's exact eps, minus the closed form, at samples of a class (float64)."""
    w = Pentagon(schedule, std=std)
    x = w.sample(0, n, generator(0, "data"), t=0).double()
    return log_prob(w.eps, schedule, x, torch.tensor(0)) - w.log_prob(x, 0, 0)


@pytest.mark.parametrize("T", [40, 100])
def test_log_likelihood_is_the_closed_form_to_5e_3(T):
    """5e-3 at single points is the start's: N(0, I) instead of N(sqrt(ab_T) m, ...)."""
    assert errors(Schedule.log_snr(T)).abs().max() < 5e-3


@pytest.mark.parametrize(("preset", "worst"), [(course, 6e-3), (paper, 0.2)])
def test_the_presets_likelihood_has_no_bias_that_matters(preset, worst):
    """On the nodes that the measurements use: the mean over p* (what a KL is) to 3e-3 nat.

    Single points are off by more in `paper`, whose ODE starts at ab = 2.4e-4: the start's mean is
    0.046 (b = 3 sqrt(ab)) from 0, a KL of b^2 / 2 = 1e-3 but b |x| at a point.
    """
    c = preset()
    w = c.make_world()
    x = w.sample(0, 2000, generator(0, "data"), t=0).double()
    ode = ode_schedule(w.schedule, c.ode_nodes, c.make_net(w).smooth_in_time)
    error = log_prob(w.eps, ode, x, torch.tensor(0)) - w.log_prob(x, 0, 0)
    assert abs(error.mean()) < 3e-3 + 3 * error.std() / 2000**0.5
    assert error.abs().max() < worst


def test_only_a_clipped_end_is_left_out_of_the_ode():
    """The clipped cosine's last log-SNR step leaps (ln 1000 after ln 4); the others end evenly."""
    assert ode_schedule(Schedule.cosine(100), 100).timesteps.tolist() == list(range(99))
    for even in (Schedule.log_snr(100), Schedule.linear(200), Schedule.cosine(100, max_beta=0.75)):
        assert torch.equal(ode_schedule(even, 500).alpha_bar, even.alpha_bar)
    assert len(ode_schedule(Schedule.log_snr(100), 50)) == 50


def test_nodes_of_a_smooth_network_are_the_schedules_at_fractional_times():
    """Their alpha_bar is what the schedule says of their timesteps; the ends are kept."""
    schedule = Schedule.log_snr(100, 5.0, -15.0)
    ode = ode_schedule(schedule, 33, smooth=True)
    torch.testing.assert_close(schedule.alpha_bar_at(ode.timesteps), ode.alpha_bar)
    torch.testing.assert_close(ode.timesteps[[0, -1]], torch.tensor([0.0, 99.0]).double())
    torch.testing.assert_close(ode.alpha_bar[[0, -1]], schedule.alpha_bar[[0, -1]])


def bent(n):
    """The exact eps of one prompt of two modes, so that the flow bends, on n even nodes."""
    schedule = Schedule.log_snr(n, 5.0, -15.0)
    w = Pentagon(schedule, classes=2)
    return replace(w, means=w.means[:2].reshape(1, 2, 2), covs=w.covs[:2].reshape(1, 2, 2, 2))


X = Pentagon(classes=2).sample(0, 30, generator(1, "data"), t=0).double()


def test_convergence_order():
    """Once the bend is resolved, halving the spacing divides the error by 2^6."""
    one = torch.tensor(0)
    reference = log_prob(bent(513).eps, bent(513).schedule, X, one)
    rms = []
    for n in (97, 129, 257):
        w = bent(n)
        error = log_prob(w.eps, w.schedule, X, one) - reference
        rms.append(float(error.square().mean().sqrt()))
    assert math.log2(rms[1] / rms[2]) > 4, rms
    assert math.log(rms[0] / rms[1], 128 / 96) > 4, rms


@pytest.mark.parametrize("n", [33, 49, 65, 97])
def test_the_stated_error_of_the_ode_covers_the_true_one(n):
    """Mean over points of a law that bends, from hardly to well resolved: within 2 of stated."""
    reference = log_prob(bent(513).eps, bent(513).schedule, X, torch.tensor(0))
    w = bent(100)
    nodes = ode_schedule(w.schedule, n, smooth=True)
    found = log_prob_with_error(w.eps, nodes, X, torch.tensor(0))
    assert (found.value - reference).abs().mean() < 2 * found.error.mean()


@pytest.mark.parametrize("T", [40, 41])
def test_every_second_node_is_the_shorter_schedule(T):
    """The last node is kept, whether it is one of them or not."""
    world = Pentagon(Schedule.log_snr(T, 5.0, -15.0))
    kept = torch.tensor([*range(0, T - 1, 2), T - 1])
    short = replace(
        world.schedule,
        alpha_bar=world.schedule.alpha_bar[kept],
        timesteps=world.schedule.timesteps[kept],
    )
    found = log_prob(world.eps, world.schedule, X, torch.tensor(0), every=2)
    assert torch.equal(found, log_prob(world.eps, short, X, torch.tensor(0)))
    assert not torch.equal(found, log_prob(world.eps, world.schedule, X, torch.tensor(0)))


def test_a_small_gap_counts_a_sixteenth_and_a_large_one_whole():
    """Equation (3); a difference of two log densities has an error too, of no sign."""
    value = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    coarse = torch.tensor([1.0032, 0.9968, 1.02, 1.0], dtype=torch.float64)
    expected = torch.tensor([0.0002, 0.0002, 0.02, 0.0], dtype=torch.float64)
    torch.testing.assert_close(LogProb(value, coarse).error, expected)


def k(u):
    """r^2 / (1 + r^2)^(3/2) at r = e^u: what both right-hand sides have as a factor."""
    return math.exp(2 * u) / (1 + math.exp(2 * u)) ** 1.5


def test_multistep_weights_integrate_polynomials_of_their_degree():
    """dx/du = k u^5 and dI/du = k u^3 on uneven nodes, once the history is long enough: order 6
    integrates both exactly, the coarser value (order 4, two nodes a step) only the second.
    """
    u = [-1.0, -0.7, -0.5, -0.1, 0.0, 0.4, 1.0, 1.1, 1.5]

    def exact(degree):
        return quad(lambda v: k(v) * v**degree, u[6], u[8])[0]

    def last_steps(*degrees):
        """(fine, coarse): of x and of I, from node 6 to node 8."""

        def slope(x, n):
            return tuple(torch.tensor(k(u[n]) * u[n] ** d) for d in degrees)

        zero = torch.tensor(0.0, dtype=torch.float64)
        ends, before = (adams(slope, zero, u[:n]) for n in (9, 7))
        return [
            [float(b - a) for a, b in zip(*states, strict=True)]
            for states in zip(before, ends, strict=True)
        ]

    fine, coarse = last_steps(5, 3)
    assert fine == pytest.approx([exact(5), exact(3)], rel=1e-5)
    assert coarse[1] == pytest.approx(exact(3), rel=1e-5)
    assert coarse[0] != pytest.approx(exact(5), rel=1e-3)
    fine, coarse = last_steps(6, 4)
    assert fine[0] != pytest.approx(exact(6), rel=1e-4)
    assert coarse[1] != pytest.approx(exact(4), rel=1e-4)


def test_the_first_coarse_step_is_the_trapezium():
    """From node 0 to node 2 by the slopes at both: exact for k times a straight line."""
    u = [-1.0, -0.7, -0.2]

    def slope(x, n):
        line = torch.tensor(k(u[n]) * (1 + 3 * u[n]), dtype=torch.float64)
        return line, line

    zero = torch.tensor(0.0, dtype=torch.float64)
    _, (x, total) = adams(slope, zero, u)
    exact = quad(lambda v: k(v) * (1 + 3 * v), u[0], u[2])[0]
    assert [float(x), float(total)] == pytest.approx([exact, exact], rel=1e-6)


def test_against_torchdiffeq():
    """The same ODE in continuous time by dopri5, eps interpolated exactly by the world (any
    alpha_bar has an exact eps).
    """
    from torchdiffeq import odeint

    schedule = Schedule.log_snr(200, 5.0, -15.0)
    w = Pentagon(schedule)
    x = w.sample(0, 50, generator(0, "data"), t=0).double()

    def exact(x_t, ab):
        cov = ab * 0.25 + 1 - ab
        eps = (1 - ab).sqrt() * (x_t - ab.sqrt() * w.means[0, 0]) / cov
        return eps, 2 * (1 - ab).sqrt() / cov

    def slope(log_r, state):
        ab = 1 / (1 + (2 * log_r).exp())
        z, _ = state
        eps, trace = exact(z * ab.sqrt(), ab)
        return log_r.exp() * eps, ((1 - ab).sqrt() * trace).expand(len(x))

    ends = schedule.noise_ratio.log()[[0, -1]]
    start = (x / schedule.alpha_bar[0].sqrt(), torch.zeros(50, dtype=torch.float64))
    z, total = (v[-1] for v in odeint(slope, start, ends, rtol=1e-9, atol=1e-9))
    x_T = z * schedule.alpha_bar[-1].sqrt()
    theirs = (
        -0.5 * (x_T**2).sum(-1)
        - math.log(2 * math.pi)
        + math.log(schedule.alpha_bar[-1] / schedule.alpha_bar[0])
        + total
    )
    torch.testing.assert_close(
        log_prob(w.eps, schedule, x, torch.tensor(0)), theirs, atol=2e-3, rtol=0
    )


def test_the_models_density_integrates_to_one():
    """A random network's law is a law: its density sums to 1 over the plane."""
    schedule = Schedule.log_snr(60, 4.0, -12.0)
    net = EpsMLP(((0,),), 60, width=16, alpha_bar=tuple(schedule.alpha_bar.tolist()))
    theta = net.init([generator(0, "init")])
    axis = torch.linspace(-7, 7, 141)
    x = torch.cartesian_prod(axis, axis)[None]
    p = log_prob(net.bind(theta), schedule, x, torch.tensor(0), runs=1).exp()
    assert float(p.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=5e-3)


def test_kl_with_exact_eps_is_the_closed_form():
    """KL between two noised classes with their exact eps, by Monte Carlo, within 3 standard errors
    of the closed form.
    """
    schedule = Schedule.log_snr(100)
    w = Pentagon(schedule, radius=1.0)
    x = w.sample(0, 4000, generator(0, "data"), t=0).double()
    log_p, log_q = (log_prob(w.eps, schedule, x, torch.tensor(c)) for c in (0, 1))
    mean, error = kl(log_p, log_q)
    ab = schedule.alpha_bar[0]
    exact = float(ab * (w.means[0, 0] - w.means[1, 0]).square().sum() / (2 * (ab * 0.25 + 1 - ab)))
    assert abs(float(mean) - exact) < 3 * float(error)


@pytest.mark.parametrize(("activation", "time"), [("silu", "cosine"), ("relu", "table")])
@pytest.mark.parametrize("preconditioned", [True, False])
@pytest.mark.parametrize("depth", [2, 3])
def test_the_networks_own_divergence_is_forward_mode_s(activation, time, preconditioned, depth):
    schedule = Schedule.log_snr(30)
    ab = tuple(schedule.alpha_bar.tolist()) if preconditioned else None
    words = ((0,), (1,))
    net = EpsMLP(words, 30, 16, depth, activation=activation, time=time, alpha_bar=ab)
    theta = {k: v.double() for k, v in net.init([generator(s, "init") for s in range(3)]).items()}
    x, t = torch.randn(3, 20, 2, dtype=torch.float64), torch.randint(30, (3, 20))
    cond = torch.randint(2, (3, 20))
    predict = net.bind(theta)
    plain = lambda x, t, c: predict(x, t, c)  # noqa: E731  without with_divergence
    for ours, theirs in zip(
        eps_and_divergence(predict, schedule, x, t, cond),
        eps_and_divergence(plain, schedule, x, t, cond),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_networks_own_divergence_is_that_of_eps_only():
    """For another prediction, d eps / dx is not d output / dx."""

    class Own:
        def __call__(self, x, steps, cond):
            return x

        def with_divergence(self, x, steps, cond):
            return x, torch.full(x.shape[:-1], 7.0, dtype=x.dtype)

    eps = Schedule.log_snr(20)
    flow = Schedule.from_flow(torch.linspace(0.05, 0.95, 20, dtype=torch.float64))
    t = torch.full((len(X),), 9)
    assert torch.equal(
        eps_and_divergence(Own(), eps, X, t, None)[1], torch.full((30,), 7.0).double()
    )
    value, trace = eps_and_divergence(Own(), flow, X, t, None)
    torch.testing.assert_close(value, flow.eps_from(X, X, t))
    slope = value[0, 0] / X[0, 0]  # eps is a multiple of x there
    torch.testing.assert_close(trace, (2 * slope).expand_as(trace))


def test_points_of_the_flow_are_points_of_the_law():
    """flow_sample then log_prob: the latent that comes back is the one that went in (down, then
    up).
    """
    schedule = Schedule.log_snr(200)
    w = Pentagon(schedule)
    x_T = torch.randn(200, 2, generator=generator(0, "sample")).double()
    x0 = flow_sample(w.eps, schedule, x_T, torch.tensor(2))
    var = schedule.alpha_bar[0] * 0.25 + 1 - schedule.alpha_bar[0]
    wanted = schedule.alpha_bar[0].sqrt() * w.means[2, 0] + var.sqrt() * x_T
    torch.testing.assert_close(x0, wanted, atol=5e-3, rtol=0)


def test_what_it_cannot_do_is_said():
    w = Pentagon()
    with pytest.raises(ValueError, match="two dimensions"):
        log_prob(w.eps, w.schedule, torch.zeros(1, 3), torch.tensor(0))
