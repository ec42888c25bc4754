"""Local law: KL(p_theta* || p_theta*+D) = 1/2 D'FD + O(D^3) <= 1/2 D'GD + O(D^3), G = sum_t 2 w_t E[J_t' J_t], J = d eps / d theta.

G is the Fisher information of the ancestral *paths*, F that of their end points: information contracts. With the path score
    S = sum_t <z_t, d mu_t> / s_t = -sum_t beta_t / (b_t sqrt(alpha_t) s_t) <z_t, J_t D>,
D'GD = E[S^2] = E[sum_t 2 w_t ||J_t D||^2] and D'FD = E[ E[S | x_0]^2 ]: the second from pairs of chains that end side by side, whose
scores are independent given the end point, E[S_i S_j]. Parameters of one member, flattened where linear algebra needs a vector.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.spatial import cKDTree
from torch import Tensor

from toy2d.core.drift import Params, path_kl
from toy2d.core.likelihood import log_prob
from toy2d.core.schedule import Schedule
from toy2d.data import World
from toy2d.measure import Points
from toy2d.model import EpsMLP
from toy2d.theorems.row import Row

LABEL = "local_law"


def flatten(theta: Mapping[str, Tensor]) -> Tensor:
    """All coordinates, in the order of the names: two dicts of one network give comparable vectors."""
    return torch.cat([theta[k].reshape(-1) for k in sorted(theta)])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Params:
    parts = dict(zip(sorted(like), vector.split([like[k].numel() for k in sorted(like)]), strict=True))  # fmt: skip
    return {k: parts[k].reshape(p.shape).to(p) for k, p in like.items()}


def unit(direction: Mapping[str, Tensor]) -> Params:
    size = float(flatten(direction).double().norm())
    if not size > 0:
        raise ValueError("local law: a direction of length zero")
    return {k: v / size for k, v in direction.items()}


def path_scores(
    net: EpsMLP, theta: Params, direction: Params, schedule: Schedule, cond: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(S, Q, x_0) of N fresh ancestral chains: path score along `direction`, sum_t 2 w_t ||J_t D||^2, end points; (N,), (N,), (N, 2)."""
    beta, alpha, s2 = (v.double() for v in schedule.reverse_chain())
    ab, w = schedule.alpha_bar, schedule.path_weights()
    x = torch.randn(1, len(cond), 2, generator=rng)
    S, Q = torch.zeros(len(cond)).double(), torch.zeros(len(cond)).double()
    direction = {k: direction[k] for k in theta}
    for n in range(len(schedule) - 1, 0, -1):
        t = torch.full((1, len(cond)), n)

        def eps(p, x=x, t=t):
            return schedule.eps_from(net(p, x, schedule.timesteps[t], cond), x, t)

        value, J_D = torch.func.jvp(eps, (dict(theta),), (direction,))
        z = torch.randn(x.shape, generator=rng)
        pull = float(beta[n] / ((1 - ab[n]) * alpha[n] * s2[n]).sqrt())
        S -= pull * (z * J_D).sum(-1)[0].double()
        Q += float(2 * w[n]) * (J_D**2).sum(-1)[0].double()
        shift = float(beta[n] / (1 - ab[n]).sqrt())
        x = (x - shift * value) / float(alpha[n]) ** 0.5 + float(s2[n]) ** 0.5 * z
    return S, Q, x[0]


def information(S: Tensor, Q: Tensor, x0: Tensor, cond: Tensor, k: int = 8) -> dict[str, tuple[float, float]]:  # fmt: skip
    """{"F": D'FD, "G": D'GD, "S2": E S^2 (= G, a check)} with standard errors, each prompt's law apart, averaged over prompts.

    Raises ValueError for fewer than 50 k chains a prompt.
    """
    pairs = torch.zeros_like(S)
    for c in cond.unique():
        mine = (cond == c).nonzero().flatten()
        if len(mine) < 50 * k:
            raise ValueError(f"information: {len(mine)} chains a prompt; k = {k} needs {50 * k}")
        points = x0[mine].double().numpy()
        beside = torch.from_numpy(cKDTree(points).query(points, k + 1)[1][:, 1:])
        pairs[mine] = S[mine] * S[mine][beside].mean(1)
    root = math.sqrt(len(S))
    # a pair product appears in about two sums: its error is sqrt(2) that of independent terms
    return {
        "F": (float(pairs.mean()), float(pairs.std()) / root * math.sqrt(2)),
        "G": (float(Q.mean()), float(Q.std()) / root),
        "S2": (float((S**2).mean()), float((S**2).std()) / root),
    }


def contraction(
    world: World, net: EpsMLP, theta_star: Params, directions: dict[str, Params], seed: int, rng: torch.Generator,
    n: int = 1000,
) -> list[Row]:  # fmt: skip
    """1/2 D'FD <= 1/2 D'GD, and the two ways of computing G, along unit directions."""
    rows = []
    cond = torch.tensor(world.old).repeat_interleave(n)
    for name, direction in directions.items():
        S, Q, x0 = path_scores(net, theta_star, unit(direction), world.schedule, cond, rng)
        found = information(S, Q, x0, cond)
        (F, f), (G, g), (S2, s) = (found[k] for k in ("F", "G", "S2"))
        ratio = f"F / G = {F / G:.2f}: that part of the path's information is left at its end"
        note = f"unit direction, {n} chains a prompt; {ratio}"
        rows += [
            Row(LABEL, "1/2 D'FD <= 1/2 D'GD (ancestral sampler)", name, "proved", "<=", F / 2, G / 2, f / 2, g / 2, seed,
                unit="nats / ||D||^2", note=note, curve={"direction": name}),
            Row(LABEL, "E[S^2] = D'GD (score identity)", name, "proved", "==", S2, G, s, g, seed, unit="nats / ||D||^2"),
        ]  # fmt: skip
    return rows


def path_operator(
    net: EpsMLP, theta: Params, schedule: Schedule, chain: Tensor, cond: Tensor
) -> LinearOperator:
    """v -> G v on the stored chains (T, N, 2): J v by one forward-mode product, J' of it by one reverse pass."""
    T, N = chain.shape[:2]
    w = schedule.path_weights()
    if not torch.isfinite(w).all():
        raise ValueError("path_operator: infinite weights w_t; clip the schedule's noise")
    t = torch.arange(1, T).repeat_interleave(N)[None]
    x, c = chain[1:].reshape(1, -1, 2), cond.repeat(T - 1)[None]
    scale = (2 * w[t[0]] / N).float()[None, :, None]

    def eps(p):
        return schedule.eps_from(net(p, x, schedule.timesteps[t], c), x, t)

    _, backward = torch.func.vjp(eps, dict(theta))

    def matvec(v):
        tangent = unflatten(torch.from_numpy(np.asarray(v, np.float32).reshape(-1)), theta)
        _, J_v = torch.func.jvp(eps, (dict(theta),), (tangent,))
        return flatten(backward(scale * J_v)[0]).double().numpy()

    size = flatten(theta).numel()
    return LinearOperator((size, size), matvec=matvec, dtype=np.float64)


def top_eigen(operator: LinearOperator, tolerance: float = 1e-3) -> tuple[float, np.ndarray, float]:
    """(lambda_max(G), unit eigenvector, residual ||G v - lambda v||) by Lanczos (scipy's eigsh), a fixed start."""
    start = np.random.default_rng(0).standard_normal(operator.shape[0])
    values, vectors = eigsh(operator, k=1, which="LA", tol=tolerance, v0=start)
    v = vectors[:, 0]
    return float(values[0]), v, float(np.linalg.norm(operator @ v - values[0] * v))


def spectrum(
    net: EpsMLP, theta: Params, schedule: Schedule, chain: Tensor, cond: Tensor, directions: dict[str, Params], seed: int
) -> tuple[list[Row], Params]:  # fmt: skip
    """D'GD <= lambda_max on the same chains, and lam* = lambda_max / 2; also returns the top eigenvector as a direction."""
    operator = path_operator(net, theta, schedule, chain, cond)
    top, v, residual = top_eigen(operator)
    note = f"lambda_max(G) = {top:.4g}, residual {residual:.1e}; lam* = lambda_max / 2 = {top / 2:.4g} nats per squared distance, {top / 4:.4g} for a loss that is a mean over d = 2"
    rows = []
    for name, direction in directions.items():
        d = flatten(unit(direction)).double().numpy()
        rows.append(
            Row(LABEL, "1/2 D'GD <= lam* ||D||^2, lam* = lambda_max(G) / 2", name, "proved", "<=", d @ (operator @ d) / 2,
                top / 2, 0.0, residual / 2, seed, unit="nats / ||D||^2", note=note, rounding=1e-4)
        )  # fmt: skip
    return rows, unflatten(torch.from_numpy(v), theta)


def ladder(
    world: World, net: EpsMLP, theta_star: Params, direction: Params, name: str, ode: Schedule, base: Points, chain: Tensor,
    cond: Tensor, seed: int, kls: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
) -> list[Row]:  # fmt: skip
    """KL and path KL at distances h chosen so that 1/2 h^2 D'GD = `kls`: both quadratic near 0 (slope 2), path KL -> 1/2 h^2 D'GD.

    `base` are one base model's points (K = 1); the KL is the exact one of the ODE's law, whose own F is measured by central differences:
    it is not the ancestral F, so it is compared with its own limit only, (KL(h) + KL(-h)) / (h^2 D'F_ode D) -> 1.
    """
    direction = unit(direction)
    operator = path_operator(net, theta_star, world.schedule, chain, cond)
    d = flatten(direction).double().numpy()
    G = float(d @ (operator @ d))
    h = torch.tensor([s * math.sqrt(2 * kl / G) for kl in kls for s in (1.0, -1.0)])
    stack = {k: p + h.reshape(-1, *[1] * (p.ndim - 1)) * direction[k] for k, p in theta_star.items()}  # fmt: skip
    path, _ = path_kl(net.bind(stack), net.bind({k: p.expand(len(h), *p.shape[1:]) for k, p in theta_star.items()}),
                      world.schedule, chain[:, None].expand(-1, len(h), -1, -1), cond, runs=1)  # fmt: skip
    x = base.x[0].double()
    exact = {k: p.double() for k, p in stack.items()}
    flat = x.flatten(0, 1).expand(len(h), -1, -1)
    who = torch.tensor(base.conds).repeat_interleave(x.shape[1])
    log_q = log_prob(net.bind(exact), ode, flat, who, runs=1).reshape(len(h), *x.shape[:2])
    log_p = log_prob(net.bind({k: p.double() for k, p in theta_star.items()}), ode, flat[:1], who, runs=1)  # fmt: skip
    ratio = log_p.reshape(1, *x.shape[:2]) - log_q
    kl, kl_error = (v.mean(1) for v in base.rule.expect(ratio))
    slope_score = (log_q[0] - log_q[1]) / (2 * float(h[0]))
    F, F_error = (float(v.mean()) for v in base.rule.expect(slope_score**2))
    even, path_even, size = (kl[::2] + kl[1::2]) / 2, (path[::2] + path[1::2]).double() / 2, h[::2]
    slopes = [float((v[1] / v[0]).log() / (size[1] / size[0]).log()) for v in (even, path_even)]
    curve = {
        "direction": name,
        "h": size.tolist(),
        "kl": even.tolist(),
        "path": path_even.tolist(),
        "F": F,
        "G": G,
    }
    step = float(kls[1]) ** 0.5  # relative size of the next order at the second rung
    loose = 2 * float(kl_error[1] / even[1])
    where = f"{name}, ||D|| from {float(size[0]):.2g} to {float(size[1]):.2g}"
    return [
        Row(LABEL, "d log KL / d log ||D|| = 2 near 0 (ODE's law)", where, "proved", "==", slopes[0], 2.0, step + loose, 0.0,
            seed, unit="slope", note="allowed: the next order, sqrt(KL), and the quadrature's error", curve=curve),
        Row(LABEL, "d log path KL / d log ||D|| = 2 near 0", where, "proved", "==", slopes[1], 2.0, step, 0.0, seed, unit="slope"),
        Row(LABEL, "path KL -> 1/2 h^2 D'GD", where, "proved", "==", float(path_even[0]), kls[0], kls[0] * step, 0.0, seed),
        Row(LABEL, "KL -> 1/2 h^2 D'F_ode D (ODE's law)", where, "proved", "==", float(even[0]), F * float(size[0]) ** 2 / 2,
            float(kl_error[0]) + kls[0] * step, F_error * float(size[0]) ** 2 / 2, seed,
            note=f"F_ode = {F:.3g}, G = {G:.3g} per squared distance: two samplers, F_ode need not be below G"),
    ]  # fmt: skip
