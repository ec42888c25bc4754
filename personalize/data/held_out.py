"""Pictures that are not trained on, so that learning can be measured: taken from the subject's
own, or from a folder of their own.

A picture that is also trained on would measure memorizing. So the same file, and nearly the same
picture, is refused.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageOps

from personalize.data.decode import open_rgb
from personalize.data.photos import Record, Scan
from toy2d.runs.files import UserError

LEAST_TRAINING = 3  # pictures that must train
SIDE, NEAR = 32, 6.0  # pixels of a thumbnail; root mean square difference in levels of 256


def hold_out(found: Scan, n: int) -> Scan:
    """n of a folder's pictures held out, evenly spaced in name order: the same ones for every seed.

    Raises UserError if fewer than 3 would train.
    """
    records = found.require()
    if len(records) - n < LEAST_TRAINING:
        most = max(0, len(records) - LEAST_TRAINING)
        hint = f"hold out at most {most}" if most else "pass --held_out_data_dir instead"
        raise UserError(
            f"--held_out {n} leaves {max(0, len(records) - n)} of the {len(records)} pictures in "
            f"{found.folder} to train on, and at least {LEAST_TRAINING} must train: {hint}"
        )
    chosen = {int((k + 0.5) * len(records) / n) for k in range(n)}
    held = tuple(r for i, r in enumerate(records) if i in chosen)
    rest = [r for i, r in enumerate(records) if i not in chosen]
    return replace(found, records=rest, held_out=held)


def refuse_trained_pictures(training: Sequence[Record], held_out: Sequence[Record]) -> None:
    """Raises UserError naming every held-out picture that is, or nearly is, one of those that
    train; its mirror image too.
    """
    if not held_out:
        return
    by_hash = {r.sha256: r for r in training}
    thumbnails = [(r, _thumbnail(r)) for r in training]
    wrong = []
    for h in held_out:
        if twin := by_hash.get(h.sha256):
            wrong.append(f"{h.path} is the same file as {twin.path}")
            continue
        mine = _thumbnail(h)
        near = [r for r, other in thumbnails if _nearly(mine, other)]
        if near:
            wrong.append(f"{h.path} is nearly the same picture as {near[0].path}")
    if wrong:
        raise UserError(
            f"{'; '.join(wrong)}: a held-out picture must not be trained on; "
            "take one of the two away"
        )


def _thumbnail(record: Record) -> np.ndarray:
    small = open_rgb(record.path).resize((SIDE, SIDE), Image.Resampling.BOX)
    both = (small, ImageOps.mirror(small))
    return np.stack([np.asarray(s, dtype=np.float64) for s in both])


def _nearly(mine: np.ndarray, other: np.ndarray) -> bool:
    apart = ((mine - other[0]) ** 2).mean(axis=(1, 2, 3)) ** 0.5
    return bool((apart < NEAR).any())
