"""The distance of adapters is that of the weights they change: equal to the dense norm, gradient and proximal step included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from personalize.adapters import (
    AnchorSum,
    LoraAnchor,
    LoraPair,
    anchors_for,
    block_of,
    copy_of,
    effective_delta_theta,
    lora_pairs,
    plain_parameters,
)
from personalize.model import choose
from toy2d.drift import delta_theta
from toy2d.objectives import Anchor

CONV_TARGETS = ("to_k", "to_q", "conv1", "conv_shortcut", "proj_in", "time_emb_proj")


def pair(o, i, r, scale, rng, kernel=()):
    """A LoRA pair in float64, so that the dense reference can be met to 1e-12."""
    A = torch.randn(r, i, *kernel, generator=rng, dtype=torch.float64, requires_grad=True)
    B = torch.randn(
        o, r, *[1] * len(kernel), generator=rng, dtype=torch.float64, requires_grad=True
    )
    return LoraPair("unet.x", A, B, scale)


def dense(pairs, reduction="sum"):
    square = torch.sum if reduction == "sum" else torch.mean
    return sum(square(p.delta_weight() ** 2) for p in pairs)


def some_pairs(rng):
    """Linear and convolution layers, shared and single shapes, scales that differ within a shape."""
    return [
        pair(12, 9, 3, 0.5, rng),
        pair(12, 9, 3, 2.0, rng),
        pair(7, 9, 3, 1.0, rng),
        pair(6, 5, 2, 1.5, rng, kernel=(3, 3)),
    ]


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.floats(0.01, 10), st.integers(0, 9)
)
@settings(max_examples=50, deadline=None)
def test_distance_is_the_dense_norm_squared(o, i, r, scale, seed):
    p = [pair(o, i, r, scale, torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(LoraAnchor(p).squared_distance(), dense(p), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("reduction", ["sum", "tensor_mean"])
def test_value_and_gradient_equal_autograd_through_the_dense_weight(rng, reduction):
    pairs = some_pairs(rng)
    anchor = LoraAnchor(pairs, reduction)
    torch.testing.assert_close(
        anchor.squared_distance(), dense(pairs, reduction), rtol=1e-12, atol=0
    )
    factors = [f for p in pairs for f in (p.A, p.B)]
    for loss in (dense(pairs, reduction), anchor.squared_distance()):
        expected = torch.autograd.grad(3.7 * loss, factors)
        for f in factors:
            f.grad = torch.ones_like(f)
        anchor.add_gradient_(3.7)
        for f, g in zip(factors, expected, strict=True):
            torch.testing.assert_close(f.grad - 1, g, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "tensor_mean"])
def test_pull_is_the_proximal_step_that_the_dense_anchor_takes(rng, reduction):
    """theta* = 0: Anchor.pull_ on the effective weights and LoraAnchor.pull_ on the factors land on the same weights."""
    pairs = some_pairs(rng)
    weights = {str(k): p.delta_weight().detach().clone() for k, p in enumerate(pairs)}
    zeros = {k: torch.zeros_like(w) for k, w in weights.items()}
    Anchor(weights, zeros, reduction=reduction).pull_(0.3)
    LoraAnchor(pairs, reduction).pull_(0.3)
    for p, w in zip(pairs, weights.values(), strict=True):
        torch.testing.assert_close(p.delta_weight(), w, rtol=1e-12, atol=0)


def test_distance_does_not_depend_on_how_delta_w_is_split(rng):
    """B A = (B M^-1)(M A); the sum of the factors' squares, which others penalise, changes."""
    p = pair(12, 9, 3, 1.0, rng)
    M = torch.randn(3, 3, generator=rng, dtype=torch.float64) + 3 * torch.eye(
        3, dtype=torch.float64
    )
    q = LoraPair("unet.x", M @ p.A, p.B @ M.inverse(), 1.0)
    a, b = LoraAnchor([p]).squared_distance(), LoraAnchor([q]).squared_distance()
    torch.testing.assert_close(a, b, rtol=1e-10, atol=0)
    factors = [((x.A**2).sum() + (x.B**2).sum()).item() for x in (p, q)]
    assert abs(factors[0] / factors[1] - 1) > 0.1


def test_nothing_of_weight_size_is_formed(rng):
    o = i = 64
    pairs = [pair(o, i, 2, 1.0, rng)]
    for p in pairs:
        p.A.grad, p.B.grad = torch.zeros_like(p.A), torch.zeros_like(p.B)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            sizes = [
                t.numel()
                for t in (out if isinstance(out, list | tuple) else [out])
                if isinstance(t, torch.Tensor)
            ]
            largest = max([largest, *sizes])
            return out

    with Watch():
        anchor = LoraAnchor(pairs)
        anchor.squared_distance()
        anchor.add_gradient_(1.0)
        anchor.pull_(0.1)
    assert 0 < largest <= 2 * o < o * i


# ---- on the real classes
def trained_lora(model, rng, **options):
    theta = choose(model, "lora", **options)
    with torch.no_grad():
        for p in theta.values():
            p += 0.1 * torch.randn(p.shape, generator=rng)
    return theta


def test_pairs_are_what_peft_would_merge(model, rng):
    """s B A of every pair, convolutions included, is PEFT's own get_delta_weight."""
    trained_lora(model, rng, train_text_encoder=True, rank=3, lora_alpha=7, targets=CONV_TARGETS)
    pairs = lora_pairs(model)
    assert {p.A.ndim for p in pairs} == {2, 4}
    assert {p.scale for p in pairs} == {7 / 3}
    for p in pairs:
        part, _, path = p.name.partition(".")
        theirs = model.parts[part].get_submodule(path).get_delta_weight("default")
        torch.testing.assert_close(p.delta_weight(), theirs.flatten(1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", [False, True])
def test_anchor_starts_at_zero_and_counts_the_effective_change(model, rng, text):
    theta = choose(model, "lora", train_text_encoder=text, rank=3, lora_alpha=7)
    anchor = anchors_for(model, theta)["anchor"]
    assert anchor.squared_distance() == 0
    with torch.no_grad():
        for p in theta.values():
            p += 0.1 * torch.randn(p.shape, generator=rng)
    torch.testing.assert_close(
        anchor.squared_distance(), dense(lora_pairs(model)), rtol=1e-4, atol=0
    )


def test_adapters_and_plain_weights_together_are_summed(model, rng):
    theta = trained_lora(model, rng)
    bias = model.denoiser.conv_out.bias.requires_grad_(True)
    theta["unet.conv_out.bias"] = bias
    anchor = anchors_for(model, theta)["anchor"]
    assert isinstance(anchor, AnchorSum)
    with torch.no_grad():
        bias += 0.5
    expected = dense(lora_pairs(model)) + 4 * 0.25
    torch.testing.assert_close(anchor.squared_distance(), expected, rtol=1e-5, atol=0)
    for p in theta.values():
        p.grad = torch.zeros_like(p)
    anchor.add_gradient_(2.0)
    torch.testing.assert_close(bias.grad, torch.full((4,), 2 * 2 * 0.5))
    anchor.pull_(0.5)
    torch.testing.assert_close(anchor.squared_distance(), expected / 4, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_full_training_keeps_one_anchor_in_the_dtype_asked_for(model, dtype):
    theta = choose(model, "full")
    anchor = anchors_for(model, theta, dtype=dtype, device="cpu")["anchor"]
    assert {a.dtype for a in anchor.theta_star.values()} == {dtype}
    distance, norm = anchor.squared_distance(), sum((p**2).sum() for p in theta.values())
    # bfloat16 keeps 8 bits: each weight is off by at most 2^-9 of itself
    assert distance == 0 if dtype == torch.float32 else 0 < distance <= norm * 2**-18


@pytest.mark.parametrize("train", ["full", "lora"])
def test_blocks_add_up_to_the_total(model, rng, train):
    theta = choose(model, train, train_text_encoder=True, rank=3, lora_alpha=7)
    star = copy_of(plain_parameters(theta), device="cpu")
    assert set(effective_delta_theta(model, theta, star).values()) == {0.0}
    with torch.no_grad():
        for p in theta.values():
            p += 0.1 * torch.randn(p.shape, generator=rng)
    rows = effective_delta_theta(model, theta, star)
    total = rows.pop("total")
    assert sum(v**2 for v in rows.values()) == pytest.approx(total**2, rel=1e-9)
    expected = delta_theta(theta, star) if train == "full" else dense(lora_pairs(model)) ** 0.5
    assert total == pytest.approx(expected.item(), rel=1e-5)
    assert {
        "unet.down_blocks.0",
        "unet.mid_block",
        "unet.up_blocks.1",
        "text_encoder.layers.1",
    } <= set(rows)


def test_block_names():
    assert block_of("unet.down_blocks.1.attentions.0.to_q.weight") == "unet.down_blocks.1"
    assert block_of("unet.conv_in.weight") == "unet.conv_in"
    assert (
        block_of("text_encoder.text_model.encoder.layers.3.mlp.fc1.bias") == "text_encoder.layers.3"
    )


def test_adapters_of_another_kind_are_refused(model):
    from peft import LoraConfig

    model.denoiser.add_adapter(LoraConfig(r=2, target_modules=["to_q"], use_dora=True))
    with pytest.raises(NotImplementedError, match="DoRA"):
        lora_pairs(model)
