"""A comparison's numbers as tables: means with intervals, paired differences, costs.

Reads records only. Runs of one objective differ by subject and seed. A mean's interval is
Student's, 95 %, over those runs as if they were independent: it speaks of these subjects, not of
others. A difference between two objectives is taken within each (subject, seed) first, so what
subjects have in common drops out. Further weights are run on fewer seeds: each is compared with
standard on the (subject, seed)s that it has.
"""

import math

from rich.markup import escape
from rich.table import Table

from toy2d.runs.statistics import (
    Estimate,
    by_objective,
    by_run,
    estimate,
    matched,
    pair,
    ratio,
    value,
)

COLUMNS = {  # title: key; the report's page says what each means
    "fidelity DINO": "dino",
    "fidelity CLIP-I": "clip_i",
    "adherence CLIP-T": "clip_t",
    "diversity": "div",
    "drift": "moved",
    "path KL (nats)": "path_kl",
    "seconds": "total_seconds",
}
PARTS = ("class images", "preparing", "training")  # of a run's seconds


def of(same: list[dict], key: str) -> Estimate:
    return estimate([value(r, key) for r in same])


def finished(metrics: dict) -> list[dict]:
    """The records of runs that did not diverge."""
    return [r for r in metrics["runs"] if not r["stopped"]]


# ---- the best weight at equal fidelity
def limit(metrics: dict, same: list[dict] | None = None) -> float | None:
    """The largest mean `unlearnt` that counts as learnt, on the (subject, seed)s of `same`.

    It is the base's minus `equal_fidelity` of what standard gained there (`same` None: on all of
    standard's). None where fidelity was not measured, or standard was not run.
    """
    standard = by_run(finished(metrics)).get("standard", [])
    standard = standard if same is None else matched(standard, same)[0]
    tuned = of(standard, "unlearnt").mean
    base = estimate([r["base"]["unlearnt"] for r in standard]).mean
    if math.isnan(tuned) or math.isnan(base):
        return None
    return base - metrics["equal_fidelity"] * (base - tuned)


def best(metrics: dict) -> dict[str, list[dict]]:
    """Per objective, the weight that drifted least of those that learnt as well as standard.

    Both are compared with standard on the weight's own (subject, seed)s: mean `unlearnt` with
    `limit`, `moved` as a ratio (geometric mean). Empty where fidelity was not measured.
    """
    whole, found = finished(metrics), {}
    standard = by_run(whole).get("standard", [])

    def drift(same):
        mean = ratio(same, standard, lambda r: value(r, "moved")).log.mean
        return math.inf if math.isnan(mean) else mean

    for objective, weights in by_objective(whole).items():
        if able := [same for same in weights if learnt(metrics, same, standard)]:
            found[objective] = min(able, key=drift)
    return found


def learnt(metrics: dict, same: list[dict], standard: list[dict]) -> bool:
    level = limit(metrics, same)
    return level is not None and of(matched(same, standard)[0], "unlearnt").mean <= level + 1e-9


# ---- tables
def rows(metrics: dict) -> list[dict]:
    """One row a run, in order of objective and weight.

    "run", "runs" (how many did not diverge), "cells" (an Estimate for each of COLUMNS), "best".
    """
    chosen = {same[0]["run"] for same in best(metrics).values()}
    out = []
    for weights in by_objective(metrics["runs"]).values():
        for same in weights:
            cells = [of(same, key) for key in COLUMNS.values()]
            name = same[0]["run"]
            n = sum(not r["stopped"] for r in same)
            out.append({"run": name, "runs": n, "cells": cells, "best": name in chosen})
    return out


def costs(metrics: dict) -> list[dict]:
    """Seconds at an equal budget of steps, of each objective's first weight.

    "parts" and "total" are Estimates; "times": the total as a multiple of standard's on the same
    subjects and seeds (nan without).
    """
    runs = by_run(finished(metrics))
    timed = by_run([r for r in finished(metrics) if r["total_seconds"] is not None])
    first, out = {}, []
    for run, same in runs.items():
        first.setdefault(same[0]["objective"], run)
    for objective, run in first.items():
        ours, theirs = matched(timed.get(run, []), timed.get("standard", []))
        out.append(
            {
                "objective": objective,
                "run": run,
                "parts": {p: estimate([r["seconds"][p] for r in runs[run]]) for p in PARTS},
                "total": of(runs[run], "total_seconds"),
                "times": of(ours, "total_seconds").mean / of(theirs, "total_seconds").mean,
            }
        )
    return out


def times(cost: dict) -> str:
    return "\u2013" if math.isnan(cost["times"]) else f"{cost['times']:.2f}"


def table_of(title: str, columns: tuple[str, ...]) -> Table:
    out = Table(title=escape(title), title_justify="left")
    for i, column in enumerate(columns):
        out.add_column(column, justify="right" if i else "left")
    return out


def terminal(metrics: dict, title: str) -> Table:
    """The table of scores for a terminal; bold: least drift at equal fidelity."""
    note = "bold: least drift at equal fidelity, chosen on these pictures"
    title = f"{title}: mean \u00b1 95 % interval over runs (subjects x seeds); {note}"
    out = table_of(title, ("run", "runs", *COLUMNS))
    for row in rows(metrics):
        cells = (row["run"], str(row["runs"]), *map(str, row["cells"]))
        out.add_row(*cells, style="bold" if row["best"] else None)
    return out


def time_table(metrics: dict) -> Table:
    """Seconds at an equal budget of steps."""
    title = f"seconds for {metrics['steps']} steps, class images included"
    out = table_of(title, ("objective", *PARTS, "total", "\u00d7 standard"))
    for c in costs(metrics):
        out.add_row(c["objective"], *map(str, c["parts"].values()), str(c["total"]), times(c))
    return out


def common(records: list[dict]) -> list[dict]:
    """The records on the (subject, seed)s that every run has.

    So points and lines of one panel compare like with like.
    """
    kept = [{pair(r) for r in same} for same in by_run(records).values()]
    shared = set.intersection(*kept) if kept else set()
    return [r for r in records if pair(r) in shared]
