"""Certificate: while the total loss has not risen above its start, the weight lam alone bounds distance and drift.

    instance(theta) + lam ||theta - theta_star||^2 <= instance(theta_star),  instance >= 0   =>
    lam ||theta - theta_star||^2 <= instance(theta_star)   =>   path KL <= (sum_t w_t L_t^2) instance(theta_star) / lam

lam is the code's (the instance loss is a mean over d = 2). L_t is measured on the segment from theta_star to theta, afterwards: a
constant known *before* training would have to hold on the whole ball of radius sqrt(instance(theta_star) / lam).
"""

import torch
from torch import Tensor

from toy2d.core.drift import Params
from toy2d.core.schedule import Schedule
from toy2d.model import EpsMLP
from toy2d.theorems.row import Row, not_applicable

LABEL = "certificate"


@torch.no_grad()
def instance_losses(
    net: EpsMLP, theta: Params, schedule: Schedule, shots: Tensor, cond: int, rng: torch.Generator, draws: int = 40
) -> Tensor:  # fmt: skip
    """||eps_hat - eps||^2 / d of every (shot, step, draw), flat: the training loss is its expectation. Same rng, same draws."""
    T, N = len(schedule), len(shots)
    t = torch.arange(T).repeat_interleave(N * draws)[None]
    x0 = shots.repeat(T * draws, 1)[None]
    eps = torch.randn(x0.shape, generator=rng)
    x_t = schedule.add_noise(x0, t, eps)
    output = net(theta, x_t, t, torch.full_like(t, cond))
    return ((schedule.eps_from(output, x_t, t) - eps) ** 2).mean(-1)[0]


def certificate(
    losses_star: Tensor, losses: Tensor, lam: float, square: float, path: tuple[float, float], constant: tuple[float, float],
    condition: str, seed: int,
) -> list[Row]:  # fmt: skip
    """`losses*` on the same draws; square = ||theta - theta_star||^2; path KL and sum w L^2 with their errors."""
    if not lam > 0:
        raise ValueError(f"certificate: lam must be positive, not {lam}")
    n = len(losses)
    start, start_error = float(losses_star.mean()), float(losses_star.std()) / n**0.5
    fall = losses_star - losses - lam * square  # paired: the same noise in both
    rise = -float(fall.mean())
    statements = (
        "loss not risen  =>  lam ||delta theta||^2 <= loss(theta*)",
        "loss not risen  =>  path KL <= (sum w L^2) loss(theta*) / lam",
    )
    if rise > 0:
        why = f"the total loss has risen by {rise:.3g}"
        return [not_applicable(LABEL, s, condition, "proved", why, seed) for s in statements]
    c, c_error = constant
    guaranteed = c * start / lam
    error = guaranteed * ((c_error / c) ** 2 + (start_error / start) ** 2) ** 0.5
    note = f"guaranteed {guaranteed:.3g} nats, measured {path[0]:.3g}: {guaranteed / max(path[0], 1e-12):.3g} times"
    return [
        Row(LABEL, statements[0], condition, "proved", "<=", lam * square, start, 0.0, start_error, seed, unit="loss"),
        Row(LABEL, statements[1], condition, "proved", "<=", path[0], guaranteed, path[1], error, seed, note=note,
            curve={"lam": lam, "guaranteed": guaranteed, "measured": path[0]}),
    ]  # fmt: skip
