"""Tasks for the tests of engines, in a module that worker processes import quickly."""

import contextlib
import os
import signal
from pathlib import Path
from unittest import mock


def once(marker: Path) -> bool:
    """True the first time, over all processes."""
    with contextlib.suppress(FileExistsError):
        marker.touch(exist_ok=False)
        return True
    return False


def square(n: int, marker: Path | None = None) -> int:
    """n * n; the first process to find `marker` absent dies."""
    if marker is not None and once(marker):
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n


def train(config, marker: Path | None = None) -> list[str]:
    """What the run said. The first process to find `marker` absent dies after a checkpoint."""
    import small
    import torch

    from personalize.train import experiment
    from toy2d.runs.folder import RunFolder

    torch.set_num_threads(1)
    said, save = [], RunFolder.save_checkpoint

    def save_and_die(*args, **kwargs):
        save(*args, **kwargs)
        if marker is not None and once(marker):
            os.kill(os.getpid(), signal.SIGKILL)

    with (
        mock.patch.object(RunFolder, "save_checkpoint", save_and_die),
        mock.patch.object(experiment, "load", small.load_quickly),
    ):
        experiment.run(config, said.append)
    return said
