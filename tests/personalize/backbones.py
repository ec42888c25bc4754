"""SDXL and SD-3 as tiny pipelines, for the tests that ask the same of every backbone."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
)
from small import workshop

from personalize.pipeline.families import SD3, SDXL
from personalize.pipeline.model import Model
from personalize.pipeline.random_pipeline import tiny

FAMILY = {"sdxl": SDXL, "sd3": SD3}
OFFICIAL = {"sdxl": StableDiffusionXLPipeline, "sd3": StableDiffusion3Pipeline}
BOTH = pytest.mark.parametrize("kind", FAMILY)
PROMPTS = ["a photo of sks dog", "a cat on the beach"]
T = torch.tensor([5, 900])
WHOLE = (64, 64, 0, 0, 64, 64)  # of a picture that the base made
FRAME = (100, 200, 3, 5, 64, 64)  # of an instance's photo


@functools.cache
def folder(kind: str) -> Path:
    """The tiny pipeline as a folder. Copy it before changing it."""
    tiny(kind, folder=workshop() / kind)
    return workshop() / kind


@functools.cache
def untouched(kind: str) -> Model:
    return Model(tiny(kind), FAMILY[kind])


def levels(images):
    return np.stack([np.asarray(i).astype(int) for i in images])


def latents(model, n, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, *model.latent_shape(64), generator=rng)


@torch.no_grad()
def answer(model, prompts=PROMPTS):
    x = latents(model, 2)
    return model.predict(x, model.schedule.timesteps[T], model.encode_prompts(prompts))
