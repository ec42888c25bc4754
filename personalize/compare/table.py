"""A comparison's numbers as tables: means with confidence intervals, differences paired by subject and seed, costs. Reads records only.

Runs of one objective differ by subject and seed. A mean's interval is Student's, 95 %, over those runs as if they were independent: it speaks
of these subjects, not of others. A difference between two objectives is taken within each (subject, seed) first, so what subjects have in
common drops out. Further weights are run on fewer seeds: each is compared with standard on the (subject, seed)s that it has.
"""

import math
from typing import NamedTuple

import numpy as np
from rich.table import Table
from scipy.stats import t as student

from toy2d.runs.statistics import by_objective, by_run, number, value

COLUMNS = {  # title: (key, more is better); what "fidelity" and the others mean is said in the report
    "fidelity DINO": ("dino", True),
    "fidelity CLIP-I": ("clip_i", True),
    "adherence CLIP-T": ("clip_t", True),
    "diversity": ("div", True),
    "drift": ("moved", False),
    "path KL (nats)": ("path_kl", False),
    "seconds": ("total_seconds", False),
}


class Estimate(NamedTuple):
    """Mean, half width of its 95 % interval (nan for a single run), number of runs."""

    mean: float
    half: float
    n: int

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "\u2013"
        return number(self.mean) if math.isnan(self.half) else f"{number(self.mean)} \u00b1 {number(self.half)}"  # fmt: skip


def estimate(values) -> Estimate:
    x = np.array([v for v in values if v is not None and math.isfinite(v)], float)
    if len(x) == 0:
        return Estimate(math.nan, math.nan, 0)
    half = student.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5 if len(x) > 1 else math.nan  # fmt: skip
    return Estimate(float(x.mean()), float(half), len(x))


def of(same: list[dict], key: str) -> Estimate:
    return estimate([value(r, key) for r in same])


def paired(ours: list[dict], theirs: list[dict], of_record) -> Estimate:
    """`of_record` of ours minus theirs, within each (subject, seed) that both have."""
    ours, theirs = matched(ours, theirs)
    return estimate([of_record(a) - of_record(b) for a, b in zip(ours, theirs, strict=True)])


def pair(record: dict) -> tuple:
    return record.get("subject"), record["seed"]


def matched(ours: list[dict], theirs: list[dict]) -> tuple[list[dict], list[dict]]:
    """The records of each on the (subject, seed)s that both have, in one order."""
    mine, other = ({pair(r): r for r in rs} for rs in (ours, theirs))
    both = [k for k in mine if k in other]
    return [mine[k] for k in both], [other[k] for k in both]


def limit(metrics: dict, same: list[dict] | None = None) -> float | None:
    """The largest mean `unlearnt` that counts as learnt: base's minus `equal_fidelity` of what standard gained, on the (subject, seed)s of
    `same` (default: all of standard's). None without fidelity, or without standard there.
    """  # fmt: skip
    standard = [r for r in metrics["runs"] if r["run"] == "standard" and not r["stopped"]]
    standard = standard if same is None else matched(standard, same)[0]
    gains = of(standard, "unlearnt").mean
    base = estimate([r["base"]["unlearnt"] for r in standard]).mean
    if math.isnan(gains) or math.isnan(base):
        return None
    return base - metrics["equal_fidelity"] * (base - gains)


def best(metrics: dict) -> dict[str, list[dict]]:
    """Per objective, the weight that moved least of those that learnt the subject as well as standard did; {} without fidelity.

    Both are judged against standard on the weight's own (subject, seed)s: mean `unlearnt` by `limit`, `moved` as a ratio (geometric mean).
    """
    whole, found = [r for r in metrics["runs"] if not r["stopped"]], {}
    standard = by_run(whole).get("standard", [])
    for objective, weights in by_objective(whole).items():
        fit = [same for same in weights if learnt(metrics, same, standard)]
        if fit:
            found[objective] = min(fit, key=lambda same: _first(log_ratio(same, standard, "moved")))
    return found


def learnt(metrics: dict, same: list[dict], standard: list[dict]) -> bool:
    level = limit(metrics, same)
    return level is not None and of(matched(same, standard)[0], "unlearnt").mean <= level + 1e-9


def log_ratio(ours: list[dict], theirs: list[dict], key: str) -> Estimate:
    """Mean log of ours over theirs; nan where either is no positive number."""
    return paired(ours, theirs, lambda r: _log(value(r, key)))


def _log(v: float) -> float:
    return math.log(v) if v > 0 else math.nan


def _first(found: Estimate) -> float:
    return math.inf if math.isnan(found.mean) else found.mean


def rows(metrics: dict) -> list[dict]:
    """One row a run in order of objective and weight: "run", "runs" (how many did not diverge), "cells" (an Estimate for each of COLUMNS), "best"."""
    chosen = {same[0]["run"] for same in best(metrics).values()}
    out = []
    for weights in by_objective(metrics["runs"]).values():
        for same in weights:
            cells = [of(same, key) for key, _ in COLUMNS.values()]
            name = same[0]["run"]
            n = sum(not r["stopped"] for r in same)
            out.append({"run": name, "runs": n, "cells": cells, "best": name in chosen})
    return out


PARTS = ("class images", "preparing", "training")


def costs(metrics: dict) -> list[dict]:
    """Seconds at an equal budget of steps: each objective's parts and total, and how many times standard's on the same
    subjects and seeds (nan without). First weights only.
    """  # fmt: skip
    whole = [r for r in metrics["runs"] if not r["stopped"]]
    timed = by_run([r for r in whole if r["total_seconds"] is not None])
    first = {}
    for r in whole:
        first.setdefault(r["objective"], r["run"])
    out = []
    for objective, run in first.items():
        same = by_run(whole)[run]
        ours, theirs = (
            of(r, "total_seconds").mean
            for r in matched(timed.get(run, []), timed.get("standard", []))
        )
        parts = {p: estimate([r["seconds"][p] for r in same]) for p in PARTS}
        total = of(same, "total_seconds")
        out.append({"objective": objective, "run": run, "parts": parts, "total": total, "times": ours / theirs})  # fmt: skip
    return out


def terminal(metrics: dict, title: str) -> Table:
    """The table for people at a terminal; bold: best preservation at equal fidelity."""
    out = Table(title=f"{title}: mean \u00b1 95 % interval over runs (subjects x seeds); bold: least drift at equal fidelity, chosen on these pictures", title_justify="left")  # fmt: skip
    for column in ("run", "runs", *COLUMNS):
        out.add_column(column, justify="left" if column == "run" else "right")
    for row in rows(metrics):
        cells = (row["run"], str(row["runs"]), *map(str, row["cells"]))
        out.add_row(*cells, style="bold" if row["best"] else None)
    return out


def time_table(metrics: dict) -> Table:
    """Seconds at an equal budget of steps."""
    out = Table(title=f"seconds for {metrics['steps']} steps, class images included", title_justify="left")  # fmt: skip
    for column in ("objective", *PARTS, "total", "\u00d7 standard"):
        out.add_column(column, justify="left" if column == "objective" else "right")
    for c in costs(metrics):
        out.add_row(c["objective"], *map(str, c["parts"].values()), str(c["total"]), times(c))  # fmt: skip
    return out


def times(cost: dict) -> str:
    return "\u2013" if math.isnan(cost["times"]) else f"{cost['times']:.2f}"


def common(records: list[dict]) -> list[dict]:
    """The records on the (subject, seed)s that every run has, so that points and lines of one panel compare like with like."""
    kept = [{pair(r) for r in same} for same in by_run(records).values()]
    shared = set.intersection(*kept) if kept else set()
    return [r for r in records if pair(r) in shared]


def shared_seeds(records: list[dict]) -> list[dict]:
    """Of each objective the (subject, seed)s that all its weights were run on, so that a curve over weights compares like with like."""
    kept = []
    for weights in by_objective(records).values():
        pairs = [{pair(r) for r in same} for same in weights]
        shared = set.intersection(*pairs)
        kept += [r for same in weights for r in same if pair(r) in shared]
    return kept
