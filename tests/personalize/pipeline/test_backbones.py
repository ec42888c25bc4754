"""SDXL and SD-3 beside SD-1.5: equal to the official pipelines, schedules, frames, text
encoders.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from backbones import (
    BOTH,
    FAMILY,
    FRAME,
    OFFICIAL,
    PROMPTS,
    WHOLE,
    T,
    answer,
    folder,
    latents,
    levels,
    untouched,
)
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)
from PIL import Image
from small import config, moved, workshop

from personalize.adapters.trainable import choose
from personalize.data.latents import PromptCache, frame_of, instance_set, resize_and_crop
from personalize.data.photos import scan
from personalize.drift.chains import chain_sampling, make_chains
from personalize.drift.measure import path_drift
from personalize.pipeline.families import SDXL, from_diffusers, from_flow_matching
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from personalize.pipeline.random_pipeline import tiny
from personalize.sample.sampler import FLOW_SAMPLERS, Sampling, generate, make_sampler
from personalize.train.timesteps import node_weights, timestep_law
from toy2d.core.objectives import STANDARD, Example
from toy2d.runs.files import RunFailure, UserError


# ---- the tiny pipelines
@BOTH
def test_tiny_is_the_same_model_in_memory_and_from_its_folder(kind):
    assert isinstance(tiny(kind), OFFICIAL[kind])
    assert load(folder(kind)).hash() == untouched(kind).hash()
    assert Model(tiny(kind, seed=1), FAMILY[kind]).hash() != untouched(kind).hash()


@BOTH
def test_tiny_hears_its_prompt_and_its_attention(kind):
    """Other words, or a tenth more or less of every attention weight, move the answer by 0.5 % at
    least: five times what `checked` lets pass.
    """
    model = load(folder(kind))
    before = answer(model)
    moved({n: p for n, p in model.denoiser.named_parameters() if ".attn" in n}, by=0.01)
    assert (answer(model) - before).norm() > 0.005 * before.norm()
    assert (answer(untouched(kind), PROMPTS[::-1]) - before).norm() > 0.005 * before.norm()


# ---- equal to the official pipelines
@pytest.mark.parametrize(
    ("kind", "sampler", "guidance"),
    [
        ("sdxl", "dpmsolver++", 7.5),
        ("sdxl", "euler", 1.0),
        ("sd3", "dpmsolver++", 7.0),
        ("sd3", "unipc", 1.0),
        ("sd3", "euler", 7.0),
    ],
)
def test_pictures_equal_the_official_pipelines(kind, sampler, guidance):
    """The empty prompt, pooled text, micro-conditioning, shift and guidance are theirs.

    Unequal seeds differ by far more.
    """
    model = untouched(kind)
    ours = generate(model, PROMPTS, [3], Sampling(steps=5, guidance=guidance, sampler=sampler))
    scheduler = make_sampler(model, sampler, 5)
    official = OFFICIAL[kind](**{**model.pipeline.components, "scheduler": scheduler})
    official.set_progress_bar_config(disable=True)
    rngs = [torch.Generator().manual_seed(3) for _ in PROMPTS]
    theirs = official(
        PROMPTS, num_inference_steps=5, guidance_scale=guidance, generator=rngs
    ).images
    assert abs(levels(ours) - levels(theirs)).max() <= 1
    other = generate(model, PROMPTS, [4], Sampling(steps=5, guidance=guidance, sampler=sampler))
    assert abs(levels(ours) - levels(other)).max() > 10


def test_sd3_refuses_samplers_that_know_no_flow():
    with pytest.raises(
        UserError, match=f"choose one of {', '.join(FLOW_SAMPLERS)}".replace("+", r"\+")
    ):
        generate(untouched("sd3"), PROMPTS, [0], Sampling(sampler="ddim", steps=2))


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_the_flow_schedule_is_the_schedulers(shift):
    """Same timesteps, same x_t, same target, at every node; the last one's clipped beta moves s by
    a few 1e-5 at most.
    """
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = from_flow_matching(theirs)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps.flip(0))
    t = torch.tensor([0, 1, 500, 998, 999])
    x0, eps = torch.randn(2, 5, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    noised = theirs.scale_noise(x0, theirs.timesteps[999 - t], eps)
    apart = (ours.add_noise(x0, t, eps) - noised).abs().amax((1, 2, 3))
    assert apart[:-1].max() < 1e-5
    assert apart[-1] < 4e-5 / shift * (x0 - eps).abs().max()
    assert torch.equal(ours.target(x0, t, eps), eps - x0)


@pytest.mark.parametrize("change", [{"use_dynamic_shifting": True}, {"shift_terminal": 0.1}])
def test_a_shift_that_depends_on_the_picture_is_refused(change):
    with pytest.raises(UserError, match="no fixed shift"):
        from_flow_matching(FlowMatchEulerDiscreteScheduler(**change))


def test_schedulers_of_the_other_kind_are_refused():
    with pytest.raises(UserError, match="no fixed shift"):
        from_flow_matching(tiny("sdxl").scheduler)
    with pytest.raises(UserError, match="table alphas_cumprod"):
        from_diffusers(tiny("sd3").scheduler)


def test_sd3_has_a_largest_resolution():
    model = untouched("sd3")
    assert model.latent_shape(256) == (16, 32, 32)
    with pytest.raises(UserError, match="a multiple of 16 up to 256, try 256"):
        model.latent_shape(272)


# ---- timesteps as SD-3 was trained
@pytest.mark.parametrize(
    ("scheme", "settings"),
    [("logit_normal", {"logit_mean": 0.5, "logit_std": 0.7}), ("mode", {"mode_scale": -0.5})],
)
def test_timesteps_are_those_of_diffusers_script(scheme, settings):
    """`indices = (u * T).long(); timesteps = scheduler.timesteps[indices]`, from the same
    generator.
    """
    c, theirs = config("unused", **settings), FlowMatchEulerDiscreteScheduler(shift=3.0)
    draw, ours = timestep_law(c, scheme, 1000), from_flow_matching(theirs)
    for seed in range(50):
        t = draw(torch.Generator().manual_seed(seed))
        rng = torch.Generator().manual_seed(seed)
        u = compute_density_for_timestep_sampling(
            scheme, 1, c.logit_mean, c.logit_std, c.mode_scale, generator=rng
        )
        torch.testing.assert_close(ours.timesteps[t], theirs.timesteps[(u * 1000).long()])


def test_schemes_that_weigh_draw_every_timestep_alike():
    rng = torch.Generator().manual_seed(0)
    draw = timestep_law(config("unused"), "cosmap", 4)
    counts = torch.bincount(torch.cat([draw(rng) for _ in range(4000)]), minlength=4)
    assert (counts - 1000).abs().max() < 5 * (4000 * 3 / 16) ** 0.5


@pytest.mark.parametrize("precondition", [False, True])
@pytest.mark.parametrize("scheme", ["none", "sigma_sqrt", "cosmap"])
def test_the_loss_is_that_of_diffusers_script(scheme, precondition):
    """`model_pred * (-sigmas) + noisy` against the clean latents, or the flow against noise -
    clean, weighted, averaged.
    """
    model, c = untouched("sd3"), config("unused", precondition_outputs=precondition)
    schedule = model.schedule
    t = torch.tensor([10, 400, 998])
    x0, eps = latents(model, 3, 0), latents(model, 3, 1)
    cond = model.encode_prompts(["a dog", "a cat", ""])
    weights = node_weights(c, scheme, schedule)
    with torch.no_grad():
        ours = STANDARD.terms(
            model.predict, schedule, {"instance": Example(x0, t, eps, cond)}, weights=weights
        )
        x_t = schedule.add_noise(x0, t, eps)
        pred = model.predict(x_t, schedule.timesteps[t], cond)
    sigmas = model.pipeline.scheduler.sigmas[999 - t].reshape(3, 1, 1, 1)
    weighting = compute_loss_weighting_for_sd3(scheme, sigmas)
    error = (pred * -sigmas + x_t - x0) if precondition else (pred - (eps - x0))
    theirs = (weighting * error**2).reshape(3, -1).mean(1).mean()
    torch.testing.assert_close(ours["instance"], theirs, rtol=1e-4, atol=0)


# ---- the frame: where the crop of a photo begins
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("position", [0.0, 0.25, 1.0])
def test_the_frame_says_where_the_first_pixel_comes_from(position, flip):
    """A photo whose red value is its own column: the first column of the crop carries the number
    that the frame tells.
    """
    columns = np.tile(np.arange(128, dtype=np.uint8), (64, 1))
    photo = Image.fromarray(np.stack([columns] * 3, -1))  # at its own size: 64 high, 128 wide
    pixels = resize_and_crop(photo, 64, "random", flip, position)
    first = round(float((pixels[0, 0, 0] + 1) * 127.5))
    height, width, top, left, *target = frame_of(photo.size, 64, "random", flip, position)
    assert (height, width, top, target) == (64, 128, 0, [64, 64])
    assert left == (127 - first if flip else first)


def test_frames_of_resized_and_padded_photos():
    assert frame_of((200, 400), 64) == (400, 200, 32, 0, 64, 64)  # 64 x 128 after resizing
    assert frame_of((200, 400), 64, "pad") == (400, 200, 0, 0, 64, 64)


def test_pictures_carry_the_frame_of_the_variant_that_was_drawn():
    model = untouched("sdxl")
    photos = scan(workshop() / "photos", 64).require()
    pool = instance_set(model, photos, "a sks dog", 64, "random", random_flip=True)
    seen = set()
    for seed in range(60):
        _, (prompt,) = pool.draw([0], torch.Generator().manual_seed(seed))
        assert prompt == "a sks dog"
        seen.add(prompt.frame)
    every = {frame_of((80, 64), 64, "random", f, k / 8) for f in (False, True) for k in range(9)}
    assert seen <= every
    assert len(seen) > 5
    frames = PromptCache(model)([prompt, prompt])["frame"]
    assert frames.tolist() == [list(prompt.frame)] * 2
    with pytest.raises(ValueError, match="some prompts"):
        PromptCache(model)([prompt, "a dog"])


def test_the_frame_is_seen_by_sdxl():
    model, x = untouched("sdxl"), latents(untouched("sdxl"), 2)
    cond = model.encode_prompts(PROMPTS)
    plain = model.predict(x, T, cond)
    told = model.predict(x, T, cond | {"frame": torch.tensor([WHOLE, WHOLE])})
    other = model.predict(x, T, cond | {"frame": torch.tensor([WHOLE, FRAME])})
    assert torch.equal(plain, told)
    assert torch.equal(plain[0], other[0])
    assert (plain[1] - other[1]).abs().max() > 1e-3


# ---- text encoders
@pytest.mark.parametrize("train", ["full", "lora"])
@BOTH
def test_everything_that_trains_receives_a_gradient(kind, train):
    """SDXL reads its first encoder's last layer but one, so the last stays frozen; T5 is never
    trained.
    """
    model = load(folder(kind))
    theta = choose(model, train, train_text_encoder=True)
    moved(theta)
    answer_ = model.predict(
        latents(model, 2), model.schedule.timesteps[T], model.encode_prompts(PROMPTS)
    )
    answer_.square().mean().backward()
    assert all(p.grad is not None for p in theta.values())
    parts = {n.split(".")[0] for n in theta}
    assert parts == {model.family.denoiser, "text_encoder", "text_encoder_2"}
    last = [n for n in theta if n.startswith("text_encoder.") and "layers.1." in n]
    assert bool(last) == (kind == "sd3")


def test_t5_is_optional(tmp_path):
    """Left out by the user, or not in the folder: the same model; its place is zeros; the empty
    folder entry survives saving.
    """
    model = load(folder("sd3"), without_t5=True)
    assert model.text_encoder_names == ["text_encoder", "text_encoder_2"]
    assert not model.encode_prompts(PROMPTS)["encoder_hidden_states"][:, 77:].any()
    assert untouched("sd3").encode_prompts(PROMPTS)["encoder_hidden_states"][:, 77:].any()
    model.pipeline.save_pretrained(tmp_path / "two")
    again = load(tmp_path / "two")
    assert again.hash() == model.hash() != untouched("sd3").hash()
    assert torch.equal(answer(again), answer(model))
    with pytest.raises(UserError, match="has no T5"):
        load(folder("sdxl"), without_t5=True)


def test_a_folder_without_a_text_encoder_that_is_needed_is_refused(tmp_path):
    copy = shutil.copytree(folder("sdxl"), tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"text_encoder_2": [None, None]}))
    with pytest.raises(UserError, match="lacks text_encoder_2"):
        load(copy)


def test_text_is_lost_only_where_no_encoder_reads_it():
    """CLIP reads 75 words between its marks, T5 255."""
    assert untouched("sdxl").lost_text("a dog " * 37 + "in the snow").split() == ["the", "snow"]
    assert untouched("sd3").lost_text("a dog " * 37 + "in the snow") == ""
    assert untouched("sd3").lost_text("a dog " * 127 + "in the snow").split() == ["the", "snow"]


# ---- the VAE
def test_a_half_precision_vae_computes_in_float32_and_says_so():
    with pytest.warns(UserWarning, match="computes in float32"):
        model = Model(tiny("sdxl").to(dtype=torch.float16), SDXL)
    assert model.vae.dtype == torch.float32
    assert next(model.denoiser.parameters()).dtype == torch.float16


def test_a_vae_that_overflows_is_named():
    """Where others draw black: an activation above 65504 in half precision."""
    pipeline = tiny("sdxl")
    pipeline.vae.register_to_config(force_upcast=False)
    with torch.no_grad():
        pipeline.vae.post_quant_conv.bias.fill_(6e4)
        pipeline.vae.decoder.conv_in.weight.abs_()
    model = Model(pipeline, SDXL)
    assert torch.isfinite(model.decode(latents(model, 1))).all()
    model.vae.half()
    with pytest.raises(RunFailure, match="not finite numbers in float16"):
        model.decode(latents(model, 1))


# ---- path KL of a flow model
def test_path_kl_of_a_constant_shift_of_the_flow_has_its_closed_form():
    """v + h everywhere: eps moves by (1 - s_t) h, so path KL = h^2 D sum_t w_t (1 - s_t)^2; the
    base against itself is 0.
    """
    model = untouched("sd3")
    c = config(
        "unused", class_prompt="a dog", context_prompts=("a dog in the snow",), measure_nodes=6
    )
    prompts, shape = PromptCache(model), model.latent_shape(64)

    def predict(x, t, texts):
        with torch.no_grad():
            return model.predict(x, t, prompts(texts))

    groups = make_chains(predict, model.schedule, chain_sampling(c, shape))
    assert all(abs(mean) < 1e-8 for mean, _, _ in path_drift(predict, groups, 4).values())
    schedule, h = model.schedule.strided(6), 0.1
    one_minus_s = schedule.coefficients(torch.arange(6), torch.ones(6, 1).double())[0][:, 0]
    expected = h**2 * 16 * 8 * 8 * float((schedule.path_weights() * one_minus_s**2).sum())
    for mean, error, _ in path_drift(lambda x, t, p: predict(x, t, p) + h, groups, 4).values():
        assert mean == pytest.approx(expected, rel=1e-3)
        assert error < 1e-3 * expected
