"""Figures of a toy run, from its files only: metrics.json, history.csv, samples.safetensors (`draw_noising`: of a world). Never a model.

Every objective has a colour (Okabe-Ito, told apart by the colour-blind), a marker and a line style, the same everywhere and at both
scales, so that a figure reads in grey too.
"""

import io
import json
import math
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import torch

from toy2d.data import World
from toy2d.runfolder import load_tensors, read_csv, write_atomic, write_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # the backend is chosen above
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

STYLES = {  # colour, marker, line
    "base": ("#000000", "x", ":"),
    "standard": ("#000000", "o", "-"),
    "prior": ("#D55E00", "s", "--"),
    "l2": ("#0072B2", "^", "-"),
    "output": ("#009E73", "D", "-."),
    "fisher": ("#CC79A7", "v", "--"),
    "replay_all": ("#E69F00", "P", ":"),
    "l2_tensor_mean": ("#56B4E9", "<", ":"),
    "l2_decoupled": ("#56B4E9", ">", "--"),
}
CLASS_COLOURS = ("#0072B2", "#009E73", "#D55E00", "#E69F00", "#56B4E9", "#CC79A7", "#999999", "#F0E442")  # fmt: skip
MAX_SHOTS = 30  # drawn as crosses
plt.rcParams |= {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.constrained_layout.use": True,
}


def style(objective: str) -> dict:
    """Line style of an objective; sums and unknown kinds are grey, and black is the colour of text, light on a dark page."""
    colour, marker, line = STYLES.get(objective, ("#777777", "*", "-"))
    colour = plt.rcParams["text.color"] if colour == "#000000" else colour
    return {"color": colour, "marker": marker, "linestyle": line, "markersize": 4.5}


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


def draw_all(path: Path) -> dict[str, str]:
    """Draw every figure into `path`/figures; returns {file stem: caption}. Files appear atomically."""
    path = Path(path)
    metrics = json.loads((path / "metrics.json").read_text())
    config = json.loads((path / "config.json").read_text())
    rows = read_csv(path / "history.csv")
    samples = load_tensors(path / "samples.safetensors")
    figures = {
        "samples": draw_samples(samples, metrics, config),
        "kl_per_class": draw_kl_per_class(metrics, config),
        "chain": draw_chain(metrics, config),
        "weights": draw_weights(metrics, config),
        "tradeoff": draw_tradeoff(metrics, config),
        "training": draw_training(rows, metrics, config),
    }
    if metrics.get("groups"):
        figures["groups"] = draw_groups(metrics, config)
    for stem, (figure, _) in figures.items():
        save(figure, path / "figures" / f"{stem}.png")
    captions = {stem: caption for stem, (_, caption) in figures.items()}
    write_json(path / "figures" / "captions.json", captions)
    return captions


def save(figure, file: Path) -> None:
    """The figure as PNG, atomically; closes it."""
    data = io.BytesIO()
    figure.savefig(data)
    plt.close(figure)
    write_atomic(file, data.getvalue())


def seeds_note(config: dict) -> str:
    seeds = ", ".join(str(s) for s in config["seeds"])
    return f"{len(config['seeds'])} seeds ({seeds})"


def draw_samples(samples: dict, metrics: dict, config: dict):
    best = best_at_equal_adaptation(metrics["runs"])
    panels = {"truth": "the world", "base": "base model"}
    panels |= {same[0]["run"]: same[0]["run"] for same in best.values()}
    panels = {k: v for k, v in panels.items() if k in samples}
    columns = min(5, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.1 * columns, 2.25 * rows), sharex=True, sharey=True, squeeze=False)  # fmt: skip
    cond = samples["cond"]
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    for ax, (key, title) in zip(axes.flat, panels.items(), strict=False):
        samples_panel(ax, samples, key)
        ax.set_title(title, fontsize=9, parse_math=False)
    figure.supxlabel("x (data units)", fontsize=9)
    figure.supylabel("y (data units)", fontsize=9)
    n, shots = int((cond == cond[0]).sum()), config["shots"]
    shown = f"the {shots}" if shots <= MAX_SHOTS else f"{MAX_SHOTS} of the {shots}"
    caption = (
        f"Ancestral samples, {n} per prompt, seed {config['seeds'][0]}; one colour per prompt, + {shown} shots of the new class. "
        "Each objective at its best weight for equal adaptation."
    )
    return figure, caption


def samples_panel(ax, samples: dict, key: str) -> None:
    """Samples of every prompt by the run `key`, one colour per prompt; + shots of the new class, which the base never saw."""
    cond = samples["cond"]
    for i, c in enumerate(cond.unique().tolist()):
        x = samples[key][cond == c]
        ax.scatter(x[:, 0], x[:, 1], s=3, alpha=0.6, color=CLASS_COLOURS[i % 8], linewidths=0, rasterized=True)  # fmt: skip
    if key != "base":
        dark = plt.rcParams["text.color"]
        ax.scatter(*samples["shots"][:MAX_SHOTS].T, s=26, marker="+", color=dark, linewidths=0.9)
    ax.set(aspect="equal", xlim=(-5.2, 5.2), ylim=(-5.2, 5.2))


def draw_noising(world: World, steps: tuple[int, ...], rng: torch.Generator):
    """True points of every old prompt, 300 each, noised to these steps of the world's schedule: one panel a step."""
    figure, axes = plt.subplots(1, len(steps), figsize=(2.3 * len(steps), 2.5), sharex=True, sharey=True)  # fmt: skip
    for ax, t in zip(axes, steps, strict=True):
        for c, colour in zip(world.old, CLASS_COLOURS, strict=False):
            ax.scatter(*world.sample(c, 300, rng, t=t).T, s=2, color=colour, linewidths=0)
        ax.set_title(f"t = {t}, noise ratio {float(world.schedule.noise_ratio[t]):.2g}")
        ax.set_aspect("equal")
    return figure


def draw_kl_per_class(metrics: dict, config: dict):
    best = best_at_equal_adaptation(metrics["runs"])
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
        f"KL per old class and for their mixture, in nats: geometric mean over {seeds_note(config)}, bars one standard error. "
        f"Prior preservation replays {metrics['replayed_class']} only."
    )
    return figure, caption


def conditions_panel(ax, shown: dict[str, list[dict]], names: list[str], of) -> None:
    """`of(record, name)` for every condition `name` and objective of `shown` (objective -> its records), side by side, log scale."""
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
        f"From parameters to law, one point a run ({len(metrics['runs'])} runs, {seeds_note(config)}), log-log. Left: the link that L2 "
        "bounds. Middle: path KL is quadratic in the output. Right: path KL bounds the KL of the *ancestral* sampler; the KL shown is "
        "the probability-flow ODE's, so points above the line are two samplers with two laws, not a violation."
    )
    return figure, caption


def chain_panel(
    ax, records: list[dict], x: tuple[str, str], y: tuple[str, str], slope: float, exact: bool = False
) -> None:  # fmt: skip
    """One point a run, x and y = (key, label), log-log, with a line of this slope; `exact`: the line y = x, a bound."""
    for objective, runs in by_objective(records).items():
        flat = [r for same in runs for r in same if value(r, "delta_theta") > 0]
        xy = np.array([(value(r, x[0]), value(r, y[0])) for r in flat]).reshape(-1, 2)
        ax.plot(xy[:, 0], xy[:, 1], **style(objective) | {"linestyle": "none"}, label=objective, alpha=0.8)  # fmt: skip
    log_axes(ax)
    _guide(ax, slope, "bound: y = x" if exact else f"slope {slope}", exact)
    ax.set(xlabel=x[1], ylabel=y[1])


def log_axes(ax, which: str = "xy") -> None:
    """Logarithmic axes, where there is anything positive to show; decades labelled, less than two decades at 1, 2, 5."""
    lines = [np.asarray(line.get_xydata(), float).reshape(-1, 2) for line in ax.lines]
    data = np.concatenate(lines) if lines else np.empty((0, 2))
    data = data[np.isfinite(data).all(1)]  # matplotlib drops the others too
    for name, values in zip("xy", data.T, strict=True):
        values = values[values > 0]
        if name in which and len(values):
            getattr(ax, f"set_{name}scale")("log", nonpositive="mask")
            axis = getattr(ax, f"{name}axis")
            axis.set_minor_formatter(NullFormatter())
            if values.max() < 100 * values.min():
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _band(ax, x, limits: np.ndarray, objective: str, label: str, alpha: float) -> None:
    """A line through the means limits[:, 0], and a band between limits[:, 1] and limits[:, 2]."""
    look = style(objective)
    ax.plot(x, limits[:, 0], label=label, **look)
    ax.fill_between(x, limits[:, 1], limits[:, 2], color=look["color"], alpha=alpha, linewidth=0)


def legend(ax) -> None:
    """Beside the axes, if anything was drawn."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def _guide(ax, slope: float, label: str, exact: bool = False) -> None:
    """A straight line of this slope through the middle of the points (through the origin of the log axes if exact)."""
    points = np.concatenate([line.get_xydata() for line in ax.lines])
    points = points[np.isfinite(points).all(1) & (points > 0).all(1)]
    if len(points) == 0:
        return
    x = np.array([points[:, 0].min(), points[:, 0].max()])
    middle = np.exp(np.log(points).mean(0))
    y = x if exact else middle[1] * (x / middle[0]) ** slope
    ax.plot(x, y, color="#999999", linewidth=1, zorder=0)
    ax.annotate(label, (x[0], y[0]), xytext=(14, -2), textcoords="offset points", fontsize=7, color="#666666", va="top")  # fmt: skip


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
    caption = f"Every objective over its weight: geometric mean, band one standard error over {seeds_note(config)}. Dotted: standard."
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
        ax.annotate("standard", (0.99, level), xycoords=("axes fraction", "data"), fontsize=7, ha="right", va="bottom")  # fmt: skip
    log_axes(ax)
    ax.set(xlabel="weight (each objective's own unit)", ylabel=label)


def draw_tradeoff(metrics: dict, config: dict):
    figure, ax = plt.subplots(figsize=(5.8, 4))
    x = ("kl_new", "new class not learnt: KL(world || tuned) (nats)")
    y = ("old_base", "old classes lost: KL(base || tuned) (nats)")
    tradeoff_panel(ax, metrics["runs"], x, y)
    legend(ax)
    caption = (
        "Adaptation against preservation: lower left is better. Lines join the weights of one objective; geometric means, bars one "
        f"standard error over {seeds_note(config)}."
    )
    return figure, caption


def tradeoff_panel(ax, records: list[dict], x: tuple[str, str], y: tuple[str, str]) -> None:
    """Lines join the weights of one objective; x and y = (key, label), log-log."""
    for objective, runs in by_objective(records).items():
        across = np.array([geometric([value(r, x[0]) for r in same]) for same in runs])
        up = np.array([geometric([value(r, y[0]) for r in same]) for same in runs])
        ax.errorbar(
            across[:, 0], up[:, 0], xerr=np.abs(across[:, 1:].T - across[:, 0]), yerr=np.abs(up[:, 1:].T - up[:, 0]),
            label=objective, elinewidth=0.6, linewidth=1, **style(objective),
        )  # fmt: skip
    log_axes(ax)
    ax.set(xlabel=x[1], ylabel=y[1])


def _whole(metrics: dict) -> tuple[str, str]:
    """The history column that stands for all old prompts, and its label."""
    if metrics.get("groups"):
        name = next(iter(metrics["groups"]))
        return f"kl_base_group/{name}", f"KL(base || tuned), {name} (nats)"
    return "kl_base/mixture", "KL(base || tuned), old mixture (nats)"


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
        axes[0].errorbar(x, drift[:, 0], yerr=np.abs(drift[:, 1:].T - drift[:, 0]), label=run, elinewidth=1, **look)  # fmt: skip
        composed = geometric([np.mean([v[0] for v in r["kl_composed"].values()]) for r in same])
        axes[1].errorbar([j], composed[:1], yerr=np.abs(np.array(composed[1:])[:, None] - composed[0]), elinewidth=1, **look)  # fmt: skip
        kept = [np.mean(list(r["coverage"].values())) for r in same]
        axes[2].errorbar([j], [np.mean(kept)], yerr=[np.std(kept, ddof=1) / len(kept) ** 0.5 if len(kept) > 1 else 0], elinewidth=1, **look)  # fmt: skip
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
        f"Left: drift, mean over the prompts of a group; prior preservation replays {metrics['replayed_class']} only. Middle: the new "
        "word in contexts it was never trained in. Right: share of samples in each mode of the class and of its contexts, capped at the even "
        f"share; 1 is full diversity. Geometric means (right: means), bars one standard error over {seeds_note(config)}."
    )
    return figure, caption


def draw_training(rows: list[dict], metrics: dict, config: dict):
    best = {o: same[0]["weight"] for o, same in best_at_equal_adaptation(metrics["runs"]).items()}
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2))
    for ax, key, label in (
        (axes[0], *_whole(metrics)),
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
    caption = f"Along training, each objective at its best weight for equal adaptation; geometric mean, band one standard error over {seeds_note(config)}."
    return figure, caption
