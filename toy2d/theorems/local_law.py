"""Local law (lecture 6b, Theorem 6.8): near the base KL and path KL are quadratic.

    KL(p_star || p_star+D) = 1/2 D'FD + O(D^3) <= 1/2 D'GD + O(D^3) = path KL
    G = sum_t 2 w_t E[J_t' J_t],  J = d eps / d theta

G is the Fisher information of the ancestral *paths*, F that of their end points (`information`).
Here: G as an operator, its largest eigenvalue, and both KLs over the distance ||D||.
Parameters are those of one model (a stack of one), flattened where linear algebra needs a vector.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from toy2d.core.drift import Params, path_kl
from toy2d.core.likelihood import COARSE_ORDER, LogProb, log_prob_with_error
from toy2d.core.schedule import Schedule
from toy2d.kl import Points
from toy2d.model import EpsMLP
from toy2d.theorems.pair import Pair
from toy2d.theorems.row import Row

LABEL = "local_law"
UNIT = "nats / ||D||^2"
WithError = tuple[float, float]  # value, standard error


def flatten(theta: Mapping[str, Tensor]) -> Tensor:
    """All coordinates, in the order of the names, so that two dicts give comparable vectors."""
    return torch.cat([theta[k].reshape(-1) for k in sorted(theta)])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Params:
    """The inverse of `flatten`: names and shapes of `like`."""
    names = sorted(like)
    parts = vector.split([like[k].numel() for k in names])
    by_name = dict(zip(names, parts, strict=True))
    return {k: by_name[k].reshape(p.shape).to(p) for k, p in like.items()}


def unit(direction: Mapping[str, Tensor]) -> Params:
    """The direction divided by its length. Raises ValueError for length zero."""
    size = float(flatten(direction).double().norm())
    if not size > 0:
        raise ValueError("local law: a direction of length zero")
    return {k: v / size for k, v in direction.items()}


def moved(theta: Params, direction: Params, h: float) -> Params:
    return {k: p + h * direction[k] for k, p in theta.items()}


# ---- the matrix G without forming it
def path_operator(
    net: EpsMLP, theta: Params, schedule: Schedule, chain: Tensor, cond: Tensor
) -> LinearOperator:
    """v -> G v on stored chains (T, N, 2): J v by forward mode, J' of that by reverse mode."""
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
    """(lambda_max(G), unit eigenvector v, ||G v - lambda v||) by Lanczos, from a fixed start.

    G has no negative eigenvalues, so its largest is the largest in size. Asked so, Lanczos ends
    also under the negative weights of `toy2d verify --power`.
    """
    start = np.random.default_rng(0).standard_normal(operator.shape[0])
    values, vectors = eigsh(operator, k=1, which="LM", tol=tolerance, v0=start)
    v = vectors[:, 0]
    return float(values[0]), v, float(np.linalg.norm(operator @ v - values[0] * v))


def spectrum(
    operator: LinearOperator, directions: dict[str, Params], like: Params, seed: int
) -> tuple[list[Row], Params]:
    """Rows that put D'GD of each direction beside lambda_max(G), and G's top eigenvector.

    The inequality holds for any symmetric G; the rows show how far apart its sides are.
    """
    top, v, residual = top_eigen(operator)
    note = (
        f"lambda_max(G) = {top:.4g}, residual {residual:.1e}; lam* = lambda_max / 2 = {top / 2:.4g}"
        f" nats per squared distance, {top / 4:.4g} for a loss that is a mean over d = 2"
    )
    statement = "1/2 D'GD <= lam* ||D||^2, lam* = lambda_max(G) / 2"
    told = {"seed": seed, "unit": UNIT, "note": note, "rounding": 1e-4}
    rows = []
    for name, direction in directions.items():
        sides = (quadratic_form(operator, direction) / 2, top / 2, 0.0, residual / 2)
        rows.append(Row(LABEL, statement, name, "identity", "<=", *sides, **told))
    return rows, unflatten(torch.from_numpy(v), like)


def quadratic_form(operator: LinearOperator, direction: Params) -> float:
    """D'GD for D = direction / ||direction||."""
    d = flatten(unit(direction)).double().numpy()
    return float(d @ (operator @ d))


# ---- KL and path KL over the distance
def ladder(
    pair: Pair,
    name: str,
    G: float,
    S2: WithError,
    ode: Schedule,
    base: Points,
    chain: Tensor,
    cond: Tensor,
    kls: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0),
) -> list[Row]:
    """Rows that test the law at distances h with 1/2 h^2 D'GD = each of `kls`.

    Near 0 the logarithms of KL and path KL must grow with slope 2, and their values must be those
    predicted. `pair` differs by a unit direction, in float32. Path KL's prediction is
    1/2 h^2 E[S^2], which needs no w_t. KL is that of the ODE's law at the base's points `base`
    (K = 1). Its prediction uses that law's own F, by central differences: the ancestral sampler has
    another F.
    """
    direction = {k: p - pair.theta_star[k] for k, p in pair.theta.items()}
    # G is negative only under the wrong weights of `toy2d verify --power`
    h = torch.tensor([s * math.sqrt(2 * kl / abs(G)) for kl in kls for s in (1.0, -1.0)])
    stack = {
        k: p + h.reshape(-1, *[1] * (p.ndim - 1)) * direction[k] for k, p in pair.theta_star.items()
    }
    star = {k: p.expand(len(h), *p.shape[1:]) for k, p in pair.theta_star.items()}
    chains = chain[:, None].expand(-1, len(h), -1, -1)
    path, path_error = path_kl(
        pair.net.bind(stack), pair.net.bind(star), pair.schedule, chains, cond, runs=1
    )
    kl, kl_error, (F, F_error) = _ode_kl(pair, stack, float(h[0]), ode, base)
    even, path_even = ((v[::2] + v[1::2]).double() / 2 for v in (kl, path))
    size = h[::2].double()
    slopes = [float((v[1] / v[0]).log() / (size[1] / size[0]).log()) for v in (even, path_even)]
    step = float(kls[1]) ** 0.5  # relative size of the next order at the second distance
    loose = 2 * float(kl_error[1] / even[1])
    half = float(size[0]) ** 2 / 2
    curve = {"direction": name, "h": size.tolist(), "kl": even.tolist(), "path": path_even.tolist()}
    where = f"{name}, ||D|| from {float(size[0]):.2g} to {float(size[1]):.2g}"
    here = f"{name}, ||D|| = {float(size[0]):.2g}"
    order = "allowed: the next order, sqrt(KL), and the errors"
    two_laws = f"F_ode = {F:.3g}, G = {G:.3g}: two samplers, F_ode need not be below G"
    height = (float(path_even[0]), half * S2[0])
    height_error = (float(path_error[0]) + kls[0] ** 1.5, half * S2[1])
    ode_height = (float(even[0]), F * half, float(kl_error[0]) + kls[0] * step, F_error * half)
    score = "E[S^2] from the path score, which does not know w_t"
    first, second = (f"d log {what} / d log ||D|| = 2 near 0" for what in ("KL", "path KL"))
    to_S2, to_F = "path KL -> 1/2 h^2 E[S^2]", "KL -> 1/2 h^2 D'F_ode D (ODE's law)"
    slope = {"seed": pair.seed, "unit": "slope", "note": order}
    law = f"{first} (ODE's law)"
    drawn = curve | {"F": F, "G": G}
    ends = (slopes[0], 2.0, step + loose), (slopes[1], 2.0, step)
    return [
        Row(LABEL, law, where, "proved", "==", *ends[0], **slope, curve=drawn),
        Row(LABEL, second, where, "proved", "==", *ends[1], **slope),
        Row(LABEL, to_S2, here, "proved", "==", *height, *height_error, pair.seed, note=score),
        Row(LABEL, to_F, here, "proved", "==", *ode_height, pair.seed, note=two_laws),
    ]


def _ode_kl(
    pair: Pair, stack: Params, h: float, ode: Schedule, base: Points
) -> tuple[Tensor, Tensor, WithError]:
    """(KL(base || each of the stack), error, D'FD) of the ODE's law, mean over the prompts.

    The stack's first two members are at h and -h. The error is the quadrature's and the ODE's. The
    ODE's part is that of the difference of two log densities: near the base they share most of it.
    """
    x = base.x[0].double()
    who = torch.tensor(base.conds).repeat_interleave(x.shape[1])
    exact = {k: p.double() for k, p in stack.items()}
    points = x.flatten(0, 1).expand(len(exact["bias0"]), -1, -1)
    q = log_prob_with_error(pair.net.bind(exact), ode, points, who, runs=1)
    p = log_prob_with_error(pair.exact.star, ode, points[:1], who, runs=1)
    ratio = LogProb(*((a - b).reshape(-1, *x.shape[:2]) for a, b in zip(p, q, strict=True)))
    kl, error = base.rule.expect(ratio.value)
    of_ode, _ = base.rule.expect(ratio.error)
    score = LogProb(*((v[0] - v[1]).reshape(x.shape[:2]) / (2 * h) for v in q))
    F, F_error = base.rule.expect(score.value**2)
    gap = (score.value - score.coarse).abs() / 2**COARSE_ORDER  # a density's limit is no score's
    of_score, _ = base.rule.expect((2 * score.value * gap).abs())
    information = float(F.mean()), float((F_error + of_score).mean())
    return kl.mean(1), (error + of_ode).mean(1), information
