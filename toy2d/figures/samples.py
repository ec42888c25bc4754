"""Figures of points: samples of every prompt, and true points at several noise levels."""

import math
from dataclasses import replace

import torch

from toy2d.core.likelihood import flow_sample
from toy2d.core.sample import ancestral
from toy2d.data import World
from toy2d.figures.style import CLASS_COLOURS, plt
from toy2d.runs.statistics import chosen

MAX_SHOTS = 30  # drawn as crosses


def draw_samples(samples: dict, metrics: dict, config: dict):
    best = chosen(metrics)
    panels = {"truth": "the world", "base": "base model"}
    panels |= {same[0]["run"]: same[0]["run"] for same in best.values()}
    panels = {k: v for k, v in panels.items() if k in samples}
    columns = min(5, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.1 * columns, 2.25 * rows), sharex=True, sharey=True, squeeze=False
    )
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
        f"Ancestral samples, {n} per prompt, seed {config['seeds'][0]}; one colour per prompt, "
        f"+ {shown} shots of the new class. "
        "Each objective after its last step, at the weight chosen at equal learning."
    )
    return figure, caption


def samples_panel(ax, samples: dict, key: str) -> None:
    """Samples of every prompt by the run `key`, one colour per prompt; + shots of the new class.

    The base is drawn without the shots, which it never saw.
    """
    cond = samples["cond"]
    for i, c in enumerate(cond.unique().tolist()):
        x = samples[key][cond == c]
        small = {"s": 3, "alpha": 0.6, "linewidths": 0, "rasterized": True}
        ax.scatter(*x.T, color=CLASS_COLOURS[i % 8], **small)
    if key != "base":
        dark = plt.rcParams["text.color"]
        ax.scatter(*samples["shots"][:MAX_SHOTS].T, s=26, marker="+", color=dark, linewidths=0.9)
    ax.set(aspect="equal", xlim=(-5.2, 5.2), ylim=(-5.2, 5.2))


def draw_noising(world: World, steps: tuple[int, ...], rng: torch.Generator):
    """True points of every old prompt, 300 each, noised to these steps: one panel a step."""
    figure, axes = plt.subplots(
        1, len(steps), figsize=(2.3 * len(steps), 2.5), sharex=True, sharey=True
    )
    for ax, t in zip(axes, steps, strict=True):
        for c, colour in zip(world.old, CLASS_COLOURS, strict=False):
            ax.scatter(*world.sample(c, 300, rng, t=t).T, s=2, color=colour, linewidths=0)
        ax.set_title(f"t = {t}, noise ratio {float(world.schedule.noise_ratio[t]):.2g}")
        ax.set_aspect("equal")
    return figure


def draw_paths(world: World, cond: int, n: int, rng: torch.Generator):
    """n paths from noise to the prompt `cond` by the ODE (left) and the ancestral chain (right).

    With the world's exact noise prediction, from the same n points of noise.
    """
    x_T, at = torch.randn(n, 2, generator=rng), torch.tensor(cond)
    s = world.schedule
    downs = range(len(s) - 2, -1, -1)  # the ODE from the noisiest node down to each of these
    tails = [replace(s, alpha_bar=s.alpha_bar[k:], timesteps=s.timesteps[k:]) for k in downs]
    smooth = [x_T, *(flow_sample(world.eps, tail, x_T, at) for tail in tails)]
    rough = ancestral(world.eps, s, x_T, at, rng, chain=True)[::-1]
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.3), sharex=True, sharey=True)
    titles = ("probability-flow ODE", "ancestral sampler")
    for ax, path, title in zip(axes, (smooth, rough), titles, strict=True):
        ax.scatter(*world.sample(cond, 400, rng, t=0).T, s=2, color="#BBBBBB", linewidths=0)
        for i, line in enumerate(torch.stack(list(path)).unbind(1)):
            colour = CLASS_COLOURS[i % len(CLASS_COLOURS)]
            ax.plot(*line.T, color=colour, linewidth=0.8)
            ax.plot(*line[-1], "o", color=colour, markersize=4)
        ax.set(title=title, aspect="equal", xlim=(-4.5, 4.5), ylim=(-4.5, 4.5))
    return figure
