"""Information along a direction of parameters (lecture 6b, Theorem 6.8).

G = sum_t 2 w_t E[J_t' J_t] is the Fisher information of the ancestral paths, F that of their end
points, and F <= G. The path score along D is
    S = sum_t <z_t, d mu_t> / s_t = -sum_t beta_t / (b_t sqrt(alpha_t) s_t) <z_t, J_t D>,
so D'GD = E[S^2] = E[sum_t 2 w_t ||J_t D||^2]: the first needs no w_t, and catches a wrong one.
D'FD = E[ E[S | x_0]^2 ] is found twice: from pairs of chains that end side by side, whose scores
are independent given the end point, and from the law's density on a grid.
"""

import math
from dataclasses import dataclass

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from toy2d.core.drift import Params
from toy2d.core.schedule import Schedule
from toy2d.model import EpsMLP
from toy2d.theorems.local_law import LABEL, UNIT, WithError, moved
from toy2d.theorems.pair import Pair
from toy2d.theorems.path_bound import BaseLaw, law_kl
from toy2d.theorems.row import Row


@dataclass(frozen=True)
class Scores:
    """Per chain: path score S, Q = sum_t 2 w_t ||J_t D||^2, end point x_0, prompt; N chains."""

    S: Tensor  # N
    Q: Tensor  # N
    x0: Tensor  # N 2
    cond: Tensor  # N

    def of(self, cond: int) -> "Scores":
        mine = self.cond == cond
        return Scores(self.S[mine], self.Q[mine], self.x0[mine], self.cond[mine])


def path_scores(
    net: EpsMLP,
    theta: Params,
    direction: Params,
    schedule: Schedule,
    cond: Tensor,
    rng: torch.Generator,
) -> Scores:
    """S and Q along `direction`, on fresh ancestral chains, one for each entry of cond (N,)."""
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
    return Scores(S, Q, x[0], cond)


def information(scores: Scores, k: int = 8) -> dict[str, WithError]:
    """{"F": D'FD by pairs, "G": D'GD by Q, "S2": E S^2}, averaged over the prompts.

    A pair is a chain with one of its k nearest end points under the same prompt. Raises ValueError
    for fewer than 50 k chains a prompt.
    """
    S, Q = scores.S, scores.Q
    pairs = torch.zeros_like(S)
    for c in scores.cond.unique():
        mine = (scores.cond == c).nonzero().flatten()
        if len(mine) < 50 * k:
            raise ValueError(f"information: {len(mine)} chains a prompt; k = {k} needs {50 * k}")
        points = scores.x0[mine].double().numpy()
        beside = torch.from_numpy(cKDTree(points).query(points, k + 1)[1][:, 1:])
        pairs[mine] = S[mine] * S[mine][beside].mean(1)
    root = math.sqrt(len(S))
    # a pair product appears in about two sums: its error is sqrt(2) that of independent terms
    return {
        "F": (float(pairs.mean()), float(pairs.std()) / root * math.sqrt(2)),
        "G": (float(Q.mean()), float(Q.std()) / root),
        "S2": (float((S**2).mean()), float((S**2).std()) / root),
    }


def fisher_of_law(pair: Pair, base: BaseLaw, h: float) -> WithError:
    """D'FD of the ancestral law under base's prompt, D = theta - theta_star, by the grid's density.

    (KL(h D) + KL(-h D)) / h^2 = D'FD + O(h^2); the error is the grid's and that of h against 2 h.
    """
    direction = {k: p - pair.theta_star[k] for k, p in pair.theta.items()}

    def at(h):
        both = [
            law_kl(Pair(pair.world, pair.net, pair.theta_star, theta, pair.name, pair.seed), base)
            for theta in (moved(pair.theta_star, direction, s * h) for s in (1, -1))
        ]
        return sum(v for v, _ in both) / h**2, sum(e for _, e in both) / h**2

    (fine, error), (coarse, _) = at(h), at(2 * h)
    return fine, error + abs(coarse - fine) / 3  # the error of order h^2 at h is a third of that


def contraction(
    name: str, prompt: str, scores: Scores, here: Scores, F: WithError, seed: int
) -> list[Row]:
    """F <= G and F found twice under one prompt (`here`), E[S^2] = G over all (`scores`).

    `F`: D'FD of that prompt by `fisher_of_law`, for the unit direction of the scores.
    """
    one, every = information(here), information(scores)
    (G, g), pairs = one["G"], one["F"]
    smooth = 0.02 * F[0]  # the paired end points are neighbours, not equal
    told = {"seed": seed, "unit": UNIT}
    where = f"{name}; {prompt}"
    chains = f"{len(here.S)} chains"
    kept = f"unit direction; F / G = {F[0] / G:.3f} is what the end point keeps of the path"
    halves = (F[0] / 2, G / 2, F[1] / 2, g / 2)
    twice = (pairs[0], F[0], math.hypot(pairs[1], smooth), F[1])
    score = (every["S2"][0], every["G"][0], every["S2"][1], every["G"][1])
    contracts = "1/2 D'FD <= 1/2 D'GD (ancestral sampler)"
    paired = "D'FD by paired end points = D'FD by the density"
    identity = "E[S^2] = D'GD (score identity)"
    curve = {"direction": name}
    return [
        Row(LABEL, contracts, where, "proved", "<=", *halves, note=kept, curve=curve, **told),
        Row(LABEL, paired, where, "proved", "==", *twice, note=chains, **told),
        Row(LABEL, identity, name, "proved", "==", *score, note=f"{len(scores.S)} chains", **told),
    ]
