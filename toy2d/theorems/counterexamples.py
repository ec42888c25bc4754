"""What a distance in theta does not say (lecture 7): far without drift, and weights out of order.

new_row_only        training only the new word's embedding: exactly zero drift on every old prompt
permuted, rescaled  hidden units swapped, a ReLU layer scaled up and the next down: far away, and
                    the same function
further_yet_closer  objectives that move theta further than standard training and drift less: the
                    converse of Theorem 2 is false
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
    world: World,
    net: EpsMLP,
    theta_star: Params,
    shots: Tensor,
    seed: int,
    steps: int = 300,
    learning_rate: float = 3e-2,
) -> Params:
    """Fine-tune only the embedding rows of the new prompt's own words (Adam, a stack of one).

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
        predict = net.bind({**theta_star, "token": token})
        loss = denoising_loss(predict, world.schedule, example).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {**theta_star, "token": theta_star["token"].index_copy(1, index, rows.detach())}


def new_row_only(
    world: World,
    net: EpsMLP,
    theta_star: Params,
    theta: Params,
    chain: Tensor,
    cond: Tensor,
    seed: int,
    learnt: str = "",
) -> list[Row]:
    """theta differs from theta_star in the new word's rows only. chain (T, N, 2): old prompts."""
    predict, predict_star = net.bind(theta), net.bind(theta_star)
    path, _ = path_kl(predict, predict_star, world.schedule, chain[:, None], cond, runs=1)
    statement = "only the new word's row is trained  =>  zero drift on old prompts"
    where = f"||delta theta|| = {float(delta_theta(theta, theta_star)):.3g}"
    note = f"exactly zero: no old prompt reads that row. {learnt}".strip()
    sides = (float(path[0]), 0.0)
    return [Row(LABEL, statement, where, "proved", "==", *sides, seed=seed, note=note)]


def permuted(theta: Mapping[str, Tensor], rng: torch.Generator) -> Params:
    """The hidden units of the first layer in another order: the same function of every input."""
    order = torch.randperm(theta["bias0"].shape[-1], generator=rng)
    moved = {"weight0": theta["weight0"][..., order], "bias0": theta["bias0"][..., order]}
    return {**theta, **moved, "weight1": theta["weight1"][:, order]}


def rescaled(theta: Mapping[str, Tensor], factor: float) -> Params:
    """First layer times `factor` > 0, second layer's weights divided by it.

    The same function of a ReLU network, because relu(c x) = c relu(x) for c > 0.
    """
    if not factor > 0:
        raise ValueError(f"rescaled: relu(c x) = c relu(x) needs c > 0, not {factor}")
    moved = {"weight0": theta["weight0"] * factor, "bias0": theta["bias0"] * factor}
    return {**theta, **moved, "weight1": theta["weight1"] / factor}


def same_function(
    world: World, net: EpsMLP, theta_star: Params, chain: Tensor, cond: Tensor, seed: int
) -> list[Row]:
    """Both symmetries in float64; the rescaling on a ReLU network with the same parameters."""
    star = {k: p.double() for k, p in theta_star.items()}
    x = chain[:, None].double()
    relu = replace(net, activation="relu")  # of SiLU the rescaling is no symmetry
    shuffled = permuted(star, generator(seed, "verify/permute"))
    note = "float64; allowed 1e-12 nats of rounding"
    rows = []
    for name, network, theta in (
        (f"hidden units permuted ({net.activation})", net, shuffled),
        ("first layer x 10, second / 10 (ReLU)", relu, rescaled(star, 10.0)),
    ):
        predict, predict_star = network.bind(theta), network.bind(star)
        path, _ = path_kl(predict, predict_star, world.schedule, x, cond, runs=1)
        where = f"{name}, ||delta theta|| = {float(delta_theta(theta, star)):.3g}"
        sides = (float(path[0]), 0.0, 1e-12)
        statement = "theta can move far with no drift"
        rows.append(Row(LABEL, statement, where, "proved", "==", *sides, seed=seed, note=note))
    return rows


def further_yet_closer(drifts: list[Drift]) -> list[Row]:
    """Against standard, seed by seed: "moving further means drifting more", which nobody proved."""
    standard = {d.seed: d for d in drifts if d.objective == "standard"}
    statement = "moves theta further than standard  =>  drifts more (converse of Theorem 2)"
    rows = []
    for d in drifts:
        other = standard.get(d.seed)
        if other is None or d.objective == "standard":
            continue
        where = f"{d.run}: ||delta theta|| = {d.distance:.3g} against {other.distance:.3g}"
        if d.distance > other.distance:
            sides = (d.kl, other.kl, d.error, other.error)
            rows.append(Row(LABEL, statement, where, "observation", ">=", *sides, d.seed))
        elif d.objective in ("output", "replay_all"):
            why = "it moved less far here"
            rows.append(not_applicable(LABEL, statement, where, "observation", why, d.seed))
    return rows


def monotone(drifts: list[Drift]) -> list[Row]:
    """KL over lam of l2, seed by seed: does it fall at every step up?"""
    statement = "KL(p_star || p_theta) falls as lam rises"
    rows = []
    for seed in sorted({d.seed for d in drifts}):
        mine = [d for d in drifts if d.seed == seed and d.objective == "l2"]
        mine.sort(key=lambda d: d.weight)
        for low, high in itertools.pairwise(mine):
            sides = (high.kl, low.kl, high.error, low.error)
            where = f"{low.run} -> {high.run}"
            rows.append(Row(LABEL, statement, where, "observation", "<=", *sides, seed))
    return rows


def lora_factors(
    seed: int = 0, shape: tuple[int, int] = (64, 64), rank: int = 4, tilt: float = 10.0
) -> list[Row]:
    """The paper's LoRA code penalizes |A|^2 + |B|^2; Theorem 2 speaks of |delta W|, delta W = B A.

    |B A| <= (|A|^2 + |B|^2) / 2 is an equality for rank 1 and |A| = |B|: that row has power.
    `tilt` rescales the factors, (tilt B) (A / tilt), which leaves B A as it is.
    """
    rng = generator(seed, "verify/lora")
    A = torch.randn(rank, shape[1], generator=rng, dtype=torch.float64) / math.sqrt(shape[1])
    B = torch.randn(shape[0], rank, generator=rng, dtype=torch.float64) / math.sqrt(shape[0])
    a, b = A[:1] / A[:1].norm(), B[:, :1] / B[:, :1].norm()

    def penalty(A, B):
        return float((A**2).sum() + (B**2).sum())

    bound = "|B A| <= (|A|^2 + |B|^2) / 2"
    rows = []
    for where, x, y in ((f"random factors, rank {rank}", A, B), ("rank 1, |A| = |B|", a, b)):
        sides = (float((y @ x).norm()), penalty(x, y) / 2)
        note = "the penalty bounds the change from above, and only that"
        rows.append(
            Row(LABEL, bound, where, "proved", "<=", *sides, seed=seed, unit="norm", note=note)
        )
    claim = "the factors' penalty measures the change of the weights"
    same = float((tilt * B @ (A / tilt)).norm())
    tilted = (penalty(A / tilt, tilt * B), penalty(A, B))
    start = (penalty(A, 0 * B), 0.0)
    pulled = "delta W = 0, the penalty is not: it pulls A to zero, and with it the learning of B"
    for where, sides, note in (
        (f"the same B A as ({tilt:g} B)(A / {tilt:g})", tilted, f"|B A| = {same:.6g} in both"),
        ("at the start of training: B = 0, A random", start, pulled),
    ):
        row = Row(LABEL, claim, where, "claim of the paper", "==", *sides, seed=seed, note=note)
        rows.append(replace(row, unit="squared norm"))
    return rows
