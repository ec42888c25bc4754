"""The class set of prior preservation: pictures that the frozen base makes of "a dog", kept with how they were made.

    class_data_dir/   manifest.json   00000.png  00001.png ...   (or .safetensors: the latents themselves)

Each picture has its own seed, so a set can be completed, and one broken file remade, without touching the others. A folder made by
another model, prompt or sampler is refused with the differing fields. Never JPEG: the prior would learn its artefacts.
"""

import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save as save_safetensors
from tqdm import tqdm

from personalize.data.latents import PictureSet, fit
from personalize.data.photos import open_rgb
from personalize.pipeline.model import Model
from personalize.sample.sampler import Encode, batches, image_seed, sample_latents, to_pil
from toy2d.runs.files import RunFailure, UserError, file_digest, write_atomic, write_json
from toy2d.runs.folder import load_tensors

Keep = Literal["png", "latents"]
SUFFIX = {"png": ".png", "latents": ".safetensors"}


def make_class_images(
    model: Model,
    prompt: str,
    n: int,
    folder: str | Path,
    resolution: int,
    sampler: str = "dpmsolver++",
    steps: int = 20,
    guidance: float = 7.5,
    batch_size: int = 16,
    seed: int = 0,
    keep: Keep = "png",
    encode: Encode | None = None,
) -> PictureSet:
    """The first n class pictures of `folder` as a set to train on; those missing or damaged are made.

    "png" keeps pictures and encodes them when drawn (or cached); "latents" keeps what the sampler ended with, no VAE at all.
    A second process waits for the first and finds the pictures made. Raises UserError if the folder holds anything else than such a
    set, or one made differently; RuntimeError if the model is no longer the base.
    """
    if n < 1:
        raise UserError(f"{n} class images: at least 1 is needed")
    folder = Path(folder).expanduser()
    settings = {
        "model": model.hash(),
        "prompt": prompt,
        "sampler": sampler,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "size": resolution,
        "keep": keep,
        "dtype": str(model.compute_dtype).removeprefix("torch."),
    }
    with _locked(folder):
        made = _matching_files(folder, settings)
        names = [f"{i:05d}{SUFFIX[keep]}" for i in range(n)]
        missing = [i for i, name in enumerate(names) if not _whole(folder / name, made.get(name))]
        if missing:
            _make(
                model, settings, folder, made, missing, batch_size, encode or model.encode_prompts
            )
    paths = [folder / name for name in names]
    return PictureSet([prompt] * n, _posterior(model, paths, resolution, keep))


def _make(model, settings, folder, made, missing, batch_size, encode):
    """Whole batches; each file appears whole, and the manifest names it (and its seconds) only when it is there."""
    keep, size = settings["keep"], settings["size"]
    how = {k: settings[k] for k in ("steps", "guidance", "sampler")}
    base = model.base() if model.trained != "nothing" else contextlib.nullcontext()
    began = time.perf_counter()
    with torch.no_grad(), model.evaluating(), base:
        cond, uncond = encode([settings["prompt"]]), encode([""])
        for batch in tqdm(batches(missing, batch_size), "class images", disable=None, leave=False):
            seeds = [image_seed(settings["seed"], i) for i in batch]
            rows = {k: v.expand(len(batch), *v.shape[1:]) for k, v in cond.items()}
            latents = sample_latents(model, rows, seeds, size, uncond=uncond, **how)
            contents = _pngs(model, latents) if keep == "png" else _tensors(latents)
            for i, s, data in zip(batch, seeds, contents, strict=True):
                path = folder / f"{i:05d}{SUFFIX[keep]}"
                write_atomic(path, data)
                made[path.name] = {"seed": s, **file_digest(path)}
            seconds, began = (time.perf_counter() - began) / len(batch), time.perf_counter()
            for i in batch:
                made[f"{i:05d}{SUFFIX[keep]}"]["seconds"] = round(seconds, 4)
            write_json(folder / "manifest.json", {"settings": settings, "files": made})


def seconds_of(folder: str | Path) -> float | None:
    """What making this set took, by whichever processes; None where some of it was made before manifests kept seconds."""
    files = json.loads((Path(folder) / "manifest.json").read_text())["files"].values()
    each = [f.get("seconds") for f in files]
    return None if None in each else sum(each)


def _pngs(model, latents) -> Iterator[bytes]:
    for image in to_pil(model.decode(latents)):
        file = io.BytesIO()
        image.save(file, "PNG")
        yield file.getvalue()


def _tensors(latents) -> Iterator[bytes]:
    for latent in latents.float().cpu():
        yield save_safetensors({"latent": latent.clone()})


def _posterior(model, paths, resolution, keep):
    """Latents kept as such have no spread; pictures go through the VAE as the subject's do."""

    def of_latents(i, v):
        latent = load_tensors(paths[i])["latent"].to(model.device)
        return latent, torch.zeros_like(latent)

    def of_pixels(i, v):
        mean, std = model.posterior(fit(open_rgb(paths[i]), resolution)[None])
        return mean[0], std[0]

    return of_latents if keep == "latents" else of_pixels


# ---- what is in the folder already
@contextlib.contextmanager
def _locked(folder: Path):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tqdm.write(
                f"waiting for another process that makes class images in {folder}", sys.stderr
            )
            lock.acquire()
        with lock:
            for torn in folder.glob(".*.tmp"):
                torn.unlink()
            yield
    except OSError as e:
        raise RunFailure(
            f"cannot write to {folder}: {e.strerror}; choose another class folder"
        ) from e


def _matching_files(folder: Path, settings: dict) -> dict[str, dict]:
    """The manifest's entries by file name. Raises UserError for another set's folder, or one that is no set at all."""
    file = folder / "manifest.json"
    if not file.exists():
        if strangers := sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")):
            raise UserError(
                f"{folder} holds {strangers[0]!r} but no manifest.json, so how its pictures were made is unknown; "
                "choose an empty class folder"
            )
        return {}
    try:
        manifest = json.loads(file.read_text())
        old, files = manifest["settings"], dict(manifest["files"])
        differing = [k for k in {**old, **settings} if old.get(k) != settings.get(k)]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as e:
        raise UserError(f"{file} cannot be read ({e}); choose another class folder") from e
    if differing:
        shown = "; ".join(f"{k}: {old.get(k)!r} there, {settings.get(k)!r} now" for k in differing)
        raise UserError(f"{folder} was made differently ({shown}); choose another class folder")
    return files


def _whole(path: Path, entry: dict | None) -> bool:
    if not isinstance(entry, dict) or not path.is_file():
        return False
    return file_digest(path) == {k: entry.get(k) for k in ("bytes", "sha256")}
