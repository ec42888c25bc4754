"""`personalize generate RUN`: a finished run's pictures as one grid, the base's row above if asked for."""

import json
import re
from pathlib import Path

import torch

from personalize.config.kinds import KINDS
from personalize.export.write import load_run
from personalize.pipeline.model import Model
from personalize.sample.sampler import generate, grid, image_seed
from personalize.sample.validate import save_picture
from toy2d.runs.files import UserError


def pictures_of_run(asked) -> Path:
    """`asked`: __main__.Generate. Returns the PNG's path. Raises UserError for a folder that is no finished run."""
    if asked.images < 1:
        raise UserError(f"--images {asked.images}: at least 1")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_run(asked.run).to(device)
    seeds = [image_seed(asked.seed, i) for i in range(asked.images)]
    rows = {"": _draw(model, asked, seeds, base=False)}
    if asked.base:
        rows = {" (base)": _base_pictures(model, asked, seeds, device), **rows}
    images, labels, n = [], [], asked.images
    for i, prompt in enumerate(asked.prompt):
        for name, made in rows.items():
            images += made[i * n : (i + 1) * n]
            labels.append(prompt + name)
    file = Path(asked.out) if asked.out else _new_name(Path(asked.run) / "figures")
    return save_picture(grid(images, n, labels), file)


def _base_pictures(model: Model, asked, seeds: list[int], device: str):
    if KINDS[model.trained].keeps_base:
        return _draw(model, asked, seeds, base=True)
    base = load_run(asked.run, base=True).to(device)  # full training left no base behind: load it
    return _draw(base, asked, seeds, base=False)


def _draw(model: Model, asked, seeds: list[int], base: bool):
    return generate(
        model,
        list(asked.prompt),
        seeds,
        asked.steps,
        asked.guidance,
        asked.sampler,
        asked.sample_batch_size,
        asked.negative_prompt,
        base,
        asked.resolution or _resolution(Path(asked.run)),
    )


def _resolution(run: Path) -> int | None:
    """What the run was trained at; None means the model's own."""
    return json.loads((run / "config.json").read_text()).get("resolution")


def _new_name(folder: Path) -> Path:
    """The first generate-N.png that is free: pictures made before are never overwritten."""
    taken = [re.fullmatch(r"generate-(\d+)\.png", p.name) for p in folder.glob("generate-*.png")]
    number = 1 + max((int(m[1]) for m in taken if m), default=0)
    return folder / f"generate-{number}.png"
