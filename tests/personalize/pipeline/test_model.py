"""A pipeline opened: equal to calling diffusers by hand; the base is there; bad folders are refused
in words.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file, save_file
from small import gradient, moved

from personalize.adapters.trainable import choose
from personalize.pipeline.families import SD15, from_diffusers
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from personalize.pipeline.random_pipeline import tiny
from personalize.pipeline.tokenizer import WORDS
from toy2d.runs.files import UserError

PROMPTS = ["a photo of sks dog", "a cat on the beach"]


@pytest.fixture
def inputs(rng):
    return torch.randn(2, 4, 8, 8, generator=rng), torch.tensor([5, 900])


# ---- equal to diffusers by hand
def test_predict_and_encode_equal_the_pipelines_own_networks(base, inputs):
    x, t = inputs
    cond = base.encode_prompts(PROMPTS)
    ids = base.pipeline.tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt")
    hidden = base.pipeline.text_encoder(ids.input_ids)[0]
    assert torch.equal(cond["encoder_hidden_states"], hidden)
    by_hand = base.pipeline.unet(x, t, encoder_hidden_states=hidden).sample
    assert torch.equal(base.predict(x, t, cond), by_hand)


def test_the_posterior_is_the_vaes_scaled(base):
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    mean, std = base.posterior(pixels)
    ours = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    law = base.vae.encode(pixels).latent_dist
    theirs = law.sample(torch.Generator().manual_seed(3)) * base.vae.config.scaling_factor
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    again = base.vae.decode(theirs / base.vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(base.decode(theirs), again)


def test_the_vae_is_exact_under_autocast_and_the_denoiser_is_not(base, inputs):
    """The VAE runs once per picture: half precision would save nothing and cost accuracy."""
    (x, t), pixels, cond = inputs, torch.rand(1, 3, 64, 64), base.encode_prompts(PROMPTS)
    exact = base.posterior(pixels)[0], base.decode(x), base.predict(x, t, cond)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert base.compute_dtype == torch.bfloat16
        half = base.posterior(pixels)[0], base.decode(x), base.predict(x, t, cond)
    assert [torch.equal(a, b) for a, b in zip(exact, half, strict=True)] == [True, True, False]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_schedule_noises_and_targets_as_the_scheduler_does(prediction, inputs):
    pipeline = tiny(prediction=prediction)
    schedule = from_diffusers(pipeline.scheduler)
    theirs = DDPMScheduler.from_config(pipeline.scheduler.config)
    x0, t = inputs
    eps = torch.randn_like(x0)
    target = eps if prediction == "epsilon" else theirs.get_velocity(x0, eps, t)
    # two float32 products of numbers below 5: a few units of 5 * 2^-23
    torch.testing.assert_close(
        schedule.add_noise(x0, t, eps), theirs.add_noise(x0, eps, t), rtol=0, atol=2e-6
    )
    torch.testing.assert_close(schedule.target(x0, t, eps), target, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "change", [{"rescale_betas_zero_snr": True}, {"prediction_type": "sample"}]
)
def test_a_schedule_that_the_objectives_cannot_use_is_refused(change):
    with pytest.raises(UserError):
        from_diffusers(DDPMScheduler(**change))


def test_every_number_comes_from_the_configuration(base, tiny_folder, tmp_path):
    assert base.default_resolution == 64
    assert base.latent_shape(96) == (4, 12, 12)
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    config = json.loads((copy / "vae/config.json").read_text())
    (copy / "vae/config.json").write_text(json.dumps({**config, "scaling_factor": 2.0}))
    other, pixels = load(copy), torch.zeros(1, 3, 64, 64)
    ratio = 2.0 / base.vae.config.scaling_factor
    torch.testing.assert_close(other.posterior(pixels)[0], base.posterior(pixels)[0] * ratio)


@pytest.mark.parametrize("resolution", [0, -64, 8, 100])
def test_a_resolution_that_does_not_fit_is_refused_with_one_that_does(base, resolution):
    with pytest.raises(UserError, match="multiple of 16"):
        base.latent_shape(resolution)


# ---- what trains
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("train", ["full", "lora"])
def test_trainable_parameters_are_float32_and_the_rest_is_frozen(tiny_folder, dtype, train):
    model = load(tiny_folder, dtype=dtype)
    theta = choose(model, train)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in theta.values())
    frozen = [p for part in model.parts.values() for p in part.parameters() if not p.requires_grad]
    assert all(p.dtype in (dtype, torch.float32) for p in frozen)
    assert {p.dtype for p in model.text_encoders[0].parameters()} == {dtype}
    assert {p.dtype for p in model.vae.parameters()} == {torch.float32}


@pytest.mark.parametrize("train", ["full", "lora"])
def test_half_precision_trains_in_float32_beside_a_half_precision_rest(tiny_folder, train):
    """Under autocast, as accelerate runs it: gradients are float32 and near those of the float32
    model.
    """
    half, whole = (
        gradient(d, tiny_folder, train, PROMPTS) for d in (torch.bfloat16, torch.float32)
    )
    assert torch.cosine_similarity(half, whole, 0) > 0.99


def test_full_training_returns_every_parameter_of_the_denoiser(model):
    theta = choose(model, "full", train_text_encoder=True)
    count = sum(p.numel() for m in (model.denoiser, *model.text_encoders) for p in m.parameters())
    assert sum(p.numel() for p in theta.values()) == count
    assert all(n.startswith(("unet.", "text_encoder.")) for n in theta)


def test_lora_starts_as_its_base_bit_for_bit(model, base, inputs):
    x, t = inputs
    theta = choose(model, "lora", train_text_encoder=True, rank=4, lora_alpha=27)
    assert all(not p.any() for n, p in theta.items() if ".lora_B." in n)
    cond = model.encode_prompts(PROMPTS)
    assert torch.equal(model.predict(x, t, cond), base.predict(x, t, base.encode_prompts(PROMPTS)))


def test_lora_factors_depend_on_the_seed_alone_and_leave_the_global_generator(tiny_folder):
    def factors(seed):
        torch.rand(17)
        before = torch.get_rng_state()
        theta = choose(load(tiny_folder), "lora", rank=8, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([p.detach().flatten() for n, p in theta.items() if ".lora_A." in n])

    a, b, c = factors(0), factors(0), factors(1)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    # std of n normal numbers of std 1/8: 5 standard errors
    assert abs(a.std().item() - 1 / 8) < 5 / 8 / (2 * len(a)) ** 0.5


def test_text_encoder_receives_gradients_through_the_prompts(model, inputs):
    x, t = inputs
    theta = choose(model, "lora", train_text_encoder=True)
    model.predict(x, t, model.encode_prompts(PROMPTS)).square().mean().backward()
    grads = {n: p.grad for n, p in theta.items() if n.startswith("text_encoder.") and "lora_B" in n}
    assert len(grads) == 8
    assert all(g.abs().sum() > 0 for g in grads.values())


def test_targets_that_match_nothing_are_refused(model):
    with pytest.raises(UserError, match="no_such_layer: UNet2DConditionModel has no such layer"):
        choose(model, "lora", lora_target_modules=("no_such_layer",))


def test_choosing_twice_is_an_error(model):
    choose(model, "lora")
    with pytest.raises(ValueError, match="before"):
        choose(model, "full")


# ---- the frozen base
def test_inside_base_a_trained_lora_answers_as_the_base_did(model, base, inputs):
    x, t = inputs
    moved(choose(model, "lora", train_text_encoder=True))
    star = base.predict(x, t, base.encode_prompts(PROMPTS))
    with torch.no_grad(), model.base():
        assert torch.equal(model.predict(x, t, model.encode_prompts(PROMPTS)), star)
    assert not torch.equal(model.predict(x, t, model.encode_prompts(PROMPTS)), star)


def test_full_training_has_no_base_to_ask(model):
    choose(model, "full")
    with pytest.raises(RuntimeError, match="cache"), model.base():
        pass


def test_the_hash_is_the_bases_and_of_every_weight(tiny_folder, base):
    model = load(tiny_folder)
    assert model.hash() == base.hash()
    moved(choose(model, "full"))
    assert model.hash() == base.hash()
    other = load(tiny_folder)
    with torch.no_grad():
        next(other.vae.parameters()).view(-1)[0] += 1e-6
    assert other.hash() != base.hash()


def test_evaluating_turns_dropout_off_and_back_on(model, inputs):
    x, t = inputs
    moved(choose(model, "lora", lora_dropout=0.5))
    model.denoiser.train()
    cond = model.encode_prompts(PROMPTS)
    state = torch.get_rng_state()
    with torch.no_grad(), model.evaluating():
        assert torch.equal(model.predict(x, t, cond), model.predict(x, t, cond))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.denoiser.training
    assert not torch.equal(model.predict(x, t, cond), model.predict(x, t, cond))


def test_unloaded_parts_still_answer_and_what_trains_stays(model, base):
    model.unload("vae")
    model.unload("text_encoders")
    ours, theirs = model.encode_prompts(PROMPTS), base.encode_prompts(PROMPTS)
    assert torch.equal(ours["encoder_hidden_states"], theirs["encoder_hidden_states"])
    choose(model, "lora", train_text_encoder=True)
    with pytest.raises(ValueError, match="trains"):
        model.unload("text_encoders")


# ---- the tiny pipeline's words
def test_every_common_word_is_one_token_and_any_text_can_be_encoded(base):
    tokenizer = base.pipeline.tokenizer
    assert all(len(tokenizer(w).input_ids) == 3 for w in WORDS.split())
    assert len(tokenizer("xylophone").input_ids) > 3
    for text in ["", "🦊 ☃", "{{7*7}} $\\frac", "ä\u0301", "a\nb"]:
        assert torch.isfinite(base.encode_prompts([text])["encoder_hidden_states"]).all()


def test_the_end_of_a_long_prompt_is_named(base):
    assert base.lost_text("a dog " * 10) == ""
    # 75 words fit between the two marks: 74 and "in"
    assert base.lost_text("a dog " * 37 + "in the snow").split() == ["the", "snow"]


def test_tiny_is_the_same_model_in_every_call():
    assert (
        Model(tiny(), SD15).hash() == Model(tiny(), SD15).hash() != Model(tiny(seed=1), SD15).hash()
    )


# ---- folders that are not what they should be
def without(folder, file):
    (folder / file).unlink()


def half(folder, file):
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])


def one_tensor_less(folder, file):
    tensors = load_file(folder / file)
    tensors.pop(sorted(tensors)[5])
    save_file(tensors, folder / file, {"format": "pt"})


def pickled(folder, file):
    """The weights as a pickle that would leave a mark when opened."""

    class Evil:
        def __reduce__(self):
            return (open, (str(folder / "OWNED"), "w"))

    (folder / file).unlink()
    name = "pytorch_model.bin" if "text" in file else "diffusion_pytorch_model.bin"
    (folder / file).with_name(name).write_bytes(pickle.dumps(Evil()))


def not_safetensors(folder, file):
    """Weights in torch's own format are refused too: opening such a file can run code."""
    name = "pytorch_model.bin" if "text" in file else "diffusion_pytorch_model.bin"
    torch.save(load_file(folder / file), (folder / file).with_name(name))
    (folder / file).unlink()


UNET, TEXT, VAE = (
    "unet/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)


@pytest.mark.parametrize("file", [UNET, TEXT, VAE])
@pytest.mark.parametrize("harm", [without, half, one_tensor_less, pickled, not_safetensors])
def test_a_damaged_model_folder_is_refused(tiny_folder, tmp_path, harm, file):
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    harm(copy, file)
    with pytest.raises(UserError) as e:
        load(copy)
    assert str(copy) in str(e.value)
    assert not (copy / "OWNED").exists()


def edited(tiny_folder, tmp_path, **entries):
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    index = json.loads((copy / "model_index.json").read_text()) | entries
    (copy / "model_index.json").write_text(json.dumps(index))
    return copy


@pytest.mark.parametrize(
    "entries",
    [
        {"unet": ["evil", "Evil"]},
        {"_class_name": ["evil", "Evil"]},
        {"_class_name": "StableDiffusionXLPipeline"},
        {"_class_name": None},
        {"text_encoder": [None, None]},
        {"text_encoder": ["transformers", "os"]},
    ],
)
def test_a_model_folder_of_another_kind_is_refused_and_its_code_never_runs(
    tiny_folder, tmp_path, entries
):
    copy = edited(tiny_folder, tmp_path, **entries)
    mark = copy / "OWNED"
    for place in (copy / "unet/evil.py", copy / "evil.py"):
        place.write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(UserError):
        load(copy)
    assert not mark.exists()


def test_what_is_no_model_is_refused_with_a_remedy(tmp_path):
    with pytest.raises(UserError, match="not a pipeline folder"):
        load(tmp_path)
    with pytest.raises(UserError, match="neither a folder here"):
        load(tmp_path / "absent")
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        load(tmp_path)


def test_a_variant_is_loaded_in_every_part(tmp_path):
    pipeline = tiny().to(dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "m", variant="fp16")
    model = load(tmp_path / "m", variant="fp16", dtype=torch.float16)
    assert {p.dtype for p in model.text_encoders[0].parameters()} == {torch.float16}
    for name, part in model.parts.items():
        saved = getattr(pipeline, name).state_dict()
        assert all(torch.equal(w.half(), saved[k]) for k, w in part.state_dict().items())
    with pytest.raises(UserError, match="variant 'bf16'"):
        load(tmp_path / "m", variant="bf16")


@pytest.mark.slow
def test_a_hub_id_is_served_by_the_local_cache_without_network(tiny_folder, tmp_path, base):
    """The layout that huggingface_hub leaves in its cache; a fresh process, because the cache's
    place is read at import.
    """
    repo = tmp_path / "hub/models--org--tiny"
    shutil.copytree(tiny_folder, repo / "snapshots/0123456789abcdef0123456789abcdef01234567")
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text("0123456789abcdef0123456789abcdef01234567")
    code = "from personalize.pipeline.load import load; print(load('org/tiny').hash())"
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split()[-1:] == [base.hash()], done.stderr


def test_weights_named_as_in_stable_diffusion_1_5_are_found(tiny_folder, tmp_path, base):
    """The hub's text encoders carry the names of older transformers."""
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    tensors = load_file(copy / TEXT)
    save_file({f"text_model.{k}": v for k, v in tensors.items()}, copy / TEXT, {"format": "pt"})
    assert load(copy).hash() == base.hash()
