"""The class images of prior preservation: pictures that the frozen base makes of "a dog".

    class_data_dir/   manifest.json   00000.png  00001.png ...   (or .safetensors: the latents)

A folder made by another model, prompt or sampler is refused (store.py). Never JPEG: the prior term
would teach its artefacts.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from personalize.data.decode import open_rgb
from personalize.data.latents import PictureSet, resize_and_crop
from personalize.pipeline.model import Model
from personalize.sample.sampler import (
    Encode,
    Sampling,
    batches,
    image_seed,
    sample_latents,
    to_pil,
)
from personalize.sample.store import MANIFEST, PictureStore, png
from toy2d.runs.files import UserError
from toy2d.runs.folder import load_tensors
from toy2d.runs.progress import progress

Keep = Literal["png", "latents"]
SUFFIX = {"png": ".png", "latents": ".safetensors"}


def make_class_images(
    model: Model,
    prompt: str,
    n: int,
    folder: str | Path,
    sampling: Sampling,
    seed: int = 0,
    keep: Keep = "png",
    encode: Encode | None = None,
) -> PictureSet:
    """The first n class images of `folder` as a set to train on; those missing or damaged are made.

    "png" keeps pictures and encodes them when drawn (or cached); "latents" keeps what the sampler
    ended with, no VAE at all. A second process waits for the first and finds the pictures made.
    Raises UserError if the folder holds anything else, or a set made differently; RuntimeError if
    the model is no longer the base.
    """
    if n < 1:
        raise UserError(f"{n} class images: at least 1 is needed")
    folder = Path(folder).expanduser()
    sampling = replace(sampling, resolution=sampling.resolution or model.default_resolution)
    settings = {
        "model": model.hash(),
        "prompt": prompt,
        "sampler": sampling.sampler,
        "steps": sampling.steps,
        "guidance": sampling.guidance,
        "seed": seed,
        "size": sampling.resolution,
        "keep": keep,
        "dtype": str(model.compute_dtype).removeprefix("torch."),
    }
    names = [f"{i:05d}{SUFFIX[keep]}" for i in range(n)]
    with PictureStore(folder, settings, "choose another, empty class folder") as store:
        lost = set(store.missing(names))
        if missing := [i for i, name in enumerate(names) if name in lost]:
            _make(model, store, missing, sampling, encode or model.encode_prompts)
    paths = [folder / name for name in names]
    return PictureSet([prompt] * n, _posterior(model, paths, sampling.resolution, keep))


def _make(
    model: Model, store: PictureStore, missing: list[int], sampling: Sampling, encode: Encode
) -> None:
    """Whole batches at a time; the manifest keeps each picture's share of the seconds."""
    settings = store.settings
    keep = settings["keep"]
    base = model.base() if model.trained != "nothing" else contextlib.nullcontext()
    began = time.perf_counter()
    with torch.no_grad(), model.evaluating(), base:
        cond, uncond = encode([settings["prompt"]]), encode([""])
        parts = batches(missing, sampling.batch_size)
        for batch in progress(parts, "class images", leave=False):
            seeds = [image_seed(settings["seed"], i) for i in batch]
            rows = {k: v.expand(len(batch), *v.shape[1:]) for k, v in cond.items()}
            latents = sample_latents(model, rows, seeds, sampling, uncond)
            contents = list(_pngs(model, latents) if keep == "png" else _tensors(latents))
            seconds, began = (time.perf_counter() - began) / len(batch), time.perf_counter()
            store.put(
                (f"{i:05d}{SUFFIX[keep]}", data, {"seed": s, "seconds": round(seconds, 4)})
                for i, s, data in zip(batch, seeds, contents, strict=True)
            )


def seconds_of(folder: str | Path) -> float | None:
    """How long it took to make this set, summed over processes; None where that was not kept."""
    files = json.loads((Path(folder) / MANIFEST).read_text())["files"].values()
    each = [f.get("seconds") for f in files]
    return None if None in each else sum(each)


def _pngs(model: Model, latents: Tensor) -> Iterator[bytes]:
    yield from map(png, to_pil(model.decode(latents)))


def _tensors(latents: Tensor) -> Iterator[bytes]:
    for latent in latents.float().cpu():
        yield save_safetensors({"latent": latent.clone()})


def _posterior(
    model: Model, paths: list[Path], resolution: int, keep: Keep
) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """Kept latents have no spread; pictures go through the VAE as the subject's do."""

    def of_latents(i, v):
        latent = load_tensors(paths[i])["latent"].to(model.device)
        return latent, torch.zeros_like(latent)

    def of_pixels(i, v):
        mean, std = model.posterior(resize_and_crop(open_rgb(paths[i]), resolution)[None])
        return mean[0], std[0]

    return of_latents if keep == "latents" else of_pixels
