"""Results in a notebook or a page: a picture with its caption, a slider over made pictures.

Frames are PNG bytes made beforehand, so that the slider moves at once. Live, it is an ipywidgets
slider; in the built book, where no kernel answers, a plain range input chooses among
the same frames. Neither asks the network for anything.
"""

import base64
import html
import io
import json
from dataclasses import dataclass

from matplotlib.figure import Figure
from PIL import Image

from toy2d.figures.style import plt


@dataclass(frozen=True)
class Picture:
    """A PNG and its caption, which is also the text for those who cannot see the picture.

    An empty PNG leaves the caption alone.
    """

    png: bytes
    caption: str = ""

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        shown = f"<figure>{_img(self)}<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        return {"text/html": shown, "text/plain": self.caption}


def show(figure: "Figure | Image.Image | tuple[Figure, str]", caption: str = "") -> Picture:
    """Show a matplotlib figure (closed here), a PIL picture, or a pair (figure, caption)."""
    if isinstance(figure, tuple):
        figure, caption = figure
    data = io.BytesIO()
    if isinstance(figure, Image.Image):
        figure.save(data, "PNG")
    else:
        figure.savefig(data, format="png", dpi=100)
        plt.close(figure)
    return Picture(data.getvalue(), caption)


@dataclass(frozen=True)
class Slider:
    """Pictures along one quantity, e.g. Slider("lambda", {"0": picture, "0.1": picture, ...})."""

    name: str
    frames: dict[str, Picture]

    def __post_init__(self):
        if not self.frames:
            raise ValueError(f"the slider over {self.name} has no pictures")

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        static = {
            "text/html": self.static_html(),
            "text/plain": f"{self.name}: {list(self.frames)}",
        }
        return self.live()._repr_mimebundle_() | static

    def live(self):
        """The ipywidgets box: a slider and the picture that it chooses."""
        import ipywidgets

        pictures = list(self.frames.values())
        options = [(label, i) for i, label in enumerate(self.frames)]
        slider = ipywidgets.SelectionSlider(options=options, description=self.name)
        image = ipywidgets.Image(value=pictures[0].png, format="png")
        slider.observe(lambda change: setattr(image, "value", pictures[change["new"]].png), "value")
        return ipywidgets.VBox([slider, image])

    def static_html(self) -> str:
        """All frames, one of them visible; the range input says which."""
        labels = html.escape(json.dumps(list(self.frames)))
        script = (
            "const box = this.closest('.frames'); "
            "box.querySelectorAll('img').forEach((img, i) => { img.hidden = i != this.value }); "
            "box.querySelector('output').value = JSON.parse(this.dataset.labels)[this.value]"
        )
        images = "".join(_img(p, hidden=i > 0) for i, p in enumerate(self.frames.values()))
        return (
            f'<div class="frames"><label>{html.escape(self.name)} '
            f'<input type="range" min="0" max="{len(self.frames) - 1}" value="0" '
            f'data-labels="{labels}" oninput="{html.escape(script)}"></label> '
            f"<output>{html.escape(next(iter(self.frames)))}</output><br>{images}</div>"
        )


def _img(picture: Picture, hidden: bool = False) -> str:
    if not picture.png:
        return ""
    code = base64.b64encode(picture.png).decode()
    flag = " hidden" if hidden else ""
    return f'<img alt="{html.escape(picture.caption)}" src="data:image/png;base64,{code}"{flag}>'
