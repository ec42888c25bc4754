"""The report's headline: learning against drift at both scales, in one figure and one table."""

from functools import partial

from personalize.compare.frontier import (
    JUDGED_BY_PICTURES,
    cells,
    frontier_header,
    frontier_rows,
    trajectories,
)
from personalize.report.figures import figure
from personalize.report.folders import FinishedRun
from toy2d.figures.frontier import LABELS, frontier_panel, toy_trajectories
from toy2d.runs.files import read_csv
from toy2d.runs.frontier import HEADLINE, Contrast, Trajectory, agreement, contrasts

STRONG = 0.6  # Kendall's tau from which four of five pairs are in one order
Found = dict[str, dict[float, Contrast]]


def of_toy(toy: FinishedRun) -> list[Trajectory]:
    """The toy's runs along training; none for a folder without history.csv."""
    history = toy.path / "history.csv"
    return toy_trajectories(toy.metrics, read_csv(history) if history.exists() else [])


def frontier(small: list[Trajectory], full: FinishedRun, name: str) -> dict:
    """The template's values; `frontiers` is None where no pictures were held out."""
    large = trajectories(full.metrics)
    if not large:
        return {"frontiers": None, "judged_by_pictures": JUDGED_BY_PICTURES}
    here, there = contrasts(small), contrasts(large)
    return {
        "frontiers": {"toy": panel(small, "toy", "Toy"), "full": panel(large, "full", name)},
        "frontier_table": table(there, "subject"),
        "toy_frontier_table": table(here, "seed"),
        "say_frontier": [*sentences(there, name), *paid(large), prediction(here, there, name)],
        "judged_by_pictures": "",
    }


def panel(runs: list[Trajectory], scale: str, name: str) -> dict:
    def draw(ax):
        if runs:
            frontier_panel(ax, runs, *LABELS[scale])

    return figure(draw, f"{name}: drift against what is learnt, along the training of every run.")


def table(found: Found, unit: str) -> dict:
    rows = [{"cells": cells(r), "best": False} for r in frontier_rows(found, unit)]
    return {"header": frontier_header(), "rows": rows}


def sentences(found: Found, name: str) -> list[str]:
    """The verdict on each objective at the headline level."""
    there = f"where {HEADLINE:.0%} of what standard learns at its best is learnt"
    return [f"{name}, {there}: {o}: {at[HEADLINE].words()}." for o, at in found.items()]


def paid(runs: list[Trajectory]) -> list[str]:
    """What each weight learns at its own best step, and what that costs, against standard."""
    standard = {(t.unit, t.seed): t for t in runs if t.objective == "standard"}
    logs, out = {}, []
    for t in runs:
        best = standard.get((t.unit, t.seed))
        if best and t.objective != "standard" and best.peak > 0:
            cost = t.drift_at(t.peak) / best.drift_at(best.peak)
            logs.setdefault(t.objective, {}).setdefault(t.run, []).append(
                (t.peak / best.peak, cost)
            )
    for objective, weights in logs.items():
        parts = [partial(in_short, run)(pairs) for run, pairs in weights.items()]
        out.append(f"What is paid for what, {objective} at its own best step: {'; '.join(parts)}.")
    return out


def in_short(run: str, pairs: list[tuple[float, float]]) -> str:
    learnt, cost = (sorted(v)[len(v) // 2] for v in zip(*pairs, strict=True))
    return f"{run} learns {learnt:.0%} of standard's best for {cost:.0%} of its drift (medians)"


def prediction(toy: Found, full: Found, name: str) -> str:
    """Does the toy predict the order of the objectives at full scale?"""
    here, there = ({o: at[HEADLINE].by_unit for o, at in found.items()} for found in (toy, full))
    tau, low, high, names = agreement(here, there)
    if not names:
        return "No objective can be ranked at both scales."
    ranked = f"Order of drift at equal learning (standard, {', '.join(names)}): Kendall's tau"
    units = [len({u for o in names for u in scale[o]}) for scale in (here, there)]
    if min(units) < 2:
        return f"{ranked} between the scales is {tau:.2f}. One subject or seed gives no interval."
    if low > 0 and tau >= STRONG:
        verdict = f"the toy predicts the order on {name}"
    elif low > 0:
        verdict = f"the toy's order agrees weakly with that on {name}"
    elif high < 0:
        verdict = f"the toy's order is reversed on {name}"
    else:
        verdict = f"these runs do not show that the toy predicts the order on {name}"
    return (
        f"{ranked} between the scales is {tau:.2f} ({low:.2f} to {high:.2f}, 95 % interval over "
        f"units of both): {verdict}."
    )
