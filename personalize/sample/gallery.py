"""Pictures of (prompt, seed), kept on disk: what is there and intact is never made twice.

    folder/   manifest.json   3f2a91c07d-1234.png ...   name: hash of the prompt, seed

One folder holds the pictures of one set of weights (store.py). Prompts or seeds that are added
later cost only the new pictures.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from personalize.pipeline.model import Model
from personalize.sample.sampler import batches, draw
from personalize.sample.store import PictureStore, png
from toy2d.runs.folder import hash_tensors

Job = tuple[str, int]  # prompt, seed


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn."""

    steps: int = 25
    guidance: float = 7.5  # 1: none
    sampler: str = "dpmsolver++"
    resolution: int | None = None  # pixels; None: the model's own
    batch_size: int = 8


USUAL = Sampling()


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
    jobs: list[Job],
    folder: Path,
    sampling: Sampling,
    base: bool = False,
    say: Callable[[str], None] = print,
) -> dict[Job, Path]:
    """The file of each job; those missing or damaged are drawn in whole batches. The speed is
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
    names = {job: _name(*job) for job in jobs}
    with PictureStore(folder, settings, "choose another --out, or move it away") as store:
        lost = set(store.missing(names.values()))
        missing = [job for job, name in names.items() if name in lost]
        began = time.perf_counter()
        parts = batches(missing, sampling.batch_size)
        for batch in tqdm(parts, "pictures", disable=None, leave=False):
            drawn = draw(model, batch, **how, batch_size=len(batch), base=base, resolution=size)
            store.put(
                (names[job], png(image), {"prompt": job[0], "seed": job[1]})
                for job, image in zip(batch, drawn, strict=True)
            )
    if missing:
        seconds = time.perf_counter() - began
        kept = len(jobs) - len(missing)
        speed = f"{len(missing)} drawn in {seconds:.1f} s, {len(missing) / seconds:.2f} images/s"
        say(f"{folder}: {speed}{f', {kept} were there' if kept else ''}")
    return {job: folder / name for job, name in names.items()}


def _name(prompt: str, seed: int) -> str:
    return f"{hashlib.sha256(prompt.encode()).hexdigest()[:10]}-{seed}.png"
