"""The bench's stand: a network, random latents, and the loop's parts put together as `experiment` would."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from personalize.adapters.anchors import anchors_for, copy_of, plain_parameters
from personalize.adapters.trainable import choose
from personalize.config.commands import Bench
from personalize.config.train_config import TrainConfig
from personalize.data.latents import PromptCache, instance_set
from personalize.data.photos import scan
from personalize.drift.fisher import effective_weights, fisher_anchor
from personalize.pipeline.families import SD15
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from personalize.pipeline.scaled import random_pipeline
from personalize.train.from_base import DTYPES
from personalize.train.loop import Run, StoredAnswers, Streams, objective_of

ROLES = {"instance": "a photo of sks dog", "prior": "a photo of a dog", "output": "a photo of a dog"}  # fmt: skip


def open_model(command: Bench, kind: str = "full") -> Model:
    dtype = DTYPES[command.mixed_precision] if kind == "lora" else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if command.model:
        return load(command.model, dtype=dtype).to(device)
    model = Model(random_pipeline(width=command.width), SD15)
    model.denoiser.to(dtype)
    return model.to(device)


class RandomPool:
    """Four latents under one prompt."""

    def __init__(self, model: Model, resolution: int, prompt: str):
        shape = (4, *model.latent_shape(resolution))
        self.x0 = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)
        self.prompt = prompt

    def __len__(self) -> int:
        return len(self.x0)

    def draw(self, indices, rng):
        return self.x0[indices], [self.prompt] * len(indices)


def configuration(command: Bench, objective: str, kind: str, steps: int) -> TrainConfig:
    return TrainConfig(
        pretrained_model_name_or_path=command.model or "random",
        instance_data_dir="",
        objective=objective,
        train=kind,
        train_batch_size=command.batch_size,
        max_train_steps=steps,
        lr_warmup_steps=0,
        learning_rate=1e-6,
        log_every=10**6,
        mixed_precision=command.mixed_precision,
        checkpointing_steps=0,
    )


@dataclass
class Stand:
    """One model of one kind, on which every objective's loop can be put together, as `experiment` would."""

    command: Bench
    kind: str
    accelerator: Accelerator

    def __post_init__(self):
        self.model = open_model(self.command, self.kind)
        self.theta = choose(self.model, self.kind)
        self.prompts = PromptCache(self.model).add(list(ROLES.values()))
        self.model.unload("vae")
        self.model.unload("text_encoders")

    def predict(self, x_t, t, texts):
        with self.accelerator.autocast():
            return self.model.predict(x_t, t, self.prompts(texts))

    def predict_base(self, x_t, t, texts):
        with self.model.base():
            return self.predict(x_t, t, texts)

    def run(self, objective: str) -> Run:
        """The loop's parts; all runs of a stand share its weights."""
        config = configuration(self.command, objective, self.kind, 2)
        wanted = {r: p for r, p in ROLES.items() if r == "instance" or config.uses(r)}
        pools = {r: RandomPool(self.model, self.command.resolution, p) for r, p in wanted.items()}
        streams, base = Streams(pools, config, len(self.model.schedule)), None
        if config.uses("output"):
            base = self.predict_base
            if self.kind == "full":
                base = StoredAnswers.ask(self.predict, streams, self.model.schedule, 4)
        anchors = self._anchors(config)
        return Run(config, self.model.schedule, self.predict, objective_of(config), anchors, streams, base)  # fmt: skip

    def _anchors(self, config: TrainConfig) -> dict:
        anchors = anchors_for(self.model, self.theta) if config.uses("l2") else {}
        if config.uses("fisher"):
            ones = copy_of(effective_weights(self.model, self.theta))
            star = copy_of(plain_parameters(self.theta))
            anchors["fisher"] = fisher_anchor(self.model, self.theta, ones, star, None, None)
        return anchors

    def usual(self, folder: Path) -> Run:
        """The standard run as the field's example scripts do it: in every step the photo is read, cut and encoded, and the prompt too."""
        model, dtype = self.model, DTYPES[self.command.mixed_precision]
        for part in (model.vae, *model.text_encoders):
            part.to(model.device, dtype)
        save_photograph(folder / "photo.jpg")
        records, live = scan(folder).require(), PromptCache(model, cache=False)
        photos = instance_set(model, records, ROLES["instance"], self.command.resolution)

        def predict(x_t, t, texts):
            with self.accelerator.autocast():
                return model.predict(x_t, t, live(texts))

        cached = self.run("standard")
        streams = Streams({"instance": photos}, cached.config, len(model.schedule))
        return replace(cached, predict=predict, streams=streams)


def save_photograph(file: Path, size: int = 1024) -> None:
    """A JPEG as large as the DreamBooth benchmark's usual ones: coarse noise, smoothly enlarged."""
    coarse = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(file, quality=95)
