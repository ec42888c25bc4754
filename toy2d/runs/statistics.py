"""Numbers out of a run's records: values by name, means over seeds, groups by run and by objective.

A record is one finished run: a dictionary with the keys run, objective, weight, seed and its measurements.
Measurements are numbers or lists [mean, standard error, number of points].
"""

import math
from collections import defaultdict

import numpy as np


def old_kl(record: dict, key: str) -> float:
    """Mean over the old prompts of KL in nats (`key` = "kl_base" or "kl_truth"); NaN for a run that diverged."""
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
    """(geometric mean, its lower and upper 1-standard-error limits) over seeds: KLs spread over decades. NaN if any is missing."""
    logs = np.log(np.maximum(np.asarray(values, float), 1e-12))
    mean = logs.mean()
    error = logs.std(ddof=1) / len(logs) ** 0.5 if len(logs) > 1 else 0.0
    return tuple(float(np.exp(v)) for v in (mean, mean - error, mean + error))


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
    """Per objective, the run with the least `lost` (old-class KL from the base) among those that learnt the new class as well as "standard".

    As well: geometric mean of `learnt` over seeds not above `limit`, by default standard's (no bound where standard was not run). An
    objective none of whose weights qualifies is left out.
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


def number(x: float) -> str:
    """Three significant digits, no exponent between 0.001 and 100,000."""
    if x != x:
        return "diverged"
    return f"{x:.3g}" if abs(x) < 1e3 else f"{x:,.0f}"
