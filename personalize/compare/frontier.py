"""Learning against drift along every run of a comparison, both in nats.

Learning is a column of history.csv: `gain` on held-out pictures, one of its bands, or `binding`.
Drift is path KL of the old prompts. The statistics are in toy2d/runs/frontier.py.
"""

import math
from collections.abc import Sequence

from rich.table import Table

from personalize.compare.table import table_of
from toy2d.runs.frontier import HEADLINE, SHARES, Contrast, Trajectory, contrasts

JUDGED_BY_PICTURES = (
    "Learning was judged by pictures alone: no pictures were held out "
    "(--held_out, or FOLDER:CLASS:HELD_OUT)."
)


def trajectories(metrics: dict) -> list[Trajectory]:
    """One for each run whose learning was measured along the way."""
    axis, found = metrics.get("learning", "gain"), []
    for r in metrics["runs"]:
        rows = [p for p in r.get("curve") or [] if p.get(axis) is not None]
        if rows:
            columns = ([p[key] for p in rows] for key in ("step", axis, "path_kl"))
            name = r["run"], r["objective"], r["subject"], r["seed"]
            found.append(Trajectory(*name, *columns, stopped=r["stopped"]))
    return found


def picture_trajectories(parts: Sequence[dict], score: str = "subject_seen") -> list[Trajectory]:
    """Curves of what pictures show, from comparisons that differ in --max_train_steps alone.

    Learnt is the score of a run's pictures less that of the base's; drift is path KL. A comparison
    is one point of each curve, step 0 the base. Runs without the score are left out.
    """
    points: dict[tuple, dict[int, tuple[float, float]]] = {}
    for metrics in parts:
        for r in metrics["runs"]:
            seen = r.get(score)
            if seen is not None and not r["stopped"]:
                key = r["run"], r["objective"], r["subject"], r["seed"]
                gained = seen - r["base"][score]
                at = points.setdefault(key, {0: (0.0, 0.0)})
                at[metrics["steps"]] = (gained, r["path_kl"][0])
    return [Trajectory(*key, *curve_of(found)) for key, found in points.items()]


def curve_of(points: dict[int, tuple[float, float]]) -> tuple[list, list, list]:
    """step -> (learnt, drift), as three lists in the order of the steps."""
    steps = sorted(points)
    return steps, [points[s][0] for s in steps], [points[s][1] for s in steps]


def frontier_header() -> list[str]:
    levels = [f"at {100 * s:.0f} %" for s in SHARES]
    return ["objective", "weight", *levels, "units", "runs that learnt 75 %", "design finds"]


def frontier_rows(found: dict[str, dict[float, Contrast]], unit: str = "subject") -> list[dict]:
    """Of each objective: its ratios at every level, how many runs got there, the design's power."""
    return [
        {
            "objective": objective,
            "weights": ", ".join(at[HEADLINE].weights),
            "ratios": [cell(at[share]) for share in SHARES],
            "units": how_many(at[HEADLINE].ratio.log.n, unit),
            "reached": f"{at[HEADLINE].reached} of {at[HEADLINE].runs}",
            "power": power_words(at[HEADLINE]),
        }
        for objective, at in found.items()
    ]


def how_many(n: int, unit: str) -> str:
    return f"{n} {unit}" + "s" * (n != 1)


def cell(c: Contrast) -> str:
    """The ratio with its interval, or a dash where the level was never reached."""
    mean, half, _ = c.ratio.log
    if math.isnan(mean):
        return "\u2013"
    if math.isnan(half):
        return f"{math.exp(mean):.2f}"
    return f"{math.exp(mean):.2f} ({math.exp(mean - half):.2f}\u2013{math.exp(mean + half):.2f})"


def cells(row: dict) -> list[str]:
    """A row of `frontier_rows` in the order of the header."""
    ends = row["units"], row["reached"], row["power"]
    return [row["objective"], row["weights"], *row["ratios"], *ends]


def power_words(c: Contrast) -> str:
    """The smallest drop in drift that the design finds with 80 % power."""
    return f"{100 * c.detectable:.0f} % less" if c.detectable > 0 else "\u2013"


def frontier_table(metrics: dict) -> Table | None:
    """Drift over standard's at equal learning; None where no learning was measured."""
    runs = trajectories(metrics)
    return table_at_equal(runs, metrics.get("learning", "gain")) if runs else None


def table_at_equal(runs: Sequence[Trajectory], learning: str) -> Table:
    """Drift over standard's at equal `learning`, a row for each objective."""
    title = (
        "drift over standard's at equal learning: where 25 to 90 % of standard's peak "
        f"{learning} is first reached; 95 % interval over subjects"
    )
    out = table_of(title, tuple(frontier_header()))
    for row in frontier_rows(contrasts(runs)):
        out.add_row(*cells(row))
    return out


def verdicts(runs: Sequence[Trajectory]) -> list[str]:
    """One sentence for each objective at the headline level."""
    return [f"{o}: {at[HEADLINE].words()}." for o, at in contrasts(runs).items()]
