"""`toy2d sweep`: objectives x weights x seeds, at every learning rate, number of steps, width.

A cell (one learning rate, steps, width) is an ordinary run folder, one stack; cells of one width
share their base. Objectives are then compared at *equal adaptation*: for a level of new-class KL,
each objective's least old-class KL over everything that was tuned.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from toy2d.config import Sweep
from toy2d.experiment import run
from toy2d.figures.style import legend, log_axes, plt, save, style
from toy2d.runs.files import write_csv, write_json
from toy2d.runs.statistics import geometric, value


def sweep(plan: Sweep, out: Path | str = "runs", say: Callable[[str], None] = print) -> Path:
    """Run or continue every cell, then compare; returns the summary's folder.

    It holds sweep.csv, sweep.json and sweep.png.
    """
    records, bases = [], {}
    cells = plan.cells()
    for i, cell in enumerate(cells):
        say(f"cell {i + 1} of {len(cells)}: {cell.name}")
        folder = run(cell, out, say, base=bases.get(cell.width))
        bases[cell.width] = folder / "base.safetensors"
        setting = {"learning_rate": cell.learning_rate, "steps": cell.steps, "width": cell.width}
        metrics = json.loads((folder / "metrics.json").read_text())
        records += [r | setting for r in metrics["runs"]]
    folder = Path(out) / "toy2d" / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarize(records)
    write_csv(folder / "sweep.csv", summary)
    write_json(
        folder / "sweep.json",
        {"levels": plan.levels, "best": equal_adaptation(summary, plan.levels)},
    )
    figure = draw(summary, plan)
    save(figure, folder / "sweep.png")
    return folder


SETTING = ("run", "objective", "weight", "learning_rate", "steps", "width")


def summarize(records: list[dict]) -> list[dict]:
    """One row per setting: geometric means over seeds with one-standard-error limits."""
    groups: dict[tuple, list[dict]] = {}
    for r in records:
        groups.setdefault(tuple(r[k] for k in SETTING), []).append(r)
    rows = []
    for setting, same in groups.items():
        row = dict(zip(SETTING, setting, strict=True)) | {"seeds": len(same)}
        for key in ("kl_new", "old_base", "old_truth", "path_kl", "delta_theta"):
            row[key], row[f"{key}_low"], row[f"{key}_high"] = geometric(
                [value(r, key) for r in same]
            )
        rows.append(row)
    return rows


def equal_adaptation(summary: list[dict], levels: tuple[float, ...]) -> list[dict]:
    """The setting with the least old-class KL among those with kl_new <= level.

    For each level and objective; None if no setting learnt so well.
    """
    objectives = dict.fromkeys(r["objective"] for r in summary)
    best = []
    for level, objective in itertools.product(levels, objectives):
        fit = [r for r in summary if r["objective"] == objective and r["kl_new"] <= level]
        chosen = min(fit, key=lambda r: r["old_base"]) if fit else None
        best.append({"level": level, "objective": objective, "best": chosen})
    return best


def draw(summary: list[dict], plan: Sweep):
    """Adaptation against preservation: settings are points, each objective's envelope a line."""
    figure, ax = plt.subplots(figsize=(6.4, 4.4))
    for objective in dict.fromkeys(r["objective"] for r in summary):
        rows = sorted(
            (r for r in summary if r["objective"] == objective and r["kl_new"] == r["kl_new"]),
            key=lambda r: r["kl_new"],
        )
        if not rows:
            continue
        x, y = (np.array([r[k] for r in rows]) for k in ("kl_new", "old_base"))
        error = np.abs(np.array([[r["old_base_low"], r["old_base_high"]] for r in rows]).T - y)
        look = style(objective)
        ax.errorbar(x, y, yerr=error, alpha=0.45, elinewidth=0.6, **look | {"linestyle": "none"})
        ax.step(
            x, np.minimum.accumulate(y), where="post", label=objective, **look | {"marker": "none"}
        )
    log_axes(ax)
    ax.set_xlabel("new class not learnt: KL(world || tuned) (nats)")
    ax.set_ylabel("old classes lost: KL(base || tuned) (nats)")
    ax.set_title(
        f"{len(summary)} settings, geometric mean over {len(plan.seeds)} seeds, "
        "bars 1 standard error;\n"
        "lines: the least drift at that adaptation or better",
        fontsize=8,
    )
    legend(ax)
    return figure
