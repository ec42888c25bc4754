"""Figures of `toy2d verify`, drawn from verify.json only, in the course's colours and markers."""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from toy2d.figures.style import plt, style

LEGEND_RIGHT = {"fontsize": 7, "loc": "upper left", "bbox_to_anchor": (1, 1)}
DIRECTION_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"))


def draw_all(folder: Path) -> dict[str, str]:
    """Draw what the rows allow into `folder`; returns {stem: caption}, also in captions.json."""
    record = json.loads((Path(folder) / "verify.json").read_text())
    rows = [r for r in record["rows"] if r["applies"]]
    seeds = f"seeds {', '.join(map(str, record['seeds']))}"
    drawn = {
        "bounds": draw_bounds(rows, seeds),
        "evolution": draw_evolution(rows),
        "local_law": draw_local_law(rows),
        "certificate": draw_certificate(rows, seeds),
        "paper_theorem_2": draw_paper_theorem_2(rows, seeds),
    }
    captions = {}
    for stem, (figure, caption) in {k: v for k, v in drawn.items() if v}.items():
        temporary = Path(folder) / f".{stem}.tmp.png"
        figure.savefig(temporary)
        plt.close(figure)
        temporary.replace(Path(folder) / f"{stem}.png")
        captions[stem] = caption
    (Path(folder) / "captions.json").write_text(json.dumps(captions, indent=1))
    return captions


def objective(run: str) -> str:
    return run.split(":")[0]


def _points(ax, rows, x, y, least):
    """One marker a row, one style an objective; values below `least` are drawn at it."""
    groups = defaultdict(list)
    for r in rows:
        groups[objective(r["curve"]["run"])].append((max(r[x], least), max(r[y], least)))
    for name, xy in groups.items():
        ax.plot(*np.array(xy).T, **style(name) | {"linestyle": "none"}, label=name, alpha=0.75)
    ends = np.array([least, max(r[x] for r in rows) * 1.5])
    ax.plot(ends, ends, color="#999999", linewidth=1, zorder=0)
    top = (ends[1], ends[1])
    ax.annotate("equal", top, fontsize=7, color="#666666", ha="right", va="bottom")
    ax.set(xscale="log", yscale="log")


def draw_bounds(rows, seeds):
    """Lower bound (lecture 4) and path KL (lecture 6), each against the KL that it bounds."""
    counted = [r for r in rows if r["label"] == "lower_bound" and "after" not in r["curve"]["run"]]
    half_planes = [r for r in counted if r["curve"]["set"] == "a half-plane"]
    upper = [r for r in rows if r["label"] == "path_bound" and "prompt" in r["curve"]]
    if not half_planes or not upper:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    _points(left, half_planes, "lhs", "rhs", 1e-4)
    left.set(xlabel="KL(world || tuned) (nats)", ylabel="kl(p*(D) || p_theta(D)) (nats)")
    left.set_title("lower bound: D = a half-plane, counted", fontsize=9)
    _points(right, upper, "lhs", "rhs", 1e-5)
    right.set(xlabel="KL(base || tuned), ancestral law (nats)", ylabel="path KL (nats)")
    right.set_title("upper bound: path KL, ancestral sampler", fontsize=9)
    right.legend(**LEGEND_RIGHT)
    caption = (
        f"One point a run, old prompt and seed ({seeds}). Left: the KL of the flow's law against a "
        "bound that needs one set and two counts (chosen on other samples); the KL's points lie "
        "below the line. Right: KL of the ancestral sampler's law, its density propagated on a "
        "grid, against path KL; points lie above the line. Values below 1e-4 (left) and 1e-5 "
        "(right) are drawn there."
    )
    return figure, caption


def draw_evolution(rows):
    """Theorem 1 along training: the law that training fits, and the old prompts' mixture."""
    found = defaultdict(list)
    start = {}
    for r in rows:
        if r["label"] != "theorem_1" or r["kind"] == "proved":
            continue
        run, step = re.fullmatch(r"(.+?)(?: after (\d+) steps)?", r["curve"]["run"]).groups()
        if step:
            found[r["curve"]["reading"], run].append((int(step), r["rhs"], r["curve"]["needed"]))
            start[r["curve"]["reading"]] = r["lhs"]
    if not found:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.5))
    for ax, reading in zip(axes, ("target prompt's law", "mixture of old prompts"), strict=True):
        for (what, run), points in found.items():
            if what == reading:
                step, kl, low = np.array(sorted(points)).T
                look = style(objective(run))
                hollow = look | {"linestyle": ":", "markerfacecolor": "none"}
                ax.plot(step, kl, label=f"{run}: KL(world || tuned)", **look)
                ax.plot(step, np.maximum(low, 1e-5), label=f"{run}: kl(delta || gamma)", **hollow)
        ax.axhline(start[reading], color="#999999", linewidth=1)
        place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        ax.annotate("KL(world || base)", (0.98, start[reading]), fontsize=7, **place)
        ax.set(xscale="log", yscale="log", xlabel="training step", ylabel="nats")
        ax.set_title(reading, fontsize=9)
    axes[1].legend(**LEGEND_RIGHT)
    caption = (
        "Theorem 1 along training, one seed, against the world's mixture of old prompts. It is a "
        "theorem where kl(delta || gamma) (open, dotted; values below 1e-5 drawn there) is above "
        "the grey line. Left: the one law that training fits; right: what the old prompts became."
    )
    return figure, caption


def draw_local_law(rows):
    """KL of the flow's law and path KL over the distance, with the predicted parabolas."""
    curves = [r["curve"] for r in rows if r["label"] == "local_law" and r["curve"].get("h")]
    if not curves:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.5), sharey=True)
    for ax, key, factor, title in (
        (axes[0], "kl", "F", "KL(base || moved), flow's law"),
        (axes[1], "path", "G", "path KL, ancestral sampler"),
    ):
        for c, (colour, marker) in zip(curves, DIRECTION_STYLES, strict=False):
            h = np.array(c["h"])
            ax.plot(h, c[key], marker, color=colour, markersize=5, label=c["direction"])
            ax.plot(h, c[factor] * h**2 / 2, color=colour, linewidth=1)
        ax.set(xscale="log", yscale="log", xlabel="||D||, distance from the base")
        ax.set_title(f"{title}; lines: 1/2 ||D||² {factor}", fontsize=9)
    axes[0].set_ylabel("nats")
    axes[1].legend(**LEGEND_RIGHT)
    caption = (
        "Local law, one seed: points measured, lines predicted from the base alone (F: variance of "
        "the score of the flow's law; G by forward- then reverse-mode products on the base's "
        "chains). Slope 2 near 0."
    )
    return figure, caption


def draw_certificate(rows, seeds):
    """What lam guarantees against the path KL that was measured."""
    curves = [r["curve"] for r in rows if r["label"] == "certificate" and r["curve"]]
    if not curves:
        return None
    figure, ax = plt.subplots(figsize=(5, 3.5))
    for key, colour, marker, line in (
        ("guaranteed", "#D55E00", "v", "--"),
        ("measured", "#0072B2", "^", "-"),
    ):
        by_lam = defaultdict(list)
        for c in curves:
            by_lam[c["lam"]].append(c[key])
        lam = sorted(by_lam)
        mean = [np.exp(np.mean(np.log(by_lam[x]))) for x in lam]
        ax.plot(lam, mean, color=colour, marker=marker, linestyle=line, label=key)
        for x in lam:
            ax.plot([x] * len(by_lam[x]), by_lam[x], marker, color=colour, alpha=0.3, markersize=3)
    ax.set(xscale="log", yscale="log", ylabel="path KL (nats)")
    ax.set_xlabel("lam (loss per squared distance)")
    ax.legend(fontsize=8)
    caption = (
        "What the weight lam guarantees, (sum w L²) loss(theta*) / lam, against what was measured; "
        f"geometric means, small markers: {seeds}."
    )
    return figure, caption


def draw_paper_theorem_2(rows, seeds):
    """KL over distance of all trained models, with the least constants of Theorem 2."""
    curves = [r["curve"] for r in rows if r["label"] == "paper_theorem_2" and r["curve"]]
    if not curves:
        return None
    figure, ax = plt.subplots(figsize=(5.6, 3.8))
    points = [p for p in curves[0]["points"] if p[0] > 0 and p[1] > 0]
    for name in dict.fromkeys(p[2] for p in points):
        xy = np.array([p[:2] for p in points if p[2] == name])
        ax.plot(*xy.T, **style(name) | {"linestyle": "none"}, label=name, alpha=0.75)
    distances = [p[0] for p in points]
    x = np.geomspace(min(distances) / 2, max(distances) * 1.3, 50)
    for c, line, formula in zip(curves, ("-", "--"), ("lam D", "lam' D²"), strict=False):
        y, label = c["constant"] * x ** c["power"], f"{formula}, least constant"
        ax.plot(x, y, line, color="#555555", linewidth=1, label=label)
    ax.set(xscale="log", yscale="log", xlabel="D = ||theta - theta*||")
    ax.set_ylabel("KL(base || tuned), mean of old prompts (nats)")
    ax.legend(**LEGEND_RIGHT)
    caption = (
        "Theorem 2 as printed: the least constants under which every trained model obeys it "
        f"({seeds}). Distance alone does not order the objectives."
    )
    return figure, caption


def draw_half_plane(case, shown: int = 1000):
    """Samples of world and model and the line between them (`toy2d.verify.lab.HalfPlaneCase`)."""
    figure, ax = plt.subplots(figsize=(4.2, 3.8))
    ax.scatter(*case.true[:shown].T, s=3, label="world")
    ax.scatter(*case.tuned[:shown].T, s=3, label="model")
    x = np.array([-4.5, 4.5])
    normal = case.side.normal
    ax.plot(x, (case.side.offset - float(normal[0]) * x) / float(normal[1]), "k-", linewidth=1)
    counts = f"kl({case.p.value:.3f} || {case.q.value:.3f}) = {case.bound:.2f}"
    ax.set(xlim=(-4.5, 4.5), ylim=(-4.5, 4.5), title=f"{counts}, KL = {case.kl:.2f} nats")
    ax.legend(loc="lower right", fontsize=7)
    caption = (
        "One half-plane, two counts: the share of each law's samples beyond the line gives a "
        f"lower bound of {case.bound:.2f} nats on a KL of {case.kl:.2f}."
    )
    return figure, caption
