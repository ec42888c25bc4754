"""Theorem 2': KL(p_star || p_theta) <= path KL <= (sum_t w_t L_t^2) ||theta - theta_star||^2, for the ancestral sampler.

The first step is the chain rule of KL and data processing: no smoothness is assumed. For the second, with theta_s on the segment,
    eps_theta - eps_star = integral_0^1 J(theta_s) ds (theta - theta_star),   so by Jensen
    E ||eps_theta - eps_star||^2 <= L_t^2 ||theta - theta_star||^2,   L_t^2 = E_{x_t} integral_0^1 ||J(theta_s, x_t)||_op^2 ds.
L_t is measured on the base's own chain; the integral by Gauss-Legendre nodes.
Shapes: N chains, T nodes, P parameters of one member.
"""

import math

import numpy as np
import torch
from torch import Tensor

from toy2d.core.drift import Params, path_kl, squared_distance
from toy2d.core.rng import generator
from toy2d.core.sample import ancestral
from toy2d.core.schedule import Schedule
from toy2d.data import World
from toy2d.model import SLOPES, EpsMLP
from toy2d.theorems.estimators import knn_with_bias
from toy2d.theorems.row import Row

LABEL = "path_bound"


def gaussian_pair(
    lengths: tuple[int, ...] = (100, 1000, 4000), std: float = 0.5, shift: float = 3.0, scale_weights: float = 1.0
) -> list[Row]:  # fmt: skip
    """N(m1, s^2 I) against N(m2, s^2 I) with exact eps: path KL >= KL of the sampler's laws, both -> shift^2 / (2 s^2) = 18 as T grows.

    Everything is closed form: eps is linear, so the ancestral sampler's law is Gaussian and its mean obeys a recursion. The sampler's
    error is O(1/T): path KL at T and T/2 is extrapolated to T = infinity, the next order is allowed for.
    `scale_weights` != 1 spoils w_t on purpose (tests show that the rows then fail).
    """
    limit, rows = shift**2 / (2 * std**2), []
    for T in lengths:
        kl, path = _gaussian_laws(T, std, shift)
        _, half = _gaussian_laws(T // 2, std, shift)
        path, half = path * scale_weights, half * scale_weights
        where = f"Gaussian pair, T = {T}"
        rows += [
            Row(LABEL, "KL <= path KL, closed form", where, "proved", "<=", kl, path, rounding=1e-9,
                note="the sampler's own Gaussian laws"),
            Row(LABEL, "path KL -> |m1 - m2|^2 / (2 s^2) as T grows", where, "proved", "==", 2 * path - half, limit,
                lhs_error=limit * (10 / T) ** 2 + 1e-4, note=f"path KL at T: {path:.4f}, extrapolated; the sampler's KL: {kl:.4f}"),
        ]  # fmt: skip
    return rows


def _gaussian_laws(T: int, std: float, shift: float) -> tuple[float, float]:
    """(KL of the two ancestral laws, path KL) for two equal Gaussians `shift` apart, chains of the first.

    At node t the exact eps is b_t (x - a_t m) / v_t, v_t = ab s^2 + 1 - ab; the mean of x and its variance obey the sampler's recursion,
    the same for both but for m, so only the means differ.
    """
    schedule = Schedule.log_snr(T, 14.0, -20.0)  # so close to clean and to noise that 18 is seen
    ab = schedule.alpha_bar
    beta, alpha, s2 = schedule.reverse_chain()
    slope = (1 - ab).sqrt() / (ab * std**2 + 1 - ab)  # eps = slope * (x - a_t m)
    reach = beta / (1 - ab).sqrt() * slope / alpha.sqrt()
    shrink, push = 1 / alpha.sqrt() - reach, reach * ab.sqrt() * shift
    path = (schedule.path_weights() * (slope * ab.sqrt() * shift) ** 2).sum()
    gap, variance = 0.0, 1.0  # between the means, of each law
    for c, p, v in list(zip(shrink.tolist(), push.tolist(), s2.tolist(), strict=True))[:0:-1]:
        gap, variance = c * gap + p, c**2 * variance + v
    return gap**2 / (2 * variance), float(path)


def star_chain(world: World, net: EpsMLP, theta_star: Params, seed: int, n: int = 1500) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Fresh ancestral chains (T, 1, N, 2) of the base, n for each old prompt, and their prompts (N,)."""
    cond = torch.tensor(world.old).repeat_interleave(n)
    rng = generator(seed, "verify/chains")
    x_T = torch.randn(1, len(cond), 2, generator=rng)
    chain = ancestral(net.bind(theta_star), world.schedule, x_T, cond, rng, runs=1, chain=True)
    return torch.stack(chain), cond


def path_bound(
    world: World, net: EpsMLP, theta_star: Params, theta: Params, chain: Tensor, cond: Tensor, condition: str, seed: int,
    chains: int = 300, k: int = 5,
) -> list[Row]:  # fmt: skip
    """KL of the ancestral laws against path KL, for each old prompt: one run (stacks of one), chains of `star_chain`."""
    schedule, rows = world.schedule, []
    star, tuned = net.bind(theta_star), net.bind(theta)
    rng = generator(seed, "verify/tuned")
    x_T = torch.randn(1, len(cond), 2, generator=rng)
    y = ancestral(tuned, schedule, x_T, cond, rng, runs=1)[0]
    for c in world.old:
        mine = (cond == c).nonzero().flatten()
        few = mine[:chains]
        path, error = path_kl(tuned, star, schedule, chain[:, :, few], cond[few], runs=1)
        kl, kl_error, note = knn_with_bias(chain[0, 0, mine], y[mine], k, seed)
        rows.append(
            Row(LABEL, "KL(p_star || p_theta) <= path KL, ancestral sampler", f"{condition}; {world.names[c]}", "proved",
                "<=", kl, float(path[0]), kl_error, float(error[0]), seed, note=f"{note}; path KL of {chains} chains",
                curve={"run": condition, "prompt": world.names[c]})
        )  # fmt: skip
    return rows


def output_gram(net: EpsMLP, theta: Params, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """J J' (B, 2, 2) per point, J = d eps / d theta, theta a stack of one; no Jacobian is formed.

    A layer's gradient is an outer product (input h) x (error d), so it adds (|h|^2 + 1) d d'; a summed embedding row adds d d' per word.
    """
    x, t, cond = x_t[None], t[None], cond[None]
    h, steps = net._features(theta, x, t, cond), []
    for i in range(net.depth):
        a = torch.baddbmm(theta[f"bias{i}"], h, theta[f"weight{i}"])
        after, slope = SLOPES[net.activation](a)
        steps.append((h, slope))
        h = after
    _, scale = net._preconditioning(x, t)
    scale = torch.as_tensor(scale, dtype=x.dtype).expand(1, x.shape[1], 1)
    error = (scale[0, :, :, None] * torch.eye(2, dtype=x.dtype)).contiguous()  # B, output, unit
    gram = ((h[0] ** 2).sum(-1) + 1)[:, None, None] * (error @ error.mT)
    for i in range(net.depth, 0, -1):
        before, slope = steps[i - 1]
        error = (error @ theta[f"weight{i}"][0].mT) * slope[0, :, None]
        gram = gram + ((before[0] ** 2).sum(-1) + 1)[:, None, None] * (error @ error.mT)
    into = error @ theta["weight0"][0].mT  # B, output, features: x, time, words
    time, token = into[..., 2 : 2 + net.time_dim], into[..., 2 + net.time_dim :]
    gram = gram + len(net.tokens[0]) * (token @ token.mT)  # the words of a prompt are distinct
    return gram + time @ time.mT if net.time == "table" else gram


def lipschitz_constant(
    net: EpsMLP, theta_star: Params, theta: Params, schedule: Schedule, chain: Tensor, cond: Tensor, nodes: int = 3,
) -> tuple[float, float]:  # fmt: skip
    """(sum_t w_t L_t^2, its standard error over chains), nats per squared parameter distance. chain (T, N, 2), cond (N,).

    Raises ValueError for infinite w_t or fewer than 2 chains.
    """
    w = schedule.path_weights()
    if not torch.isfinite(w).all():
        raise ValueError("lipschitz_constant: infinite weights w_t; clip the schedule's noise")
    T, N = chain.shape[:2]
    if N < 2:
        raise ValueError("lipschitz_constant: a standard error needs at least 2 chains")
    x = chain[1:].flatten(0, 1)
    t, c = torch.arange(1, T).repeat_interleave(N), cond.repeat(T - 1)
    s, weight = np.polynomial.legendre.leggauss(nodes)
    squared = torch.zeros(len(t), dtype=torch.float64)
    for s_i, w_i in zip((s + 1) / 2, weight / 2, strict=True):
        between = {k: torch.lerp(theta_star[k], p, s_i) for k, p in theta.items()}
        squared += w_i * torch.linalg.eigvalsh(output_gram(net, between, x, t, c).double())[:, -1]
    per_chain = (w[1:, None] * squared.reshape(T - 1, N)).sum(0)
    return float(per_chain.mean()), float(per_chain.std() / math.sqrt(N))


def lipschitz_bound(
    world: World, net: EpsMLP, theta_star: Params, theta: Params, chain: Tensor, cond: Tensor, condition: str, seed: int,
    per_prompt: int = 12,
) -> list[Row]:  # fmt: skip
    """path KL <= (sum w L^2) ||theta - theta_star||^2, mean over the old prompts, with its tightness. chain (T, N, 2)."""
    few = torch.cat([(cond == c).nonzero().flatten()[:per_prompt] for c in world.old])
    constant, c_error = lipschitz_constant(net, theta_star, theta, world.schedule, chain[:, few], cond[few])  # fmt: skip
    path, p_error = path_kl(net.bind(theta), net.bind(theta_star), world.schedule, chain[:, None], cond, runs=1)  # fmt: skip
    square = float(squared_distance(theta, theta_star))
    note = f"sum w L^2 = {constant:.3g} nats per squared distance; ||delta theta||^2 = {square:.3g}; used {float(path[0]) / max(constant * square, 1e-30):.1%} of the bound"
    return [
        Row(LABEL, "path KL <= (sum_t w_t L_t^2) ||delta theta||^2", condition, "proved", "<=", float(path[0]),
            constant * square, float(p_error[0]), c_error * square, seed, note=note,
            curve={"constant": constant, "square": square, "run": condition})
    ]  # fmt: skip
