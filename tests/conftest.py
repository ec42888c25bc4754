"""Settings of every test: offline, one thread, shapes of the core three checked at run time."""

import atexit
import importlib
import os
import shutil
import signal
import tempfile

import pytest
import torch
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
# bits are compared, and a GPU's sums have no fixed order: `make gpu` shows the tests one
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# chains of the base are never kept in the user's own cache
os.environ["DRIFTLAB_CACHE"] = tempfile.mkdtemp(prefix="driftlab-cache-")
atexit.register(shutil.rmtree, os.environ["DRIFTLAB_CACHE"], ignore_errors=True)

# While testing, the annotations of these files are assertions: hook them before they are imported.
CORE = ["toy2d.core.schedule", "toy2d.core.drift", "toy2d.core.objectives"]
with install_import_hook(CORE, "typecheck.check"):
    for name in CORE:
        importlib.import_module(name)


# a shell that starts the tests in the background has SIGINT ignored; tests of signals need it
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # before any fixture: a sum's last bits depend on the number of threads


@pytest.fixture(autouse=True)
def one_thread():
    """Whatever a test sets, the next one starts with one thread."""
    yield
    torch.set_num_threads(1)
