"""Theorem 1': KL(p* || q) >= kl(p*(D) || q(D)) for every set D (lecture 4, Theorem 4.3).

Data processing: one bit ("in D or not") carries no more information than the point. Both sides are
about one law, that of the probability-flow ODE: its density is computed, its samples are counted.

The paper's Theorem 1 says KL(p* || base) < KL(p* || tuned). With delta = p*(D), gamma = p_tuned(D)
it is a theorem whenever KL(p* || base) < kl(delta || gamma) (lecture 4, Theorem 4.4).
Corollary 5.1 (lecture 5) takes D = the region that neither subject nor replay covers.
Shapes: M runs, P old prompts, N samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from toy2d.core.likelihood import flow_sample, log_prob_with_error
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.data import World
from toy2d.kl import Points, compare
from toy2d.model import Bound, members
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
class HalfPlane:
    """D = {x : normal . x > offset}."""

    normal: Tensor
    offset: float

    @classmethod
    def telling_apart(cls, p: Tensor, q: Tensor, offsets: int = 40) -> "HalfPlane":
        """The best of `offsets` half-planes across the line between the means of two samples.

        The line is that of Fisher's discriminant: the difference of means, whitened by p's
        covariance.
        """
        p, q = p.double(), q.double()
        normal = torch.linalg.solve(torch.cov(p.mT), q.mean(0) - p.mean(0))
        along = torch.cat([p @ normal, q @ normal])
        inner = torch.linspace(0, 1, offsets + 2)[1:-1].double()
        found = [cls(normal, float(o)) for o in along.quantile(inner)]
        return max(found, key=lambda D: counted_kl(Mass.count(D(p)), Mass.count(D(q)))[0])

    def __call__(self, x: Tensor) -> Tensor:
        return x.double() @ self.normal > self.offset


@dataclass(frozen=True)
class SampledLaws:
    """Per run (M) and old prompt (P): KL(p* || q) with its error, and N samples of q.

    Where the world has a mixture density, `kl` holds it too, as "mixture". `target` holds
    (KL(p*_mixture || q(. | new prompt)), error) per run, and `target_samples` that law's samples:
    the unconditional reading of Theorem 1, in which the model *is* the law that training fits.
    """

    kl: list[dict]  # M of {prompt: [mean, error, n]}
    samples: Tensor  # M P N 2
    truth: Tensor  # P N' 2: samples of the world at t = 0's noise level
    target: list[tuple[float, float]]
    target_samples: Tensor  # M N 2


def laws_of(
    world: World, predict: Bound, ode: Schedule, truth: Points, n: int = 1000, seed: int = 0
) -> SampledLaws:
    """Densities on `truth`'s points, n samples of every ODE law, 20 n samples of the world.

    Raises ValueError for points without the mixture's density (`truth_points(mixture=True)`).
    """
    if truth.log_mix is None:
        raise ValueError("laws_of: Theorem 1 is about the mixture; pass points with its density")
    P, conds = len(world.old), (*world.old, world.new)
    cond = torch.tensor(conds).repeat_interleave(n)
    x_T = torch.randn(1, len(cond), 2, generator=generator(seed, "verify/flow"))
    rng = generator(seed, "verify/truth")
    true = torch.stack([world.sample(c, 20 * n, rng, t=0) for c in world.old])
    kl, samples, target = [], [], []
    for m in range(predict.theta["bias0"].shape[0]):  # one at a time stays in cache; all share x_T
        one = predict.net.bind(members(predict.theta, m))
        kl += compare(one, ode, truth, torch.zeros(1, dtype=torch.long), world)
        samples.append(flow_sample(one, ode, x_T, cond, runs=1).reshape(P + 1, n, 2))
        points = truth.x.flatten(1, 2)
        log_q = log_prob_with_error(one, ode, points, torch.tensor(world.new), runs=1)
        ratio = (truth.log_mix[0] - log_q.value.reshape(P, -1)).mean(0)
        value, error = truth.rule.expect(ratio)
        of_ode, _ = truth.rule.expect(log_q.error.abs().reshape(P, -1).mean(0))
        target.append((float(value), float(error + of_ode)))
    every = torch.stack(samples)
    return SampledLaws(kl, every[:, :P], true, target, every[:, P])


def home(laws: SampledLaws, i: int, share: float = 0.99) -> Ball:
    """The ball about prompt i's mean that holds `share` of its true samples."""
    x = laws.truth[i].double()
    center = x.mean(0)
    return Ball(center, float((x - center).norm(dim=-1).quantile(share)))


def lower_bound(
    world: World, laws: SampledLaws, regions: list, names: list[str], seeds: list[int]
) -> list[Row]:
    """KL(p* || q) >= kl(p*(D) || q(D)) for every run and old prompt, with two sets D.

    D = the instance points' ball (`regions[m]`), and the half-plane that tells the two laws apart
    best: chosen on one half of the samples, counted on the other.
    """
    rows = []
    for m, name in enumerate(names):
        for i, c in enumerate(world.old):
            value, error, _ = laws.kl[m][world.names[c]]
            true, ours = laws.truth[i], laws.samples[m, i]
            plane = HalfPlane.telling_apart(true[::2], ours[::2])
            for what, region, x, y in (
                ("the instance points' ball", regions[m], true, ours),
                ("a half-plane", plane, true[1::2], ours[1::2]),
            ):
                p, q = Mass.count(region(x)), Mass.count(region(y))
                low, low_error = counted_kl(p, q)
                statement = f"KL(p* || p_theta) >= kl(p*(D) || p_theta(D)), D = {what}"
                where = f"{name}; {world.names[c]}"
                sides = (value, low, error, low_error)
                note = f"p*(D) = {p.value:.2g}, p_theta(D) = {q.value:.3g}, n = {q.n}"
                curve = {"run": name, "prompt": world.names[c], "set": what}
                rows.append(
                    Row(
                        LABEL,
                        statement,
                        where,
                        "proved",
                        ">=",
                        *sides,
                        seeds[m],
                        note=note,
                        curve=curve,
                    )
                )
    return rows


def theorem_1(
    world: World,
    laws: SampledLaws,
    base: SampledLaws,
    base_of: list[int],
    regions: list,
    names: list[str],
    seeds: list[int],
) -> list[Row]:
    """The paper's conclusion: a claim, and a theorem where its condition is met (Theorem 4.4).

    `base_of[m]` is the place of run m's base in `base`. Three readings of "the model's law": each
    old prompt's; the mixture of the old prompts; and the target prompt's, the one law that training
    fits, against the mixture of the old.
    """
    claim = "KL(p* || base) < KL(p* || tuned), as claimed"
    theorem = "KL(p* || base) < kl(delta || gamma)  =>  KL(p* || base) < KL(p* || tuned)"
    rows = []
    for m, name in enumerate(names):
        for reading, true_x, x, after, before in _readings(world, laws, m, base.kl[base_of[m]]):
            true, ours = Mass.count(regions[m](true_x)), Mass.count(regions[m](x))
            needed, error = counted_kl(true, ours)
            where, seed = f"{name}; {reading}", seeds[m]
            sides = (before[0], after[0], before[1], after[1])
            curve = {"run": name, "reading": reading, "needed": needed}
            note = (
                f"delta = {true.value:.2g}, gamma = {ours.value:.3g}, "
                f"kl(delta || gamma) = {needed:.3g}, KL(p* || base) = {before[0]:.3g}"
            )
            rows.append(
                Row(CONCLUSION, claim, where, "claim of the paper", "<=", *sides, seed, curve=curve)
            )
            if needed - before[0] > 3 * (error**2 + before[1] ** 2) ** 0.5:
                row = Row(CONCLUSION, theorem, where, "proved", "<=", *sides, seed, note=note)
            else:
                why = f"the condition is not met: {note}"
                row = not_applicable(CONCLUSION, theorem, where, "proved", why, seed)
            rows.append(row)
    return rows


def _readings(world: World, laws: SampledLaws, m: int, before: dict):
    """(name, true samples, run m's samples, KL after, KL before) of each reading of the law."""
    mine = laws.kl[m]
    for i, c in enumerate(world.old):
        name = world.names[c]
        yield name, laws.truth[i], laws.samples[m, i], mine[name], before[name]
    mixture = before["mixture"]
    yield "mixture of old prompts", laws.truth, laws.samples[m], mine["mixture"], mixture
    yield "target prompt's law", laws.truth, laws.target_samples[m], laws.target[m], mixture


def coverage(
    world: World,
    laws: SampledLaws,
    regions: list,
    replayed: list[tuple[int, ...]],
    names: list[str],
    seeds: list[int],
) -> list[Row]:
    """Corollary 5.1: KL(p* || q) >= kl(p*(E) || q(E)), E = what neither subject nor replay covers.

    `replayed[m]`: the old prompts that run m replays. E is outside the subject's ball and outside
    the replayed prompts' own balls (each holds 99 % of its prompt's true samples). With everything
    replayed p*(E) is about 0 and the bound says nothing: coverage is what matters, not the number
    of subject images.
    """
    statement = (
        "KL(p* || p_theta) >= kl(p*(E) || p_theta(E)), E = what neither subject nor replay covers"
    )
    rows = []
    for m, name in enumerate(names):
        balls = [regions[m], *(home(laws, world.old.index(c)) for c in replayed[m])]

        def covered(x, balls=balls):
            return torch.stack([ball(x) for ball in balls]).any(0)

        where = f"{name}, replays {len(replayed[m])} of {len(world.old)} prompts"
        for reading, x, (value, error, *_) in (
            ("mixture of old prompts", laws.samples[m], laws.kl[m]["mixture"]),
            ("target prompt's law", laws.target_samples[m], laws.target[m]),
        ):
            true, ours = Mass.count(~covered(laws.truth)), Mass.count(~covered(x))
            low, low_error = counted_kl(true, ours)
            sides = (value, low, error, low_error)
            note = f"p*(E) = {true.value:.3g}, p_theta(E) = {ours.value:.3g}"
            curve = {"run": name, "replayed": len(replayed[m])}
            said = f"{statement}; {reading}"
            rows.append(
                Row(COVERAGE, said, where, "proved", ">=", *sides, seeds[m], note=note, curve=curve)
            )
    return rows
