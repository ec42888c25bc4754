"""Open one picture file as RGB of 8 bits, or say why it cannot be used.

Orientation is applied, transparency goes onto white, 16 bits are scaled. Embedded colour profiles
are not applied.
"""

import functools
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from toy2d.runs.files import UserError

FORMATS = ("JPEG", "PNG", "WEBP")  # phones' MPO is a JPEG with a second picture behind it
HEIC = re.compile(rb"....ftyp(heic|heix|heim|heis|hevc|mif1|msf1)", re.DOTALL)  # how one begins
MAX_PIXELS = 128_000_000  # a phone's 108 megapixels pass, a picture bomb does not
ORIENTATION = 0x0112  # the EXIF tag
NO_HEIC = (
    "is a HEIC photo: pip install pillow-heif, or convert it "
    "(on a Mac: sips -s format jpeg NAME.heic --out NAME.jpg; elsewhere: heif-convert)"
)


class Unusable(Exception):
    """Why a file that claims to be a picture is refused."""


@functools.cache
def _more_formats() -> tuple[str, ...]:
    """HEIF, where pillow-heif is installed."""
    try:
        import pillow_heif
    except ImportError:
        return ()
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def open_picture(path: Path) -> Image.Image:
    """Opened but not decoded. Raises Unusable for a header that is not to be trusted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is below
            image = Image.open(path, formats=(*FORMATS, *_more_formats()))
    except Image.UnidentifiedImageError:
        with open(path, "rb") as f:
            if HEIC.match(f.read(12)):
                raise Unusable(NO_HEIC) from None
        raise
    except (Image.DecompressionBombError, ValueError, SyntaxError, EOFError) as e:
        raise Unusable(f"cannot be opened ({e}); take it away") from e
    return image


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Decoded, upright, on white, 8 bits; and what was done. Raises Unusable for bombs,
    animations and broken data.
    """
    notes = []
    if image.width * image.height > MAX_PIXELS:
        raise Unusable(
            f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS // 10**6} million; "
            "make it smaller"
        )
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise Unusable("is an animation; save the frame you mean as PNG")
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except Exception as e:  # truncated, or broken in any of the ways a decoder knows
        raise Unusable(f"is broken ({type(e).__name__}: {e}); copy it again") from e
    if image.getexif().get(ORIENTATION) in range(2, 9):
        notes.append("turned by EXIF")
    if upright.mode.startswith("I"):  # 16-bit gray; convert() would saturate it
        notes.append("16 bit")
        levels = np.asarray(upright).astype(np.float64).clip(0, 65535) / 257
        upright = Image.fromarray(levels.round().astype(np.uint8))
    if upright.has_transparency_data:
        notes.append("onto white")
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, layer)
    return upright.convert("RGB"), notes


def open_rgb(path: Path) -> Image.Image:
    """A picture as the VAE should see it, before resizing. Raises UserError naming the file."""
    try:
        with open_picture(path) as image:
            return to_rgb(image)[0]
    except (Unusable, Image.UnidentifiedImageError, OSError) as e:
        raise UserError(f"{path} {e}") from e
