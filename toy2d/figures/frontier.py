"""Learning against drift along training: the figure that both scales share."""

import math
from collections.abc import Sequence

import numpy as np

from toy2d.figures.style import STYLES, log_axes, plt, style
from toy2d.runs.frontier import HEADLINE, SHARES, Trajectory, contrasts


def mean_path(same: Sequence[Trajectory]) -> np.ndarray:
    """(steps, 2): mean learnt and geometric mean drift at the steps that every run measured.

    So a run that diverged early shortens the line of its weight. Step 0, which has no drift, is
    left out: the axis is logarithmic.
    """
    steps = sorted(set.intersection(*(set(t.step) for t in same))) if same else []
    points = []
    for step in steps:
        rows = [list(t.step).index(step) for t in same]
        at = [(t.learnt[i], t.drift[i]) for t, i in zip(same, rows, strict=True)]
        learnt, drift = np.array(at).T
        if (drift > 0).all():
            points.append((learnt.mean(), math.exp(np.log(drift).mean())))
    return np.array(points).reshape(-1, 2)


def shared(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The trajectories on the (unit, seed)s that standard has."""
    standard = {(t.unit, t.seed) for t in trajectories if t.objective == "standard"}
    return [t for t in trajectories if (t.unit, t.seed) in standard]


def frontier_panel(
    ax, trajectories: Sequence[Trajectory], x: str, y: str, objectives: Sequence[str] | None = None
) -> None:
    """One line a weight, a marker a measured step; bold: the weight chosen at the headline level.

    Dotted: 25, 50, 75 and 90 % of what standard learns at its best. `objectives`: which are drawn.
    """
    runs = {}
    for t in shared(trajectories):
        if objectives is None or t.objective in objectives:
            runs.setdefault(t.run, []).append(t)
    chosen = {"standard"} | {
        name for at in contrasts(trajectories).values() for name in at[HEADLINE].weights
    }
    labelled = set()

    def place(run: str) -> tuple[int, bool]:
        """By objective, the bold line first: the legend shows it."""
        return rank(runs[run][0].objective), run not in chosen

    for run in sorted(runs, key=place):
        same = runs[run]
        objective, path = same[0].objective, mean_path(same)
        bold = run in chosen
        look = style(objective) | {"linewidth": 1.8 if bold else 0.8, "alpha": 1 if bold else 0.35}
        look |= {"markersize": 3.5 if bold else 2, "zorder": 3 if objective == "standard" else 2}
        label = None if objective in labelled else objective
        labelled.add(objective)
        ax.plot(path[:, 0], path[:, 1], label=label, **look)
    if len(path := mean_path(runs.get("standard", []))):
        levels = [share * path[:, 0].max() for share in SHARES]
        low, high = (f(p[1] for line in ax.lines for p in line.get_xydata()) for f in (min, max))
        ax.vlines(levels, low, high, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
        ax.set_xlim(left=0)  # further left nothing has been learnt
    log_axes(ax, "y")
    ax.set(xlabel=x, ylabel=y)


def rank(objective: str) -> int:
    """Objectives in the order of the legend."""
    names = list(STYLES)
    return names.index(objective) if objective in names else len(names)


LABELS = {  # scale -> axis labels
    "toy": (
        "learnt: KL(world || tuned) below the base's, new class (nats)",
        "drift: KL(base || tuned), old prompts (nats)",
    ),
    "full": (
        "learnt: gain on held-out pictures of the subject (nats)",
        "drift: path KL of old prompts (nats)",
    ),
}


def draw_frontiers(toy: Sequence[Trajectory], full: Sequence[Trajectory], names: tuple[str, str]):
    """Both scales side by side, one function for each panel. Lower right is better."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.9))
    objectives = list(dict.fromkeys(t.objective for t in full))
    for ax, runs, name, labels in zip(axes, (toy, full), names, LABELS.values(), strict=True):
        frontier_panel(ax, runs, *labels, objectives=objectives)
        ax.set_title(name, fontsize=10)
    handles, titles = axes[1].get_legend_handles_labels()
    figure.legend(handles, titles, loc="outside lower center", ncols=len(titles), fontsize=8)
    return figure


def toy_trajectories(metrics: dict, rows: Sequence[dict]) -> list[Trajectory]:
    """The toy's runs from metrics.json and history.csv; a seed is a unit, step 0 is its base."""
    bases = {b["seed"]: b["kl_new"][0] for b in metrics["base"]}
    points, out = {}, []
    for row in rows:
        old = [v for k, v in row.items() if k.startswith("kl_base/") and not k.endswith("mixture")]
        if old and "kl_new" in row:
            key = row["objective"], row.get("weight"), int(row["seed"])
            gained = bases[key[2]] - row["kl_new"]
            points.setdefault(key, {0: (0.0, 0.0)})[int(row["step"])] = (gained, np.mean(old))
    for r in metrics["runs"]:
        found = points.get((r["objective"], r["weight"], r["seed"]))
        if found:
            steps = sorted(found)
            learnt, drift = zip(*(found[s] for s in steps), strict=True)
            name = r["run"], r["objective"], str(r["seed"]), r["seed"]
            out.append(Trajectory(*name, steps, learnt, drift, r["stopped"]))
    return out
