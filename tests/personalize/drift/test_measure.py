"""Drift at full scale: cached answers equal a second network's, and a constant shift has its
closed form.
"""

import pytest
import torch
from small import config, workshop

from personalize.adapters.trainable import choose
from personalize.data.latents import PromptCache
from personalize.drift.measure import (
    chain_sampling,
    eps_drift,
    kept_chains,
    make_chains,
    path_columns,
    path_drift,
    prompt_groups,
)
from personalize.pipeline.load import load
from toy2d.core import drift
from toy2d.runs.files import read_csv
from toy2d.runs.folder import RunFolder, load_tensors

torch.set_num_threads(1)

SHAPE = (4, 8, 8)  # of a latent
GROUPS = {"class_prompt": "a photo of a dog", "context_prompts": ("a dog in the snow",)}


@pytest.fixture(scope="module")
def setting():
    """A model with adapters, chains of its base, and then moved adapters."""
    model = load(str(workshop() / "sd"))
    theta = choose(model, "lora")
    prompts = PromptCache(model)

    def predict(x_t, t, texts):
        return model.predict(x_t, t, prompts(texts))

    c = config("unused", **GROUPS, measure_nodes=5, measure_chains=3)
    chains = make_chains(predict, model.schedule, chain_sampling(c, SHAPE))
    at_start = path_drift(predict, chains, 4), eps_drift(predict, chains, 4)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theta.values():
            p.add_(0.2 * torch.randn(p.shape, generator=rng))

    def base(x_t, t, texts):
        with model.base():
            return predict(x_t, t, texts)

    return model, predict, base, c, chains, at_start


def test_the_base_has_not_moved(setting):
    paths, eps = setting[-1]
    assert eps < 1e-5  # nodes are batched otherwise than when the chain was made: rounding
    assert all(abs(mean) < 1e-8 for mean, _, _ in paths.values())


def test_cached_answers_equal_the_base_asked_again(setting):
    """path KL and delta eps with the stored answers, against toy2d's functions with a live
    second predictor.
    """
    model, predict, base, c, chains, _ = setting
    short = model.schedule.strided(c.measure_nodes)
    cached = path_drift(predict, chains, 3)
    for name, group in chains.items():
        live = drift.path_kl(predict, base, short, group.x, group.prompts)
        assert cached[name][0] == pytest.approx(float(live[0]), rel=1e-4)
        assert cached[name][1] == pytest.approx(float(live[1]), rel=1e-4)
        assert cached[name][0] > 0.01
    squares = [drift.delta_eps(predict, base, short, *g.probe()) ** 2 for g in chains.values()]
    sizes = [len(g.prompts) for g in chains.values()]
    expected = sum(float(s) * n for s, n in zip(squares, sizes, strict=True)) / sum(sizes)
    assert eps_drift(predict, chains, 3) == pytest.approx(expected**0.5, rel=1e-4)


def test_a_constant_shift_has_its_closed_form(setting):
    """eps + h everywhere: delta eps = h sqrt(D) and path KL = h^2 D sum_t w_t, for every chain
    alike.
    """
    model, _, _, c, chains, _ = setting
    h, D = 0.1, 4 * 8 * 8
    for group in chains.values():

        def shifted(x_t, t, texts, group=group):
            return group.base(x_t, t, texts) + h

        one = {"group": group}
        weights = float(model.schedule.strided(c.measure_nodes).path_weights().sum())
        mean, error, n = path_drift(shifted, one, len(group.prompts))["group"]
        assert mean == pytest.approx(h**2 * D * weights, rel=1e-4)
        assert error < 1e-4 * mean
        assert n == len(group.prompts)
        assert eps_drift(shifted, one, len(group.prompts)) == pytest.approx(h * D**0.5, rel=1e-4)


def test_the_chains_visit_every_node(setting):
    for group in setting[4].values():
        assert len(group.x) == len(group.answers) == 5
        assert torch.isfinite(group.x).all()
        nodes = group.probe()[1]
        assert nodes.min() >= 1
        assert nodes.max() <= 4
        assert len(nodes.unique()) == min(4, len(nodes))


def test_chains_are_kept_and_found_again(setting, tmp_path):
    model, predict, _, c, _, _ = setting
    file = tmp_path / "chains.safetensors"
    sampling = chain_sampling(c, SHAPE)
    first = kept_chains(file, predict, model.schedule, sampling)
    again = kept_chains(file, None, model.schedule, sampling)  # nobody is asked
    for name in first:
        assert torch.equal(first[name].x, again[name].x)
        assert torch.equal(first[name].answers, again[name].answers)


def test_prompt_groups():
    c = config("unused", class_prompt=None, context_prompts=(), unrelated_prompts=("a house",))
    assert prompt_groups(c) == {"unrelated": ("a house",)}


def test_columns_pool_the_groups():
    row = path_columns({"a": (1.0, 0.3, 10), "b": (4.0, 0.4, 20)})
    assert row["path_kl"] == pytest.approx((10 * 1 + 20 * 4) / 30)
    assert row["path_kl_error"] == pytest.approx(((10 * 0.3) ** 2 + (20 * 0.4) ** 2) ** 0.5 / 30)
    assert row["path_kl/b"] == 4.0


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_writes_the_toys_columns_and_its_blocks(tmp_path, kind):
    from personalize.train.experiment import run

    c = config(tmp_path / "run", "l2", kind, probe_steps=2, **GROUPS)
    run(c, lambda text: None)
    rows = read_csv(tmp_path / "run" / "history.csv")
    assert [r["step"] for r in rows] == [0, 1, 2, 3, 4]
    toy = {
        "step",
        "objective",
        "weight",
        "seed",
        "loss_instance",
        "delta_theta",
        "delta_eps",
        "path_kl",
        "path_kl_error",
        "seconds",
    }
    assert toy <= set(rows[-1])
    assert rows[0]["delta_theta"] == rows[0]["path_kl"] == 0
    assert rows[-1]["delta_theta"] > rows[2]["delta_theta"] > 0
    assert rows[-1]["loss_l2"] == pytest.approx(
        c.l2_reg_weight * rows[-1]["delta_theta"] ** 2, rel=1e-4
    )
    import json

    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    blocks = metrics["delta_theta_blocks"]
    assert sum(v**2 for v in blocks.values()) ** 0.5 == pytest.approx(
        metrics["delta_theta"], rel=1e-6
    )
    assert {"unet.down_blocks.0", "unet.up_blocks.1"} <= set(blocks)
    assert set(metrics["path_kl_groups"]) == {"class", "contexts", "unrelated"}
    assert "ancestral" in metrics["path_kl_sampler"]
    if kind == "full":  # the number is the distance of what was exported
        before = load_tensors(workshop() / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
        after = load_tensors(tmp_path / "run/pipeline/unet/diffusion_pytorch_model.safetensors")
        distance = drift.delta_theta(after, before)
        assert metrics["delta_theta"] == pytest.approx(float(distance), rel=1e-5)
    assert RunFolder(c.output_dir, {}).status == "done"
