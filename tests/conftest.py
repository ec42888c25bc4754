"""Settings of every test: offline, one thread (tiny tensors are fastest there), shapes of the core three checked at run time."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

from jaxtyping import install_import_hook

# the annotations of the shape-generic files are assertions while testing; must come before they are imported
hook = install_import_hook(["toy2d.schedule", "toy2d.drift", "toy2d.objectives"], "typecheck.check")

import pytest
import torch

import toy2d.schedule, toy2d.drift, toy2d.objectives  # noqa: E401, F401

hook.uninstall()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
