"""The distance of adapters equals the dense norm of the weight change.

Value, gradient and proximal step.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from personalize.adapters.anchors import (
    AdapterAnchor,
    AnchorSum,
    anchors_for,
    block_of,
    copy_of,
    effective_delta_theta,
    plain_parameters,
)
from personalize.adapters.deltas import LOHA, LOKR, LORA, Change, changes
from personalize.adapters.trainable import choose
from toy2d.core.drift import delta_theta
from toy2d.core.objectives import Anchor

ADAPTERS = ("lora", "loha", "lokr", "oft", "boft")
CONV_TARGETS = ("to_k", "to_q", "conv1", "conv_shortcut", "proj_in", "time_emb_proj")


def change(law, shapes, scale, rng):
    """Factors of float64, so that the dense reference can be met to 1e-12."""
    factors = {
        name: torch.randn(shape, generator=rng, dtype=torch.float64, requires_grad=True)
        for name, shape in shapes.items()
    }
    made = Change("unet.x", law, factors, scale)
    return replace(made, weight=torch.empty(made.delta_weight().shape))


def lora(o, i, r, scale, rng, kernel=()):
    return change(
        LORA, {"lora_A": (r, i, *kernel), "lora_B": (o, r, *[1] * len(kernel))}, scale, rng
    )


def loha(o, i, r, scale, rng):
    shapes = {"hada_w1_a": (o, r), "hada_w1_b": (r, i), "hada_w2_a": (o, r), "hada_w2_b": (r, i)}
    return change(LOHA, shapes, scale, rng)


def lokr(o, i, r, scale, rng):
    """W1 (2 3) kron W2 (o i), W2 of rank r."""
    shapes = {"lokr_w1": (2, 3), "lokr_w2_a": (o, r), "lokr_w2_b": (r, i)}
    return change(LOKR, shapes, scale, rng)


def lokr_full(o, i, r, scale, rng):
    """Both halves in two forms: W1 of rank r, W2 whole, of a convolution."""
    shapes = {"lokr_w1_a": (3, r), "lokr_w1_b": (r, 2), "lokr_w2": (o, i, 3, 3)}
    return change(LOKR, shapes, scale, rng)


PRODUCTS = (lora, loha, lokr, lokr_full)


def dense(changed, reduction="sum"):
    square = torch.sum if reduction == "sum" else torch.mean
    return sum(square(c.delta_weight() ** 2) for c in changed)


def some(make, rng):
    """Shared and single shapes, scales that differ within a shape; LoRA with a convolution too."""
    made = [make(12, 9, 3, 0.5, rng), make(12, 9, 3, 2.0, rng), make(7, 9, 3, 1.0, rng)]
    return [*made, lora(6, 5, 2, 1.5, rng, kernel=(3, 3))]


@given(
    st.sampled_from(PRODUCTS),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 12),
    st.floats(0.01, 10),
    st.integers(0, 9),
)
@settings(max_examples=100, deadline=None)
def test_distance_is_the_dense_norm_squared(make, o, i, r, scale, seed):
    c = [make(o, i, r, scale, torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(
        AdapterAnchor(c).squared_distance(), dense(c), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("make", PRODUCTS)
@pytest.mark.parametrize("reduction", ["sum", "tensor_mean"])
def test_value_and_gradient_equal_autograd_through_the_dense_weight(rng, make, reduction):
    changed = some(make, rng)
    anchor = AdapterAnchor(changed, reduction)
    torch.testing.assert_close(
        anchor.squared_distance(), dense(changed, reduction), rtol=1e-12, atol=0
    )
    factors = [f for c in changed for f in c.factors.values()]
    expected = torch.autograd.grad(3.7 * dense(changed, reduction), factors)
    for f in factors:
        f.grad = torch.ones_like(f)
    anchor.add_gradient_(3.7)
    for f, g in zip(factors, expected, strict=True):
        torch.testing.assert_close(f.grad - 1, g, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("make", PRODUCTS)
@pytest.mark.parametrize("reduction", ["sum", "tensor_mean"])
def test_pull_is_the_proximal_step_that_the_dense_anchor_takes(rng, make, reduction):
    """With theta* = 0, Anchor.pull_ on the effective weights equals AdapterAnchor.pull_."""
    changed = some(make, rng)
    weights = {str(k): c.delta_weight().detach().clone() for k, c in enumerate(changed)}
    zeros = {k: torch.zeros_like(w) for k, w in weights.items()}
    Anchor(weights, zeros, reduction=reduction).pull_(0.3)
    AdapterAnchor(changed, reduction).pull_(0.3)
    for c, w in zip(changed, weights.values(), strict=True):
        torch.testing.assert_close(c.delta_weight(), w, rtol=1e-12, atol=0)


def test_distance_does_not_depend_on_how_delta_w_is_split(rng):
    """B A = (B M^-1)(M A); the sum of the factors' squares, which others penalise, changes."""
    p = lora(12, 9, 3, 1.0, rng)
    M = torch.randn(3, 3, generator=rng, dtype=torch.float64) + 3 * torch.eye(
        3, dtype=torch.float64
    )
    A, B = p.factors["lora_A"], p.factors["lora_B"]
    q = replace(p, factors={"lora_A": M @ A, "lora_B": B @ M.inverse()})
    a, b = AdapterAnchor([p]).squared_distance(), AdapterAnchor([q]).squared_distance()
    torch.testing.assert_close(a, b, rtol=1e-10, atol=0)
    factors = [sum((f**2).sum() for f in c.factors.values()).item() for c in (p, q)]
    assert abs(factors[0] / factors[1] - 1) > 0.1


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation makes, the backward pass included."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [
            t
            for t in (out if isinstance(out, list | tuple) else [out])
            if isinstance(t, torch.Tensor)
        ]
        self.numel = max([self.numel, *(t.numel() for t in made)])
        return out


@pytest.mark.parametrize(
    ("make", "rank", "most"), [(lora, 2, 2 * 64), (loha, 2, 4 * 64), (lokr, 2, 2 * 64)]
)
def test_nothing_of_weight_size_is_formed(rng, make, rank, most):
    c = make(64, 64, rank, 1.0, rng)
    for f in c.factors.values():
        f.grad = torch.zeros_like(f)
    with Largest() as largest:
        anchor = AdapterAnchor([c])
        anchor.squared_distance()
        anchor.add_gradient_(1.0)
        anchor.pull_(0.1)
    assert 0 < largest.numel <= most < 64 * 64 <= c.weight.numel()


@pytest.mark.parametrize("rank", [7, 8, 20])
def test_loha_forms_nothing_larger_than_the_weight(rng, rank):
    """Below the switch at r^2 = 64, at it, and far above, where P alone would be 6 weights large.

    The value is that of the dense change.
    """
    c = loha(64, 64, rank, 1.0, rng)
    with Largest() as largest:
        found = AdapterAnchor([c]).squared_distance()
    assert largest.numel <= 64 * 64
    torch.testing.assert_close(found, dense([c]), rtol=1e-10, atol=0)


def test_an_anchor_of_some_parameters_pulls_those_alone(rng):
    one, other = (lora(5, 4, 2, 1.0, rng) for _ in range(2))
    before = [c.delta_weight().detach().clone() for c in (one, other)]
    own = {id(f) for f in one.factors.values()}
    AdapterAnchor([one, other]).of(own).pull_(0.5)
    torch.testing.assert_close(one.delta_weight(), before[0] / 2)
    assert torch.equal(other.delta_weight(), before[1])


def test_gradient_is_still_formed_where_gradients_are_off(rng):
    """The loop calls it outside any graph."""
    c = loha(5, 4, 2, 1.0, rng)
    for f in c.factors.values():
        f.grad = torch.zeros_like(f)
    with torch.no_grad():
        AdapterAnchor([c]).add_gradient_(1.0)
    assert all(f.grad.any() for f in c.factors.values())


# ---- on the real classes
def trained(model, rng, train="lora", **options):
    theta = choose(model, train, **options)
    with torch.no_grad():
        for p in theta.values():
            p += 0.1 * torch.randn(p.shape, generator=rng)
    return theta


def merged_change(layer):
    """What PEFT's own merge does to the base's weight."""
    before = layer.get_base_layer().weight.detach().clone()
    layer.merge()
    after = layer.get_base_layer().weight.detach().clone()
    layer.unmerge()
    return (after - before).flatten(1)


@pytest.mark.parametrize(
    ("train", "targets"),
    [*((k, CONV_TARGETS) for k in ("lora", "loha", "lokr")), ("oft", None), ("boft", None)],
)
def test_changes_are_what_peft_would_merge(model, rng, train, targets):
    trained(
        model,
        rng,
        train,
        train_text_encoder=True,
        rank=3,
        lora_alpha=7,
        lora_target_modules=targets,
    )
    made = changes(model.parts)
    assert {c.weight.ndim for c in made} == ({2, 4} if targets else {2})
    assert {c.scale for c in made} == ({7 / 3} if targets else {1.0})
    assert {c.name.split(".")[0] for c in made} == {"unet", "text_encoder"}
    for c in made:
        # a weight of order 1, moved there and back in float32
        torch.testing.assert_close(c.delta_weight(), merged_change(c.layer), rtol=1e-4, atol=2e-6)


def test_a_factor_of_lokr_that_is_kept_whole_is_what_peft_would_merge(model, rng):
    """A rank as large as the factor: PEFT stores W2 itself, of a convolution with its kernel."""
    trained(model, rng, "lokr", rank=64, lora_target_modules=CONV_TARGETS)
    made = changes(model.parts)
    assert {c.factors["lokr_w2"].ndim for c in made if "lokr_w2" in c.factors} >= {4}
    for c in made:
        torch.testing.assert_close(c.delta_weight(), merged_change(c.layer), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("train", ADAPTERS)
@pytest.mark.parametrize("text", [False, True])
def test_anchor_starts_at_zero_and_counts_the_effective_change(model, rng, train, text):
    theta = choose(model, train, train_text_encoder=text, rank=3, lora_alpha=7)
    anchor = anchors_for(model, theta)["l2"]
    assert isinstance(anchor, AdapterAnchor)  # no weight is stored
    assert anchor.squared_distance() == 0
    with torch.no_grad():
        for p in theta.values():
            p += 0.1 * torch.randn(p.shape, generator=rng)
    expected = sum(merged_change(c.layer).double().square().sum() for c in changes(model.parts))
    torch.testing.assert_close(anchor.squared_distance().double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("train", [*ADAPTERS, "svdiff"])
def test_gradient_of_every_adapter_equals_autograds(model, rng, train):
    """Through the dense delta W of PEFT's real layers, in float32."""
    theta = trained(model, rng, train)
    expected = torch.autograd.grad(2.5 * dense(changes(model.parts)), list(theta.values()))
    for p in theta.values():
        p.grad = torch.zeros_like(p)
    anchors_for(model, theta)["l2"].add_gradient_(2.5)
    for p, g in zip(theta.values(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-5 * float(g.abs().max()))


@pytest.mark.parametrize("train", ["oft", "boft"])
def test_a_rotation_cannot_be_pulled(model, rng, train):
    theta = trained(model, rng, train)
    with pytest.raises(NotImplementedError, match="rotation"):
        anchors_for(model, theta)["l2"].pull_(0.1)


def test_oft_keeps_the_length_of_every_row_and_boft_scales_it(model, rng):
    """W R with R orthogonal: OFT is meant to keep hyperspherical energy (Qiu et al. 2023)."""
    trained(model, rng, "oft")
    for c in changes(model.parts):
        turned = c.weight.flatten(1) + c.delta_weight()
        torch.testing.assert_close(
            turned.norm(dim=1), c.weight.flatten(1).norm(dim=1), rtol=1e-5, atol=1e-6
        )


def test_adapters_and_plain_weights_together_are_summed(model, rng):
    theta = trained(model, rng)
    bias = model.denoiser.conv_out.bias.requires_grad_(True)
    theta["unet.conv_out.bias"] = bias
    anchor = anchors_for(model, theta)["l2"]
    assert isinstance(anchor, AnchorSum)
    with torch.no_grad():
        bias += 0.5
    expected = dense(changes(model.parts)) + 4 * 0.25
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
    anchor = anchors_for(model, theta, dtype=dtype, device="cpu")["l2"]
    assert {a.dtype for a in anchor.theta_star.values()} == {dtype}
    distance, norm = anchor.squared_distance(), sum((p**2).sum() for p in theta.values())
    # bfloat16 keeps 8 bits: each weight is off by at most 2^-9 of itself
    assert distance == 0 if dtype == torch.float32 else 0 < distance <= norm * 2**-18


@pytest.mark.parametrize("train", ["full", *ADAPTERS, "svdiff"])
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
    expected = delta_theta(theta, star) if train == "full" else dense(changes(model.parts)) ** 0.5
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
        changes(model.parts)
