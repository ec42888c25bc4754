"""One small finished run for every test of a theorem: one seed, a few seconds."""

from dataclasses import replace

import pytest

from toy2d import report
from toy2d.config import smoke
from toy2d.experiment import run
from toy2d.figures import all as figures
from toy2d.verify.course import Course


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """runs/toy2d/tiny: every objective once or more, 40 timesteps, 32 units; not drawn."""
    config = replace(
        smoke(),
        name="tiny",
        seeds=(0,),
        runs=("standard", "prior:1", "l2:0.01", "l2:0.1", "l2:1", "output:1", "replay_all:1"),
        width=32,
        pretrain_samples=400,
        pretrain_steps=700,
        pretrain_batch_size=128,
        pretrain_learning_rate=6e-3,
        steps=250,
        learning_rate=1e-3,
        snapshots=(),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "draw_all", lambda path: None)
        patch.setattr(report, "write", lambda path: None)
        return run(config, tmp_path_factory.mktemp("runs"), say=lambda _: None)


@pytest.fixture(scope="session")
def course(folder):
    return Course(folder, (0,))


@pytest.fixture
def pair(course):
    """pair("standard") -> the base and that run, as a `Pair`."""
    return lambda spec: course.pair(course.which(spec)[0][0])
