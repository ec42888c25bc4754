"""What distance in theta does not say: models that move far without drifting, and weights that do not order the drift.

new_row_only        training only the new word's embedding: exactly zero drift on every old prompt
permuted, rescaled  hidden units swapped, a ReLU layer scaled up and the next down: the same function, far away
further_yet_closer  objectives that move theta further than standard training and drift less (converse of Theorem 2)
monotone            KL of the old prompts over lam
lora_factors        |A|^2 + |B|^2 against |B A|
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from toy2d.core.drift import Params, delta_theta, path_kl
from toy2d.core.objectives import Example, denoising_loss
from toy2d.core.rng import generator
from toy2d.data import World
from toy2d.model import EpsMLP
from toy2d.theorems.paper_theorem_2 import Drift
from toy2d.theorems.row import Row, not_applicable

LABEL = "counterexamples"


def train_new_row(
    world: World, net: EpsMLP, theta_star: Params, shots: Tensor, seed: int, steps: int = 300, learning_rate: float = 3e-2
) -> Params:  # fmt: skip
    """A member (stack of one) fine-tuned by Adam in the embedding rows of the new prompt's own words only.

    Raises ValueError if the new prompt has no word of its own: then every row is shared.
    """
    used = {w for c in world.old for w in world.tokens[c]}
    own = [w for w in world.tokens[world.new] if w not in used]
    if not own:
        raise ValueError("train_new_row: every word of the new prompt is in an old prompt")
    rng = generator(seed, "verify/new row")
    rows = theta_star["token"][:, own].clone().requires_grad_()
    optimizer = torch.optim.Adam([rows], learning_rate)
    index = torch.tensor(own)
    for _ in range(steps):
        token = theta_star["token"].index_copy(1, index, rows)
        i = torch.randint(len(shots), (1, 64), generator=rng)
        t = torch.randint(len(world.schedule), (1, 64), generator=rng)
        eps = torch.randn(1, 64, 2, generator=rng)
        example = Example(shots[i], t, eps, torch.full_like(t, world.new))
        loss = denoising_loss(
            net.bind({**theta_star, "token": token}), world.schedule, example
        ).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {**theta_star, "token": theta_star["token"].index_copy(1, index, rows.detach())}


def new_row_only(
    world: World, net: EpsMLP, theta_star: Params, theta: Params, chain: Tensor, cond: Tensor, seed: int, learnt: str = ""
) -> list[Row]:  # fmt: skip
    """theta differs from theta_star in the new word's rows only. chain (T, N, 2): the base's, under old prompts."""
    path, _ = path_kl(net.bind(theta), net.bind(theta_star), world.schedule, chain[:, None], cond, runs=1)  # fmt: skip
    moved = float(delta_theta(theta, theta_star))
    return [
        Row(LABEL, "only the new word's row is trained  =>  zero drift on old prompts", f"||delta theta|| = {moved:.3g}", "proved",
            "==", float(path[0]), 0.0, seed=seed, note=f"exactly zero: no old prompt reads that row. {learnt}".strip())
    ]  # fmt: skip


def permuted(theta: Mapping[str, Tensor], rng: torch.Generator) -> Params:
    """The hidden units of the first layer in another order: the same function of every input."""
    order = torch.randperm(theta["bias0"].shape[-1], generator=rng)
    moved = {"weight0": theta["weight0"][..., order], "bias0": theta["bias0"][..., order]}
    return {**theta, **moved, "weight1": theta["weight1"][:, order]}


def rescaled(theta: Mapping[str, Tensor], factor: float) -> Params:
    """First layer times `factor`, second layer's weights divided by it: the same function of a ReLU network (factor > 0)."""
    if not factor > 0:
        raise ValueError(f"rescaled: relu(c x) = c relu(x) needs c > 0, not {factor}")
    moved = {"weight0": theta["weight0"] * factor, "bias0": theta["bias0"] * factor}
    return {**theta, **moved, "weight1": theta["weight1"] / factor}


def same_function(
    world: World, net: EpsMLP, theta_star: Params, chain: Tensor, cond: Tensor, seed: int
) -> list[Row]:
    """Both symmetries, in float64; rescaling on a ReLU network with the same parameters (of SiLU it is not a symmetry)."""
    exact = {k: p.double() for k, p in theta_star.items()}
    relu = replace(net, activation="relu")
    moves = {
        f"hidden units permuted ({net.activation})": (net, permuted(exact, generator(seed, "verify/permute"))),
        "first layer x 10, second / 10 (ReLU)": (relu, rescaled(exact, 10.0)),
    }  # fmt: skip
    rows = []
    for name, (network, theta) in moves.items():
        path, _ = path_kl(network.bind(theta), network.bind(exact), world.schedule, chain[:, None].double(), cond, runs=1)  # fmt: skip
        rows.append(
            Row(LABEL, "theta can move far with no drift", f"{name}, ||delta theta|| = {float(delta_theta(theta, exact)):.3g}",
                "proved", "==", float(path[0]), 0.0, 1e-12, seed=seed, note="float64; allowed 1e-12 nats of rounding")
        )  # fmt: skip
    return rows


def further_yet_closer(drifts: list[Drift]) -> list[Row]:
    """For each run against standard, seed by seed: "moving further means drifting more", the converse that nobody proved."""
    standard = {d.seed: d for d in drifts if d.objective == "standard"}
    statement = "moves theta further than standard  =>  drifts more (converse of Theorem 2)"
    rows = []
    for d in drifts:
        other = standard.get(d.seed)
        if other is None or d.objective == "standard":
            continue
        where = f"{d.run}: ||delta theta|| = {d.distance:.3g} against {other.distance:.3g}"
        if d.distance > other.distance:
            rows.append(Row(LABEL, statement, where, "observation", ">=", d.kl, other.kl, d.error, other.error, d.seed))  # fmt: skip
        elif d.objective in ("output", "replay_all"):
            rows.append(not_applicable(LABEL, statement, where, "observation", "it moved less far here", d.seed))  # fmt: skip
    return rows


def monotone(drifts: list[Drift]) -> list[Row]:
    """KL over lam of l2, seed by seed: does it fall at every step up?"""
    rows = []
    for seed in sorted({d.seed for d in drifts}):
        mine = [d for d in drifts if d.seed == seed and d.objective == "l2"]
        mine.sort(key=lambda d: d.weight)
        for low, high in itertools.pairwise(mine):
            rows.append(
                Row(LABEL, "KL(p_star || p_theta) falls as lam rises", f"{low.run} -> {high.run}", "observation", "<=",
                    high.kl, low.kl, high.error, low.error, seed)
            )  # fmt: skip
    return rows


def lora_factors(seed: int = 0, shape: tuple[int, int] = (64, 64), rank: int = 4) -> list[Row]:
    """The paper's LoRA code penalizes |A|^2 + |B|^2; Theorem 2 speaks of |delta W|, delta W = B A."""
    rng = generator(seed, "verify/lora")
    A = torch.randn(rank, shape[1], generator=rng, dtype=torch.float64) / math.sqrt(shape[1])
    B = torch.randn(shape[0], rank, generator=rng, dtype=torch.float64) / math.sqrt(shape[0])

    def penalty(A, B):
        return float((A**2).sum() + (B**2).sum())

    product, unit = float((B @ A).norm()), "squared norm"
    claim = "the factors' penalty measures the change of the weights"
    return [
        Row(LABEL, "|B A| <= (|A|^2 + |B|^2) / 2", f"random factors, rank {rank}", "proved", "<=", product, penalty(A, B) / 2,
            seed=seed, unit="norm", note="so the penalty bounds the change from above, and only that"),
        Row(LABEL, claim, "the same B A as (10 B)(A / 10)", "claim of the paper", "==", penalty(A / 10, 10 * B), penalty(A, B),
            seed=seed, unit=unit, note=f"|B A| = {float((10 * B @ (A / 10)).norm()):.6g} in both"),
        Row(LABEL, claim, "at the start of training: B = 0, A random", "claim of the paper", "==", penalty(A, 0 * B), 0.0,
            seed=seed, unit=unit, note="delta W = 0, the penalty is not: it pulls A, and with it the learning of B, to zero"),
    ]  # fmt: skip
