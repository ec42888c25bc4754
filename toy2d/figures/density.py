"""A model's density on a grid of the plane: computed by core/likelihood.py, drawn here.

Shapes: M runs of a stack, P prompts, n grid points a side.
"""

import torch
from torch import Tensor

from toy2d.core.likelihood import log_prob
from toy2d.core.schedule import Schedule
from toy2d.figures.style import CLASS_COLOURS, plt
from toy2d.model import Bound


def grid(half_width: float = 5.0, n: int = 48) -> Tensor:
    """(n * n, 2) points, x fastest, from -half_width to half_width."""
    side = torch.linspace(-half_width, half_width, n)
    return torch.cartesian_prod(side, side).flip(-1)


def on_grid(
    predict: Bound, ode: Schedule, conds: tuple[int, ...], half_width: float = 5.0, n: int = 48
) -> Tensor:
    """p(x | c) of the probability-flow ODE's law at the grid's points (M, P, n, n).

    Per unit area, at t = 0's noise level.
    """
    points, runs = grid(half_width, n), predict.theta["bias0"].shape[0]
    x = points.repeat(len(conds), 1).expand(runs, -1, -1)
    cond = torch.tensor(conds).repeat_interleave(len(points))
    parts = zip(x.split(4 * n * n, 1), cond.split(4 * n * n), strict=True)
    log_p = [log_prob(predict, ode, part, c, runs=1) for part, c in parts]
    return torch.cat(log_p, 1).exp().reshape(runs, len(conds), n, n)


def total_mass(density: Tensor, half_width: float = 5.0) -> Tensor:
    """Integral over the window by the rectangle rule: near 1 if the law lies inside."""
    return density.sum((-2, -1)) * (2 * half_width / (density.shape[-1] - 1)) ** 2


def draw_densities(
    density: Tensor,
    title: str = "",
    shots: Tensor | None = None,
    base: Tensor | None = None,
    half_width: float = 5.0,
):
    """One run's prompts (P, n, n) as contours at equal levels, one colour each.

    Grey: where the base had them; +: the shots.
    """
    figure, ax = plt.subplots(figsize=(3.9, 4.0))
    side = torch.linspace(-half_width, half_width, density.shape[-1])
    for p in () if base is None else base:
        ax.contour(side, side, p, levels=(0.05,), colors="#BBBBBB", linewidths=0.8)
    for i, p in enumerate(density):
        colour = CLASS_COLOURS[i % len(CLASS_COLOURS)]
        ax.contour(side, side, p, levels=(0.01, 0.05, 0.2), colors=colour, linewidths=(0.6, 1, 1.5))
    if shots is not None:
        ax.scatter(*shots.T, s=26, marker="+", color="black", linewidths=0.9)
    ax.set_aspect("equal")
    ax.set_title(title, fontsize=9, parse_math=False)
    return figure
