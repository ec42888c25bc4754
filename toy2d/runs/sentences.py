"""Sentences that both reports share: what the numbers of a toy run, or of a comparison, say.

No sentence is fixed where a number could contradict it: if an order flips, the sentence flips.
Two runs are compared on the seeds (and subjects) that both have. A claim rests on a ratio: the
geometric mean over those pairs, with Student's 95 % interval of the logarithm. It is supported or
contradicted only if that interval excludes 1; one run decides nothing. The sentences on distance
and on sweeps name an order only, of means over the pairs.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from toy2d.runs.statistics import (
    Ratio,
    by_objective,
    by_run,
    chosen,
    estimate,
    matched,
    number,
    pair,
    ratio,
    value,
)

Records = list[dict]


class Scale(NamedTuple):
    """One scale's finished runs, its numbers under the names that the sentences use."""

    name: str
    records: Records
    best: dict[str, Records]  # objective -> the runs of its best weight at equal adaptation
    lost: str  # key of the drift, for `statistics.value`
    learnt: str  # key of what was not learnt
    unit: str  # of `lost`
    conditions: list[str]  # old conditions; the replayed one first
    at: Callable[[dict, str], float]  # (record, condition) -> drift there


def toy_scale(metrics: dict) -> Scale:
    """A toy run's metrics.json as a `Scale`: drift is KL(base || tuned) in nats, mean over classes.

    Runs that diverged are left out.
    """
    replayed = metrics["replayed_class"]
    kl = next((r["kl_base"] for r in metrics["runs"] if r["kl_base"]), {})
    others = [n for n in kl if n not in ("mixture", replayed)]

    def at(record, name):
        return (record["kl_base"] or {}).get(name, [math.nan])[0]

    return Scale(
        name="toy",
        records=[r for r in metrics["runs"] if not r["stopped"]],
        best=chosen(metrics),
        lost="old_base",
        learnt="kl_new",
        unit="nats",
        conditions=[replayed, *others],
        at=at,
    )


NOT_LEARNT = "no weight of {} learnt the new thing as well as standard"
NO_STANDARD = "no run of standard is there to compare with"


def missing(scale: Scale) -> str:
    """Why nothing can be said at equal adaptation; empty where it can."""
    standard = by_run(scale.records).get("standard")
    if not standard:
        return NO_STANDARD
    for key, what in ((scale.learnt, "fidelity"), (scale.lost, "drift")):
        if math.isnan(mean_of(standard, key)):
            return f"{what} was not measured"
    return ""


def mean_of(same: Records, key: str) -> float:
    return estimate([value(r, key) for r in same]).mean


def sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def drift_ratio(scale: Scale, ours: str, theirs: str) -> tuple[str, str]:
    """(verdict, words): does `ours` drift less than `theirs`, each at its best weight?"""
    if why := missing(scale):
        return "unknown", why
    chosen = scale.best | {"standard": by_run(scale.records)["standard"]}
    for name in (ours, theirs):
        if name not in by_objective(scale.records):
            return "unknown", f"no run of {name} is there"
        if not chosen.get(name):
            return "unknown", NOT_LEARNT.format(name)
    found = ratio(chosen[ours], chosen[theirs], lambda r: value(r, scale.lost))
    names = f"{chosen[ours][0]['run']} against {chosen[theirs][0]['run']}"
    return found.verdict, f"{names}: \u00d7 {found}"


def drift_sentence(scale: Scale) -> str:
    """Drift of each objective's best weight as a multiple of standard's, least first."""
    if why := missing(scale):
        return sentence(why)
    standard = by_run(scale.records)["standard"]
    if len(by_run(scale.records)) == 1:
        return "No run but standard's: nothing to compare."
    found = {
        same[0]["run"]: ratio(same, standard, lambda r: value(r, scale.lost))
        for objective, same in scale.best.items()
        if objective != "standard"
    }
    if not found:
        return (
            "No objective but standard learnt the new thing well enough to be compared "
            "at equal adaptation."
        )
    order = sorted(found, key=lambda run: found[run].log.mean)
    listed = ", then ".join(f"{run}: \u00d7 {found[run]}" for run in order)
    level = Ratio.of(value(r, scale.lost) for r in standard)
    return (
        "Drift at equal adaptation as a multiple of standard's on the same subject and seed, "
        f"least first: {listed}; standard itself: {level} {scale.unit}."
    )


# ---- does distance in theta rank drift?
class Against(NamedTuple):
    """Means of a setting and of standard on the same (subject, seed)s."""

    far: float  # ||theta - theta_star|| of the setting
    theta: float  # ... of standard
    kept: float  # drift of the setting
    lost: float  # ... of standard

    @classmethod
    def of(cls, same: Records, standard: Records, lost: str) -> "Against":
        pairs = matched(same, standard)
        return cls(*(mean_of(records, key) for key in ("delta_theta", lost) for records in pairs))


def distance_sentence(scale: Scale) -> str:
    """Does distance in theta rank drift? No, if a run moved further than standard and drifted less.

    Both are means over the (subject, seed)s that the run shares with standard.
    """
    runs = by_run(scale.records)
    standard = runs.pop("standard", [])
    if not standard:
        return sentence(NO_STANDARD)
    if not runs:
        return "No run but standard's: nothing to compare."
    if math.isnan(mean_of(standard, scale.lost)):
        return "Drift was not measured."
    found = {run: Against.of(same, standard, scale.lost) for run, same in runs.items()}
    less = {run: m for run, m in found.items() if m.kept < m.lost}
    further = {run: m for run, m in less.items() if m.far > m.theta}
    if not less:
        return "No setting drifted less than standard."
    if not further:
        return f"Of {len(less)} settings that drifted less than standard none moved theta further."
    farthest = max(further, key=lambda run: further[run].far / further[run].theta)
    far, theta, kept, lost = (number(v) for v in further[farthest])
    return (
        f"Distance in theta does not rank drift: {len(further)} of {len(found)} settings moved "
        f"theta further than standard and drifted less, farthest {farthest} "
        f"(means: {far} against {theta}; drift {kept} against {lost} {scale.unit})."
    )


# ---- laws and lines
UNRESOLVED = 0.25  # a standard error of the slope above which no power is told from its neighbours


def slope_sentence(scale: Scale) -> str:
    """Least squares of log path KL on log delta eps, over runs."""
    xy = [(value(r, "delta_eps"), value(r, "path_kl")) for r in scale.records]
    logs = np.log([p for p in xy if p[0] > 0 and p[1] > 0])
    if len(logs) < 4 or np.ptp(logs[:, 0]) < 0.2:
        return "Too few runs, or too alike, to fit a slope."
    (slope, _), cov = np.polyfit(logs[:, 0], logs[:, 1], 1, cov=True)
    error = float(cov[0, 0] ** 0.5)
    if error > UNRESOLVED:
        verdict = "too uncertain to be told from"
    elif abs(slope - 2) < 2 * error + 0.005:  # 0.005: half a unit of the last printed digit
        verdict = "compatible with"
    else:
        verdict = "more than two standard errors from"
    return (
        f"Path KL grows as \u0394\u03b5 to the power {slope:.2f} \u00b1 {error:.2f} (standard "
        f"error, {len(logs)} runs): {verdict} theory's 2 for one law of x_t."
    )


def shared_seeds(records: Records) -> Records:
    """Of each objective the (subject, seed)s on which all its weights were run.

    So a curve over weights compares like with like.
    """
    kept = []
    for weights in by_objective(records).values():
        shared = set.intersection(*({pair(r) for r in same} for same in weights))
        kept += [r for same in weights for r in same if pair(r) in shared]
    return kept


def sweep_sentence(scale: Scale) -> str:
    """Is mean drift monotone in each objective's weight?"""
    swept = {}
    for objective, runs in by_objective(shared_seeds(scale.records)).items():
        weights = [same for same in runs if same[0]["weight"]]
        if len(weights) > 1:
            swept[objective] = [mean_of(same, scale.lost) for same in weights]
    if not swept:
        return "No objective was run at two weights: no sweep."
    say = [f"{o} {along(lost)}" for o, lost in swept.items() if not math.isnan(sum(lost))]
    return f"Drift along growing weights: {'; '.join(say)}." if say else "Drift was not measured."


def along(values: list[float]) -> str:
    """How a line of two or more points goes, step by step: "falls 1 and rises 2 of 3 times"."""
    rises, falls = (sum(s * b > s * a for a, b in itertools.pairwise(values)) for s in (1, -1))
    steps = len(values) - 1
    counts = {"falls": falls, "rises": rises, "stays equal": steps - rises - falls}
    there = {word: n for word, n in counts.items() if n}
    if len(there) == 1:
        return next(iter(there)) + (" (a line of two points)" if steps == 1 else " at every step")
    return f"{' and '.join(f'{word} {n}' for word, n in there.items())} of {steps} times"
