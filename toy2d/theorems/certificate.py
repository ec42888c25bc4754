"""Certificate (lecture 6b, Theorem 6.9): what the weight lam of L2 guarantees by itself.

    instance(theta) + lam ||theta - theta_star||^2 <= instance(theta_star),  instance >= 0   =>
    lam ||theta - theta_star||^2 <= instance(theta_star)   =>
    path KL <= (sum_t w_t L_t^2) instance(theta_star) / lam

Both conclusions follow by arithmetic from the condition and from Theorem 6.7, which has rows of its
own: here they are identities, kept for their sizes. What can fail is the condition: it is measured
on noise of its own, and that row is an observation.
lam is the code's (the instance loss is a mean over d = 2). L_t is measured on the segment from
theta_star to theta, afterwards: a constant known *before* training would have to hold on the whole
ball of radius sqrt(instance(theta_star) / lam).
"""

import torch
from torch import Tensor

from toy2d.core.drift import Params
from toy2d.core.schedule import Schedule
from toy2d.model import EpsMLP
from toy2d.theorems.row import Row, not_applicable

LABEL = "certificate"
CONDITION = "after training with L2 the total loss has not risen above its start"
DISTANCE = "loss not risen  =>  lam ||delta theta||^2 <= loss(theta*)"
DRIFT = "loss not risen  =>  path KL <= (sum w L^2) loss(theta*) / lam"


@torch.no_grad()
def instance_losses(
    net: EpsMLP,
    theta: Params,
    schedule: Schedule,
    shots: Tensor,
    cond: int,
    rng: torch.Generator,
    draws: int = 40,
) -> Tensor:
    """||eps_hat - eps||^2 / d of every (shot, step, draw), flat: its mean is the training loss.

    The same `rng` gives the same noise, so two models can be compared draw by draw.
    """
    T, N = len(schedule), len(shots)
    t = torch.arange(T).repeat_interleave(N * draws)[None]
    x0 = shots.repeat(T * draws, 1)[None]
    eps = torch.randn(x0.shape, generator=rng)
    x_t = schedule.add_noise(x0, t, eps)
    output = net(theta, x_t, t, torch.full_like(t, cond))
    return ((schedule.eps_from(output, x_t, t) - eps) ** 2).mean(-1)[0]


def condition(
    losses_star: Tensor, losses: Tensor, lam: float, square: float, where: str, seed: int
) -> Row:
    """Has the total loss not risen? `losses*` on the same draws; square = ||delta theta||^2."""
    change = (losses - losses_star).double() + lam * square  # paired: the same noise in both
    error = float(change.std()) / len(change) ** 0.5
    sides = (float(change.mean()), 0.0, error)
    return Row(LABEL, CONDITION, where, "observation", "<=", *sides, seed=seed, unit="loss")


def certificate(
    losses_star: Tensor,
    losses: Tensor,
    lam: float,
    square: float,
    path: tuple[float, float],
    constant: tuple[float, float],
    where: str,
    seed: int,
) -> list[Row]:
    """Both conclusions. `path`: path KL, `constant`: sum_t w_t L_t^2, each with its error."""
    if not lam > 0:
        raise ValueError(f"certificate: lam must be positive, not {lam}")
    rise = float((losses - losses_star).mean()) + lam * square
    if rise > 0:
        why = f"the total loss has risen by {rise:.3g}"
        return [not_applicable(LABEL, s, where, "identity", why, seed) for s in (DISTANCE, DRIFT)]
    start = float(losses_star.mean())
    start_error = float(losses_star.std()) / len(losses) ** 0.5
    guaranteed = constant[0] * start / lam
    error = guaranteed * ((constant[1] / constant[0]) ** 2 + (start_error / start) ** 2) ** 0.5
    ratio = guaranteed / max(path[0], 1e-12)
    note = f"guaranteed {guaranteed:.3g} nats, measured {path[0]:.3g}: {ratio:.3g} times"
    distance = (lam * square, start, 0.0, start_error)
    drift = (path[0], guaranteed, path[1], error)
    curve = {"lam": lam, "guaranteed": guaranteed, "measured": path[0]}
    return [
        Row(LABEL, DISTANCE, where, "identity", "<=", *distance, seed, unit="loss"),
        Row(LABEL, DRIFT, where, "identity", "<=", *drift, seed, note=note, curve=curve),
    ]
