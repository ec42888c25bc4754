"""Models that have and have not moved, their evaluation, and the networks that judge them."""

import pytest
import torch
from evaluating import run
from judges import judges
from small import workshop

from personalize.adapters.trainable import choose
from personalize.evaluate.judges import load_evaluators
from personalize.pipeline.load import load

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return judges(tmp_path_factory.mktemp("judges"))


@pytest.fixture(scope="session")
def evaluators(folders):
    return load_evaluators(folders["clip"], folders["dino"], folders["truth"], lpips=False)


@pytest.fixture(scope="session")
def still():
    """A model with adapters that have not moved: B = 0."""
    model = load(str(workshop() / "sd"))
    choose(model, "lora")
    return model


@pytest.fixture(scope="session")
def moved():
    """The same with adapters that have."""
    model = load(str(workshop() / "sd"))
    theta = choose(model, "lora")
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theta.values():
            p.add_(0.3 * torch.randn(p.shape, generator=rng))
    return model


@pytest.fixture(scope="session")
def evaluation(moved, evaluators, tmp_path_factory):
    """The moved model's evaluation, and its folder."""
    folder = tmp_path_factory.mktemp("evaluation")
    found = run(moved, folder, evaluators, chains=2)
    found.write(folder)
    return found, folder


@pytest.fixture(scope="session")
def words(folders):
    return [
        "--images",
        "2",
        "--steps",
        "2",
        "--chains",
        "2",
        "--clip",
        folders["clip"],
        "--dino",
        folders["dino"],
    ]
