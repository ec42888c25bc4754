"""The pictures that the parts are trained on, as arrays.

They are composed once for each seed and set of drawings, and kept in the pretraining folder.
"""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from personalize.mini.pretrain.artwork import Artwork, digest
from personalize.mini.pretrain.world import Content, compose, contents
from toy2d.runs.files import appearing, cannot_write, clear_torn
from toy2d.runs.progress import progress


@dataclass(frozen=True)
class Data:
    """The pictures of one seed and what they show. Pictures are (N, 64, 64, 3) uint8."""

    train: np.ndarray
    train_contents: list[Content]
    unseen_pairs: np.ndarray  # (class, scene) pairs that training never shows
    unseen_contents: list[Content]
    # N = instances x views, in that order: other drawings, for the VAE and the image encoder
    instances: np.ndarray
    views: int
    digest: str  # of the drawings
    scenes: list[int]  # N, of the instances


def make(folder: Path, artwork: Artwork, seed: int, n_train: int = 20_000, views: int = 24) -> Data:
    drawings, others = artwork.training(), artwork.instances()
    train, unseen = contents(n_train, seed), contents(1_000, seed + 1, held_out=True)

    def world(chosen, role):
        jobs = [
            (drawings[c.animal, c.style], c.scene, f"{seed} {role} {i}")
            for i, c in enumerate(chosen)
        ]
        return _cached(folder / f"{role}-{seed}-{digest(list(drawings.values()))}.npy", jobs)

    rng = random.Random(f"{seed} instances")
    scenes = [rng.randrange(8) for _ in range(len(others) * views)]
    instances = [
        (d, scenes[i * views + k], f"{seed} instances {i} {k}")
        for i, d in enumerate(others)
        for k in range(views)
    ]
    return Data(
        world(train, "train"),
        train,
        world(unseen, "unseen"),
        unseen,
        _cached(folder / f"instances-{seed}-{digest(others)}.npy", instances),
        views,
        digest(list(drawings.values())),
        scenes,
    )


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock the folder of data, and remove what a stopped process left half written there.

    Waits while another process makes data there. Raises RunFailure if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire()
    except OSError as e:
        raise cannot_write(folder, e) from e
    try:
        clear_torn(folder)
        yield
    except OSError as e:
        raise cannot_write(folder, e) from e
    finally:
        lock.release()


def _cached(path: Path, jobs: list) -> np.ndarray:
    """Compose a picture of each (drawing, scene, seed), or open those of last time
    (memory-mapped).
    """
    with held(path.parent):
        if not path.exists():
            bar = progress(jobs, f"composing {path.stem}")
            made = [np.asarray(compose(d, s, random.Random(seed))) for d, s, seed in bar]
            with appearing(path) as temporary, open(temporary, "wb") as file:
                np.save(file, np.stack(made))
    return np.load(path, mmap_mode="r")


def subject_composites(folder: Path, artwork: Artwork, seed: int, views: int = 256) -> np.ndarray:
    """(subjects x views, 64, 64, 3) uint8 in the order of SUBJECTS, as many in each scene."""
    jobs = [
        (drawing, view % 8, f"{seed} judge {name} {view}")
        for name, drawing in artwork.subjects().items()
        for view in range(views)
    ]
    return _cached(folder / f"judge-{seed}.npy", jobs)
