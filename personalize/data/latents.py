"""Encode pictures as latents and prompts as embeddings, each of them once.

    make_pixels(record)               (3, H, W) in [-1, 1]: what the VAE sees
    PictureSet.draw(indices, rng)     latents drawn from the VAE's posterior, with their prompts
    PromptCache(model)(texts)         embeddings, a row per text

Shapes: B batch, C h w latents, H W pixels.
"""

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from personalize.data.decode import open_rgb
from personalize.data.photos import Record
from personalize.pipeline.families import Cond
from personalize.pipeline.model import Model
from toy2d.runs.files import UserError

Crop = Literal["center", "random", "pad"]
CROPS = 9  # positions of a random crop, even steps along the longer side: few enough to cache


# ---- pixels
def resize_and_crop(
    image: Image.Image,
    resolution: int,
    crop: Crop = "center",
    flip: bool = False,
    position: float = 0.5,
) -> Tensor:
    """Resize (Lanczos) and cut one square of pixels: (3, resolution, resolution) in [-1, 1].

    The shorter side fills the frame, or the longer one if `crop` is "pad" (the rest is white).
    `position` in [0, 1] places the frame along the longer side (0.5 is the centre).
    """
    return cut(resize(image, resolution, crop), resolution, flip, position)


def resize(image: Image.Image, resolution: int, crop: Crop = "center") -> Image.Image:
    """The shorter side becomes `resolution`; for "pad" the longer one, in a white square."""
    image = image.resize(_scaled(image.size, resolution, crop), Image.Resampling.LANCZOS)
    if crop == "pad":
        image = ImageOps.pad(image, (resolution, resolution), color=(255, 255, 255))
    return image


def cut(image: Image.Image, resolution: int, flip: bool = False, position: float = 0.5) -> Tensor:
    """One square of pixels of a picture that `resize` has made."""
    left, top = _corner(image.size, resolution, position)
    image = image.crop((left, top, left + resolution, top + resolution))
    if flip:
        image = ImageOps.mirror(image)
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32).copy())
    return pixels.permute(2, 0, 1) / 127.5 - 1


def _scaled(size: tuple[int, int], resolution: int, crop: Crop) -> tuple[int, int]:
    w, h = size
    scale = resolution / (max(w, h) if crop == "pad" else min(w, h))
    return max(1, round(w * scale)), max(1, round(h * scale))


def _corner(size: tuple[int, int], resolution: int, position: float) -> tuple[int, int]:
    left, top = (round((side - resolution) * position) for side in size)
    return left, top


def frame_of(
    size: tuple[int, int],
    resolution: int,
    crop: Crop = "center",
    flip: bool = False,
    position: float = 0.5,
) -> tuple[int, ...]:
    """SDXL's size conditioning: (original h, w, top and left of the crop, target h, w).

    For a picture that `resize_and_crop` has cut from a photo of `size` (w, h). The crop's corner
    counts pixels of the resized photo, mirrored first if `flip`: what the network sees begins
    there.
    """
    w, h = _scaled(size, resolution, crop)
    left, top = (0, 0) if crop == "pad" else _corner((w, h), resolution, position)
    left = w - resolution - left if flip and crop != "pad" else left
    return size[1], size[0], top, left, resolution, resolution


class Framed(str):
    """A prompt, used like any string, that carries the frame of its picture (`frame_of`)."""

    frame: tuple[int, ...]

    def __new__(cls, text: str, frame: tuple[int, ...] = ()):
        prompt = super().__new__(cls, text)
        prompt.frame = frame
        return prompt


def make_pixels(
    record: Record,
    resolution: int,
    crop: Crop = "center",
    flip: bool = False,
    position: float = 0.5,
) -> Tensor:
    """`resize_and_crop` of the record's picture."""
    return resize_and_crop(open_rgb(record.path), resolution, crop, flip, position)


# ---- what training draws from
Posterior = Callable[[int, int], tuple[Tensor, Tensor]]  # (picture, variant) -> mean, std (C h w)


class PictureSet:
    """Pictures with their prompts, from which training draws latents.

    `posterior(i, v)` gives mean and standard deviation of the latents of variant v (a flip, a crop)
    of picture i, `frame(i, v)` the part of the photo that the variant shows. Without `frame` a
    picture shows everything, as the pictures that the base drew do. Variants with an equal
    `part(i, v)` have the same pixels.

    `cache()` encodes all variants at once, equal ones once. Draws are equal to the bit with and
    without it, because each is encoded alone.
    """

    def __init__(
        self,
        prompts: list[str],
        posterior: Posterior,
        variants: int = 1,
        frame: Callable[[int, int], tuple[int, ...]] | None = None,
        part: Callable[[int, int], Hashable] = lambda i, v: v,
    ):
        self.prompts, self.variants = prompts, variants
        self._posterior, self._frame, self._part, self._table = posterior, frame, part, {}

    def __len__(self) -> int:
        return len(self.prompts)

    def cache(self) -> "PictureSet":
        """Encode every variant now, so that the VAE can be unloaded. Returns itself."""
        for i in range(len(self)):
            shown = {}  # of a square photo all crops are one
            for v in range(self.variants):
                part = self._part(i, v)
                if part not in shown:
                    shown[part] = self.latents(i, v)
                self._table[i, v] = shown[part]
        return self

    def draw(self, indices: list[int], rng: torch.Generator) -> tuple[Tensor, list[str]]:
        """(x0 (B C h w), prompts) of the pictures `indices`: flip, crop and posterior noise
        drawn from `rng`, in that order per picture.
        """
        latents, prompts = [], []
        for i in indices:
            v = int(torch.randint(self.variants, (), generator=rng, device=rng.device))
            mean, std = self.latents(i, v)
            noise = torch.randn(mean.shape, generator=rng, device=rng.device)
            latents.append(mean + std * noise.to(mean.device, non_blocking=True))
            prompts.append(self.prompt(i, v))
        return torch.stack(latents), prompts

    def latents(self, i: int, v: int) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C h w) of the latents of variant v of picture i."""
        return self._table[i, v] if (i, v) in self._table else self._posterior(i, v)

    def prompt(self, i: int, v: int) -> str:
        """The prompt of picture i, with the frame of variant v where there is one."""
        return Framed(self.prompts[i], self._frame(i, v)) if self._frame else self.prompts[i]


def instance_set(
    model: Model,
    records: list[Record],
    instance_prompt: str | None,
    resolution: int,
    crop: Crop = "center",
    random_flip: bool = False,
) -> PictureSet:
    """The subject's pictures under their captions, or under `instance_prompt` where there is none.

    Raises UserError for a picture without either.
    """
    prompts = [r.caption or instance_prompt for r in records]
    if bare := [r.path.name for r, p in zip(records, prompts, strict=True) if not p]:
        raise UserError(
            f"no caption beside {', '.join(bare[:5])}: write one or pass --instance_prompt"
        )
    flips, positions = 1 + random_flip, CROPS if crop == "random" else 1

    def variant(v):
        flip, place = divmod(v, positions)
        return crop, bool(flip), place / (positions - 1) if positions > 1 else 0.5

    @lru_cache(maxsize=1)  # a photo is decoded once for all of its variants
    def resized(i):
        return resize(open_rgb(records[i].path), resolution, crop)

    def posterior(i, v):
        mean, std = model.posterior(cut(resized(i), resolution, *variant(v)[1:])[None])
        return mean[0], std[0]

    def frame(i, v):
        return frame_of((records[i].width, records[i].height), resolution, *variant(v))

    def part(i, v):
        return variant(v)[1], frame(i, v)

    return PictureSet(prompts, posterior, flips * positions, frame, part)


class PromptCache:
    """Text embeddings, one row per text. Each text is encoded once.

    Every time, if the text encoder trains (`cache=False`).
    """

    def __init__(self, model: Model, cache: bool = True):
        self.model, self.cached, self._rows = model, cache, {}

    def add(self, texts: list[str]) -> "PromptCache":
        """Encode what is new, so that the text encoders can be unloaded. Returns itself."""
        for text in dict.fromkeys(texts):
            if text not in self._rows:
                with torch.no_grad():
                    self._rows[text] = {
                        k: v[0] for k, v in self.model.encode_prompts([text]).items()
                    }
        return self

    def __call__(self, texts: list[str]) -> Cond:
        """Embeddings, and the pictures' frames where the backbone wants them and the prompts
        have them.
        """
        return self._embeddings(texts) | self._frames(texts)

    def _embeddings(self, texts):
        if not self.cached:
            return self.model.encode_prompts(texts)
        self.add(texts)
        rows = [self._rows[t] for t in texts]
        return {k: torch.stack([r[k] for r in rows]) for k in rows[0]}

    def _frames(self, texts):
        frames = [t.frame for t in texts if isinstance(t, Framed)]
        if not (frames and self.model.family.framed):
            return {}
        if len(frames) != len(texts):
            raise ValueError("some prompts of a batch carry a frame, others do not")
        return {"frame": torch.tensor(frames).to(self.model.device, non_blocking=True)}
