"""The listings of lectures/adding_an_objective.md run as they are, and train at both scales."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import small
import torch

from personalize.train.experiment import Experiment, read, recorded
from personalize.train.setup import make_accelerator
from toy2d.config import smoke
from toy2d.core.objectives import Distance
from toy2d.experiment import pretrain
from toy2d.prepare import Setting, make_groups, make_pools, probe_of
from toy2d.runs.folder import RunFolder
from toy2d.train import Streams, fit

PAGE = Path(__file__).parent.parent / "lectures" / "adding_an_objective.md"
LISTINGS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def page():
    """The names that the page's listings define."""
    names = {
        "torch": torch,
        "Experiment": Experiment,
        "replace": replace,
        "fit": fit,
        "Streams": Streams,
    }
    for listing in LISTINGS:
        exec(listing, names)
    return names


def test_the_sixth_takes_less_than_fifteen_lines():
    assert "class L1Anchor" in LISTINGS[0]
    assert len([line for line in LISTINGS[0].splitlines() if line.strip()]) < 15


def test_it_is_a_distance(page):
    theta = {"w": torch.ones(2, 3)}
    anchor = page["L1Anchor"](theta, {"w": torch.zeros(2, 3)}, runs=1)
    assert isinstance(anchor, Distance)
    assert anchor.squared_distance().tolist() == [3.0, 3.0]
    anchor.pull_(torch.tensor([0.25, 2.0]))  # one strength a run: the soft threshold
    assert theta["w"].tolist() == [[0.75] * 3, [0.0] * 3]


def test_its_gradient_is_autograds(page):
    theta = {"w": torch.randn(4, 3).requires_grad_()}
    anchor = page["L1Anchor"](theta, {"w": torch.zeros(4, 3)})
    (wanted,) = torch.autograd.grad(0.5 * anchor.squared_distance(), theta["w"])
    theta["w"].grad = torch.zeros(4, 3)
    anchor.add_gradient_(0.5)
    torch.testing.assert_close(theta["w"].grad, wanted)


def toy_group(tmp_path, spec: str):
    """(setting, pools, group) of one run on the plane."""
    config = replace(smoke(), seeds=(0,), runs=(spec,), pretrain_steps=20)
    folder = RunFolder(tmp_path / spec.replace(":", "-"), config.as_dict())
    setting = Setting(config)
    bases = pretrain(setting, folder)
    probe = probe_of(setting, bases.theta)
    (group,) = make_groups(setting, bases.theta, probe)
    return setting, make_pools(setting, bases.theta), group


def train(setting, pools, group):
    fit([group], Streams(pools, setting.seeds, 24, "finetune"), setting.schedule, 40)


def test_on_the_plane_most_weights_stay_exactly_the_bases(page, tmp_path):
    sparse = page["sixth_on_the_plane"](*toy_group(tmp_path, "l2_decoupled:0.9"))
    assert 0.5 < sum(sparse) / len(sparse) < 1
    setting, pools, group = toy_group(tmp_path, "l2_decoupled:0.9")
    train(setting, pools, group)
    equal = {k: (p.detach() == group.theta_star[k]).float() for k, p in group.theta.items()}
    del equal["token"]  # rows of words that no prompt of this run holds
    assert max(e.mean().item() for e in equal.values()) < 0.1  # L2 sets nothing to the base's value


def test_weight_zero_is_standard_to_the_bit(page, tmp_path):
    setting, pools, group = toy_group(tmp_path, "l2_decoupled:0")
    page["sixth_on_the_plane"](setting, pools, group)
    setting, pools, standard = toy_group(tmp_path, "standard")
    train(setting, pools, standard)
    assert all(torch.equal(p, standard.theta[k]) for k, p in group.theta.items())


def test_at_full_scale_most_weights_of_the_denoiser_stay_exactly_the_bases(page, tmp_path):
    config = small.config(tmp_path / "run", "l2", "full", reg_decoupled=True, l2_reg_weight=0.9)
    config, pictures = read(config)
    folder = RunFolder(config.output_dir, recorded(config))
    with folder.open():
        experiment = page["SixthExperiment"](config, pictures, folder, make_accelerator(config))
        anchor = experiment.run(config.command()).anchors["l2"]
    star = anchor.theta_star
    same = sum((p.detach() == star[k]).sum().item() for k, p in anchor.theta.items())
    total = sum(p.numel() for p in anchor.theta.values())
    assert 0.5 < same / total < 1
