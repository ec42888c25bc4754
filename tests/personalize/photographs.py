"""Photo-like pictures made by code."""

import numpy as np
from PIL import Image


def photo(width=96, height=80, seed=0) -> Image.Image:
    """Smooth colours and a bright disc, unlike its mirror image and its rotations."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [np.sin(4 * x + 2 * y + p) * 0.3 + 0.5 for p in phase]
    disc = (x - 0.3) ** 2 + (y - 0.35) ** 2 < 0.03
    pixels = np.stack(waves, -1) + 0.3 * disc[..., None]
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8))
