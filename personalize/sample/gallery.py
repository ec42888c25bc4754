"""Pictures of (prompt, seed), kept on disk: what is there and intact is never made twice.

    folder/   manifest.json   3f2a91c07d-1234.png ...   name: hash of the prompt, seed

One folder holds the pictures of one set of weights (store.py). Prompts or seeds that are added
later cost only the new pictures.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from personalize.pipeline.model import Model
from personalize.sample.sampler import Sampling, Wanted, batches, draw_pictures
from personalize.sample.store import PictureStore, png
from toy2d.runs.folder import hash_tensors
from toy2d.runs.progress import progress


def weights_hash(model: Model) -> str:
    """16 hex digits of all weights as they are now, adapters included.

    Of a model that nothing has trained: `model.hash()`.
    """
    if model.trained == "nothing":
        return model.hash()
    parts = model.parts.items()
    return hash_tensors({f"{p}.{n}": w for p, m in parts for n, w in m.state_dict().items()})


def pictures(
    model: Model,
    wanted: list[Wanted],
    folder: Path,
    sampling: Sampling,
    base: bool = False,
    say: Callable[[str], None] = print,
) -> dict[Wanted, Path]:
    """The file of each picture; those missing or damaged are drawn in whole batches. The speed is
    printed.

    `base`: the model with its adapters off. A second process waits for the first.
    Raises UserError if the folder holds something else.
    """
    folder = Path(folder)
    size = sampling.resolution or model.default_resolution
    how = {k: v for k, v in asdict(sampling).items() if k not in ("batch_size", "resolution")}
    weights = model.hash() if base else weights_hash(model)
    dtype = str(model.compute_dtype).removeprefix("torch.")
    settings = {"weights": weights, "size": size, **how, "dtype": dtype}
    names = {picture: _name(*picture) for picture in wanted}
    with PictureStore(folder, settings, "choose another --out, or move it away") as store:
        lost = set(store.missing(names.values()))
        missing = [picture for picture, name in names.items() if name in lost]
        began = time.perf_counter()
        parts = batches(missing, sampling.batch_size)
        for batch in progress(parts, "pictures", leave=False):
            drawn = draw_pictures(model, batch, sampling, base=base)
            store.put(
                (names[prompt, seed], png(image), {"prompt": prompt, "seed": seed})
                for (prompt, seed), image in zip(batch, drawn, strict=True)
            )
    if missing:
        seconds = time.perf_counter() - began
        kept = len(wanted) - len(missing)
        speed = f"{len(missing)} drawn in {seconds:.1f} s, {len(missing) / seconds:.2f} images/s"
        say(f"{folder}: {speed}{f', {kept} were there' if kept else ''}")
    return {picture: folder / name for picture, name in names.items()}


def _name(prompt: str, seed: int) -> str:
    return f"{hashlib.sha256(prompt.encode()).hexdigest()[:10]}-{seed}.png"
