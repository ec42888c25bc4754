"""Theorem 6.7 of lecture 6b: path KL <= (sum_t w_t L_t^2) ||theta - theta_star||^2.

With theta_s on the segment from theta_star to theta and J = d eps / d theta,

    eps_theta - eps_star = integral_0^1 J(theta_s) ds (theta - theta_star), so by Jensen
    E ||eps_theta - eps_star||^2 <= L_t^2 ||theta - theta_star||^2,
    L_t^2 = E_{x_t} integral_0^1 ||J(theta_s, x_t)||_op^2 ds.

L_t is measured on the base's own chain; the integral by Gauss-Legendre nodes. Trained models use a
few percent of the bound, because training does not move along the worst direction. Along the worst
direction of one point the bound is an equality to first order: that row has the power.
Shapes: N chains, T nodes, B points.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from toy2d.core.drift import Params, path_kl
from toy2d.core.schedule import Schedule
from toy2d.model import SLOPES, EpsMLP
from toy2d.theorems.pair import Pair
from toy2d.theorems.path_bound import LABEL
from toy2d.theorems.row import Row

STATEMENT = "path KL <= (sum_t w_t L_t^2) ||delta theta||^2"


def output_gram(net: EpsMLP, theta: Params, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """J J' (B, 2, 2) per point, J = d eps / d theta, theta a stack of one; no Jacobian is formed.

    A layer's gradient is an outer product (input h) x (error d), so it adds (|h|^2 + 1) d d'; a
    summed embedding row adds d d' per word.
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
    error = scale[0, :, :, None] * torch.eye(2, dtype=x.dtype)  # B, output, unit
    error = error.contiguous()
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
    net: EpsMLP,
    theta_star: Params,
    theta: Params,
    schedule: Schedule,
    chain: Tensor,
    cond: Tensor,
    nodes: int = 3,
) -> tuple[float, float]:
    """(sum_t w_t L_t^2, its standard error over chains), nats per squared parameter distance.

    chain (T, N, 2), cond (N,). Raises ValueError for infinite w_t or fewer than 2 chains.
    """
    w = schedule.path_weights()
    if not torch.isfinite(w).all():
        raise ValueError("lipschitz_constant: infinite weights w_t; clip the schedule's noise")
    T, N = chain.shape[:2]
    if N < 2:
        raise ValueError("lipschitz_constant: a standard error needs at least 2 chains")
    x = chain[1:].flatten(0, 1)
    t = schedule.timesteps[torch.arange(1, T)].repeat_interleave(N)
    s, weight = np.polynomial.legendre.leggauss(nodes)
    squared = torch.zeros(len(t), dtype=torch.float64)
    for s_i, w_i in zip((s + 1) / 2, weight / 2, strict=True):
        between = {k: torch.lerp(theta_star[k], p, s_i) for k, p in theta.items()}
        gram = output_gram(net, between, x, t, cond.repeat(T - 1)).double()
        squared += w_i * torch.linalg.eigvalsh(gram)[:, -1]
    per_chain = (w[1:, None] * squared.reshape(T - 1, N)).sum(0)
    return float(per_chain.mean()), float(per_chain.std() / math.sqrt(N))


def lipschitz_bound(pair: Pair, chain: Tensor, cond: Tensor, per_prompt: int = 12) -> list[Row]:
    """The bound, mean over the old prompts, with the share that is used. chain (T, N, 2)."""
    few = torch.cat([(cond == c).nonzero().flatten()[:per_prompt] for c in pair.world.old])
    constant, c_error = _constant(pair, chain[:, few], cond[few])
    path, error = path_kl(pair.tuned, pair.star, pair.schedule, chain[:, None], cond, runs=1)
    square = pair.squared_distance
    share = float(path[0]) / max(constant * square, 1e-30)
    note = (
        f"sum w L^2 = {constant:.3g} nats per squared distance; ||delta theta||^2 = {square:.3g}; "
        f"used {share:.1%} of the bound"
    )
    sides = (float(path[0]), constant * square, float(error[0]), c_error * square)
    curve = {"constant": constant, "square": square, "run": pair.name}
    return [
        Row(LABEL, STATEMENT, pair.name, "proved", "<=", *sides, pair.seed, note=note, curve=curve)
    ]


def worst_direction(pair: Pair, x: Tensor, n: int, cond: int, h: float = 1e-4) -> Row:
    """The bound for one step from one point x (2,), theta moved h along J's top singular direction.

    Both sides are w_n ||J||^2 h^2 (1 + O(h)): a wrong L_t or a wrong norm shows at once.
    """
    exact, schedule = pair.exact, pair.schedule
    step = replace(  # two nodes: one step
        schedule, alpha_bar=schedule.alpha_bar[n - 1 : n + 1], timesteps=torch.tensor([n - 1, n])
    )
    t, c = torch.tensor([n]), torch.tensor([cond])
    point = x.double()[None]
    gram = output_gram(pair.net, exact.theta_star, point, t, c)[0]
    values, vectors = torch.linalg.eigh(gram)

    def eps(theta):
        return pair.net(theta, point[None], t[None], c[None])[0, 0]

    _, backward = torch.func.vjp(eps, dict(exact.theta_star))
    (top,) = backward(vectors[:, -1])  # J' u, of length sqrt(largest eigenvalue)
    size = float(values[-1]) ** 0.5
    moved = {k: p + h / size * top[k] for k, p in exact.theta_star.items()}
    world = replace(pair.world, schedule=step)
    where = f"one step from a point at node {n}, the worst direction"
    one = Pair(world, pair.net, exact.theta_star, moved, where, pair.seed)
    chain, twice = point.expand(2, 2, 2), c.repeat(2)  # the same point twice: no sampling error
    constant, _ = _constant(one, chain, twice)
    path, _ = path_kl(one.tuned, one.star, step, chain[:, None], twice, runs=1)
    sides = (float(path[0]), constant * one.squared_distance)
    note = f"{sides[0] / sides[1]:.6f} of the bound is used"
    return Row(LABEL, STATEMENT, where, "proved", "<=", *sides, seed=pair.seed, note=note)


def _constant(pair: Pair, chain: Tensor, cond: Tensor) -> tuple[float, float]:
    return lipschitz_constant(pair.net, pair.theta_star, pair.theta, pair.schedule, chain, cond)
