"""SVDiff: what its shifts do to a weight, and its exact distance, also where the relu closes."""

from dataclasses import replace

import pytest
import torch
from small import config, load_quickly, moved, same, trained, workshop
from torch import nn

from personalize.adapters.anchors import AdapterAnchor, anchors_for
from personalize.adapters.deltas import SVDIFF, Change, changes
from personalize.adapters.spectral import SpectralShift, read_shifts, shifts_of
from personalize.adapters.trainable import choose
from personalize.config.kinds import TRAINING_KINDS
from personalize.config.rules import resolve
from personalize.export.formats import checked, save_as
from personalize.export.write import load_run
from personalize.pipeline.model import Model
from toy2d.core.objectives import Anchor
from toy2d.runs.files import UserError


def fresh() -> Model:
    return load_quickly(str(workshop() / "sd"))


def shifted(rng, shape=(7, 5)) -> Change:
    """A weight with random shifts; the relu closes the third and, just so, the fourth."""
    layer = SpectralShift(nn.Parameter(torch.randn(shape, generator=rng)))
    s = layer.s
    with torch.no_grad():
        wanted = torch.randn(len(s), generator=rng) * 0.3
        wanted[2], wanted[3] = -s[2] - 1.5, -s[3]
        layer.spectral_shift["default"].copy_(wanted)
    factors = {"spectral_shift": layer.spectral_shift["default"]}
    return Change("unet.x", SVDIFF, factors, 1.0, layer.get_base_layer().weight, layer)


def test_the_shifted_weight_has_the_shifted_singular_values(rng):
    c = shifted(rng)
    weight = c.layer(c.weight).detach()
    expected = torch.relu(c.layer.s + c.factors["spectral_shift"]).detach().sort(descending=True)
    torch.testing.assert_close(torch.linalg.svdvals(weight), expected.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(7, 5), (5, 9), (6, 3, 3, 3)])
def test_the_squared_distance_is_the_sum_over_singular_values(rng, shape):
    """delta^2 where the relu is open, s^2 where it is closed: the dense norm."""
    c = shifted(rng, shape)
    s, delta = c.layer.s, c.factors["spectral_shift"].detach()
    by_hand = torch.where(s + delta > 0, delta, s).square().sum()
    dense = (c.layer(c.weight) - c.weight).square().sum()
    torch.testing.assert_close(AdapterAnchor([c]).squared_distance(), by_hand, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(dense, by_hand, rtol=1e-5, atol=1e-6)


def test_its_gradient_is_autograds_through_the_dense_change(rng):
    c = shifted(rng)
    delta = c.factors["spectral_shift"]
    (expected,) = torch.autograd.grad(2.5 * c.delta_weight().square().sum(), delta)
    delta.grad = torch.zeros_like(delta)
    AdapterAnchor([c]).add_gradient_(2.5)
    torch.testing.assert_close(delta.grad, expected, rtol=1e-4, atol=1e-5)
    assert delta.grad[2] == 0  # closed: nothing pulls it


def test_the_pull_is_the_proximal_step_of_the_dense_weight(rng):
    """Also for a closed singular value: from 0 it comes back by a part of the way to s."""
    c = shifted(rng)
    weights = {"x": c.delta_weight().detach().clone()}
    Anchor(weights, {"x": torch.zeros_like(weights["x"])}).pull_(0.3)
    AdapterAnchor([c]).pull_(0.3)
    torch.testing.assert_close(c.delta_weight().detach(), weights["x"], rtol=1e-5, atol=1e-5)


def test_every_weight_of_the_denoiser_is_shifted_and_nothing_else_trains():
    model = fresh()
    theta = choose(model, "svdiff")
    layers = [m for m in fresh().denoiser.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(theta) == len(layers) == len(changes(model.parts))
    assert sum(p.numel() for p in theta.values()) == sum(
        min(m.weight.flatten(1).shape) for m in layers
    )
    assert {c.name.split(".")[0] for c in changes(model.parts)} == {"unet"}
    some = choose(fresh(), "svdiff", lora_target_modules=("to_q", "conv1"))
    assert all(".to_q." in name or ".conv1." in name for name in some)
    with pytest.raises(UserError, match="nowhere: UNet2DConditionModel has no such linear layer"):
        choose(fresh(), "svdiff", lora_target_modules=("nowhere",))


def test_the_distance_of_the_whole_model_is_that_of_its_weights():
    model = fresh()
    theta = choose(model, "svdiff", train_text_encoder=True)
    anchor = anchors_for(model, theta)["l2"]
    assert anchor.squared_distance() == 0
    moved(theta)
    dense = sum(c.delta_weight().square().sum() for c in changes(model.parts))
    torch.testing.assert_close(anchor.squared_distance(), dense, rtol=1e-4, atol=0)


def test_a_run_leaves_a_small_file_that_is_opened_again_and_merged(tmp_path):
    c = config(tmp_path / "run", "l2", "svdiff", train_text_encoder=True)
    weights = trained(c)
    model = load_run(tmp_path / "run")
    assert model.trained == "svdiff"
    held = {n: s for part in ("unet", "text_encoder") for n, s in named(model, part).items()}
    assert same({f"spectral_shifts/{n}": s for n, s in held.items()}, weights)
    for form in TRAINING_KINDS["svdiff"].formats:
        save_as(model, form, tmp_path / form)
        check = checked(model, form, tmp_path / form, fresh)
        assert check.tells
    size = (tmp_path / "svdiff" / "spectral_shifts.safetensors").stat().st_size
    assert size < (workshop() / "sd/unet/diffusion_pytorch_model.safetensors").stat().st_size / 10


def named(model: Model, part: str) -> dict[str, torch.Tensor]:
    return {f"{part}.{k}": s.detach() for k, s in shifts_of(model.parts[part]).items()}


def test_shifts_of_another_base_are_refused(tmp_path):
    model = fresh()
    choose(model, "svdiff", lora_target_modules=("conv_in",))
    save_as(model, "svdiff", tmp_path / "shifts")
    with pytest.raises(UserError, match=r"the base has no layer unet\.conv_in"):
        read_shifts({"unet": nn.Sequential(nn.Linear(3, 3))}, tmp_path / "shifts")
    small = nn.Module()
    small.conv_in = nn.Conv2d(3, 2, 1)
    with pytest.raises(UserError, match="the base's layer 2 singular values"):
        read_shifts({"unet": small}, tmp_path / "shifts")


def test_flags_that_do_nothing_are_refused(tmp_path):
    c = config(tmp_path / "run", kind="svdiff")
    with pytest.raises(UserError, match="--rank has no effect"):
        resolve(replace(c, rank=8))
    decoupled = config(tmp_path / "run", "fisher", "svdiff", reg_decoupled=True)
    with pytest.raises(UserError, match="--reg_decoupled is not built for fisher"):
        resolve(decoupled)
