"""Figures and pictures of the report as data URIs.

Curves are the toy's panels (toy2d.figures), as SVG in a light and a dark version.
"""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from toy2d.figures.style import plt
from toy2d.runs.files import UserError

SIZE = (4.8, 3.5)  # inches; text of 9 points is then readable on a phone
LIGHT = ("#1b1f24", "#8c959f")  # text, lines
DARK = ("#e6edf3", "#6e7681")
TEXT = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor")
LINES = ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
THUMBNAIL = 128  # pixels


def figure(draw: Callable, alt: str, caption: str = "", size: tuple[float, float] = SIZE) -> dict:
    """`draw(ax)` in both themes: {"light", "dark", "alt", "caption", "width", "height"}."""
    light = _svg(draw, size, *LIGHT)
    dark = light
    for old, new in zip(LIGHT, DARK, strict=True):  # drawing twice would take twice the time
        dark = dark.replace(old, new)
    width, height = (round(96 * s) for s in size)
    themes = {"light": uri(light.encode(), "svg+xml"), "dark": uri(dark.encode(), "svg+xml")}
    return themes | {"alt": alt, "caption": caption, "width": width, "height": height}


def _svg(draw: Callable, size: tuple[float, float], text: str, line: str) -> str:
    colours = dict.fromkeys(TEXT, text) | dict.fromkeys(LINES, line)
    plain = {"axes.facecolor": "none", "figure.facecolor": "none", "svg.hashsalt": "driftlab"}
    with plt.rc_context(colours | plain):
        panel, ax = plt.subplots(figsize=size)
        draw(ax)
        data = io.StringIO()
        panel.savefig(data, format="svg", metadata={"Date": None})
        plt.close(panel)
    return data.getvalue()


def uri(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# ---- pictures
def kept_pictures(folder: Path) -> dict[tuple[str, int], Path]:
    """(prompt, seed) -> file, of a gallery. Raises UserError if it is gone."""
    try:
        files = json.loads((folder / "manifest.json").read_text())["files"]
    except (OSError, ValueError, KeyError) as e:
        raise UserError(
            f"the pictures of {folder} cannot be read ({e}); "
            "the report needs the comparison's whole folder"
        ) from e
    return {(f["prompt"], f["seed"]): folder / name for name, f in files.items()}


def strip(files: list[Path], label: str, alt: str) -> dict:
    """The pictures side by side as one PNG, each at most THUMBNAIL wide."""
    images = [thumbnail(file) for file in files]
    gap, (width, height) = 2, images[0].size
    page = Image.new("RGB", (len(images) * (width + gap) - gap, height), "white")
    for i, image in enumerate(images):
        page.paste(image, (i * (width + gap), 0))
    data = io.BytesIO()
    page.save(data, "PNG", optimize=True)
    size = {"width": page.width, "height": page.height}
    return {"src": uri(data.getvalue()), "label": label, "alt": alt} | size


def thumbnail(file: Path) -> Image.Image:
    with Image.open(file) as image:
        image.load()
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return small
