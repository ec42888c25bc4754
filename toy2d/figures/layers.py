"""Which layers moved, and what the change of each does alone: at both scales, from records alone.

A record holds {"layers": {layer: {"delta_theta": float, "path_kl": [mean, error, n]}}}.
"""

from toy2d.figures.drift import conditions_panel
from toy2d.figures.style import legend, plt, seeds_note
from toy2d.runs.statistics import chosen

PANELS = (
    ("delta_theta", r"$\|\Delta\theta_b\|$  (parameter norm)"),
    ("path_kl", "path KL of this layer's change alone (nats)"),
)


def draw_layers(metrics: dict, config: dict):
    """(figure, caption) of a toy run, each objective at its chosen weight."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.3))
    layer_panels(axes, chosen(metrics))
    caption = (
        "Left: how far the parameters of each layer moved. Right: path KL of the base with the "
        f"change of that layer alone. Geometric mean over {seeds_note(config)}, bars one standard "
        "error. Old prompts do not hold the new word, so the words' change alone is no drift."
    )
    return figure, caption


def layer_panels(axes, shown: dict[str, list[dict]]) -> None:
    """Two axes: delta theta and path KL by layer, for every objective of `shown`."""
    names = list(next(iter(shown.values()))[0]["layers"]) if shown else []
    for ax, (key, title) in zip(axes, PANELS, strict=True):
        conditions_panel(ax, shown, names, lambda r, n, key=key: _number(r["layers"][n][key]))
        ax.set_title(title, fontsize=9)
    legend(axes[1])


def _number(value) -> float:
    """NaN for an exact 0, which a logarithmic axis cannot show."""
    number = value[0] if isinstance(value, list) else value
    return number or float("nan")
