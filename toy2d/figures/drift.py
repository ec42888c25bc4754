"""Figures of drift, drawn from records and history rows."""

import math

import numpy as np

from toy2d.figures.style import _band, _guide, legend, log_axes, plt, seeds_note, style
from toy2d.runs.statistics import by_objective, by_run, chosen, geometric, value


def draw_kl_per_class(metrics: dict, config: dict):
    best = chosen(metrics)
    names = list(metrics["base"][0]["kl_truth"])
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.3), sharey=True)
    for ax, key, title in (
        (axes[0], "kl_base", "KL(base || fine-tuned)"),
        (axes[1], "kl_truth", "KL(world || fine-tuned)"),
    ):
        shown = {"base": metrics["base"]} if key == "kl_truth" else {}
        conditions_panel(ax, shown | best, names, lambda r, n, key=key: _at(r, key, n))
        ax.set_title(f"{title}, nats", fontsize=9)
    axes[0].set_ylabel("KL (nats)")
    legend(axes[1])
    caption = (
        "KL per old class and for their mixture, in nats: geometric mean over "
        f"{seeds_note(config)}, bars one standard error. "
        f"Prior preservation replays {metrics['replayed_class']} only."
    )
    return figure, caption


def conditions_panel(ax, shown: dict[str, list[dict]], names: list[str], of) -> None:
    """`of(record, name)` for every condition `name` and objective of `shown` (objective -> its
    records), side by side, log scale.
    """
    width = 0.8 / max(1, len(shown))
    for j, (objective, same) in enumerate(shown.items()):
        limits = np.array([geometric([of(r, n) for r in same]) for n in names])
        x = np.arange(len(names)) + (j - (len(shown) - 1) / 2) * width
        look = style(objective) | {"linestyle": "none"}
        label = "base" if objective == "base" else same[0]["run"]
        error = np.abs(limits[:, 1:].T - limits[:, 0])
        ax.errorbar(x, limits[:, 0], yerr=error, label=label, elinewidth=1, **look)
    ax.set_xticks(np.arange(len(names)), names, rotation=20)
    log_axes(ax, "y")


def _at(record: dict, key: str, name: str) -> float:
    found = (record[key] or {}).get(name, [None])[0]
    return math.nan if found is None else found


CHAIN = (
    ("delta_theta", r"$\|\Delta\theta\|$  (parameter norm)"),
    ("delta_eps", r"$\Delta\epsilon$  (RMS output norm)"),
    ("path_kl", "path KL (nats)"),
    ("old_base", "KL(base || tuned), old classes (nats)"),
)


def draw_chain(metrics: dict, config: dict):
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))
    for ax, (kx, lx), (ky, ly), slope in zip(axes, CHAIN[:-1], CHAIN[1:], (1, 2, 1), strict=True):
        chain_panel(ax, metrics["runs"], (kx, lx), (ky, ly), slope, exact=kx == "path_kl")
    legend(axes[2])
    caption = (
        f"From parameters to law, one point a run ({len(metrics['runs'])} runs, "
        f"{seeds_note(config)}), log-log. Left: the link that L2 bounds. Middle: path KL is "
        "quadratic in the output. Right: path KL bounds the KL of the *ancestral* sampler; the KL "
        "shown is the probability-flow ODE's, so points above the line are two samplers with "
        "two laws, not a "
        "violation."
    )
    return figure, caption


def chain_panel(
    ax,
    records: list[dict],
    x: tuple[str, str],
    y: tuple[str, str],
    slope: float,
    exact: bool = False,
) -> None:
    """One point a run, x and y = (key, label), log-log, with a line of this slope.

    `exact` draws the line y = x, a bound.
    """
    for objective, runs in by_objective(records).items():
        flat = [r for same in runs for r in same if value(r, "delta_theta") > 0]
        xy = np.array([(value(r, x[0]), value(r, y[0])) for r in flat]).reshape(-1, 2)
        look = style(objective) | {"linestyle": "none"}
        ax.plot(*xy.T, **look, label=objective, alpha=0.8)
    log_axes(ax)
    _guide(ax, slope, "bound: y = x" if exact else f"slope {slope}", exact)
    ax.set(xlabel=x[1], ylabel=y[1])


def draw_weights(metrics: dict, config: dict):
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))
    panels = (
        ("old_base", "KL(base || tuned), old classes (nats)"),
        ("kl_new", "KL(world || tuned), new class (nats)"),
        ("delta_theta", r"$\|\Delta\theta\|$"),
    )
    for ax, (key, label) in zip(axes, panels, strict=True):
        weights_panel(ax, metrics["runs"], key, label)
    legend(axes[2])
    caption = (
        "Every objective over its weight: geometric mean, band one standard error over "
        f"{seeds_note(config)}. Dotted: standard."
    )
    return figure, caption


def weights_panel(ax, records: list[dict], key: str, label: str) -> None:
    """`key` of every objective over its weight, log-log; dotted: standard."""
    for objective, runs in by_objective(records).items():
        runs = [same for same in runs if same[0]["weight"]]
        if not runs:
            continue
        weights = [same[0]["weight"] for same in runs]
        limits = np.array([geometric([value(r, key) for r in same]) for same in runs])
        _band(ax, weights, limits, objective, objective, alpha=0.15)
    standard = by_objective(records).get("standard")
    if standard:
        level = geometric([value(r, key) for r in standard[0]])[0]
        ax.axhline(level, color=plt.rcParams["text.color"], linewidth=1, linestyle=":")
        right_end = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        ax.annotate("standard", (0.99, level), fontsize=7, **right_end)
    log_axes(ax)
    ax.set(xlabel="weight (each objective's own unit)", ylabel=label)


def draw_tradeoff(metrics: dict, config: dict):
    figure, ax = plt.subplots(figsize=(5.8, 4))
    x = ("kl_new", "new class not learnt: KL(world || tuned) (nats)")
    y = ("old_base", "old classes lost: KL(base || tuned) (nats)")
    tradeoff_panel(ax, metrics["runs"], x, y)
    legend(ax)
    caption = (
        "Adaptation against preservation: lower left is better. Lines join the weights of one "
        "objective; geometric means, bars one "
        f"standard error over {seeds_note(config)}."
    )
    return figure, caption


def tradeoff_panel(ax, records: list[dict], x: tuple[str, str], y: tuple[str, str]) -> None:
    """Lines join the weights of one objective; x and y = (key, label), log-log."""
    for objective, runs in by_objective(records).items():
        across = np.array([geometric([value(r, x[0]) for r in same]) for same in runs])
        up = np.array([geometric([value(r, y[0]) for r in same]) for same in runs])
        ax.errorbar(
            across[:, 0],
            up[:, 0],
            xerr=np.abs(across[:, 1:].T - across[:, 0]),
            yerr=np.abs(up[:, 1:].T - up[:, 0]),
            label=objective,
            elinewidth=0.6,
            linewidth=1,
            **style(objective),
        )
    log_axes(ax)
    ax.set(xlabel=x[1], ylabel=y[1])


def _with_drift(row: dict, metrics: dict) -> dict:
    """The history row with "drift": of the first group of prompts, or the mean over old prompts."""
    if metrics.get("groups"):
        values = [row.get(f"kl_base_group/{next(iter(metrics['groups']))}", math.nan)]
    else:
        old = [k for k in row if k.startswith("kl_base/") and not k.endswith("/mixture")]
        values = [row[k] for k in old] or [math.nan]
    return row | {"drift": sum(values) / len(values)}


def draw_groups(metrics: dict, config: dict):
    """A world with groups of prompts: drift by group, composition, coverage, every run."""
    groups, runs = list(metrics["groups"]), by_run(metrics["runs"])
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), width_ratios=(2.2, 1, 1))
    names = list(runs)
    width = 0.8 / len(names)
    for j, (run, same) in enumerate(runs.items()):
        look = style(same[0]["objective"]) | {"linestyle": "none"}
        drift = np.array([geometric([r["kl_base_group"][g][0] for r in same]) for g in groups])
        x = np.arange(len(groups)) + (j - (len(names) - 1) / 2) * width
        axes[0].errorbar(
            x,
            drift[:, 0],
            yerr=np.abs(drift[:, 1:].T - drift[:, 0]),
            label=run,
            elinewidth=1,
            **look,
        )
        composed = geometric([np.mean([v[0] for v in r["kl_composed"].values()]) for r in same])
        axes[1].errorbar(
            [j],
            composed[:1],
            yerr=np.abs(np.array(composed[1:])[:, None] - composed[0]),
            elinewidth=1,
            **look,
        )
        kept = [np.mean(list(r["coverage"].values())) for r in same]
        axes[2].errorbar(
            [j],
            [np.mean(kept)],
            yerr=[np.std(kept, ddof=1) / len(kept) ** 0.5 if len(kept) > 1 else 0],
            elinewidth=1,
            **look,
        )
    axes[0].set_xticks(range(len(groups)), groups, rotation=12)
    axes[0].set(yscale="log", ylabel="KL(base || tuned) (nats)", title="drift by group of prompts")
    axes[1].set(
        yscale="log", ylabel="KL(world || tuned) (nats)", title="composition: V in contexts"
    )
    axes[2].set(ylabel="share of the modes kept", title="coverage of the class")
    for ax in axes[1:]:
        ax.set_xticks(range(len(names)), names, rotation=75, fontsize=7)
    axes[0].legend(fontsize=6.5, ncols=3, loc="lower left")
    caption = (
        "Left: drift, mean over the prompts of a group; prior preservation replays "
        f"{metrics['replayed_class']} only. Middle: the new word in contexts it was never trained "
        "in. Right: share of samples in each mode of the class and of its contexts, capped at the "
        "even share; 1 is full diversity. Geometric means (right: means), bars one standard error "
        f"over {seeds_note(config)}."
    )
    return figure, caption


def draw_training(rows: list[dict], metrics: dict, config: dict):
    best = {o: same[0]["weight"] for o, same in chosen(metrics).items()}
    rows = [_with_drift(row, metrics) for row in rows]
    which = next(iter(metrics.get("groups") or ["old classes"]))
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))
    for ax, key, label in (
        (axes[0], "drift", f"KL(base || tuned), {which} (nats)"),
        (axes[1], "kl_new", "KL(world || tuned), new class (nats)"),
        (axes[2], "path_kl", "path KL (nats)"),
    ):
        for objective, weight in best.items():
            mine = [
                r
                for r in rows
                if r["objective"] == objective and r.get("weight") == weight and r["step"] > 0
            ]
            steps = sorted({r["step"] for r in mine})
            values = [[r[key] for r in mine if r["step"] == s and key in r] for s in steps]
            limits = np.array([geometric(v) if v else (np.nan,) * 3 for v in values]).reshape(-1, 3)
            name = objective if weight is None else f"{objective}:{weight:g}"
            _band(ax, steps, limits, objective, name, alpha=0.12)
        log_axes(ax)
        ax.set_xlabel("training step")
        ax.set_ylabel(label)
    legend(axes[2])
    caption = (
        "Along training, each objective at the weight chosen at equal learning; geometric mean, "
        f"band one standard error over {seeds_note(config)}."
    )
    return figure, caption
