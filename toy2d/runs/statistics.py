"""Numbers out of a run's records: values by name, means over seeds, groups by run and by objective.

A record is one finished run: a dictionary with the keys run, objective, weight, seed and its
measurements. Measurements are numbers or lists [mean, standard error, number of points].
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import bdtr, stdtrit


def old_kl(record: dict, key: str) -> float:
    """Mean over the old prompts of KL in nats (`key` = "kl_base" or "kl_truth"); NaN for a run that
    diverged.
    """
    values = [v[0] for name, v in (record[key] or {}).items() if name != "mixture"]
    return float(np.mean(values)) if values and None not in values else math.nan


def value(record: dict, key: str) -> float:
    """A record's number by name: old_base, old_truth, kl_new, path_kl, delta_theta, delta_eps."""
    if key in ("old_base", "old_truth"):
        return old_kl(record, "kl_" + key.removeprefix("old_"))
    found = record[key]
    found = found[0] if isinstance(found, list) else found
    return math.nan if found is None else found


def geometric(values) -> tuple[float, float, float]:
    """(geometric mean, its lower and upper 1-standard-error limits) over seeds: KLs spread over
    decades. NaN if any is missing.
    """
    logs = np.log(np.maximum(np.asarray(values, float), 1e-12))
    mean = logs.mean()
    error = logs.std(ddof=1) / len(logs) ** 0.5 if len(logs) > 1 else 0.0
    return tuple(float(np.exp(v)) for v in (mean, mean - error, mean + error))


class Median(NamedTuple):
    """Median over seeds, and the interval between two order statistics that covers the true one.

    The interval needs no law of the values. It is the narrowest pair of order statistics with
    coverage of at least 95 %, or the whole range where n is too small for that (n < 6).
    """

    value: float
    low: float
    high: float
    coverage: float

    @classmethod
    def of(cls, values) -> "Median":
        """NaN if there is no value or one is missing."""
        x = np.sort(np.asarray(list(values), float))
        n = len(x)
        if n == 0 or np.isnan(x).any():
            return cls(math.nan, math.nan, math.nan, math.nan)
        covers = _coverage(n)
        k = max(int((covers >= 0.95).sum()) - 1, 0)  # it falls as k grows
        return cls(float(np.median(x)), float(x[k]), float(x[n - 1 - k]), float(covers[k]))

    def __str__(self) -> str:
        if math.isnan(self.value):
            return number(self.value)
        if self.low == self.high:
            return number(self.value)
        return f"{number(self.value)} ({number(self.low)}\u2013{number(self.high)})"


def _coverage(n: int) -> np.ndarray:
    """P(the k-th smallest < median < the k-th largest) of n values, for k from 0 to n // 2."""
    return 1 - 2 * bdtr(np.arange(n // 2 + 1), n, 0.5)


def proportion(count: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion seen `count` times out of n."""
    z, p = 1.959964, count / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def by_run(records: list[dict]) -> dict[str, list[dict]]:
    """Records of all seeds, by run."""
    groups = defaultdict(list)
    for record in records:
        groups[record["run"]].append(record)
    return dict(groups)


def by_objective(records: list[dict]) -> dict[str, list[list[dict]]]:
    """For each objective its runs in order of weight, each the records of all seeds."""
    groups = defaultdict(list)
    for same in by_run(records).values():
        groups[same[0]["objective"]].append(same)
    return {o: sorted(runs, key=lambda r: r[0]["weight"] or 0.0) for o, runs in groups.items()}


def best_at_equal_adaptation(
    records: list[dict], learnt: str = "kl_new", lost: str = "old_base", limit: float | None = None
) -> dict[str, list[dict]]:
    """Per objective, the run with the least `lost` (old-class KL from the base) among those that
    learnt the new class as well as "standard".

    As well: geometric mean of `learnt` over seeds not above `limit`, by default standard's (no
    bound where standard was not run). An objective none of whose weights qualifies is left out.
    """
    runs = by_objective(records)
    if limit is None:
        standard = runs.get("standard")
        limit = geometric([value(r, learnt) for r in standard[0]])[0] if standard else math.inf
    best = {}
    for objective, candidates in runs.items():
        fit = [
            c
            for c in candidates
            if geometric([value(r, learnt) for r in c])[0] <= limit * (1 + 1e-9)
        ]
        if fit:
            best[objective] = min(fit, key=lambda c: geometric([value(r, lost) for r in c])[0])
    return best


def chosen(metrics: dict) -> dict[str, list[dict]]:
    """Per objective, the finished runs of the weight that a toy run's metrics.json names.

    It was chosen at equal learning (`runs/frontier.py`); where metrics name none, after the last
    step (`best_at_equal_adaptation`).
    """
    records = [r for r in metrics["runs"] if not r["stopped"]]
    if "chosen" not in metrics:
        return best_at_equal_adaptation(records)
    runs = by_run(records)
    return {o: runs[run] for o, run in metrics["chosen"].items() if run in runs}


# ---- intervals
class Estimate(NamedTuple):
    """A mean, the half width of its 95 % interval (nan for a single value), and how many values."""

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "\u2013"
        if math.isnan(self.half):
            return number(self.mean)
        return f"{number(self.mean)} \u00b1 {number(self.half)}"


def estimate(values) -> Estimate:
    """Mean and Student's 95 % interval of the finite values; None and nan are left out."""
    x = np.array([v for v in values if v is not None and math.isfinite(v)], float)
    if len(x) == 0:
        return Estimate(math.nan, math.nan, 0)
    if len(x) == 1:
        return Estimate(float(x[0]), math.nan, 1)
    half = stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / len(x) ** 0.5
    return Estimate(float(x.mean()), float(half), len(x))


class Ratio(NamedTuple):
    """Geometric mean of ratios with its 95 % interval: drifts spread over decades."""

    log: Estimate

    @classmethod
    def of(cls, values) -> "Ratio":
        """Of positive values; others are left out."""
        return cls(estimate([positive_log(v) for v in values]))

    def __str__(self) -> str:
        mean, half, n = self.log
        if math.isnan(mean):
            return "not measured"
        if math.isnan(half):
            return f"{number(math.exp(mean))} (one run)"
        low, high = (number(math.exp(v)) for v in (mean - half, mean + half))
        return f"{number(math.exp(mean))} ({low}\u2013{high}, n = {n})"

    @property
    def verdict(self) -> str:
        """On the claim that the ratio is below 1.

        "supported" or "contradicted" only if the interval excludes 1.
        """
        mean, half, _ = self.log
        if math.isnan(mean):
            return "unknown"
        if math.isnan(half):
            return "undecided"
        if mean + half < 0:
            return "supported"
        return "contradicted" if mean - half > 0 else "undecided"


def positive_log(v: float | None) -> float:
    """log v; nan where v is no positive number."""
    return math.log(v) if v is not None and v > 0 else math.nan


def pair(record: dict) -> tuple:
    """Runs with the same subject (where there is one) and seed are compared with each other."""
    return record.get("subject"), record["seed"]


def matched(ours: list[dict], theirs: list[dict]) -> tuple[list[dict], list[dict]]:
    """The records of each on the (subject, seed)s that both have, in one order."""
    mine, other = ({pair(r): r for r in records} for records in (ours, theirs))
    both = [k for k in mine if k in other]
    return [mine[k] for k in both], [other[k] for k in both]


def paired(ours: list[dict], theirs: list[dict], of_record: Callable[[dict], float]) -> Estimate:
    """`of_record` of ours minus theirs, within each (subject, seed) that both have."""
    ours, theirs = matched(ours, theirs)
    return estimate([of_record(a) - of_record(b) for a, b in zip(ours, theirs, strict=True)])


def ratio(ours: list[dict], theirs: list[dict], of_record: Callable[[dict], float]) -> Ratio:
    """`of_record` of ours over theirs, within each (subject, seed) that both have."""
    return Ratio(paired(ours, theirs, lambda r: positive_log(of_record(r))))


def number(x: float) -> str:
    """Three significant digits, no exponent between 0.001 and 100,000."""
    if x != x:
        return "diverged"
    return f"{x:.3g}" if abs(x) < 1e3 else f"{x:,.0f}"
