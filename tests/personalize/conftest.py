"""Fixtures of the full scale: a tiny pipeline of real classes, and photo-like files. Offline, one
thread.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TQDM_DISABLE"] = "1"

import pytest
import torch
from diffusers.utils import logging as diffusers_logging
from photographs import photo

from personalize.pipeline.families import SD15
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from personalize.pipeline.random_pipeline import tiny

diffusers_logging.set_verbosity_error()
diffusers_logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A pipeline folder. Copy it before changing it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny(folder=folder)
    return folder


@pytest.fixture(scope="session")
def base():
    """A model that nobody trains or changes."""
    return Model(tiny(), SD15)


@pytest.fixture
def model(tiny_folder):
    """A model of one's own."""
    return load(tiny_folder)


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def photos(tmp_path):
    """Four photo-like JPEGs in a folder of their own."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        photo(96 + 16 * i, 80, seed=i).save(folder / f"{i}.jpg", quality=95)
    return folder
