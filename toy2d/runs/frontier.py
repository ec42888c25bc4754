"""Compare drift at equal learning: how far each run had drifted when it had learnt as much.

A trajectory is what one run has learnt and how far it has drifted, step by step, both in nats:

    scale      learnt                                    drift
    toy        KL(world || base) - KL(world || tuned)    KL(base || tuned), mean over old prompts
               of the new class
    full       gain on held-out pictures                 path KL of old prompts

A unit is one independent repetition: a subject at full scale, a seed in the toy. A level is a share
(say 75 %) of the most that standard's run learns on the same unit and seed. A run's drift is read
where the run first learns that much, and compared with standard's drift there as a log ratio. Seeds
of a unit are averaged first, then Student's 95 % interval is taken over units.

The weight of an objective is chosen, level by level, on the *other* units: no unit judges a weight
that was picked on it.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import nctdtr, nctdtrinc, stdtrit

from toy2d.runs.statistics import Ratio, estimate, number

SHARES = (0.25, 0.5, 0.75, 0.9)  # of standard's peak
HEADLINE = 0.75  # the share at which an objective's verdict is given
SAME = 0.1  # an interval within 10 % of 1 counts as "no difference"
POWER = 0.8  # the probability with which an experiment should find its effect


class Trajectory(NamedTuple):
    """One run: what it had learnt and how it had drifted at each measured step, in nats."""

    run: str  # e.g. "l2:0.01"
    objective: str
    unit: str  # subject, or seed of the toy
    seed: int
    step: Sequence[int]  # from 0
    learnt: Sequence[float]
    drift: Sequence[float]
    stopped: str | None = None  # why it ended early

    @property
    def peak(self) -> float:
        """The most it had learnt at any step; nan if nothing was measured."""
        return max(self.learnt, default=math.nan)

    def drift_at(self, level: float) -> float:
        """Drift where the run first learns `level`; nan if it never does.

        Between two measured steps sqrt(drift) is taken as linear in what is learnt: near the start
        drift is quadratic in the distance moved, learning is linear.
        """
        before = None
        for learnt, drift in zip(self.learnt, self.drift, strict=True):
            if learnt >= level:
                if before is None or learnt == before[0]:
                    return drift
                share = (level - before[0]) / (learnt - before[0])
                low, high = math.sqrt(before[1]), math.sqrt(drift)
                return (low + share * (high - low)) ** 2
            before = learnt, drift
        return math.nan


Key = tuple[str, int]  # (unit, seed)


def by_key(trajectories: Iterable[Trajectory]) -> dict[str, dict[Key, Trajectory]]:
    """run -> (unit, seed) -> its trajectory."""
    found = {}
    for t in trajectories:
        found.setdefault(t.run, {})[t.unit, t.seed] = t
    return found


def log_ratios(
    runs: dict[Key, Trajectory], standard: dict[Key, Trajectory], share: float
) -> dict[str, list[float]]:
    """unit -> log of drift over standard's at `share` of standard's peak, one a seed.

    nan for a seed on which the run never learnt that much.
    """
    found = {}
    for key, run in runs.items():
        if key in standard and standard[key].peak > 0:
            level = share * standard[key].peak
            ours, theirs = run.drift_at(level), standard[key].drift_at(level)
            known = ours > 0 and theirs > 0
            log = math.log(ours / theirs) if known else math.nan
            found.setdefault(key[0], []).append(log)
    return found


def unit_means(logs: dict[str, list[float]]) -> dict[str, float]:
    """unit -> mean over the seeds that got there; units where none did are left out."""
    means = {u: [v for v in values if not math.isnan(v)] for u, values in logs.items()}
    return {u: float(np.mean(v)) for u, v in means.items() if v}


class Contrast(NamedTuple):
    """An objective against standard at equal learning."""

    objective: str
    share: float  # of standard's peak
    by_unit: dict[str, float]  # unit -> log ratio of drift, mean over its seeds
    reached: int  # of `runs`: how many learnt that much
    runs: int
    weights: tuple[str, ...]  # the weights chosen, without repetition

    @property
    def ratio(self) -> Ratio:
        """Of drift to standard's; its interval is over units."""
        return Ratio(estimate(self.by_unit.values()))

    @property
    def spread(self) -> float:
        """Standard deviation over units of the log ratio."""
        log = self.ratio.log
        if log.n < 2:
            return math.nan
        return log.half * log.n**0.5 / float(stdtrit(log.n - 1, 0.975))

    @property
    def verdict(self) -> str:
        """ "less", "more", "same" (within 10 %) or "undecided"; "unknown" without a number."""
        mean, half, _ = self.ratio.log
        if math.isnan(mean):
            return "unknown"
        if math.isnan(half):
            return "undecided"
        if abs(mean) > half:
            return "less" if mean < 0 else "more"
        return "same" if self.at_most <= SAME else "undecided"

    @property
    def at_most(self) -> float:
        """The largest difference from standard that the interval leaves open; 0.1 is 10 %."""
        mean, half, _ = self.ratio.log
        return math.exp(abs(mean) + half) - 1

    @property
    def detectable(self) -> float:
        """The smallest drop in drift, as a share, that this design finds with 80 % power."""
        n, sd = self.ratio.log.n, self.spread
        if not sd > 0:
            return math.nan
        shift = nctdtrinc(n - 1, 1 - POWER, stdtrit(n - 1, 0.975))
        return 1 - math.exp(-float(shift) * sd / n**0.5)

    @property
    def units_needed(self) -> int | None:
        """How many units tell a ratio as seen here from 1 with 80 % power; None: over 999."""
        effect = abs(self.ratio.log.mean) / self.spread if self.spread > 0 else math.nan
        return next((n for n in range(2, 1000) if power(n, effect) >= POWER), None)

    def words(self, unit: str = "subject") -> str:
        """The verdict as a clause, with its numbers."""
        found = f"\u00d7 {in_words(self.ratio, unit)}"
        if self.verdict == "unknown":
            return f"never learnt {self.share:.0%} of what standard learns"
        if self.verdict in ("less", "more"):
            return f"{self.verdict} drift than standard: {found}"
        if math.isnan(self.ratio.log.half):
            return f"undecided: {found}"
        most = self.at_most
        bound = f"{100 * most:.0f} %" if most <= 1 else f"a factor of {number(1 + most)}"
        none = f"no difference larger than {bound}"
        if self.verdict == "same":
            return f"{none}: {found}"
        needed = self.units_needed
        more = f"about {needed} {unit}s" if needed else f"more than 999 {unit}s"
        return f"undecided, {none}: {found}; {more} would decide it"


def in_words(ratio: Ratio, unit: str) -> str:
    """ "0.5 (0.4-0.6, 6 subjects)"."""
    mean, half, n = ratio.log
    if math.isnan(half):
        return f"{number(math.exp(mean))} (one {unit})"
    low, high = (number(math.exp(v)) for v in (mean - half, mean + half))
    return f"{number(math.exp(mean))} ({low}\u2013{high}, {n} {unit}s)"


def power(n: int, effect: float) -> float:
    """Power of a two-sided Student test at 5 %.

    Of n values whose mean is `effect` standard deviations from 0.
    """
    critical, shift = float(stdtrit(n - 1, 0.975)), effect * n**0.5
    return float(1 - nctdtr(n - 1, shift, critical) + nctdtr(n - 1, shift, -critical))


def contrasts(
    trajectories: Sequence[Trajectory], shares: Sequence[float] = SHARES
) -> dict[str, dict[float, Contrast]]:
    """objective -> share -> its contrast with standard, in the order of the trajectories."""
    runs, weights = by_key(trajectories), {}
    standard = runs.get("standard", {})
    for t in trajectories:
        weights.setdefault(t.objective, {})[t.run] = runs[t.run]
    return {
        objective: {share: contrast(objective, same, standard, share) for share in shares}
        for objective, same in weights.items()
        if objective != "standard"
    }


def contrast(
    objective: str,
    weights: dict[str, dict[Key, Trajectory]],
    standard: dict[Key, Trajectory],
    share: float,
) -> Contrast:
    """The objective at one level; each unit's weight is the one that does best on the others."""
    logs = {name: log_ratios(runs, standard, share) for name, runs in weights.items()}
    units = sorted({u for found in logs.values() for u in found})
    chosen = {u: best_elsewhere(logs, u) for u in units}
    own = {u: logs[name][u] for u, name in chosen.items()}
    values = [v for seeds in own.values() for v in seeds]
    reached = sum(not math.isnan(v) for v in values)
    names = tuple(dict.fromkeys(chosen.values()))
    return Contrast(objective, share, unit_means(own), reached, len(values), names)


def best_elsewhere(logs: dict[str, dict[str, list[float]]], unit: str) -> str:
    """The weight that most often reaches the level on the other units, then drifts least there.

    With a single unit: the first weight, which was chosen before.
    """

    def score(name: str) -> tuple[float, float]:
        others = {u: v for u, v in logs[name].items() if u != unit}
        values = [v for seeds in others.values() for v in seeds]
        missing = float(np.mean(np.isnan(values))) if values else 1.0
        means = list(unit_means(others).values())
        return missing, float(np.mean(means)) if means else math.inf

    return min((n for n in logs if unit in logs[n]), key=score)


# ---- does one scale predict the other?
def agreement(
    ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]], draws: int = 2000
) -> tuple[float, float, float, list[str]]:
    """How alike two scales order objectives by drift: (Kendall's tau, low, high, objectives).

    `ours`, `theirs`: objective -> unit -> log ratio to standard, whose own is 0. `low` and `high`
    end tau's 95 % interval, from resampling the units of both scales.
    """
    shared = [o for o in ours if o in theirs and ours[o] and theirs[o]]
    rng = np.random.default_rng(0)
    tau = kendall(*([0.0, *means(scale, shared)] for scale in (ours, theirs)))
    found = [
        kendall(*([0.0, *means(scale, shared, rng)] for scale in (ours, theirs)))
        for _ in range(draws)
    ]
    low, high = np.percentile(found, (2.5, 97.5))
    return tau, float(low), float(high), shared


def means(
    scale: dict[str, dict[str, float]],
    objectives: list[str],
    rng: np.random.Generator | None = None,
) -> list[float]:
    """Mean log ratio of each objective over the scale's units, resampled if `rng` is given."""
    units = sorted({u for o in objectives for u in scale[o]})
    drawn = units if rng is None else [units[i] for i in rng.integers(0, len(units), len(units))]
    out = []
    for o in objectives:
        values = [scale[o][u] for u in drawn if u in scale[o]] or list(scale[o].values())
        out.append(float(np.mean(values)))
    return out


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau of two lists without ties: (concordant - discordant) / pairs."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    signs = [np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i, j in pairs]
    return float(np.mean(signs)) if signs else math.nan
