"""Log-likelihood of a noise predictor by its probability-flow ODE.

Song et al. 2021, eq. 39; lectures/02_diffusion.md, Theorems 2.6 and 2.7.

With z = x / sqrt(ab) and the noise ratio r = sqrt((1 - ab) / ab), the ODE is dz/dr = eps_theta, and

    log p(x_0) = log N(x_T; 0, I) + (d/2) log(ab_T / ab_0)
                 + integral over log r of sqrt(1 - ab) tr(d eps / dx)                           (1)

The state is integrated in r (exact where eps is constant, at high noise), the trace in log r
(smooth at both ends), both on the schedule's own nodes: a network is never asked for a time it was
not trained on. `order=3` takes three nodes a step, with Kutta's third-order weights for unequal
spacing (3 evaluations for 2 intervals); `order=2` is Heun (2 evaluations an interval). The density
is that of t = 0's noise level, where a noised mixture is a mixture again: nothing is truncated.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from toy2d.core.drift import Predict
from toy2d.core.schedule import Schedule


def log_prob(
    predict: Predict, schedule: Schedule, x0: Tensor, cond, order: int = 3, runs: int = 0
) -> Tensor:
    """log p(x0) in nats, shape x0.shape[:-1], in x0's dtype (pass float64 for float64).

    `predict(x_t, t, cond)` is any callable: a network, a stack of them (runs=1), or a world's exact
    `eps`. x0 lives at t = 0's noise level. Raises ValueError for an unknown order, or x0 that is
    not a set of points in the plane.
    """
    if order not in (2, 3):
        raise ValueError(f"log_prob: order must be 2 (Heun) or 3 (Kutta), not {order}")
    if x0.shape[-1] != 2:
        raise ValueError(
            f"log_prob: the trace is exact in two dimensions only, x0 has shape {tuple(x0.shape)}"
        )
    ab, r = schedule.alpha_bar, schedule.noise_ratio
    log_r = r.log()

    def slope(z, n):
        """eps and sqrt(1 - ab) tr(d eps / dx) at node n."""
        t = torch.full(z.shape[: runs + 1], n, device=z.device)
        eps, trace = eps_and_divergence(predict, schedule, z * float(ab[n]) ** 0.5, t, cond)
        return eps, float(1 - ab[n]) ** 0.5 * trace

    z = x0 / float(ab[0]) ** 0.5
    total = torch.zeros(x0.shape[:-1], dtype=x0.dtype, device=x0.device)
    last, n = len(schedule) - 1, 0
    with torch.no_grad():
        while n < last:
            width = 2 if order == 3 and n + 2 <= last else 1
            h, k = float(r[n + width] - r[n]), float(log_r[n + width] - log_r[n])
            e0, g0 = slope(z, n)
            if width == 1:
                e1, g1 = slope(z + h * e0, n + 1)
                z, total = z + h / 2 * (e0 + e1), total + k / 2 * (g0 + g1)
            else:
                c, c_log = float(r[n + 1] - r[n]) / h, float(log_r[n + 1] - log_r[n]) / k
                e1, g1 = slope(z + c * h * e0, n + 1)
                a = (1 - c) / (c * (2 - 3 * c))
                e2, g2 = slope(z + h * ((1 - a) * e0 + a * e1), n + 2)
                w, v = kutta_weights(c), kutta_weights(c_log)
                z = z + h * (w[0] * e0 + w[1] * e1 + w[2] * e2)
                total = total + k * (v[0] * g0 + v[1] * g1 + v[2] * g2)
            n += width
    x_T = z * float(ab[-1]) ** 0.5
    log_normal = -0.5 * (x_T**2).sum(-1) - math.log(2 * math.pi)
    return log_normal + math.log(ab[-1] / ab[0]) + total


def ode_schedule(schedule: Schedule, nodes: int) -> Schedule:
    """At most `nodes` nodes of the schedule for the ODE, without a last step that leaps.

    Where beta was clipped (cosine: 0.999) the last log-SNR step is about 5 times the one before. No
    integrator crosses it: up and down the ODE no longer undo each other, and points of a base come
    out hundreds of units away. Started one node earlier, N(0, I) is off by KL of about 1e-3 nat
    (cosine, T = 100, radius 3).
    """
    step = schedule.noise_ratio.log().diff()
    if step[-1] > 4 * step[-2]:
        schedule = replace(
            schedule, alpha_bar=schedule.alpha_bar[:-1], timesteps=schedule.timesteps[:-1]
        )
    return schedule.strided(min(nodes, len(schedule)))


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


def kutta_weights(c: float) -> tuple[float, float, float]:
    """Weights on nodes 0, c, 1 that integrate quadratics exactly (Simpson's for c = 1/2)."""
    b1 = 1 / (6 * c * (1 - c))
    b2 = (2 - 3 * c) / (6 * (1 - c))
    return 1 - b1 - b2, b1, b2


def flow_sample(predict: Predict, schedule: Schedule, x_T: Tensor, cond, runs: int = 0) -> Tensor:
    """Points of the law of `log_prob`: its ODE from x_T ~ N(0, I) to t = 0's noise level (Heun)."""
    ab, r = schedule.alpha_bar, schedule.noise_ratio

    def eps(z, n):
        t = torch.full(z.shape[: runs + 1], n, device=z.device)
        x = z * float(ab[n]) ** 0.5
        return schedule.eps_from(predict(x, schedule.timesteps[t], cond), x, t)

    with torch.no_grad():
        z = x_T / float(ab[-1]) ** 0.5
        for n in range(len(schedule) - 1, 0, -1):
            h = float(r[n - 1] - r[n])
            e0 = eps(z, n)
            z = z + h / 2 * (e0 + eps(z + h * e0, n - 1))
    return z * float(ab[0]) ** 0.5


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
