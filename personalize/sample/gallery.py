"""Pictures of (prompt, seed), kept on disk with how they were made: what is there and whole is never made twice.

    folder/   manifest.json   3f2a91c07d-1234.png ...   name: hash of the prompt, seed

One folder holds the pictures of one set of weights; another model, sampler or size is refused with the differing fields. Adding
prompts or seeds later makes only the new ones.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from personalize.pipeline.model import Model
from personalize.sample.sampler import batches, draw
from toy2d.runs.files import RunFailure, UserError, file_digest, write_atomic, write_json
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
    """16 hex digits of all weights as they are now, adapters included. Of an untouched model: `model.hash()`."""
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
    """The file of each job; those missing or damaged are drawn, whole batches at a time, and the speed is said.

    `base`: the model with its adapters off. A second process waits for the first. Raises UserError if the folder holds something else.
    """
    folder = Path(folder)
    size = sampling.resolution or model.default_resolution
    how = {k: v for k, v in asdict(sampling).items() if k not in ("batch_size", "resolution")}
    weights = model.hash() if base else weights_hash(model)
    settings = {"weights": weights, "size": size, **how, "dtype": str(model.compute_dtype).removeprefix("torch.")}  # fmt: skip
    paths = {job: folder / _name(*job) for job in jobs}
    with _locked(folder):
        made = _manifest(folder, settings)
        missing = [j for j, path in paths.items() if not _whole(path, made.get(path.name))]
        began = time.perf_counter()
        for batch in tqdm(batches(missing, sampling.batch_size), "pictures", disable=None, leave=False):  # fmt: skip
            drawn = draw(model, batch, **how, batch_size=len(batch), base=base, resolution=size)
            for job, image in zip(batch, drawn, strict=True):
                write_atomic(paths[job], _png(image))
                made[paths[job].name] = {"prompt": job[0], "seed": job[1], **file_digest(paths[job])}  # fmt: skip
            write_json(folder / "manifest.json", {"settings": settings, "files": made})
    if missing:
        seconds = time.perf_counter() - began
        kept = len(jobs) - len(missing)
        speed = f"{len(missing)} drawn in {seconds:.1f} s, {len(missing) / seconds:.2f} images/s"
        say(f"{folder}: {speed}{f', {kept} were there' if kept else ''}")
    return paths


def _name(prompt: str, seed: int) -> str:
    return f"{hashlib.sha256(prompt.encode()).hexdigest()[:10]}-{seed}.png"


def _png(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _locked(folder: Path) -> FileLock:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / ".lock")
    except OSError as e:
        raise RunFailure(f"cannot write to {folder}: {e.strerror}; choose another --out") from e


def _manifest(folder: Path, settings: dict) -> dict[str, dict]:
    """The entries by file name. Raises UserError for a folder made differently, or one that is none of ours."""
    file = folder / "manifest.json"
    if not file.exists():
        if strangers := sorted(p.name for p in folder.glob("[!.]*")):
            raise UserError(f"{folder} holds {strangers[0]!r} but no manifest.json; choose another --out")  # fmt: skip
        return {}
    try:
        kept = json.loads(file.read_text())
        old, files = dict(kept["settings"]), dict(kept["files"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file} cannot be read ({e}); move {folder} away") from e
    differing = [k for k in {**old, **settings} if old.get(k) != settings.get(k)]
    if differing:
        shown = "; ".join(f"{k}: {old.get(k)!r} there, {settings.get(k)!r} now" for k in differing)
        raise UserError(f"{folder} was made differently ({shown}); choose another --out, or move it away")  # fmt: skip
    return files


def _whole(path: Path, entry: dict | None) -> bool:
    return (
        isinstance(entry, dict)
        and path.is_file()
        and file_digest(path) == {k: entry.get(k) for k in ("bytes", "sha256")}
    )
