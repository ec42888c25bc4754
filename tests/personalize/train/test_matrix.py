"""Backbones x kinds x objectives: train three steps, export, open by diffusers, draw one picture.

On photographs of your own, with a table of what came out:

    DRIFTLAB_PHOTOS=photos/dog DRIFTLAB_TABLE=matrix.md \\
        pytest -m slow tests/personalize/train/test_matrix.py
"""

import os
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from small import MORE_KINDS, OBJECTIVES, config, load_quickly, workshop

from personalize.config.kinds import TRAINING_KINDS
from personalize.export.formats import FORMATS, checked, formats_for, save_as
from personalize.export.write import load_run
from personalize.pipeline.families import FAMILIES
from personalize.pipeline.random_pipeline import tiny
from personalize.train.experiment import run
from toy2d.runs.files import UserError, read_csv

BACKBONES = [f.name for f in FAMILIES.values()]
HEAD = (
    "| backbone | kind | objective | delta theta | delta eps "
    "| formats, each opened again: largest relative difference | picture | s |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


@cache
def base_of(backbone: str) -> Path:
    folder = workshop() / f"matrix-{backbone}"
    tiny(backbone, folder=folder)
    return folder


def write(*cells) -> None:
    if name := os.environ.get("DRIFTLAB_TABLE"):
        with open(name, "a") as table:
            table.write(
                (HEAD if table.tell() == 0 else "") + f"| {' | '.join(map(str, cells))} |\n"
            )


def picture(base, form, folder, words) -> float:
    """Drawn by diffusers' own pipeline; the spread of its pixels, 0 for a blank one."""
    if FORMATS[form].open is None:
        pipeline = DiffusionPipeline.from_pretrained(folder)
    else:
        pipeline = load_quickly(str(base)).pipeline
        FORMATS[form].open(pipeline, folder)
    pipeline.set_progress_bar_config(disable=True)
    rng = torch.Generator().manual_seed(0)
    image = pipeline(
        f"a photo of {words} dog", num_inference_steps=2, generator=rng, height=64, width=64
    ).images[0]
    assert image.size == (64, 64)
    return float(np.asarray(image).std())


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINING_KINDS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_three_steps_export_reload_picture(tmp_path, backbone, kind, objective):
    start, base = time.perf_counter(), base_of(backbone)
    photos = os.environ.get("DRIFTLAB_PHOTOS", str(workshop() / "photos"))
    with tempfile.TemporaryDirectory() as classes:  # another base, other class images
        chosen = {"class_data_dir": classes} if objective in ("prior", "output") else {}
        c = config(
            tmp_path / "run",
            objective,
            kind if kind in MORE_KINDS else {"full": "full", "lora": "lora+text"}[kind],
            max_train_steps=3,
            pretrained_model_name_or_path=str(base),
            instance_data_dir=photos,
            **chosen,
        )
        if objective not in (*TRAINING_KINDS[kind].objectives, "standard"):
            with pytest.raises(UserError, match="has no effect"):
                run(c, say=lambda text: None)
            write(backbone, kind, objective, "refused: no effect", "", "", "", "")
            return
        run(c, say=lambda text: None)
    last = read_csv(tmp_path / "run" / "history.csv")[-1]
    assert last["delta_theta"] > 0
    model, shown = load_run(tmp_path / "run"), []
    forms = formats_for(model)
    for form in forms if objective == "standard" else forms[:1]:
        save_as(model, form, tmp_path / form)
        off = checked(model, form, tmp_path / form, lambda: load_quickly(str(base))).difference
        shown.append(f"{form} {off:.0e}")
        word = "<new1>" if TRAINING_KINDS[kind].words else "sks"
        spread = picture(base, form, tmp_path / form, word)
    assert spread > 1
    write(
        backbone,
        kind,
        objective,
        f"{last['delta_theta']:.3g}",
        f"{last['delta_eps']:.3g}",
        ", ".join(shown),
        f"spread {spread:.0f}",
        f"{time.perf_counter() - start:.1f}",
    )
