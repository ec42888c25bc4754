"""--l2_layers in the toy: only the layers that are named are held."""

import json
from dataclasses import replace

import pytest
import torch

from toy2d.config import ToyConfig, smoke
from toy2d.core.rng import generator
from toy2d.data import world_pool
from toy2d.prepare import Setting, make_groups
from toy2d.runs.files import UserError
from toy2d.runs.layers import layer_of
from toy2d.train import Streams, fit

torch.set_num_threads(1)


def distances(runs: tuple[str, ...], **more) -> list[dict[str, float]]:
    """Per run, ||delta theta_b||^2 of each layer after 60 steps from an untrained network."""
    setting = Setting(replace(smoke(), seeds=(0,), runs=runs, learning_rate=3e-3, **more))
    c, world = setting.config, setting.world
    groups = make_groups(setting, setting.net.init([generator(0, "init")]), probe=None)
    pools = {"instance": world_pool(world, (world.new,), c.shots, c.seeds, "instance")}
    fit(groups, Streams(pools, c.seeds, c.batch_size, "finetune"), setting.schedule, 60)
    found = []
    for group in groups:
        moved = dict.fromkeys(setting.net.layers, 0.0)
        for name, p in group.theta.items():
            square = float(((p.detach() - group.theta_star[name]) ** 2).sum())
            moved[layer_of(name, setting.net.layers)] += square
        found.append(moved)
    return found


@pytest.mark.parametrize("kind", ["l2", "l2_decoupled"])
def test_a_strong_weight_holds_its_layer_and_leaves_the_others_free(kind):
    free, held = distances(("standard", f"{kind}:1000"), l2_layers=("layer1:1",))
    assert held["layer1"] < 0.02 * free["layer1"]
    for layer in ("words", "layer0", "layer2"):
        assert 0.5 < held[layer] / free[layer] < 2


def test_weights_multiply_the_runs_own():
    """lam 1 on a layer of weight 0.1 is lam 0.1 on that layer of weight 1 (the other is 10 times
    heavier in both)."""
    (a,) = distances(("l2:1",), l2_layers=("layer0:0.1", "layer1:1"))
    (b,) = distances(("l2:0.1",), l2_layers=("layer0:1", "layer1:10"))
    assert a == pytest.approx(b, rel=1e-3)


def test_a_configuration_without_it_reads_as_before():
    assert "l2_layers" not in ToyConfig().as_dict()
    held = replace(ToyConfig(), runs=("l2:1",), l2_layers=("layer0:1",))
    assert json.loads(json.dumps(held.as_dict()))["l2_layers"] == ["layer0:1"]


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"l2_layers": ("layer0:1",)}, "no run has an l2 term"),
        ({"runs": ("l2:1",), "l2_layers": ("layer0",)}, "write PATTERN:WEIGHT"),
        (
            {"runs": ("l2:1",), "l2_layers": ("layer9:1",)},
            r"layer9:1 matches none .* words \(1\), layer0 \(2\), layer1 \(2\), layer2 \(2\)",
        ),
    ],
)
def test_what_does_nothing_is_refused(chosen, said):
    with pytest.raises(UserError, match=said):
        Setting(replace(smoke(), **({"runs": ("standard",)} | chosen)))
