"""The playground as a widget: drag six points, choose two objectives, press Train.

    board = Playground.open("../runs")
    board

Left and right are two objectives that train at once on the same points and noise. Needs ipywidgets
and bqplot (the extra `book`). Where no kernel answers, as in the built book, the last state is
shown as a picture.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toy2d.figures.display import Picture, show
from toy2d.figures.style import CLASS_COLOURS, plt
from toy2d.playground.live import Frame, Sandbox
from toy2d.runs.files import UserError
from toy2d.runs.spec import OBJECTIVE_WORDS

KINDS = ("standard", "prior", "replay_all", "l2", "output", "fisher")
EXPONENTS = (-3.0, 2.0)  # of the weight's slider
HALF_WIDTH = 5.0


class Side:
    """One objective: its controls, its plane and its bars."""

    def __init__(self, sandbox: Sandbox, kind: str, exponent: float, label: str, nats):
        """`nats` is the bars' vertical scale, which both sides share."""
        import bqplot
        import ipywidgets as w

        self.sandbox, self.frame = sandbox, None
        self.kind = w.Dropdown(options=KINDS, value=kind, description=f"{label}:")
        self.weight = w.FloatLogSlider(
            value=10**exponent, min=EXPONENTS[0], max=EXPONENTS[1], step=0.5, description="weight"
        )
        self.kind.observe(self._weightless, "value")
        self._weightless()
        self.text = w.HTML()
        self.points = _points(bqplot)
        self.clouds = [_cloud(bqplot, c) for c in range(len(sandbox.prompts))]
        before = _cloud(bqplot, None)
        before.x, before.y = sandbox.base.reshape(-1, 2).T.numpy().astype(float)
        self.plane = _figure(bqplot, [before, *self.clouds, self.points], f"Samples, {label}")
        old = sandbox.names[:-1]
        x, y = bqplot.OrdinalScale(), nats
        colours = [CLASS_COLOURS[c % len(CLASS_COLOURS)] for c in range(len(old))]
        scales = {"x": x, "y": y}
        self.bars = bqplot.Bars(x=old, y=[0.0] * len(old), scales=scales, colors=colours)
        self.errors = bqplot.Lines(x=[old[:1] * 2], y=[[0, 0]], scales=scales, colors=["black"])
        axes = [
            bqplot.Axis(scale=x, num_ticks=len(old)),
            bqplot.Axis(scale=y, orientation="vertical", num_ticks=5, tick_format=".2g"),
        ]
        title = "Drift of each old class: KL(base || now), nats"
        self.drift = bqplot.Figure(marks=[self.bars, self.errors], axes=axes, title=title)
        self.drift.fig_margin = {"top": 40, "bottom": 30, "left": 50, "right": 20}
        self.drift.title_style = {"font-size": "14px"}
        self.drift.layout.height, self.drift.layout.width = "220px", "100%"
        self.box = w.VBox(
            [self.kind, self.weight, self.plane, self.drift, self.text],
            layout=w.Layout(width="420px", min_width="300px"),
        )
        self.show_samples(sandbox.base)

    def _weightless(self, change=None) -> None:
        self.weight.disabled = self.kind.value == "standard"
        self.kind.tooltip = OBJECTIVE_WORDS[self.kind.value].says

    @property
    def spec(self) -> str:
        """The run's name: "standard" or kind:weight."""
        kind = self.kind.value
        return kind if kind == "standard" else f"{kind}:{self.weight.value:.3g}"

    def show_samples(self, samples: Tensor) -> None:
        for cloud, x in zip(self.clouds, samples, strict=True):
            with cloud.hold_sync():
                cloud.x, cloud.y = x.T.numpy().astype(float)

    def show(self, frame: Frame) -> None:
        """Move the clouds, set bars with errors and the numbers."""
        self.frame = frame
        self.show_samples(frame.samples)
        values, errors = (np.array(v) for v in zip(*frame.kl.values(), strict=True))
        self.bars.y = values
        with self.errors.hold_sync():
            self.errors.x = [[name, name] for name in frame.kl]
            self.errors.y = np.stack([np.maximum(values - errors, 0), values + errors], 1)
            self.errors.colors = ["black"] * len(values)
        self.text.value = (
            f"<b>{frame.spec}</b>, step {frame.step}: mean KL {values.mean():.3g} nats, "
            f"path KL {frame.path_kl[0]:.3g} ± {frame.path_kl[1]:.2g}, "
            f"log density of your points up by {frame.learnt:.3g}"
        )


class Playground:
    """Two sides that share the points."""

    def __init__(self, sandbox: Sandbox, left: str = "standard", right: str = "output"):
        import bqplot
        import ipywidgets as w

        self.sandbox = sandbox
        nats = bqplot.LinearScale(min=0)
        starts = ((left, 0, "left"), (right, 1, "right"))
        self.sides = tuple(Side(sandbox, *start, nats) for start in starts)
        self.button = w.Button(description="Train", button_style="primary", icon="play")
        self.reset = w.Button(description="The course's points")
        self.clicks = w.ToggleButton(description="Click adds a point", value=False)
        self.clear = w.Button(description="No points")
        self.steps = w.IntSlider(value=600, min=100, max=2000, step=100, description="steps")
        self.status = w.HTML("Drag the crosses, or add some by clicking; then press Train.")
        self.button.on_click(lambda _: self.train())
        self.reset.on_click(lambda _: self.place(sandbox.default_points()))
        self.clear.on_click(lambda _: self.place(torch.zeros(0, 2)))
        self.clicks.observe(self._clicks_add, "value")
        for side in self.sides:
            side.points.observe(self._moved, ["x", "y"])
        row = w.Layout(flex_flow="row wrap")
        controls = w.Box([self.button, self.steps, self.clicks, self.reset, self.clear], layout=row)
        sides = w.Box([side.box for side in self.sides], layout=row)
        self.box = w.VBox([controls, self.status, sides])
        self.place(sandbox.default_points())

    @classmethod
    def open(cls, out: Path | str = "runs", seed: int = 0, **sides: str) -> "Playground":
        """On the base of `seed`; `left` and `right` name the objectives to begin with."""
        return cls(Sandbox.open(out, seed), **sides)

    @property
    def points(self) -> Tensor:
        """(n, 2): where the crosses are."""
        mark = self.sides[0].points
        return torch.tensor(np.stack([mark.x, mark.y], 1), dtype=torch.float32).reshape(-1, 2)

    def place(self, points: Tensor) -> None:
        """Put the crosses here, on both sides."""
        x, y = np.asarray(points, float).reshape(-1, 2).T
        for side in self.sides:
            with side.points.hold_sync():
                side.points.x, side.points.y = x, y

    def _moved(self, change) -> None:
        """A cross was dragged or added on one side: the other follows."""
        source = next(side.points for side in self.sides if side.points is change["owner"])
        if len(source.x) != len(source.y):
            return  # x has arrived, y will in a moment
        for side in self.sides:
            other = side.points
            same = np.array_equal(other.x, source.x) and np.array_equal(other.y, source.y)
            if other is not source and not same:
                with other.hold_sync():
                    other.x, other.y = source.x.copy(), source.y.copy()

    def _clicks_add(self, change) -> None:
        for side in self.sides:
            side.points.interactions = {"click": "add"} if change["new"] else {}
            side.points.enable_move = not change["new"]

    def train(self) -> None:
        """Train both sides from the base and show every frame as it comes."""
        specs = tuple(dict.fromkeys(side.spec for side in self.sides))

        def watch(frames: list[Frame]) -> None:
            now = {frame.spec: frame for frame in frames}
            for side in self.sides:
                side.show(now[side.spec])
            self.status.value = f"step {frames[0].step} of {self.steps.value}"

        self.button.disabled = True
        try:
            self.sandbox.train(self.points, specs, watch, steps=self.steps.value)
            self.status.value += ": done"
        except UserError as why:
            self.status.value = str(why)
        finally:
            self.button.disabled = False

    def picture(self) -> Picture:
        """The two sides as they are now, for pages in which no kernel answers."""
        figure, axes = plt.subplots(2, 2, figsize=(7.2, 5.4), height_ratios=(2, 1))
        for (plane, bars), side in zip(axes.T, self.sides, strict=True):
            frame = side.frame
            samples = self.sandbox.base if frame is None else frame.samples
            plane.scatter(*self.sandbox.base.reshape(-1, 2).T, s=2, color="#CCCCCC")
            for c, x in enumerate(samples):
                plane.scatter(*x.T, s=4, color=CLASS_COLOURS[c % len(CLASS_COLOURS)])
            plane.plot(*self.points.T, "k+", markersize=7)
            limits = (-HALF_WIDTH, HALF_WIDTH)
            plane.set(title=side.spec, aspect="equal", xlim=limits, ylim=limits)
            if frame is not None:
                values, errors = zip(*frame.kl.values(), strict=True)
                bars.bar(range(len(values)), values, yerr=errors, color=CLASS_COLOURS)
            bars.set(xlabel="old class", ylabel="KL (nats)")
        caption = "The playground: samples (grey: before) and drift of each old class."
        return show(figure, caption)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return self.box._repr_mimebundle_() | self.picture()._repr_mimebundle_()


# ---- bqplot's pieces
def _scales(bqplot) -> dict:
    return {k: bqplot.LinearScale(min=-HALF_WIDTH, max=HALF_WIDTH) for k in "xy"}


def _cloud(bqplot, c: int | None):
    """Small dots of prompt c; pale grey for the base's, c = None."""
    colour = "#CCCCCC" if c is None else CLASS_COLOURS[c % len(CLASS_COLOURS)]
    return bqplot.Scatter(x=[], y=[], scales=_scales(bqplot), colors=[colour], default_size=10)


def _points(bqplot):
    """The crosses, which can be dragged."""
    look = {"marker": "cross", "colors": ["black"], "default_size": 60, "stroke_width": 0.5}
    return bqplot.Scatter(x=[], y=[], scales=_scales(bqplot), enable_move=True, **look)


def _figure(bqplot, marks: list, title: str):
    """A square plane in which all marks share the scales of the first."""
    scales = marks[0].scales
    for mark in marks:
        mark.scales = scales
    axes = [bqplot.Axis(scale=scales["x"]), bqplot.Axis(scale=scales["y"], orientation="vertical")]
    margins = {"top": 40, "bottom": 40, "left": 40, "right": 20}
    figure = bqplot.Figure(marks=marks, axes=axes, title=title, fig_margin=margins)
    figure.min_aspect_ratio = figure.max_aspect_ratio = 1.0
    figure.layout.height, figure.layout.width = "400px", "100%"
    return figure
