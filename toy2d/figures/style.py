"""How every figure looks: colours, markers and lines of the objectives, axes, legends, saving.

Every objective has a colour (Okabe-Ito, safe for the colour-blind), a marker and a line style,
the same at both scales, so that a figure can be read in grey too.
"""

import io
from pathlib import Path

import matplotlib
import numpy as np

from toy2d.runs.files import write_atomic

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


CLASS_COLOURS = (
    *("#0072B2", "#009E73", "#D55E00", "#E69F00"),
    *("#56B4E9", "#CC79A7", "#999999", "#F0E442"),
)
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
    """Line style of an objective; sums and unknown kinds are grey.

    Black stands for the colour of text, which is light on a dark page.
    """
    colour, marker, line = STYLES.get(objective, ("#777777", "*", "-"))
    colour = plt.rcParams["text.color"] if colour == "#000000" else colour
    return {"color": colour, "marker": marker, "linestyle": line, "markersize": 4.5}


def save(figure, file: Path) -> None:
    """The figure as PNG, atomically; closes it."""
    data = io.BytesIO()
    figure.savefig(data)
    plt.close(figure)
    write_atomic(file, data.getvalue())


def seeds_note(config: dict) -> str:
    seeds = ", ".join(str(s) for s in config["seeds"])
    return f"{len(config['seeds'])} seeds ({seeds})"


def log_axes(ax, which: str = "xy") -> None:
    """Make axes logarithmic where there is anything positive to show.

    Decades are labelled; axes of less than two decades at 1, 2, 5.
    """
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
    """Draw a line of this slope through the middle of the points, or y = x if `exact`."""
    points = np.concatenate([line.get_xydata() for line in ax.lines])
    points = points[np.isfinite(points).all(1) & (points > 0).all(1)]
    if len(points) == 0:
        return
    x = np.array([points[:, 0].min(), points[:, 0].max()])
    middle = np.exp(np.log(points).mean(0))
    y = x if exact else middle[1] * (x / middle[0]) ** slope
    ax.plot(x, y, color="#999999", linewidth=1, zorder=0)
    below = {"xytext": (14, -2), "textcoords": "offset points", "va": "top"}
    ax.annotate(label, (x[0], y[0]), fontsize=7, color="#666666", **below)
