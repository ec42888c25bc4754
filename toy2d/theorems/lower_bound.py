"""Theorem 1': KL(p* || q) >= kl(p*(D) || q(D)) for every set D; what it makes of Theorem 1; Corollary 1' about coverage.

Data processing: a bit ("in D or not") carries no more information than the point. Both sides are about one law, that of the
probability-flow ODE, whose density is exact and whose samples are counted.
    Theorem 1 of the paper: KL(p* || base) < KL(p* || tuned). With delta = p*(D), gamma = p_tuned(D) it is a theorem whenever
    KL(p* || base) < kl(delta || gamma).
Shapes: M runs, P old prompts, N samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from toy2d.data import World, generator
from toy2d.likelihood import flow_sample
from toy2d.measure import Points, compare
from toy2d.model import Bound, members
from toy2d.schedule import Schedule
from toy2d.theorems.estimators import Mass, counted_kl
from toy2d.theorems.row import Row, not_applicable

LABEL, CONCLUSION, COVERAGE = "lower_bound", "theorem_1", "coverage"


@dataclass(frozen=True)
class Ball:
    """D = {x : |x - center| <= radius}."""

    center: Tensor
    radius: float

    @classmethod
    def around(cls, shots: Tensor) -> "Ball":
        """The smallest ball about the mean of the instance points (N, 2) that holds them all."""
        center = shots.double().mean(0)
        return cls(center, float((shots.double() - center).norm(dim=-1).max()))

    def __call__(self, x: Tensor) -> Tensor:
        return (x.double() - self.center).norm(dim=-1) <= self.radius


@dataclass(frozen=True)
class Laws:
    """Per run (M) and old prompt (P): exact KL(p* || q) with error, and N samples of q; for the mixture too where the world has it."""

    kl: list[dict]  # M of {prompt: [mean, error, n]}
    samples: Tensor  # M P N 2
    truth: Tensor  # P N' 2: samples of the world at t = 0's noise level


def laws_of(world: World, predict: Bound, ode: Schedule, truth: Points, n: int = 1000, seed: int = 0) -> Laws:  # fmt: skip
    """Densities by quadrature on `truth`'s points, samples of the ODE's law from N(0, I), 100 n of the world."""
    P = len(world.old)
    cond = torch.tensor(world.old).repeat_interleave(n)
    x_T = torch.randn(1, len(cond), 2, generator=generator(seed, "verify/flow"))
    rng = generator(seed, "verify/truth")
    true = torch.stack([world.sample(c, 100 * n, rng, t=0) for c in world.old])
    kl, samples = [], []
    for m in range(predict.theta["bias0"].shape[0]):  # one at a time stays in cache; all share x_T
        one = predict.net.bind(members(predict.theta, m))
        kl += compare(one, ode, truth, torch.zeros(1, dtype=torch.long), world)
        samples.append(flow_sample(one, ode, x_T, cond, runs=1).reshape(1, P, n, 2))
    return Laws(kl, torch.cat(samples), true)


def masses(laws: Laws, m: int, region) -> dict[int | None, tuple[Mass, Mass]]:
    """{prompt index: (p*(D), q(D))}, None for the mixture."""
    inside, true = region(laws.samples[m]), region(laws.truth)
    found = {i: (Mass.count(true[i]), Mass.count(inside[i])) for i in range(len(inside))}
    return found | {None: (Mass.count(true), Mass.count(inside))}


def lower_bound(
    world: World, laws: Laws, regions: list, names: list[str], seeds: list[int]
) -> list[Row]:
    """KL(p* || q) >= kl(p*(D) || q(D)) for every run, old prompt and the mixture. `regions[m]`: run m's D."""
    rows = []
    for m, name in enumerate(names):
        for i, (true, ours) in masses(laws, m, regions[m]).items():
            prompt = "mixture" if i is None else world.names[world.old[i]]
            if prompt not in laws.kl[m]:
                continue
            value, error, _ = laws.kl[m][prompt]
            low, low_error = counted_kl(true, ours)
            rows.append(
                Row(LABEL, "KL(p* || p_theta) >= kl(p*(D) || p_theta(D))", f"{name}; {prompt}", "proved", ">=",
                    value, low, error, low_error, seeds[m],
                    note=f"D = the instance points' ball; p*(D) = {true.value:.2g}, p_theta(D) = {ours.value:.3f}, n = {ours.n}",
                    curve={"run": name, "prompt": prompt})
            )  # fmt: skip
    return rows


def theorem_1(
    world: World, laws: Laws, base: Laws, base_of: list[int], regions: list, names: list[str], seeds: list[int]
) -> list[Row]:  # fmt: skip
    """The paper's conclusion, as claimed, and as a theorem where KL(p* || base) < kl(delta || gamma). base_of[m]: run m's base."""
    rows = []
    for m, name in enumerate(names):
        for i, (true, ours) in masses(laws, m, regions[m]).items():
            prompt = "mixture" if i is None else world.names[world.old[i]]
            if prompt not in laws.kl[m]:
                continue
            (tuned, e1, _), (before, e0, _) = laws.kl[m][prompt], base.kl[base_of[m]][prompt]
            needed, error = counted_kl(true, ours)
            condition = f"{name}; {prompt}"
            rows.append(
                Row(CONCLUSION, "KL(p* || base) < KL(p* || tuned), as claimed", condition, "claim of the paper", "<=",
                    before, tuned, e0, e1, seeds[m])
            )  # fmt: skip
            statement = "KL(p* || base) < kl(delta || gamma)  =>  KL(p* || base) < KL(p* || tuned)"
            note = f"delta = {true.value:.2g}, gamma = {ours.value:.3f}, kl(delta || gamma) = {needed:.3f}, KL(p* || base) = {before:.3f}"
            if needed - before > 3 * (error**2 + e0**2) ** 0.5:
                rows.append(Row(CONCLUSION, statement, condition, "proved", "<=", before, tuned, e0, e1, seeds[m], note=note))  # fmt: skip
            else:
                rows.append(not_applicable(CONCLUSION, statement, condition, "proved", f"the condition is not met: {note}", seeds[m]))  # fmt: skip
    return rows


def coverage(
    world: World, laws: Laws, regions: list, replayed: list[tuple[int, ...]], names: list[str], seeds: list[int]
) -> list[Row]:  # fmt: skip
    """Corollary 1': E = the region that neither subject nor replayed prompts cover; KL(p* || q) >= kl(p*(E) || q(E)), for the mixture.

    `replayed[m]`: old prompts that run m replays. E is outside the subject's ball and the replayed prompts' own balls (each holding 99 %
    of its prompt's true samples). With everything replayed p*(E) is about 0 and the bound says nothing: coverage, not the number of
    subject images, is what matters.
    """
    rows = []
    for m, name in enumerate(names):
        if "mixture" not in laws.kl[m]:
            continue
        balls = [regions[m]]
        for c in replayed[m]:
            x = laws.truth[world.old.index(c)].double()
            center = x.mean(0)
            balls.append(Ball(center, float((x - center).norm(dim=-1).quantile(0.99))))

        def region(x, balls=balls):
            return ~torch.stack([ball(x) for ball in balls]).any(0)

        true, ours = masses(laws, m, region)[None]
        value, error, _ = laws.kl[m]["mixture"]
        low, low_error = counted_kl(true, ours)
        rows.append(
            Row(COVERAGE, "KL(p* || p_theta) >= kl(p*(E) || p_theta(E)), E = what neither subject nor replay covers",
                f"{name}; mixture, replays {len(replayed[m])} of {len(world.old)} prompts", "proved", ">=",
                value, low, error, low_error, seeds[m], note=f"p*(E) = {true.value:.3f}, p_theta(E) = {ours.value:.3f}",
                curve={"run": name, "replayed": len(replayed[m])})
        )  # fmt: skip
    return rows
