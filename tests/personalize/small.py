"""Small real runs for the tests: the tiny Stable Diffusion, generated photos, a few steps."""

import atexit
import copy
import csv
import functools
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from personalize.adapters.trainable import choose
from personalize.config.train_config import TrainConfig
from personalize.export.formats import FORMATS
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from personalize.pipeline.random_pipeline import tiny
from personalize.train import experiment
from toy2d.runs.files import read_csv
from toy2d.runs.folder import RunFolder, load_tensors

OBJECTIVES = ("standard", "prior", "l2", "output", "fisher")
KINDS = {
    "full": {"train": "full", "learning_rate": 1e-4},
    "lora": {"train": "lora", "learning_rate": 1e-2},
    "full+text": {"train": "full", "learning_rate": 1e-4, "train_text_encoder": True},
    "lora+text": {"train": "lora", "learning_rate": 1e-2, "train_text_encoder": True},
}
NEW = {
    "instance_prompt": "a photo of <new1> dog",
    "placeholder_token": "<new1>",
    "initializer_token": "dog",
}
MORE_KINDS = {
    "loha": {"train": "loha", "learning_rate": 1e-1},
    "lokr": {"train": "lokr", "learning_rate": 1e-2},
    "oft": {"train": "oft", "learning_rate": 1e-2},
    "boft": {"train": "boft", "learning_rate": 1e-2},
    "svdiff": {"train": "svdiff", "learning_rate": 1e-2},
    "custom_diffusion": {"train": "custom_diffusion", "learning_rate": 1e-3, **NEW},
    "token": {"train": "token", "learning_rate": 1e-1, **NEW},
}
STRONG = {"l2": {"l2_reg_weight": 1.0}, "fisher": {"fisher_weight": 1.0}}


@functools.cache
def workshop() -> Path:
    """A temporary folder of this test process with sd/ (the tiny model), photos/ and class/."""
    folder = Path(tempfile.mkdtemp(prefix="personalize-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tiny(folder=folder / "sd")
    photos(folder / "photos", 3)
    return folder


def photos(folder: Path, n: int, size: tuple[int, int] = (80, 64)) -> Path:
    """n smooth coloured JPEGs, no two alike."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=95)
    return folder


def config(out: Path, objective: str = "standard", kind: str = "lora", **more) -> TrainConfig:
    """Four steps, little measuring; class images are shared by the tests of this process."""
    chosen = {
        "pretrained_model_name_or_path": str(workshop() / "sd"),
        "instance_data_dir": str(workshop() / "photos"),
        "instance_prompt": "a photo of sks dog",
        "output_dir": str(out),
        "objective": objective,
        "max_train_steps": 4,
        "train_batch_size": 2,
        "checkpointing_steps": 0,
        "center_crop": True,
        "log_every": 1,
        "probe_steps": 4,
        # of two nodes the one used is pure noise, where a flow's output says nothing about eps
        "measure_nodes": 3,
        "measure_chains": 2,
        "unrelated_prompts": ("a red car",),
    } | (KINDS | MORE_KINDS)[kind]
    if objective not in ("standard", "l2"):
        chosen |= {"class_prompt": "a photo of a dog", "context_prompts": ("a dog in the snow",)}
    if {"prior", "output"} & set(objective.split("+")):
        chosen |= {
            "class_data_dir": str(workshop() / "class"),
            "num_class_images": 3,
            "class_steps": 2,
        }
    for part in objective.split("+"):
        chosen |= STRONG.get(part, {})
    if "fisher" in objective:
        chosen["fisher_samples"] = 8
    if chosen["objective"] == "output" and chosen["train"] == "full":
        chosen["output_draws"] = 3
    return TrainConfig(**(chosen | more))


@functools.cache
def opened() -> Model:
    return load(str(workshop() / "sd"))


def load_quickly(name, revision=None, variant=None, dtype=torch.float32, without_t5=False) -> Model:
    """A copy of the tiny model instead of reading its files again; others are really loaded."""
    plain = name == str(workshop() / "sd") and not variant and dtype == torch.float32
    if plain and not without_t5:
        return copy.deepcopy(opened())
    return load(name, revision, variant, dtype, without_t5)


@torch.no_grad()
def moved(theta: dict[str, torch.Tensor], by: float = 0.05) -> None:
    """Trained parameters somewhere else than where they start."""
    rng = torch.Generator().manual_seed(1)
    for p in theta.values():
        p += by * torch.randn(p.shape, generator=rng)


def gradient(dtype: torch.dtype, folder: Path, train: str, prompts: list[str], **options):
    """The gradient of the mean squared output, in one vector, as accelerate computes it.

    It is float32 whatever the weights' dtype.
    """
    model = load(str(folder), dtype=dtype)
    theta = choose(model, train, **options)
    moved(theta)
    x = torch.randn(2, *model.latent_shape(64), generator=torch.Generator().manual_seed(0))
    t = model.schedule.timesteps[torch.tensor([5, 900])]
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        output = model.predict(x, t, model.encode_prompts(prompts))
    assert output.dtype == torch.float32
    output.square().mean().backward()
    assert {p.grad.dtype for p in theta.values()} == {torch.float32}
    return torch.cat([p.grad.flatten() for p in theta.values()])


def trained(c: TrainConfig, on_row=None) -> dict[str, torch.Tensor]:
    """Run, and return what was exported, by name."""
    with mock.patch.object(experiment, "load", load_quickly):
        folder = experiment.run(c, say=lambda text: None, on_row=on_row)
    if c.train == "lora":
        return load_tensors(folder / "lora" / "pytorch_lora_weights.safetensors")
    if c.train == "full":
        unet = load_tensors(folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
        text = load_tensors(folder / "pipeline" / "text_encoder" / "model.safetensors")
        return unet | {f"text_encoder/{k}": w for k, w in text.items() if c.train_text_encoder}
    place = folder / FORMATS[c.kind.leaves[0]].place
    files = sorted(place.rglob("*.safetensors"))
    return {f"{f.stem}/{k}": v for f in files for k, v in load_tensors(f).items()}


def history(c: TrainConfig) -> list[dict]:
    """history.csv without the only column that may differ between equal runs."""
    rows = read_csv(Path(c.output_dir) / "history.csv")
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def history_cells(c: TrainConfig) -> list[list[str]]:
    """The text of every cell of history.csv but for the seconds: equal runs have equal bytes."""
    with open(Path(c.output_dir) / "history.csv", newline="") as file:
        rows = list(csv.reader(file))
    seconds = rows[0].index("seconds")
    return [row[:seconds] + row[seconds + 1 :] for row in rows]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Killed(BaseException):
    """Takes the place of kill -9 in this process."""


def killed_at_row(c: TrainConfig, step: int) -> None:
    """Run until row `step` is about to be written; the newest checkpoint is older than that."""

    def die(row):
        if row["step"] == step:
            raise Killed

    with pytest.raises(Killed):
        trained(c, on_row=die)
    assert RunFolder(c.output_dir, {}).status == "failed"
