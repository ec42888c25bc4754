"""A comparison's numbers as tables: means with confidence intervals, differences paired by subject and seed, costs. Reads records only.

Runs of one objective differ by subject and seed. A mean's interval is Student's, 95 %, over those runs; a difference between two
objectives is taken within each (subject, seed) first, so what subjects have in common drops out.
"""

import math
from typing import NamedTuple

import numpy as np
from rich.table import Table
from scipy.stats import t as student

from toy2d.plot import best_at_equal_adaptation, by_objective, by_run, value
from toy2d.report import number

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
    other = {(r.get("subject"), r["seed"]): of_record(r) for r in theirs}
    mine = {(r.get("subject"), r["seed"]): of_record(r) for r in ours}
    return estimate([v - other[k] for k, v in mine.items() if k in other])


def limit(metrics: dict) -> float | None:
    """The largest `unlearnt` that counts as learnt: base's minus `equal_fidelity` of what standard gained. None without fidelity."""
    runs = by_run(metrics["runs"])
    gains = of(runs["standard"], "unlearnt").mean
    base = estimate([r["base"]["unlearnt"] for r in runs["standard"] if r["base"]]).mean
    if math.isnan(gains) or math.isnan(base):
        return None
    return base - metrics["equal_fidelity"] * (base - gains)


def best(metrics: dict) -> dict[str, list[dict]]:
    """Per objective, the weight that moved least of those that learnt the subject as well as standard did; {} without fidelity."""
    level = limit(metrics)
    whole = [r for r in metrics["runs"] if not r["stopped"]]
    return {} if level is None else best_at_equal_adaptation(whole, "unlearnt", "moved", level)


def rows(metrics: dict) -> list[dict]:
    """One row a run in order of objective and weight: "run", "runs" (how many), "cells" (an Estimate for each of COLUMNS), "best"."""
    chosen = {same[0]["run"] for same in best(metrics).values()}
    out = []
    for weights in by_objective(metrics["runs"]).values():
        for same in weights:
            cells = [of(same, key) for key, _ in COLUMNS.values()]
            name = same[0]["run"]
            out.append({"run": name, "runs": len(same), "cells": cells, "best": name in chosen})
    return out


PARTS = ("class images", "preparing", "training")


def costs(metrics: dict) -> list[dict]:
    """Seconds at an equal budget of steps: each objective's parts and total, and how many times standard's. First weights only."""
    whole = [r for r in metrics["runs"] if not r["stopped"]]
    first = {}
    for r in whole:
        first.setdefault(r["objective"], r["run"])
    standard, out = of(by_run(whole)["standard"], "total_seconds").mean, []
    for objective, run in first.items():
        same = by_run(whole)[run]
        parts = {p: estimate([r["seconds"][p] for r in same]) for p in PARTS}
        total = of(same, "total_seconds")
        out.append({"objective": objective, "run": run, "parts": parts, "total": total, "times": total.mean / standard})  # fmt: skip
    return out


def terminal(metrics: dict, title: str) -> Table:
    """The table for people at a terminal; bold: best preservation at equal fidelity."""
    out = Table(title=f"{title}: mean \u00b1 95 % interval over runs; bold: least drift at equal fidelity", title_justify="left")  # fmt: skip
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
        out.add_row(c["objective"], *map(str, c["parts"].values()), str(c["total"]), f"{c['times']:.2f}")  # fmt: skip
    return out


def shared_seeds(records: list[dict]) -> list[dict]:
    """Of each objective the (subject, seed)s that all its weights were run on, so that a curve over weights compares like with like."""
    kept = []
    for weights in by_objective(records).values():
        pairs = [{(r.get("subject"), r["seed"]) for r in same} for same in weights]
        common = set.intersection(*pairs)
        kept += [r for same in weights for r in same if (r.get("subject"), r["seed"]) in common]
    return kept
