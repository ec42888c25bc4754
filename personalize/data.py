"""Pictures and captions become latents and embeddings, each computed once.

    scan(folder) -> records and problems          every fault of a folder at once, before anything trains
    make_pixels(record) -> (3, H, W) in [-1, 1]   what the VAE sees
    PictureSet.draw(indices, rng)                 latents drawn from the VAE's posterior, with their prompts
    Prompts(model)(texts)                         embeddings, a row per text

Content decides what a file is, never its extension. Orientation is applied, transparency goes onto white, 16 bits are scaled.
Embedded colour profiles are not applied. Shapes: B batch, C h w latents, H W pixels.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from personalize.model import Cond, Model
from toy2d.runfolder import UserError, file_digest

Crop = Literal["center", "random", "pad"]

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
)  # MPO, what phones write, is a JPEG with a second picture behind it
PICTURE_SUFFIXES = {
    *[
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".heic",
        ".heif",
        ".avif",
        ".jxl",
    ]
}
MAX_PIXELS = 128_000_000  # a phone's 108 megapixels pass, a picture bomb does not
MAX_CAPTION_BYTES = 4096
CROPS = 9  # positions of a random crop, even steps along the longer side: few enough to cache


# ---- what is in the folder
@dataclass(frozen=True)
class Record:
    """One usable picture. Sizes after orientation; `sha256` of the file's bytes; `notes` for the table."""

    path: Path
    width: int
    height: int
    format: str
    mode: str
    sha256: str
    caption: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """What `scan` found: records in name order, problems as (file, reason and remedy), and the files it left alone."""

    folder: Path
    records: list[Record]
    problems: list[tuple[str, str]]
    skipped: list[str]

    def require(self) -> list[Record]:
        """The records, or UserError listing every problem."""
        if self.problems:
            lines = "; ".join(f"{name} {why}" for name, why in self.problems)
            raise UserError(f"{self.folder}: {len(self.problems)} problem(s): {lines}")
        return self.records

    def hash(self) -> str:
        """16 hex digits of the pictures' bytes and captions, in order: changes when the data does."""
        digest = hashlib.sha256()
        for r in self.records:
            digest.update(json.dumps([r.path.name, r.sha256, r.caption]).encode())
        return digest.hexdigest()[:16]

    def table(self) -> Table:
        """Every picture and every problem, for people."""
        table = Table(title=Text(str(self.folder)), title_justify="left")
        for column in ("file", "size", "format", "caption", "remark"):
            table.add_column(column, overflow="fold")
        for r in self.records:
            cells = (
                r.path.name,
                f"{r.width} x {r.height}",
                f"{r.format} {r.mode}",
                r.caption or "-",
            )
            table.add_row(*map(Text, cells), Text(", ".join(r.notes)))
        for name, why in self.problems:
            table.add_row(Text(name), "", "", "", Text(why, style="bold red"))
        skipped = f"; skipped: {', '.join(self.skipped)}" if self.skipped else ""
        found = f"{len(self.records)} pictures, {len(self.problems)} problems"
        table.caption = Text(f"{found}, {len(self.skipped)} other files{skipped}"[:1000])
        return table


def scan(folder: str | Path, resolution: int | None = None, captions: bool = True) -> Scan:
    """Open every file of `folder` (not below it), sorted by name; decode each picture in full.

    Hidden files, folders and files that are no pictures are skipped and listed; a file that has a picture's name but cannot be used
    is a problem, because its owner believes it is used. Raises UserError if there is no folder.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; pass the folder that holds the pictures")
    try:
        files = sorted(folder.iterdir(), key=lambda p: p.name)
    except OSError as e:
        raise UserError(f"{folder} cannot be read: {e.strerror}") from e
    records, problems, skipped = [], [], []
    for path in files:
        try:
            record = _read_record(path, resolution, captions)
        except Unusable as e:
            problems.append((path.name, str(e)))
        else:
            (skipped if record is None else records).append(record or path.name)
    records = _with_twins_noted(records)
    used = {r.path.with_suffix(".txt").name for r in records if r.caption}
    skipped = [name for name in skipped if name not in used]
    if not records and not problems:
        problems.append((folder.name, _why_empty(files)))
    return Scan(folder, records, problems, skipped)


def _why_empty(files: list[Path]) -> str:
    folders = [p.name for p in files if p.is_dir() and not p.name.startswith(".")]
    hint = f"; its folders ({', '.join(folders[:3])}) are not searched: pass one" if folders else ""
    return f"holds no pictures (JPEG, PNG or WebP){hint}"


def print_scan(found: Scan) -> None:
    """The table on standard output; plain when that is no terminal."""
    Console().print(found.table())


class Unusable(Exception):
    """Why a file that claims to be a picture is refused."""


def _read_record(path: Path, resolution: int | None, captions: bool) -> Record | None:
    """None for a file that is no picture and does not claim to be."""
    if path.name.startswith(".") or path.is_dir():
        return None
    try:
        if not path.is_file():  # a pipe would be waited for
            raise Unusable("is a broken link or no file; take it away")
        if path.stat().st_size == 0:
            raise Unusable("is empty; copy it again")
        image = _open(path)
    except Unusable as e:
        return _foreign(path, e)
    except Image.UnidentifiedImageError:
        return _foreign(
            path, Unusable("is no JPEG, PNG or WebP inside; convert it or take it away")
        )
    except OSError as e:
        why = Unusable(f"cannot be read ({e.strerror or e}); mend it or take it away")
        return _foreign(path, why)
    with image:
        rgb, notes = _to_rgb(image)
        notes += _size_notes(*rgb.size, resolution)
        caption = _caption(path) if captions else None
        digest = file_digest(path)["sha256"]
        return Record(path, *rgb.size, image.format, image.mode, digest, caption, tuple(notes))


def _foreign(path: Path, why: Unusable) -> None:
    """Other people's files are left alone, unless they have a picture's name."""
    if path.suffix.lower() in PICTURE_SUFFIXES:
        raise why


def _size_notes(width, height, resolution):
    if resolution is None or (short := min(width, height)) >= resolution:
        return []
    if short * 4 < resolution:
        raise Unusable(
            f"is {width} x {height}, too small for resolution {resolution}; use a larger picture"
        )
    return [f"enlarged x{resolution / short:.1f}"]


def _with_twins_noted(records: list[Record]) -> list[Record]:
    first = {}
    for i, r in enumerate(records):
        twin = first.setdefault(r.sha256, r.path.name)
        if twin != r.path.name:
            records[i] = replace(r, notes=(*r.notes, f"same picture as {twin}"))
    return records


def _caption(path: Path) -> str | None:
    """The text of the .txt beside a picture, on one line; None if there is none."""
    file = path.with_suffix(".txt")
    if not file.is_file():
        return None
    try:
        data = file.read_bytes()
        text = " ".join(data.decode("utf-8-sig").split())
    except OSError as e:
        raise Unusable(f"has a caption {file.name} that cannot be read ({e.strerror})") from e
    except UnicodeDecodeError as e:
        raise Unusable(f"has a caption {file.name} that is not UTF-8; save it as UTF-8") from e
    if not text:
        raise Unusable(f"has an empty caption {file.name}; write one or delete that file")
    if len(data) > MAX_CAPTION_BYTES or "\0" in text:
        raise Unusable(
            f"has no caption in {file.name} but something long or binary; mend that file"
        )
    return text


# ---- a picture
def _open(path: Path) -> Image.Image:
    """Opened but not decoded. Raises Unusable for a header that is not to be trusted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is below
            image = Image.open(path, formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise
    except (Image.DecompressionBombError, ValueError, SyntaxError, EOFError) as e:
        raise Unusable(f"cannot be opened ({e}); take it away") from e
    return image


def _to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Decoded, upright, on white, 8 bits; and what was done. Raises Unusable for bombs, animations and broken data."""
    notes = []
    if image.width * image.height > MAX_PIXELS:
        raise Unusable(
            f"has {image.width} x {image.height} pixels, more than {MAX_PIXELS // 10**6} million; make it smaller"
        )
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise Unusable("is an animation; save the frame you mean as PNG")
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
    except Exception as e:  # truncated, or broken in any of the ways a decoder knows
        raise Unusable(f"is broken ({type(e).__name__}: {e}); copy it again") from e
    if image.getexif().get(0x0112, 1) != 1:
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
        with _open(path) as image:
            return _to_rgb(image)[0]
    except (Unusable, Image.UnidentifiedImageError, OSError) as e:
        raise UserError(f"{path} {e}") from e


def fit(
    image: Image.Image,
    resolution: int,
    crop: Crop = "center",
    flip: bool = False,
    position: float = 0.5,
) -> Tensor:
    """(3, resolution, resolution) in [-1, 1]. Lanczos; the shorter side fills the frame, or the longer one if `crop` is "pad" (white).

    `position` in [0, 1] places the frame along the longer side (0.5 is the centre).
    """
    w, h = image.size
    scale = resolution / (max(w, h) if crop == "pad" else min(w, h))
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    if crop == "pad":
        image = ImageOps.pad(image, (resolution, resolution), color=(255, 255, 255))
    left, top = (round((s - resolution) * position) for s in image.size)
    image = image.crop((left, top, left + resolution, top + resolution))
    if flip:
        image = ImageOps.mirror(image)
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32).copy())
    return pixels.permute(2, 0, 1) / 127.5 - 1


def make_pixels(
    record: Record,
    resolution: int,
    crop: Crop = "center",
    flip: bool = False,
    position: float = 0.5,
) -> Tensor:
    """`fit` of the record's picture."""
    return fit(open_rgb(record.path), resolution, crop, flip, position)


# ---- what training draws from
Posterior = Callable[[int, int], tuple[Tensor, Tensor]]  # (picture, variant) -> mean, std (C h w)


class PictureSet:
    """Pictures under their prompts. `posterior(i, v)` is the law of the latents of variant v (a flip, a crop) of picture i.

    `cache()` computes all of them; a draw is the same, to the bit, with and without, because each variant is encoded alone.
    """

    def __init__(self, prompts: list[str], posterior: Posterior, variants: int = 1):
        self.prompts, self.variants = prompts, variants
        self._posterior, self._table = posterior, {}

    def __len__(self) -> int:
        return len(self.prompts)

    def cache(self) -> "PictureSet":
        """Encode every variant now, so that the VAE can be unloaded. Returns itself."""
        for i in range(len(self)):
            for v in range(self.variants):
                if (i, v) not in self._table:
                    self._table[i, v] = self._posterior(i, v)
        return self

    def draw(self, indices: list[int], rng: torch.Generator) -> tuple[Tensor, list[str]]:
        """(x0 (B C h w), prompts) of the pictures `indices`: flip, crop and posterior noise drawn from `rng`, in that order per picture."""
        latents = []
        for i in indices:
            v = int(torch.randint(self.variants, (), generator=rng, device=rng.device))
            mean, std = self._table[i, v] if (i, v) in self._table else self._posterior(i, v)
            noise = torch.randn(mean.shape, generator=rng, device=rng.device)
            latents.append(mean + std * noise.to(mean.device, non_blocking=True))
        return torch.stack(latents), [self.prompts[i] for i in indices]


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

    def posterior(i, v):
        flip, place = divmod(v, positions)
        position = place / (positions - 1) if positions > 1 else 0.5
        pixels = make_pixels(records[i], resolution, crop, bool(flip), position)
        mean, std = model.posterior(pixels[None])
        return mean[0], std[0]

    return PictureSet(prompts, posterior, flips * positions)


class Prompts:
    """Text embeddings, one row per text, each text encoded once unless the text encoder trains (`cache=False`)."""

    def __init__(self, model: Model, cache: bool = True):
        self.model, self.cached, self._rows = model, cache, {}

    def add(self, texts: list[str]) -> "Prompts":
        """Encode what is new, so that the text encoders can be unloaded. Returns itself."""
        for text in dict.fromkeys(texts):
            if text not in self._rows:
                with torch.no_grad():
                    self._rows[text] = {
                        k: v[0] for k, v in self.model.encode_prompts([text]).items()
                    }
        return self

    def __call__(self, texts: list[str]) -> Cond:
        if not self.cached:
            return self.model.encode_prompts(texts)
        self.add(texts)
        rows = [self._rows[t] for t in texts]
        return {k: torch.stack([r[k] for r in rows]) for k in rows[0]}
