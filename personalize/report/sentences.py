"""What the numbers of two scales say, in sentences. No sentence is fixed where a number could contradict it: if an order flips, it flips.

A drift is compared as a ratio, within each seed (and subject): 0.1 means a tenth of the other's. Its interval is Student's, 95 %, of the
logarithm. A claim is supported or contradicted only if that interval excludes 1; with one run nothing is decided.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from personalize.compare.table import (
    Estimate,
    best,
    costs,
    estimate,
    log_ratio,
    matched,
    paired,
    shared_seeds,
    times,
)
from toy2d.runs.statistics import best_at_equal_adaptation, by_objective, by_run, number, value

Records = list[dict]


class Scale(NamedTuple):
    """One scale's records under common names: `lost` and `learnt` are keys of `plot.value`; `best` is per objective."""

    name: str
    records: Records
    best: dict[str, Records]
    lost: str
    learnt: str
    unit: str
    conditions: list[str]  # the replayed one first
    at: Callable[[dict, str], float]  # (record, condition) -> drift


def toy_scale(metrics: dict) -> Scale:
    replayed = metrics["replayed_class"]
    kl = next((r["kl_base"] for r in metrics["runs"] if r["kl_base"]), {})
    names = [n for n in kl if n not in ("mixture", replayed)]

    def at(record, name):
        return (record["kl_base"] or {}).get(name, [math.nan])[0]

    records = [r for r in metrics["runs"] if not r["stopped"]]
    return Scale("toy", records, best_at_equal_adaptation(records), "old_base", "kl_new", "nats", [replayed, *names], at)  # fmt: skip


def full_scale(metrics: dict, name: str) -> Scale:
    records = [r for r in metrics["runs"] if not r["stopped"]]
    groups = list(records[0]["moved_group"]) if records else []

    def at(record, group):
        found = record["moved_group"].get(group)
        return math.nan if found is None else found

    return Scale(name, records, best(metrics), "moved", "unlearnt", "1 \u2212 cosine", groups, at)


# ---- ratios and verdicts
class Geometric(NamedTuple):
    """Geometric mean with its 95 % interval, over n runs: drifts spread over decades."""

    log: Estimate

    @classmethod
    def of(cls, values) -> "Geometric":
        return cls(estimate([math.log(v) for v in values if v is not None and v > 0]))

    def __str__(self) -> str:
        mean, half, n = self.log
        if math.isnan(mean):
            return "not measured"
        if math.isnan(half):
            return f"{number(math.exp(mean))} (one run)"
        return f"{number(math.exp(mean))} ({number(math.exp(mean - half))}\u2013{number(math.exp(mean + half))}, n = {n})"  # fmt: skip

    @property
    def verdict(self) -> str:
        """Of the claim that it is below 1."""
        mean, half, _ = self.log
        if math.isnan(mean):
            return "unknown"
        if math.isnan(half):
            return "undecided"
        return "supported" if mean + half < 0 else "contradicted" if mean - half > 0 else "undecided"  # fmt: skip


def ratio(ours: Records, theirs: Records, of_record: Callable[[dict], float]) -> Geometric:
    """Of ours to theirs, within each subject and seed."""

    def log(record):
        v = of_record(record)
        return math.log(v) if v is not None and v > 0 else math.nan

    return Geometric(paired(ours, theirs, log))


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
    """(verdict, words): does `ours` drift less than `theirs`, each at its best weight of equal adaptation?"""
    if why := missing(scale):
        return "unknown", why
    chosen = scale.best | {"standard": by_run(scale.records)["standard"]}
    for name in (ours, theirs):
        if name not in by_objective(scale.records):
            return "unknown", f"no run of {name} is there"
        if not chosen.get(name):
            return "unknown", NOT_LEARNT.format(name)
    found = ratio(chosen[ours], chosen[theirs], lambda r: value(r, scale.lost))
    return (
        found.verdict,
        f"{chosen[ours][0]['run']} against {chosen[theirs][0]['run']}: \u00d7 {found}",
    )


def spared(scale: Scale) -> tuple[str, str]:
    """Does prior preservation protect the condition that it replays more than the others? Drift of prior over standard's, there and elsewhere."""
    runs = by_objective(scale.records)
    if "prior" not in runs or "standard" not in runs or len(scale.conditions) < 2:
        return "unknown", "not measured"
    same, standard = scale.best.get("prior") or runs["prior"][0], runs["standard"][0]
    own, *others = scale.conditions

    def share(record):
        logs = [math.log(v) if v is not None and v > 0 else math.nan for v in (scale.at(record, c) for c in (own, *others))]  # fmt: skip
        return logs[0] - float(np.mean(logs[1:]))

    found = Geometric(paired(same, standard, share))
    return found.verdict, f"{same[0]['run']}, drift left on {own} over drift left elsewhere: \u00d7 {found}"  # fmt: skip


def time_ratio(metrics: dict) -> tuple[str, str]:
    runs = {c["objective"]: by_run(metrics["runs"])[c["run"]] for c in costs(metrics)}
    if not {"l2", "prior"} <= runs.keys():
        return "unknown", "not measured"
    found = ratio(runs["l2"], runs["prior"], lambda r: r["total_seconds"])
    return found.verdict, f"seconds of l2 over prior, class images included: \u00d7 {found}"


ONE_STACK = ("unknown", "all objectives train as one stack: their times cannot be told apart")


def claims(toy: Scale, full: Scale, metrics: dict) -> list[dict]:
    """Each claim with a (verdict, words) at both scales."""
    rivals = (
        ("L2 drifts less than standard fine-tuning at equal adaptation", "the paper", "l2", "standard"),
        ("L2 drifts less than prior preservation at equal adaptation", "the paper", "l2", "prior"),
        ("Base-output preservation drifts less than L2 at equal adaptation", "ours", "output", "l2"),
        ("Fisher weighting drifts less than plain L2 at equal adaptation", "ours", "fisher", "l2"),
    )  # fmt: skip
    found = [
        {"text": text, "source": source, "toy": drift_ratio(toy, a, b), "full": drift_ratio(full, a, b)}
        for text, source, a, b in rivals
    ]  # fmt: skip
    found.insert(2, {"text": "Prior preservation protects what it replays more than the rest", "source": "the paper", "toy": spared(toy), "full": spared(full)})  # fmt: skip
    found.append({"text": "L2 costs less time than prior preservation", "source": "the paper", "toy": ONE_STACK, "full": time_ratio(metrics)})  # fmt: skip
    return found


# ---- sentences
def drift_sentence(scale: Scale) -> str:
    if why := missing(scale):
        return sentence(why)
    standard = by_run(scale.records)["standard"]
    if len(by_run(scale.records)) == 1:
        return "No run but standard's: nothing to compare."
    found = {same[0]["run"]: Geometric(log_ratio(same, standard, scale.lost)) for o, same in scale.best.items() if o != "standard"}  # fmt: skip
    if not found:
        return "No objective but standard learnt the new thing well enough to be compared at equal adaptation."  # fmt: skip
    order = ", then ".join(f"{run}: \u00d7 {found[run]}" for run in sorted(found, key=lambda r: found[r].log.mean))  # fmt: skip
    level = Geometric.of(value(r, scale.lost) for r in standard)
    return f"Drift at equal adaptation in multiples of standard's, within each subject and seed, least first: {order}; standard: {level} {scale.unit}."  # fmt: skip


def distance_sentence(scale: Scale) -> str:
    """Does distance in theta rank drift? A run that moved further than standard and drifted less is a counter-example."""
    runs = by_run(scale.records)
    standard = runs.pop("standard", [])
    if not standard:
        return sentence(NO_STANDARD)
    if not runs:
        return "No run but standard's: nothing to compare."
    if math.isnan(mean_of(standard, scale.lost)):
        return "Drift was not measured."
    found = {run: _against(same, standard, scale.lost) for run, same in runs.items()}
    less = {run: m for run, m in found.items() if m.kept < m.lost}
    further = {run: m for run, m in less.items() if m.far > m.theta}
    if not less:
        return "No setting drifted less than standard."
    if not further:
        return f"Of {len(less)} settings that drifted less than standard none moved theta further."
    run, (far, theta, kept, lost) = max(further.items(), key=lambda item: item[1].far / item[1].theta)  # fmt: skip
    return (
        f"Distance in theta does not rank drift: {len(further)} of {len(found)} settings moved theta further than standard and drifted less, "
        f"farthest {run} ({number(far)} against {number(theta)}; drift {number(kept)} against {number(lost)})."
    )


class Against(NamedTuple):
    """Means of a setting and of standard on the same (subject, seed)s: theta's distance, drift."""

    far: float
    theta: float
    kept: float
    lost: float


def _against(same: Records, standard: Records, lost: str) -> Against:
    return Against(*(mean_of(r, key) for key in ("delta_theta", lost) for r in matched(same, standard)))  # fmt: skip


UNRESOLVED = 0.25  # a standard error of the slope beyond which no power is told from its neighbours


def slope_sentence(scale: Scale) -> str:
    """Least squares of log path KL on log delta eps, over runs."""
    xy = [(value(r, "delta_eps"), value(r, "path_kl")) for r in scale.records]
    logs = np.log([p for p in xy if p[0] > 0 and p[1] > 0])
    if len(logs) < 4 or np.ptp(logs[:, 0]) < 0.2:
        return "Too few runs, or too alike, to fit a slope."
    (slope, _), cov = np.polyfit(logs[:, 0], logs[:, 1], 1, cov=True)
    error = float(cov[0, 0] ** 0.5)
    near = abs(slope - 2) < 2 * error + 0.005  # of what is printed
    close = "too uncertain to be told from" if error > UNRESOLVED else "compatible with" if near else "more than two standard errors from"  # fmt: skip
    return f"Path KL grows as \u0394\u03b5 to the power {slope:.2f} \u00b1 {error:.2f} (standard error, {len(logs)} runs): {close} theory's 2 for one law of x_t."  # fmt: skip


def sweep_sentence(scale: Scale) -> str:
    """Over the weights of each objective: is drift monotone, and what does preservation cost in adaptation?"""
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
    """How a line of two or more points goes."""
    rises, falls = (sum(s * b > s * a for a, b in itertools.pairwise(values)) for s in (1, -1))
    steps = len(values) - 1
    counts = {"falls": falls, "rises": rises, "stays equal": steps - rises - falls}
    there = {word: n for word, n in counts.items() if n}
    if len(there) == 1:
        return next(iter(there)) + (" (a line of two points)" if steps == 1 else " at every step")
    return f"{' and '.join(f'{word} {n}' for word, n in there.items())} of {steps} times"


def right_sentence(metrics: dict) -> str:
    """What a classifier of the mini's world reads in the pictures of class and contexts, base against standard. Empty without one."""
    standard = by_run([r for r in metrics["runs"] if not r["stopped"]]).get("standard", [])
    say = []
    kinds = (
        ("class", "class", "class"),
        ("contexts", "context", "class"),
        ("contexts", "context", "scene"),
    )
    for group, prompts, word in kinds:
        shares = [[r["right"][who].get(group, {}).get(word) for r in standard] for who in ("base", "tuned")]  # fmt: skip
        base, tuned = (estimate(s).mean for s in shares)
        if not math.isnan(base + tuned):
            say.append(f"the {word} is right in {base:.0%} of the base's pictures of {prompts} prompts, in {tuned:.0%} after standard")  # fmt: skip
    return f"Read by a classifier of this world: {'; '.join(say)}." if say else ""


def cost_sentence(metrics: dict) -> str:
    found = {c["objective"]: c for c in costs(metrics)}
    known = [c for c in found.values() if not math.isnan(c["times"])]
    if "standard" not in found or not known:
        return "Times in multiples of standard's were not measured."
    others = ", ".join(f"{o} {times(c)}" for o, c in found.items() if o != "standard")
    most = max(known, key=lambda c: c["times"])
    images = most["parts"]["class images"].mean / most["total"].mean
    return (
        f"At an equal budget of {metrics['steps']} steps standard takes {found['standard']['total']} s; in multiples of it: {others or 'no other was run'}. "
        f"The dearest is {most['objective']}, {images:.0%} of it for class images."
    )  # fmt: skip
