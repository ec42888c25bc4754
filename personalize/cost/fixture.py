"""Benchmark fixture: one model with random latents, and the training loop of each objective on it.

The loops are put together by the functions that `train` uses (train/assembly.py).
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from personalize.adapters.trainable import choose
from personalize.config.commands import Bench
from personalize.config.train_config import TrainConfig
from personalize.data.latents import PromptCache, instance_set
from personalize.data.photos import scan
from personalize.drift.fisher import effective_weights
from personalize.pipeline.families import FAMILIES
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from personalize.pipeline.random_pipeline import random_pipeline
from personalize.train.assembly import base_outputs, make_loop, make_predictors, make_streams
from personalize.train.from_base import DTYPES, make_anchors
from personalize.train.loop import TrainingLoop
from toy2d.runs.folder import save_tensors

PROMPTS = {
    "instance": "a photo of sks dog",
    "prior": "a photo of a dog",
    "output": "a photo of a dog",
}
DRAWS = 4  # random latents of each role, and stored answers of the base


def bench_model(command: Bench, kind: str = "full", family: str = "sd15") -> Model:
    """The model that --model names, or a random one of --width; half precision only for LoRA."""
    dtype = DTYPES[command.mixed_precision] if kind == "lora" else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if command.model:
        return load(command.model, dtype=dtype).to(device)
    pipeline = random_pipeline(family, command.width, device=device)
    model = Model(pipeline, FAMILIES[type(pipeline).__name__])
    model.denoiser.to(dtype)
    return model.to(device)


class RandomPool:
    """Random latents under one prompt."""

    def __init__(self, model: Model, resolution: int, prompt: str):
        shape = (DRAWS, *model.latent_shape(resolution))
        self.x0 = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)
        self.prompts = [prompt] * DRAWS

    def __len__(self) -> int:
        return len(self.x0)

    def draw(self, indices, rng):
        return self.x0[indices], [self.prompts[i] for i in indices]


def configuration(command: Bench, objective: str, kind: str) -> TrainConfig:
    return TrainConfig(
        pretrained_model_name_or_path=command.model or "random",
        instance_data_dir="",
        objective=objective,
        train=kind,
        resolution=command.resolution,
        train_batch_size=command.batch_size,
        max_train_steps=DRAWS,
        output_draws=DRAWS,
        lr_warmup_steps=0,
        learning_rate=1e-6,
        log_every=10**6,
        mixed_precision=command.mixed_precision,
        checkpointing_steps=0,
    )


class BenchFixture:
    """One model of one kind of training, on which the loop of every objective can be made."""

    def __init__(self, command: Bench, kind: str, accelerator: Accelerator, family: str = "sd15"):
        self.command, self.kind, self.accelerator = command, kind, accelerator
        self.model = bench_model(command, kind, family)
        self.theta = choose(self.model, kind)
        standard = configuration(command, "standard", kind)
        prompts = PROMPTS.values()
        self.predictors = make_predictors(standard, self.model, accelerator, prompts)

    def loop(self, objective: str) -> TrainingLoop:
        """The loop of one objective; all loops of a fixture train the same weights."""
        config = configuration(self.command, objective, self.kind)
        roles = [r for r in PROMPTS if r == "instance" or config.uses(r)]
        pools = {r: RandomPool(self.model, config.resolution, PROMPTS[r]) for r in roles}
        streams = make_streams(config, self.model, pools)
        known = config, self.predictors
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder)
            if config.uses("fisher"):  # its values do not change the time of a step
                weights = effective_weights(self.model, self.theta)
                ones = {name: torch.ones_like(w) for name, w in weights.items()}
                save_tensors(cache / "fisher.safetensors", ones)
            base = base_outputs(*known, self.theta, streams, cache)
            live = self.predictors.live
            anchors, _ = make_anchors(config, self.model, self.theta, live, cache)
        return make_loop(*known, streams, anchors, base)

    def usual_loop(self, folder: Path) -> TrainingLoop:
        """The standard loop without caches, as the field's example scripts work.

        At every step the photo is read, cut and encoded by the VAE, and the prompt is encoded too.
        """
        model, dtype = self.model, DTYPES[self.command.mixed_precision]
        for part in (model.vae, *model.text_encoders):
            part.to(model.device, dtype)
        save_photograph(folder / "photo.jpg")
        records, live = scan(folder).require(), PromptCache(model, cache=False)
        resolution = self.command.resolution
        photos = instance_set(model, records, PROMPTS["instance"], resolution)
        cached = self.loop("standard")
        predict = uncached(self.accelerator, model, live)
        streams = make_streams(cached.config, model, {"instance": photos})
        return replace(cached, predict=predict, streams=streams)


def uncached(accelerator: Accelerator, model: Model, prompts: PromptCache) -> Callable:
    """The live model, encoding its prompts at every call."""

    def predict(x_t, t, texts):
        with accelerator.autocast():
            return model.predict(x_t, t, prompts(texts))

    return predict


def save_photograph(file: Path, size: int = 1024, seed: int = 0) -> None:
    """A JPEG as large as the DreamBooth benchmark's usual ones: coarse noise, smoothly enlarged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    picture.save(file, quality=95)
