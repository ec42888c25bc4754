"""`personalize generate RUN`: a finished run's pictures as one grid, the base's row above if
asked for.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch

from personalize.config.commands import Generate
from personalize.config.kinds import TRAINING_KINDS
from personalize.export.write import load_run
from personalize.mini.shipped import usual_guidance
from personalize.pipeline.model import Model
from personalize.sample.sampler import Sampling, generate, grid, image_seed
from personalize.sample.validate import save_picture
from toy2d.runs.files import UserError


def pictures_of_run(command: Generate, say: Callable[[str], None] = print) -> Path:
    """Returns the PNG's path. Raises UserError for a folder that is no finished run."""
    if problems := command.problems():
        raise UserError("; ".join(problems))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_run(command.run).to(device)
    seeds = [image_seed(command.seed, i) for i in range(command.images)]
    rows = {"": _draw(model, command, seeds, base=False)}
    if command.base:
        rows = {" (base)": _base_pictures(model, command, seeds, device), **rows}
    images, labels, n = [], [], command.images
    for i, prompt in enumerate(command.prompt):
        for name, made in rows.items():
            images += made[i * n : (i + 1) * n]
            labels.append(prompt + name)
    file = Path(command.out) if command.out else _new_name(Path(command.run) / "figures")
    save_picture(grid(images, n, labels), file)
    say(str(file))
    return file


def _base_pictures(model: Model, command: Generate, seeds: list[int], device: str):
    if TRAINING_KINDS[model.trained].keeps_base:
        return _draw(model, command, seeds, base=True)
    base = load_run(command.run, base=True).to(device)  # full training left no base behind: load it
    return _draw(base, command, seeds, base=False)


def _draw(model: Model, command: Generate, seeds: list[int], base: bool):
    config = json.loads((Path(command.run) / "config.json").read_text())
    sampling = Sampling(
        command.steps,
        command.guidance or usual_guidance(config.get("pretrained_model_name_or_path", "")),
        command.sampler,
        command.resolution or config.get("resolution"),
        command.sample_batch_size,
    )
    how = {"negative_prompt": command.negative_prompt, "base": base}
    return generate(model, list(command.prompt), seeds, sampling, **how)


def _new_name(folder: Path) -> Path:
    """The first generate-N.png that is free: pictures made before are never overwritten."""
    taken = [re.fullmatch(r"generate-(\d+)\.png", p.name) for p in folder.glob("generate-*.png")]
    number = 1 + max((int(m[1]) for m in taken if m), default=0)
    return folder / f"generate-{number}.png"
