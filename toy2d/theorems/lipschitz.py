"""Theorem 6.7 of lecture 6b: path KL <= (sum_t w_t L_t^2) ||theta - theta_star||^2.

With theta_s on the segment from theta_star to theta and J = d eps / d theta,

    eps_theta - eps_star = integral_0^1 J(theta_s) ds (theta - theta_star), so by Jensen
    E ||eps_theta - eps_star||^2 <= L_t^2 ||theta - theta_star||^2,
    L_t^2 = E_{x_t} integral_0^1 ||J(theta_s, x_t)||_op^2 ds.

L_t is measured on the base's own chain; the integral by Gauss-Legendre nodes. Trained models use a
few percent of the bound, because training does not move along the worst direction. Along the worst
direction of one point the bound is an equality to first order: that row has the power.

By layer b, with J_b = d eps / d theta_b and C_b as sum_t w_t L_t^2 but of J_b,

    path KL <= (sum_b sqrt(C_b) ||delta theta_b||)^2
            <= (sum_b C_b / lambda_b) (sum_b lambda_b ||delta theta_b||^2)   for every lambda_b > 0

The first is the second with the best weights, 1 / lambda_b = ||delta theta_b|| / sqrt(C_b). With
C_lambda, made of ||J Lambda^(-1/2)||_op, in the place of sum_b C_b / lambda_b it is sharper.
Shapes: N chains, T nodes, B points.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from toy2d.core.drift import Params, path_kl, squared_distance
from toy2d.core.schedule import Schedule
from toy2d.model import SLOPES, EpsMLP
from toy2d.runs.layers import layer_of
from toy2d.theorems.pair import Pair
from toy2d.theorems.path_bound import LABEL
from toy2d.theorems.row import Row

STATEMENT = "path KL <= (sum_t w_t L_t^2) ||delta theta||^2"
TRIANGLE = "path KL <= (sum_b sqrt(C_b) ||delta theta_b||)^2"
WEIGHTED = "path KL <= C_lambda sum_b lambda_b ||delta theta_b||^2"
ONE = "path KL <= C_b ||delta theta_b||^2 where one layer moves"
CAUCHY = "C_lambda <= sum_b C_b / lambda_b"


def output_gram(net: EpsMLP, theta: Params, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """J J' (B, 2, 2) per point, J = d eps / d theta: the sum of the layers' (`layer_grams`)."""
    return sum(layer_grams(net, theta, x_t, t, cond).values())


def layer_grams(
    net: EpsMLP, theta: Params, x_t: Tensor, t: Tensor, cond: Tensor
) -> dict[str, Tensor]:
    """{kind of layer b (`EpsMLP.layers`): J_b J_b' (B, 2, 2)}, J_b = d eps / d theta_b.

    theta is a stack of one; no Jacobian is formed. A layer's
    gradient is an outer product (input h) x (error d), so it adds (|h|^2 + 1) d d'; a summed
    embedding row adds d d' per word.
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
    grams = {f"layer{net.depth}": ((h[0] ** 2).sum(-1) + 1)[:, None, None] * (error @ error.mT)}
    for i in range(net.depth, 0, -1):
        before, slope = steps[i - 1]
        error = (error @ theta[f"weight{i}"][0].mT) * slope[0, :, None]
        inputs = ((before[0] ** 2).sum(-1) + 1)[:, None, None]
        grams[f"layer{i - 1}"] = inputs * (error @ error.mT)
    into = error @ theta["weight0"][0].mT  # B, output, features: x, time, words
    time, token = into[..., 2 : 2 + net.time_dim], into[..., 2 + net.time_dim :]
    grams["words"] = len(net.tokens[0]) * (token @ token.mT)  # the words of a prompt are distinct
    return grams | ({"time": time @ time.mT} if net.time == "table" else {})


def weighted_gram(net, theta, x_t, t, cond, inverse: Mapping[str, float] | None) -> Tensor:
    """sum_b J_b J_b' / lambda_b (B, 2, 2); without `inverse` J J'."""
    if inverse is None:
        return output_gram(net, theta, x_t, t, cond)
    grams = layer_grams(net, theta, x_t, t, cond)
    return sum(share * grams[b] for b, share in inverse.items())


def lipschitz_constant(
    net: EpsMLP,
    theta_star: Params,
    theta: Params,
    schedule: Schedule,
    chain: Tensor,
    cond: Tensor,
    nodes: int = 3,
    inverse: Mapping[str, float] | None = None,
) -> tuple[float, float]:
    """(sum_t w_t L_t^2, its standard error over chains), nats per squared parameter distance.

    `inverse`: 1 / lambda_b of each kind of layer; the distance is then sum_b lambda_b ||.||^2 over
    the layers that are named, and the others do not move. chain (T, N, 2), cond (N,). Raises
    ValueError for infinite w_t or fewer than 2 chains.
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
        gram = weighted_gram(net, between, x, t, cond.repeat(T - 1), inverse).double()
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


def worst_direction(
    pair: Pair,
    x: Tensor,
    n: int,
    cond: int,
    h: float = 1e-4,
    inverse: Mapping[str, float] | None = None,
    told: tuple[str, str] = (STATEMENT, "the worst direction"),
) -> Row:
    """The bound for one step from one point x (2,), theta moved h along J's top singular direction.

    Both sides are w_n ||J||^2 h^2 (1 + O(h)): a wrong L_t or a wrong norm shows at once. With
    `inverse` (as in `lipschitz_constant`) J is J Lambda^(-1/2), and h the weighted distance.
    """
    exact, schedule = pair.exact, pair.schedule
    step = replace(  # two nodes: one step
        schedule, alpha_bar=schedule.alpha_bar[n - 1 : n + 1], timesteps=torch.tensor([n - 1, n])
    )
    t, c = torch.tensor([n]), torch.tensor([cond])
    point = x.double()[None]
    gram = weighted_gram(pair.net, exact.theta_star, point, t, c, inverse)[0]
    values, vectors = torch.linalg.eigh(gram)

    def eps(theta):
        return pair.net(theta, point[None], t[None], c[None])[0, 0]

    _, backward = torch.func.vjp(eps, dict(exact.theta_star))
    (top,) = backward(vectors[:, -1])  # J' u, of length sqrt(largest eigenvalue)
    size = float(values[-1]) ** 0.5
    share = shares(pair.net, top, inverse)
    moved = {k: p + h / size * share[k] * top[k] for k, p in exact.theta_star.items()}
    world = replace(pair.world, schedule=step)
    where = f"one step from a point at node {n}, {told[1]}"
    one = Pair(world, pair.net, exact.theta_star, moved, where, pair.seed)
    chain, twice = point.expand(2, 2, 2), c.repeat(2)  # the same point twice: no sampling error
    constant, _ = _constant(one, chain, twice, inverse)
    path, _ = path_kl(one.tuned, one.star, step, chain[:, None], twice, runs=1)
    importance = {k: torch.tensor(1 / s if s else 0.0) for k, s in share.items()}
    square = float(squared_distance(moved, exact.theta_star, importance))
    sides = (float(path[0]), constant * square)
    note = f"{sides[0] / sides[1]:.6f} of the bound is used"
    return Row(LABEL, told[0], where, "proved", "<=", *sides, seed=pair.seed, note=note)


def shares(net: EpsMLP, theta: Params, inverse: Mapping[str, float] | None) -> dict[str, float]:
    """1 / lambda of each parameter; 0 for those that do not move."""
    return {k: 1.0 if inverse is None else inverse.get(layer_of(k, net.layers), 0.0) for k in theta}


def _constant(
    pair: Pair, chain: Tensor, cond: Tensor, inverse: Mapping[str, float] | None = None
) -> tuple[float, float]:
    asked = (pair.net, pair.theta_star, pair.theta, pair.schedule, chain, cond)
    return lipschitz_constant(*asked, inverse=inverse)


# ---- by layer
def layer_distances(pair: Pair) -> dict[str, float]:
    """||delta theta_b|| of each layer, not squared."""
    moved: dict[str, float] = dict.fromkeys(pair.net.layers, 0.0)
    for name, p in pair.theta.items():
        square = float(((p - pair.theta_star[name]).double() ** 2).sum())
        moved[layer_of(name, pair.net.layers)] += square
    return {b: square**0.5 for b, square in moved.items()}


def by_layer(pair: Pair, chain: Tensor, cond: Tensor, per_prompt: int = 12) -> list[Row]:
    """Both bounds for a trained model, mean over the old prompts. chain (T, N, 2)."""
    few = torch.cat([(cond == c).nonzero().flatten()[:per_prompt] for c in pair.world.old])
    asked = (pair.net, pair.theta_star, pair.theta, pair.schedule, chain[:, few], cond[few])
    constants = {b: lipschitz_constant(*asked, inverse={b: 1.0}) for b in pair.net.layers}
    moved = layer_distances(pair)
    # negative only under the wrong weights of `toy2d verify --power`
    root = {b: max(c, 0.0) ** 0.5 for b, (c, _) in constants.items()}
    total = sum(root[b] * d for b, d in moved.items())
    spread = sum(moved[b] / max(root[b], 1e-30) * error for b, (_, error) in constants.items())
    best = {b: d / max(root[b], 1e-30) for b, d in moved.items()}  # 1 / lambda_b
    weighted, w_error = lipschitz_constant(*asked, inverse=best)
    path, error = path_kl(pair.tuned, pair.star, pair.schedule, chain[:, None], cond, runs=1)
    drift = (float(path[0]), float(error[0]))
    note = ", ".join(f"{b} {c:.3g} x {moved[b]:.3g}^2" for b, (c, _) in constants.items())
    curve = {"run": pair.name, "moved": moved, "C": {b: c for b, (c, _) in constants.items()}}
    # sum_b lambda_b d_b^2 = sum_b C_b / lambda_b = total under the best weights
    triangle = (drift[0], total**2, drift[1], total * spread)
    sharper = (drift[0], weighted * total, drift[1], w_error * total)
    told = {"seed": pair.seed, "note": f"C_b x ||delta theta_b||^2: {note}"}
    name = pair.name
    return [
        Row(LABEL, TRIANGLE, name, "proved", "<=", *triangle, **told, curve=curve),
        Row(LABEL, WEIGHTED, name, "proved", "<=", *sharper, **told),
        Row(LABEL, CAUCHY, name, "proved", "<=", weighted, total, seed=pair.seed),
    ]


def worst_by_layer(pair: Pair, x: Tensor, n: int, cond: int) -> list[Row]:
    """Each layer alone, and all under uneven weights, along the worst direction of one point."""
    layers = list(pair.net.layers)
    uneven = {b: 10.0 ** (i % 3 - 1) for i, b in enumerate(layers)}
    rows = [
        worst_direction(pair, x, n, cond, inverse={b: 1.0}, told=(ONE, f"{b}, its worst direction"))
        for b in layers
    ]
    told = (WEIGHTED, "the worst direction under uneven weights")
    return [*rows, worst_direction(pair, x, n, cond, inverse=uneven, told=told)]
