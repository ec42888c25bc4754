"""Samplers: the ancestral chain and DDIM, for tensors of any shape.

They end at t = 0's noise level, where laws are compared.
A deterministic and an ancestral sampler of one network have *different laws*: always say which one
a number is about.
"""

import torch
from torch import Tensor

from toy2d.core.drift import Predict
from toy2d.core.schedule import Schedule, Variance


@torch.no_grad()
def ancestral(
    predict: Predict,
    schedule: Schedule,
    x_T: Tensor,
    cond,
    rng: torch.Generator,
    variance: Variance = "beta",
    runs: int = 0,
    chain: bool = False,
) -> Tensor | list[Tensor]:
    """x at t = 0's noise level from x_T ~ N(0, I) by the ancestral chain.

    Ho et al. 2020, algorithm 2, without its last, noiseless step.

    Flow matching has the same sampler in k_t x_t (Schedule.vp_scale); states are the network's own
    x_t. `chain` returns [x_0, ..., x_{T-1}], entry t at node t, as `drift.path_kl` wants it.
    `runs`: leading stack dimensions of x_T.
    """
    beta, alpha, s2 = schedule.reverse_chain(variance)
    k = schedule.vp_scale
    x, states = x_T, [x_T]
    for n in range(len(schedule) - 1, 0, -1):
        t = torch.full(x.shape[: runs + 1], n, device=x.device)
        eps = schedule.eps_from(predict(x, schedule.timesteps[t], cond), x, t)
        z = torch.randn(x.shape, generator=rng, device=rng.device, dtype=x.dtype).to(x.device)
        shift = float(beta[n] / (1 - schedule.alpha_bar[n]).sqrt())
        x = (float(k[n]) * x - shift * eps) / float(alpha[n]) ** 0.5 + float(s2[n]) ** 0.5 * z
        x = x / float(k[n - 1])
        states.append(x)
    return states[::-1] if chain else x


@torch.no_grad()
def ddim(predict: Predict, schedule: Schedule, x_T: Tensor, cond, runs: int = 0) -> Tensor:
    """x at t = 0's noise level by DDIM with eta = 0 (Song et al. 2021).

    These are Euler steps of dz/d(noise ratio) = eps with z = x_t / a_t.

    For flow matching these are the Euler steps of dx/ds = network.
    """
    a, ratio = schedule.alpha_bar.sqrt() / schedule.vp_scale, schedule.noise_ratio
    x = x_T
    for n in range(len(schedule) - 1, 0, -1):
        t = torch.full(x.shape[: runs + 1], n, device=x.device)
        eps = schedule.eps_from(predict(x, schedule.timesteps[t], cond), x, t)
        z = x / float(a[n]) + float(ratio[n - 1] - ratio[n]) * eps
        x = z * float(a[n - 1])
    return x


@torch.no_grad()
def denoise(predict: Predict, schedule: Schedule, x: Tensor, cond, runs: int = 0) -> Tensor:
    """E[x0 | x at t = 0's noise level]: the last, noiseless step, for pictures of clean points."""
    t = torch.zeros(x.shape[: runs + 1], dtype=torch.long, device=x.device)
    eps = schedule.eps_from(predict(x, schedule.timesteps[t], cond), x, t)
    a, b = schedule.coefficients(t, x)
    return (x - b * eps) / a
