"""Log-likelihood in any dimension: the ODE of likelihood.py with a trace estimated by probes.

    tr(d eps / dx) = E v' (d eps / dx) v,   v with independent signs      (Hutchinson 1990;
    Skilling 1989)

The path of x does not depend on the probes, so all of them share one path: a forward pass a node
and a backward pass a probe. Two errors come with every value: that of the probes (a standard error
over them) and that of the ODE, by a coarser value as in likelihood.py. Give models that are
compared the same points and the same probes: what both have in common cancels.

The law is the ODE's. A sampler with noise, such as the ancestral one, has another, and path KL
bounds that one. Shapes: N points, K probes of each, D data of any shape.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from toy2d.core.drift import Predict
from toy2d.core.likelihood import LogProb, adams
from toy2d.core.schedule import Schedule


class ProbedLogProb(NamedTuple):
    """log p(x) in nats by each probe, and the ODE's coarser value of each."""

    each: Float[Tensor, " K N"]
    coarse: Float[Tensor, " K N"]

    @property
    def value(self) -> Float[Tensor, " N"]:
        return self.each.mean(0)

    @property
    def probe_error(self) -> Float[Tensor, " N"]:
        """Standard error of `value` over its probes; nan for a single one."""
        return self.each.std(0) / len(self.each) ** 0.5

    @property
    def ode_error(self) -> Float[Tensor, " N"]:
        """Of `value`, from the two values (likelihood.py, equation 3); not negative."""
        return LogProb(self.value, self.coarse.mean(0)).error


class KL(NamedTuple):
    """A mean over points in nats. `error`: standard error over points, probes included;
    `ode_error`: mean of the absolute ODE errors of the differences.
    """

    mean: float
    error: float
    ode_error: float
    n: int


def rademacher(k: int, like: Float[Tensor, " N *D"], rng: torch.Generator) -> Tensor:
    """(K, N, *D) signs: each point has its own probes."""
    signs = torch.randint(0, 2, (k, *like.shape), generator=rng, device=rng.device)
    return (2 * signs - 1).to(like.device, like.dtype)


def log_prob_by_probes(
    predict: Predict,
    schedule: Schedule,
    x0: Float[Tensor, " N *D"],
    cond: Any,
    probes: Float[Tensor, " K N *D"],
) -> ProbedLogProb:
    """log p(x0) of the ODE's law at t = 0's noise level.

    For a flow model x0 is the network's own x_0, and so is the density.
    """
    b, k = (1 - schedule.alpha_bar).sqrt().tolist(), schedule.vp_scale.tolist()
    d = x0[0].numel()

    def slope(x, n):  # in the variance-preserving y = k x: d eps / dy = d eps / dx / k
        t = torch.full((len(x),), n, device=x.device)
        eps, traces = eps_and_traces(predict, schedule, x / k[n], t, cond, probes)
        return b[n] * (eps - b[n] * x), b[n] * (traces / k[n] - b[n] * d)

    def log_density(y_T, total):
        log_normal = -0.5 * (y_T**2).flatten(1).sum(1) - 0.5 * d * math.log(2 * math.pi)
        return log_normal + total + d * math.log(k[0])

    ends = adams(slope, x0 * k[0], schedule.noise_ratio.log().tolist())
    return ProbedLogProb(*(log_density(*end) for end in ends))


def eps_and_traces(
    predict: Predict, schedule: Schedule, x_t: Tensor, t: Tensor, cond: Any, probes: Tensor
) -> tuple[Float[Tensor, " N *D"], Float[Tensor, " K N"]]:
    """eps_hat, and v' (d eps_hat / dx) v for each probe: one backward pass each."""
    with torch.enable_grad():
        x = x_t.detach().requires_grad_(True)
        eps = schedule.eps_from(predict(x, schedule.timesteps[t], cond), x, t)
        traces = []
        for i, v in enumerate(probes):
            (Jv,) = torch.autograd.grad(eps, x, v, retain_graph=i + 1 < len(probes))
            traces.append((Jv * v).flatten(1).sum(1))
    return eps.detach(), torch.stack(traces)


def ode_kl(
    predict: Predict,
    predict_star: Predict,
    schedule: Schedule,
    x0: Float[Tensor, " N *D"],
    cond: Any,
    probes: Float[Tensor, " K N *D"],
    chunk: int = 0,
    cond_of: Callable[[Any, slice], Any] = lambda cond, rows: cond[rows],
) -> KL:
    """KL(star || theta) of the two ODEs' laws, x0 being points of star's
    (`likelihood.flow_sample`).

    Paired: both densities at the same points by the same probes. `chunk` points at a time.
    Raises ValueError for fewer than 2 points.
    """
    n = len(x0)
    if n < 2:
        raise ValueError("ode_kl: a standard error needs at least 2 points")
    found = []
    for first in range(0, n, chunk or n):
        rows = slice(first, first + (chunk or n))
        asked = schedule, x0[rows], cond_of(cond, rows), probes[:, rows]
        star, theta = (log_prob_by_probes(p, *asked) for p in (predict_star, predict))
        found.append([(p - q).mean(0).double() for p, q in zip(star, theta, strict=True)])
    ratio = LogProb(*(torch.cat(v) for v in zip(*found, strict=True)))
    error = float(ratio.value.std()) / n**0.5
    return KL(float(ratio.value.mean()), error, float(ratio.error.mean()), n)
