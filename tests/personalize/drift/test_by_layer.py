"""What the change of one kind of layer does alone, and what the run records of it."""

import json
from pathlib import Path

import pytest
import torch
from small import config, moved, trained

from personalize.adapters.anchors import copy_of, plain_parameters
from personalize.adapters.trainable import choose
from personalize.config.rules import resolve
from personalize.drift.by_layer import kind_of, only
from personalize.drift.measure import evaluations

torch.set_num_threads(1)


@pytest.mark.parametrize("train", ["full", "lora", "svdiff"])
def test_only_keeps_one_layers_change_and_puts_all_back(model, train):
    """With one layer moved: alone it gives the moved model, and every other layer the base."""
    theta = choose(model, train, rank=2)
    star = copy_of(plain_parameters(theta))
    x = torch.randn(2, *model.latent_shape(64), generator=torch.Generator().manual_seed(0))
    t = model.schedule.timesteps[torch.tensor([5, 900])]
    cond = model.encode_prompts(["a dog", "a cat"])

    def answer():
        with torch.no_grad():
            return model.predict(x, t, cond)

    base = answer()
    moved({n: p for n, p in theta.items() if kind_of(n) == "self_attn"}, 0.2)
    tuned, before = answer(), copy_of(theta)
    flags = {n: p.requires_grad for n, p in theta.items()}
    assert not torch.equal(tuned, base)
    for kind, expected in (("self_attn", tuned), ("cross_attn", base)):
        with only(model, theta, star, kind):
            torch.testing.assert_close(answer(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(answer(), tuned)
    assert all(torch.equal(p, before[n]) for n, p in theta.items())
    assert flags == {n: p.requires_grad for n, p in theta.items()}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_run_records_a_table_of_its_layers(tmp_path, kind):
    c = config(tmp_path / "run", kind=kind, measure_layers=True)
    trained(c)
    metrics = json.loads((Path(c.output_dir) / "metrics.json").read_text())
    table = metrics["layers"]
    assert {"cross_attn", "self_attn"} <= set(table)
    squares = sum(row["delta_theta"] ** 2 for row in table.values())
    assert squares == pytest.approx(metrics["delta_theta"] ** 2, rel=1e-6)
    assert all(value > 0 for row in table.values() for value in row["path_kl"])


def test_without_the_flag_no_path_kl_is_measured_and_the_plan_says_what_it_costs(tmp_path):
    c = config(tmp_path / "run")
    trained(c)
    table = json.loads((Path(c.output_dir) / "metrics.json").read_text())["layers"]
    assert all(set(row) == {"weights", "delta_theta"} for row in table.values())
    assert "measure_layers" not in json.loads((Path(c.output_dir) / "config.json").read_text())
    more = evaluations(resolve(config(tmp_path / "run", measure_layers=True)))
    assert more > evaluations(resolve(c))
