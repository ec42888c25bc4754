"""Sampling: equal to the official pipeline, independent of batches, invisible to training."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image

from personalize.adapters.trainable import choose
from personalize.data.latents import PromptCache
from personalize.pipeline.families import SD15
from personalize.pipeline.model import Model
from personalize.pipeline.random_pipeline import tiny
from personalize.sample.sampler import (
    SAMPLERS,
    Sampling,
    batches,
    generate,
    grid,
    image_seed,
    make_sampler,
    sample_latents,
)
from toy2d.runs.files import RunFailure, UserError

PROMPTS = ["a sks dog", "a cat in the snow"]


def levels(images):
    return np.stack([np.asarray(i).astype(int) for i in images])


@pytest.mark.parametrize(("prediction", "guidance"), [("epsilon", 7.5), ("v_prediction", 1.0)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures_equal_the_official_pipelines(sampler, guidance, prediction):
    model = Model(tiny(prediction=prediction), SD15)
    ours = generate(model, PROMPTS, [3], Sampling(steps=6, guidance=guidance, sampler=sampler))
    scheduler = make_sampler(model, sampler, 6)
    official = StableDiffusionPipeline(
        **{**model.pipeline.components, "scheduler": scheduler}, requires_safety_checker=False
    )
    official.set_progress_bar_config(disable=True)
    rngs = [torch.Generator().manual_seed(3) for _ in PROMPTS]
    theirs = official(
        PROMPTS, num_inference_steps=6, guidance_scale=guidance, generator=rngs
    ).images
    assert abs(levels(ours) - levels(theirs)).max() <= 1  # rounding of one level


def test_the_default_is_twenty_steps_of_dpm_solver_plus_plus(base):
    scheduler = make_sampler(base, "dpmsolver++", 20)
    assert isinstance(scheduler, DPMSolverMultistepScheduler)
    assert scheduler.config.algorithm_type == "dpmsolver++"
    assert len(scheduler.timesteps) == 20
    assert scheduler.config.beta_start == base.pipeline.scheduler.config.beta_start


def test_a_model_that_went_through_a_file_samples_alike(base, model):
    """diffusers' from_config would take another timestep spacing from the file than from memory."""
    for sampler in SAMPLERS:
        a, b = (make_sampler(m, sampler, 7).timesteps for m in (base, model))
        assert torch.equal(a, b)


def test_a_picture_does_not_depend_on_its_batch(base):
    together = generate(base, PROMPTS, [0, 1, 2], Sampling(steps=4, batch_size=5))
    alone = [generate(base, [p], [s], Sampling(steps=4))[0] for p in PROMPTS for s in (0, 1, 2)]
    # float32 sums in another order, pushed through 4 guided steps: a level or two
    assert abs(levels(together) - levels(alone)).max() <= 2
    assert abs(levels(together[:1]) - levels(together[1:2])).max() > 10


def test_sampling_leaves_generators_modes_and_gradients_alone(model):
    theta = choose(model, "lora", lora_dropout=0.5)
    model.denoiser.train()
    state = torch.get_rng_state()
    a = generate(model, PROMPTS, [0], Sampling(steps=2))
    b = generate(model, PROMPTS, [0], Sampling(steps=2))
    assert torch.equal(torch.get_rng_state(), state)
    assert (levels(a) == levels(b)).all()
    assert model.denoiser.training
    assert all(p.requires_grad and p.grad is None for p in theta.values())


def test_base_pictures_are_the_bases(model, base, rng):
    theta = choose(model, "lora", train_text_encoder=True)
    with torch.no_grad():
        for p in theta.values():
            p += 0.1 * torch.randn(p.shape, generator=rng)
    how = Sampling(steps=3)
    before = levels(generate(base, PROMPTS, [0], how))
    assert (levels(generate(model, PROMPTS, [0], how, base=True)) == before).all()
    assert abs(levels(generate(model, PROMPTS, [0], how)) - before).max() > 10


def test_cached_prompts_and_unloaded_parts_give_the_same_pictures(model, base):
    encode = PromptCache(model).add([*PROMPTS, ""])
    model.unload("vae")
    model.unload("text_encoders")
    ours = generate(model, PROMPTS, [0], Sampling(steps=2), encode=encode)
    assert abs(levels(ours) - levels(generate(base, PROMPTS, [0], Sampling(steps=2)))).max() <= 1


def test_a_negative_prompt_has_an_effect_or_is_refused(base):
    plain, other = (
        levels(generate(base, PROMPTS, [0], Sampling(steps=3), negative_prompt=n))
        for n in ("", "blurry")
    )
    assert (plain != other).any()
    with pytest.raises(UserError, match="no effect"):
        generate(base, PROMPTS, [0], Sampling(guidance=1), negative_prompt="blurry")


@pytest.mark.parametrize(
    "bad",
    [
        {"sampler": "magic"},
        {"steps": 0},
        {"steps": 1001},
        {"guidance": 0.5},
        {"guidance": float("nan")},
        {"resolution": 70},
    ],
)
def test_what_cannot_be_sampled_is_refused(base, bad):
    with pytest.raises(UserError):
        generate(base, PROMPTS, [0], Sampling(**bad))


def test_a_diverged_model_is_said_and_not_drawn(model):
    with torch.no_grad():
        model.denoiser.conv_out.bias.fill_(float("nan"))
    with pytest.raises(RunFailure, match="not finite"):
        generate(model, PROMPTS, [0], Sampling(steps=2))


def test_seeds_of_pictures_are_all_different():
    seeds = {image_seed(s, i) for s in range(20) for i in range(500)}
    assert len(seeds) == 10_000
    assert batches([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


def test_resolution_is_free_within_the_models_multiples(base):
    cond = base.encode_prompts(PROMPTS)
    wide = sample_latents(base, cond, [0, 1], Sampling(2, 1.0, resolution=96))
    assert wide.shape == (2, 4, 12, 12)


# ---- grids
def test_a_grid_keeps_every_pixel_of_every_picture():
    images = [Image.new("RGB", (40, 30), (10 * k, 0, 255 - 10 * k)) for k in range(6)]
    page = levels([grid(images, 3, ["base: a dog", "tuned"], ["seed 0", "seed 1", "seed 2"])])[0]
    for image in images:
        assert (page == levels([image])[0][0, 0]).all(-1).sum() == 40 * 30
    with pytest.raises(ValueError, match="do not fill"):
        grid(images, 4)


@pytest.mark.parametrize(
    "label", ["", "x" * 10_000, "a dog " * 2000, "$\\frac{{7*7}}<b>", "nul\0\n\ttab", "🐕 الكلب"]
)
def test_any_label_can_be_drawn(label):
    page = grid([Image.new("RGB", (64, 64))] * 2, 2, [label], [label] * 2)
    assert page.height < 64 + 120
