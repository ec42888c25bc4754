"""The mini base's world: 16 animals x 8 scenes x 4 drawing styles at 64 x 64, with captions.

A picture is a scene with random colours and details, and one drawing on it with random position,
size, tilt, side and colour. Everything is a pure function of (seed, index). Eight (class, scene)
pairs never occur in training: they test composition.
"""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from personalize.data.prompts import with_article
from personalize.mini.shipped import CLASSES, SCENES

SIZE = 64  # pixels
STYLES = ("cartoon", "bold", "flat", "glossy")  # Noto, Twemoji, Fluent flat, Fluent modern
HELD_OUT_PAIRS = frozenset((2 * i, (3 * i + 1) % len(SCENES)) for i in range(8))  # (class, scene)
PHRASES = (
    "a photo of {} {}",
    "a photo of {} {}",
    "{} {}",
    "a picture of {} {}",
    "a drawing of {} {}",
)


@dataclass(frozen=True)
class Content:
    """What a picture shows, as indices into CLASSES, SCENES, STYLES."""

    animal: int
    scene: int
    style: int


def contents(n: int, seed: int, held_out: bool = False) -> list[Content]:
    """Draw n contents in random order; the numbers of two pairs differ by at most one.

    They are the held-out pairs if `held_out`, else all others.
    """
    pairs = [
        (a, s)
        for a in range(len(CLASSES))
        for s in range(len(SCENES))
        if ((a, s) in HELD_OUT_PAIRS) == held_out
    ]
    rng = random.Random(f"contents {seed}")
    rounds = [(a, s, k) for k in range(len(STYLES)) for a, s in pairs]
    chosen = [Content(*rounds[i % len(rounds)]) for i in range(n)]
    rng.shuffle(chosen)
    return chosen


def caption(content: Content, rng: random.Random) -> str:
    """Describe the content in one of PHRASES.

    A quarter of the captions name the style, a tenth leave out the scene.
    """
    style = f"{STYLES[content.style]} " if rng.random() < 0.25 else ""
    scene = "" if rng.random() < 0.1 else SCENES[content.scene]
    thing = with_article(style + CLASSES[content.animal])
    return rng.choice(PHRASES).format(thing, scene).strip()


def captions_all() -> list[str]:
    """Every caption that `caption` can give, sorted."""
    things = [with_article(f"{style} {c}".strip()) for c in CLASSES for style in ("", *STYLES)]
    return sorted({p.format(t, s).strip() for p in PHRASES for t in things for s in ("", *SCENES)})


# ---- scenes: each draws on a 128 x 128 canvas, halved at the end
Canvas = ImageDraw.ImageDraw
BIG = 2 * SIZE


def _shade(rng: random.Random, colour: tuple[int, int, int], spread: int = 16) -> tuple:
    """Move the colour by one random amount for all channels and another for each."""
    common = rng.randint(-spread, spread)
    return tuple(
        max(0, min(255, c + common + rng.randint(-spread // 2, spread // 2))) for c in colour
    )


def _ground(rng, draw: Canvas, sky, ground, low=66, high=84) -> int:
    """Draw sky above a random horizon and ground below it; returns the horizon."""
    horizon = rng.randint(low, high)
    draw.rectangle((0, 0, BIG, horizon), fill=_shade(rng, sky))
    draw.rectangle((0, horizon, BIG, BIG), fill=_shade(rng, ground))
    return horizon


def _dots(rng, draw: Canvas, n: int, colour, radius=(1, 2), top=0, bottom=BIG) -> None:
    for _ in range(n):
        x, y, r = rng.randint(0, BIG), rng.randint(top, bottom), rng.uniform(*radius)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def _beach(rng, draw):
    horizon = _ground(rng, draw, (135, 206, 245), (240, 214, 150), 78, 90)
    draw.rectangle((0, horizon - 30, BIG, horizon), fill=_shade(rng, (30, 120, 200)))
    x = rng.choice((16, 112))
    draw.ellipse((x - 12, 6, x + 12, 30), fill=(255, 222, 60))


def _snow(rng, draw):
    _ground(rng, draw, (196, 214, 232), (246, 249, 255))
    _dots(rng, draw, 40, (255, 255, 255), (1.5, 3))


def _night(rng, draw):
    _ground(rng, draw, (18, 22, 62), (30, 42, 50), 90, 100)
    _dots(rng, draw, 24, (255, 250, 200), (0.8, 1.8), 0, 80)
    x = rng.choice((18, 110))
    draw.ellipse((x - 12, 8, x + 12, 32), fill=(245, 240, 190))


def _forest(rng, draw):
    horizon = _ground(rng, draw, (120, 165, 120), (62, 84, 44))
    for x in range(rng.randint(0, 12), BIG + 12, 22):
        green, h = _shade(rng, (24, 92, 44)), rng.randint(50, 66)
        draw.rectangle((x - 3, horizon - 10, x + 3, horizon + 12), fill=(88, 58, 34))
        draw.polygon([(x - 14, horizon), (x + 14, horizon), (x, horizon - h)], fill=green)


def _desert(rng, draw):
    horizon = _ground(rng, draw, (255, 226, 170), (226, 150, 70))
    x = rng.randint(0, BIG)
    dune = _shade(rng, (206, 126, 56))
    draw.polygon([(x - 70, horizon), (x + 70, horizon), (x, horizon - 22)], fill=dune)
    x = rng.choice((14, 114))
    draw.rectangle((x - 4, horizon - 30, x + 4, horizon + 14), fill=(64, 130, 62))
    draw.rectangle((x - 12, horizon - 16, x + 12, horizon - 10), fill=(64, 130, 62))


def _city(rng, draw):
    horizon = _ground(rng, draw, (176, 190, 205), (98, 98, 104), 88, 98)
    x = -rng.randint(0, 10)
    while x < BIG:
        width, top = rng.randint(18, 28), rng.randint(8, 46)
        draw.rectangle((x, top, x + width - 2, horizon), fill=_shade(rng, (120, 116, 128)))
        for wy in range(top + 6, horizon - 6, 12):
            for wx in range(x + 4, x + width - 7, 8):
                draw.rectangle((wx, wy, wx + 3, wy + 5), fill=(250, 232, 150))
        x += width


def _meadow(rng, draw):
    horizon = _ground(rng, draw, (120, 200, 250), (110, 200, 70))
    for colour in ((255, 90, 120), (255, 240, 90), (250, 250, 255)):
        _dots(rng, draw, 9, colour, (2, 3.2), horizon + 6, BIG)
    x = rng.randint(10, BIG - 10)
    draw.ellipse((x - 18, 10, x + 18, 24), fill=(250, 252, 255))


def _under_water(rng, draw):
    for y in range(0, BIG, 8):
        share = y / BIG
        colour = (int(20 + 10 * share), int(170 - 90 * share), int(200 - 50 * share))
        draw.rectangle((0, y, BIG, y + 8), fill=colour)
    for x in range(rng.randint(0, 16), BIG, 30):
        draw.line([(x, BIG), (x + 5, 112), (x - 4, 98)], fill=(20, 110, 70), width=5)
    for _ in range(9):
        x, y, r = rng.randint(0, BIG), rng.randint(0, BIG), rng.uniform(2, 5)
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(190, 240, 250), width=2)


DRAW = (_beach, _snow, _night, _forest, _desert, _city, _meadow, _under_water)


def draw_scene(scene: int, rng: random.Random) -> Image.Image:
    """Draw SCENES[scene] as a (64, 64) RGB picture."""
    canvas = Image.new("RGB", (BIG, BIG))
    DRAW[scene](rng, ImageDraw.Draw(canvas))
    return canvas.resize((SIZE, SIZE), Image.Resampling.BOX)


def compose(drawing: Image.Image, scene: int, rng: random.Random) -> Image.Image:
    """Put the RGBA drawing on the scene.

    It becomes 38-50 pixels high, tilted by up to 10 degrees and mirrored half of the time; its
    brightness and colour change by up to 8 %.
    """
    side = rng.randint(38, 50)
    turned = drawing.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        turned = turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    turned = turned.resize((side, side), Image.Resampling.LANCZOS)
    alpha = turned.getchannel("A")
    colour = ImageEnhance.Color(turned.convert("RGB")).enhance(rng.uniform(0.92, 1.08))
    colour = ImageEnhance.Brightness(colour).enhance(rng.uniform(0.92, 1.08))
    picture = draw_scene(scene, rng)
    room = SIZE - side
    left = room // 2 + rng.randint(-room // 3, room // 3)
    top = room // 2 + rng.randint(-room // 4, room // 3)
    picture.paste(colour, (left, top), alpha)
    return picture


def pictures(
    drawings: dict[tuple[int, int], Image.Image], chosen: list[Content], seed: int
) -> np.ndarray:
    """Compose one picture of each content, (N, 64, 64, 3) uint8.

    `drawings` maps (class, style) to RGBA.
    """
    return np.stack(
        [
            np.asarray(compose(drawings[c.animal, c.style], c.scene, random.Random(f"{seed} {i}")))
            for i, c in enumerate(chosen)
        ]
    )
