"""Log-likelihood of a noise predictor by its probability-flow ODE, with the ODE's own error.

With r = sqrt((1 - ab) / ab), b = sqrt(1 - ab) and u = log r, the ODE and its change of volume are
(Song et al. 2021, eq. 39; lectures/02_diffusion.md, Theorems 2.6 and 2.7)

    dx/du      = b (eps - b x)                                                              (1)
    log p(x_0) = log N(x_T; 0, I) + integral of b (tr(d eps / dx) - b d) du                 (2)

Both right-hand sides are k(u) = sqrt(ab) b^2 times a smooth function (for the course's network
eps - b x = sqrt(ab) b layers(x)), and k vanishes at both ends. A multistep method integrates k
times the polynomial through the last values of the rest: Adams-Bashforth to predict, Adams-Moulton
to correct, of order 6 for any spacing of the nodes, with exact weights for k, as tAB-DEIS has them
for samples (Zhang and Chen 2023). One evaluation a node, and no other times than the nodes'.

Error. The same slopes, without another evaluation, also give a coarser value: of order 4, on every
second node.

    error = |fine - coarse| / 16,   or |fine - coarse| where that is above 0.005 nat        (3)

The first is the error of order 4 on all nodes (16 = 2^4), which order 6 improves on. A gap above
0.005 nat says that the point is not resolved, as where a flow bends between two modes: the gap
itself is its error. On the course's trained networks (3) is about twice the true error;
tests/toy2d/test_referee.py measures how safe that is. The error of a mean of log densities is the
mean of (3): the signs are not known well enough to cancel.

The law is that of t = 0's noise level, where a noised mixture is a mixture again: nothing is
truncated. A network that is smooth in its time may be asked for fractional times
(`ode_schedule(..., smooth=True)`). One with a learned row for each step has no time between its
nodes: its law is the one that this integrator gives on the nodes it has.
"""

import functools
import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from toy2d.core.drift import Predict
from toy2d.core.schedule import Schedule

ORDER, COARSE_ORDER = 6, 4
RESOLVED = 0.005  # nat, in (3)


class LogProb(NamedTuple):
    """log p(x) in nats, and its coarser value from the same slopes. Differences of two are one."""

    value: Tensor
    coarse: Tensor

    @property
    def error(self) -> Tensor:
        """The ODE's error (3) of every value, not negative."""
        gap = (self.value - self.coarse).abs()
        return torch.where(gap > RESOLVED, gap, gap / 2**COARSE_ORDER)


def log_prob(
    predict: Predict, schedule: Schedule, x0: Tensor, cond, runs: int = 0, every: int = 1
) -> Tensor:
    """log p(x0) in nats, shape x0.shape[:-1]: the value of `log_prob_with_error`."""
    return log_prob_with_error(predict, schedule, x0, cond, runs, every).value


def log_prob_with_error(
    predict: Predict, schedule: Schedule, x0: Tensor, cond, runs: int = 0, every: int = 1
) -> LogProb:
    """log p(x0) in nats and its ODE error (3), shape x0.shape[:-1], in x0's dtype (pass float64 for
    float64).

    `predict(x_t, t, cond)` is any callable: a network, a stack of them (runs=1), or a world's exact
    `eps`. x0 lives at t = 0's noise level. The nodes are every `every`-th of `schedule`'s, the
    last one included. Raises ValueError for x0 that is not a set of points in the plane.
    """
    if x0.shape[-1] != 2:
        raise ValueError(
            f"log_prob: the trace is exact in two dimensions only, x0 has shape {tuple(x0.shape)}"
        )
    nodes = _every(schedule, every)
    b = (1 - nodes.alpha_bar).sqrt().tolist()

    def slope(x, n):
        t = torch.full(x.shape[: runs + 1], n, device=x.device)
        eps, trace = eps_and_divergence(predict, nodes, x, t, cond)
        return b[n] * (eps - b[n] * x), b[n] * (trace - 2 * b[n])

    with torch.no_grad():
        ends = adams(slope, x0, nodes.noise_ratio.log().tolist())
    return LogProb(*(total - 0.5 * (x**2).sum(-1) - math.log(2 * math.pi) for x, total in ends))


def flow_sample(predict: Predict, schedule: Schedule, x_T: Tensor, cond, runs: int = 0) -> Tensor:
    """Points of the law of `log_prob`: equation (1) from x_T ~ N(0, I) to t = 0's noise level."""
    last = len(schedule) - 1
    b = (1 - schedule.alpha_bar).sqrt().tolist()

    def slope(x, n):
        t = torch.full(x.shape[: runs + 1], last - n, device=x.device)
        eps = schedule.eps_from(predict(x, schedule.timesteps[t], cond), x, t)
        return b[last - n] * (eps - b[last - n] * x), torch.zeros((), dtype=x.dtype)

    with torch.no_grad():
        (x_0, _), _ = adams(slope, x_T, schedule.noise_ratio.log().flip(0).tolist())
    return x_0


State = tuple[Tensor, Tensor]  # x, and the integral I


def adams(slope, x: Tensor, u: list[float], order: int = ORDER) -> tuple[State, State]:
    """(x, I) at u[-1] of dx/du, dI/du = slope(x, n) at node n, from x at u[0] and I = 0.

    The second pair is the coarser one: order 4 on every second node (and the last), from the same
    slopes. A node's slope is taken once, at the predicted x (PEC mode); the first steps use the
    lower orders that their history allows. `slope` must not depend on I.
    """
    fine = coarse = (x, 0.0)
    slopes, at = [slope(x, 0)], 0  # at every node so far; the node where `coarse` stands
    for n in range(len(u) - 1):
        past = list(range(n, max(n - order, -1), -1))
        (predicted, _) = _advance(fine, slopes, past, u, n, n + 1)
        slopes.append(slope(predicted, n + 1))
        fine = _advance(fine, slopes, [n + 1, *past][:order], u, n, n + 1)
        if n % 2 or n + 2 == len(u):
            past = list(range(at, -1, -2))
            coarse = _advance(coarse, slopes, [n + 1, *past][:COARSE_ORDER], u, at, n + 1)
            at = n + 1
    return fine, coarse


def _advance(state: State, slopes: list, nodes: list[int], u: list[float], start: int, end: int):
    """The state at node `end` from that at node `start`, by the slopes at `nodes`."""
    x, total = state
    weights = _weights(tuple(u[n] for n in nodes), u[start], u[end])
    for w, n in zip(weights, nodes, strict=True):
        x, total = x.add(slopes[n][0], alpha=w), total + w * slopes[n][1]
    return x, total


@functools.cache
def _weights(nodes: tuple[float, ...], start: float, end: float) -> tuple[float, ...]:
    """Weights of values at `nodes` that integrate k times any polynomial through them exactly from
    `start` to `end`.
    """
    share, gauss = _gauss_legendre(20)
    h, at_nodes = end - start, torch.tensor(nodes, dtype=torch.float64)
    powers = torch.arange(len(nodes), dtype=torch.float64)[:, None]
    moments = share**powers @ (gauss * h * _kernel(start + h * share))
    weights = torch.linalg.solve(((at_nodes - start) / h) ** powers, moments)
    return tuple((weights / _kernel(at_nodes)).tolist())


@functools.cache
def _gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Points and weights of the rule on [0, 1], from the Jacobi matrix (Golub and Welsch 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    beside = k / (4 * k**2 - 1).sqrt()
    points, vectors = torch.linalg.eigh(beside.diag(1) + beside.diag(-1))
    return (points + 1) / 2, vectors[0] ** 2


def _kernel(u: Tensor) -> Tensor:
    """k(u) = sqrt(ab) b^2 = r^2 / (1 + r^2)^(3/2) at r = e^u."""
    return torch.sigmoid(2 * u) * torch.sigmoid(-2 * u).sqrt()


def _every(schedule: Schedule, every: int) -> Schedule:
    """Every `every`-th node, and the last one."""
    if every == 1:
        return schedule
    kept = [*range(0, len(schedule) - 1, every), len(schedule) - 1]
    return replace(schedule, alpha_bar=schedule.alpha_bar[kept], timesteps=schedule.timesteps[kept])


def ode_schedule(schedule: Schedule, nodes: int, smooth: bool = False) -> Schedule:
    """At most `nodes` nodes for the ODE, without a last step that leaps.

    `smooth` networks take fractional times; their nodes are close where the ODE bends and farther
    apart at high noise. Others are asked for times of the schedule only. Where beta was clipped
    (cosine: 0.999) the last log-SNR step is about 5 times the one before. No integrator crosses it:
    up and down the ODE no longer undo each other, and points of a base come out hundreds of units
    away. Started one node earlier, N(0, I) is off by a KL of about 1e-3 nat (cosine, T = 100,
    radius 3).
    """
    step = schedule.noise_ratio.log().diff()
    if step[-1] > 4 * step[-2]:
        schedule = replace(
            schedule, alpha_bar=schedule.alpha_bar[:-1], timesteps=schedule.timesteps[:-1]
        )
    if not smooth:
        return schedule.strided(min(nodes, len(schedule)))
    ends = schedule.noise_ratio.log()[[0, -1]].tolist()
    return schedule.at_log_snr(-2 * graded(*ends, nodes).to(schedule.alpha_bar.device))


def graded(start: float, end: float, n: int) -> Tensor:
    """n values of u = log r from start to end, with density

        1 / (1 + 0.6 log(1 + e^u) + 0.3 log(1 + e^(-u - 1))):

    steps may grow towards both ends, where k vanishes. Chosen on the course's trained networks.
    """
    fine = torch.linspace(start, end, 4001, dtype=torch.float64)
    softplus = torch.nn.functional.softplus
    density = 1 / (1 + 0.6 * softplus(fine) + 0.3 * softplus(-fine - 1))
    share = torch.cumulative_trapezoid(density, fine)
    share = torch.cat([share[:1] * 0, share]) / share[-1]
    wanted = torch.linspace(0, 1, n, dtype=torch.float64)
    right = torch.searchsorted(share, wanted).clamp(1, len(fine) - 1)
    part = (wanted - share[right - 1]) / (share[right] - share[right - 1])
    return fine[right - 1] + part * (fine[right] - fine[right - 1])


def eps_and_divergence(
    predict: Predict, schedule: Schedule, x_t: Tensor, t: Tensor, cond
) -> tuple[Tensor, Tensor]:
    """eps_hat and tr(d eps_hat / dx), exact by two forward-mode products.

    A network that knows its own derivative (`EpsMLP.bind`) offers `with_divergence` and is three
    times faster; a test holds it to this.
    """
    steps = schedule.timesteps[t]
    if schedule.prediction == "eps" and hasattr(predict, "with_divergence"):
        return predict.with_divergence(x_t, steps, cond)
    value, jacobian = eps_and_jacobian(predict, schedule, x_t, t, cond)
    return value, jacobian[..., 0, 0] + jacobian[..., 1, 1]


def eps_and_jacobian(
    predict: Predict, schedule: Schedule, x_t: Tensor, t: Tensor, cond
) -> tuple[Tensor, Tensor]:
    """eps_hat and d eps_hat / dx (..., output, input), exact by two forward-mode products."""
    steps = schedule.timesteps[t]

    def eps(x):
        return schedule.eps_from(predict(x, steps, cond), x, t)

    def along(direction):
        return torch.func.jvp(eps, (x_t,), (direction.expand_as(x_t),))

    basis = torch.eye(2, dtype=x_t.dtype, device=x_t.device)
    value, columns = torch.func.vmap(along, out_dims=(None, 0))(basis)
    return value, columns.movedim(0, -1)


def ddim_log_prob(
    predict: Predict,
    schedule: Schedule,
    x0: Tensor,
    cond,
    runs: int = 0,
    iterations: int = 12,
    tolerance: float | None = None,
) -> Tensor:
    """log density in nats of DDIM's own law (eta = 0, `sample.ddim`) at x0.

        x_{t-1} = a x_t + b eps(x_t)
        a = sqrt(ab_{t-1} / ab_t),  b = sqrt(1 - ab_{t-1}) - a sqrt(1 - ab_t)
        log p(x_{t-1}) = log p(x_t) - log det(a I + b d eps / dx)

    It is exact for the discrete sampler: the change of variables has no ODE error.

    Each step is inverted by Newton's method with the exact 2 x 2 Jacobian, to `tolerance` (default
    1e-5 in float32, 1e-10 in float64, of the data's unit). Raises ValueError where a determinant on
    the path is not positive or Newton does not converge: there the sampler folds the plane, and its
    law is not given by this formula.
    """
    ab = schedule.alpha_bar
    tolerance = tolerance or (1e-10 if x0.dtype == torch.float64 else 1e-5)
    x, log_det = x0, torch.zeros(x0.shape[:-1], dtype=x0.dtype, device=x0.device)
    for n in range(1, len(schedule)):
        a = float(ab[n - 1] / ab[n]) ** 0.5
        b = float(1 - ab[n - 1]) ** 0.5 - a * float(1 - ab[n]) ** 0.5
        t = torch.full(x.shape[: runs + 1], n, device=x.device)
        after, x = x, x / a
        for _ in range(iterations):
            eps, J = eps_and_jacobian(predict, schedule, x, t, cond)
            (p, q), (r, s) = (  # a I + b J, row by row
                (a + b * J[..., 0, 0], b * J[..., 0, 1]),
                (b * J[..., 1, 0], a + b * J[..., 1, 1]),
            )
            det = p * s - q * r
            miss = a * x + b * eps - after
            if float(miss.abs().max()) <= tolerance:
                break
            u, v = miss.unbind(-1)
            x = x - torch.stack([(s * u - q * v) / det, (p * v - r * u) / det], -1)
        else:
            raise ValueError(
                f"ddim_log_prob: step {n} cannot be inverted "
                f"(still {float(miss.abs().max()):.1e} off)"
            )
        if not bool((det > 0).all()):
            raise ValueError(
                f"ddim_log_prob: the determinant at step {n} is {float(det.min()):.3g}, "
                "not positive; DDIM folds the plane there: use more steps"
            )
        log_det = log_det + det.log()
    return -0.5 * (x**2).sum(-1) - math.log(2 * math.pi) - log_det
