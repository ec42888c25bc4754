"""--l2_layers: the distance is sum_b lambda_b ||delta theta_b||^2, of weights and of adapters."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from small import config, history_cells, killed_at_row, moved, same, trained

from personalize.adapters.anchors import anchors_for, copy_of, effective_names
from personalize.adapters.deltas import changes
from personalize.adapters.layers import LAYERS
from personalize.adapters.trainable import choose
from personalize.pipeline.load import load
from personalize.pipeline.random_pipeline import tiny
from toy2d.runs.files import UserError
from toy2d.runs.layers import layer_of, layer_weights

torch.set_num_threads(1)

ENTRIES = ("cross_attn:1", "self_attn:0.25", r"up_blocks.*ff\.:3")


def weights_of(model, theta, entries=ENTRIES):
    return layer_weights(entries, effective_names(model, theta), LAYERS)


def by_hand(model, theta, star, layers, reduction):
    """The weighted squares, differentiable, each layer's delta W formed."""
    of = torch.sum if reduction == "sum" else torch.mean
    parts = [layers[c.name] * of(c.delta_weight() ** 2) for c in changes(model.parts)]
    plain = {n: p for n, p in theta.items() if n in star}
    return sum(parts + [layers[n] * of((p - star[n]) ** 2) for n, p in plain.items()])


@pytest.mark.parametrize("reduction", ["sum", "tensor_mean"])
@pytest.mark.parametrize("train", ["full", "lora", "loha", "oft", "svdiff", "custom_diffusion"])
def test_value_and_gradient_are_the_weighted_ones(model, train, reduction):
    theta = choose(model, train, rank=2)
    few = train in ("lora", "loha", "oft", "custom_diffusion")
    entries = (r"to_k:2", "other:0.5") if few else ENTRIES
    layers = weights_of(model, theta, entries)
    star = copy_of(theta) if train in ("full", "custom_diffusion") else {}
    anchor = anchors_for(model, theta, reduction, layers=layers)["l2"]
    moved(theta)
    expected = by_hand(model, theta, star, layers, reduction)
    torch.testing.assert_close(anchor.squared_distance(), expected, rtol=1e-4, atol=0)
    wanted = torch.autograd.grad(2.5 * expected, list(theta.values()), allow_unused=True)
    for p in theta.values():
        p.grad = torch.zeros_like(p)
    anchor.add_gradient_(2.5)
    for p, g in zip(theta.values(), wanted, strict=True):
        g = torch.zeros_like(p) if g is None else g
        torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-5 * float(g.abs().max()))


@pytest.mark.parametrize("train", ["full", "lora"])
def test_the_proximal_step_divides_each_layers_change(model, train):
    theta = choose(model, train, rank=2)
    layers = weights_of(model, theta, ("cross_attn:2",))
    anchor = anchors_for(model, theta, layers=layers)["l2"]
    star = copy_of(theta) if train == "full" else {}
    moved(theta)

    def change():
        dense = {c.name: c.delta_weight().detach() for c in changes(model.parts)}
        return dense | {n: (theta[n] - star[n]).detach() for n in star}

    before = change()
    anchor.pull_(0.5)
    for name, after in change().items():
        share = 1 + 2 * 0.5 * layers[name]  # 3 in the cross-attention, 1 elsewhere
        torch.testing.assert_close(after, before[name] / share, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("backbone", ["sd15", "sdxl", "sd3"])
def test_kinds_of_layers_of_each_backbone(tmp_path, backbone):
    """None is empty, and what is called other stays the rest."""
    tiny(backbone, folder=tmp_path / "model")
    model = load(str(tmp_path / "model"))
    names = effective_names(model, choose(model, "full", train_text_encoder=True))
    counts = Counter(layer_of(n, LAYERS) for n in names)
    expected = {"text_encoder", "cross_attn", "self_attn", "feed_forward", "norm", "time"}
    assert expected <= set(counts)
    assert ("conv" in counts) == (backbone != "sd3")
    assert counts["other"] < 0.2 * len(names)
    wanted = model.family.cross_attention
    assert all(layer_of(n, LAYERS) == "cross_attn" for n in names if any(w in n for w in wanted))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_resume_is_exact(tmp_path, kind):
    held = (r"to_[qk]\b:1",)
    strong = {"l2_reg_weight": 30.0, "l2_layers": held, "checkpointing_steps": 2}
    whole = config(tmp_path / "whole", "l2", kind, **strong)
    cut = replace(whole, output_dir=str(tmp_path / "cut"))
    killed_at_row(cut, step=3)
    kept = trained(whole)
    assert same(kept, trained(cut))
    assert history_cells(whole) == history_cells(cut)


@pytest.mark.parametrize(
    ("kind", "layers", "said"),
    [
        ("lora", ("conv:1",), r"conv:1 matches none of the weights that train; .*cross_attn \("),
        ("full", ("cross_attn:1", "attn2:0.5"), "contradict each other at unet"),
        ("full", ("crossattn:1",), "crossattn:1 matches none"),
        ("full", ("conv:-1",), "a finite number >= 0"),
    ],
)
def test_entries_that_fit_nothing_are_refused_before_anything_is_made(tmp_path, kind, layers, said):
    with pytest.raises(UserError, match=said):
        trained(config(tmp_path / "run", "l2", kind, l2_layers=layers))
    assert not (tmp_path / "run").exists()
