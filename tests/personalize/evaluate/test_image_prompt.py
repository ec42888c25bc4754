"""IP-Adapters in diffusers' format on tiny random weights: what is asked, and what stays exact."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from evaluating import QUICK, SEEDS, run, said
from PIL import Image
from safetensors.torch import save_file
from small import workshop
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from personalize.__main__ import main
from personalize.data.decode import open_rgb
from personalize.evaluate.image_prompt import IMAGE, SHOWN, with_image_prompt
from personalize.evaluate.judges import Evaluators
from personalize.evaluate.learning import gain_of, held_out_config
from personalize.pipeline.load import load
from personalize.pipeline.random_pipeline import tiny
from personalize.sample.sampler import Sampling, generate
from toy2d.runs.files import UserError

torch.set_num_threads(1)
WIDTH = 24  # of the image embedding


def adapter(folder: Path, unet, encoder: int = WIDTH, tokens: int = 4) -> Path:
    """A random IP-Adapter for `unet`, as published ones lie in a folder."""
    folder.mkdir(parents=True)
    rng = torch.Generator().manual_seed(0)
    D = unet.config.cross_attention_dim
    tensors = {
        "image_proj.proj.weight": torch.randn(tokens * D, WIDTH, generator=rng),
        "image_proj.proj.bias": torch.zeros(tokens * D),
        "image_proj.norm.weight": torch.ones(D),
        "image_proj.norm.bias": torch.zeros(D),
    }
    layers = [n for n in unet.attn_processors if n.endswith("attn2.processor")]
    for i, name in enumerate(layers):
        own = unet.get_submodule(name.removesuffix(".processor")).to_k.weight
        for which in "kv":
            key = f"ip_adapter.{2 * i + 1}.to_{which}_ip.weight"
            tensors[key] = torch.randn(own.shape, generator=rng) / 4
    save_file(tensors, folder / "x.safetensors")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
            projection_dim=encoder,
        )
        CLIPVisionModelWithProjection(vision).save_pretrained(folder / "image_encoder")
    return folder


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def place(request, tmp_path_factory):
    """(pipeline folder, adapter folder)."""
    root = tmp_path_factory.mktemp(request.param)
    pipeline = tiny(request.param, root / "base")
    return root / "base", adapter(root / "adapter", pipeline.unet)


def photos() -> list[Image.Image]:
    return [open_rgb(p) for p in sorted((workshop() / "photos").glob("*.jpg"))]


def prompted(place, scale=1.0):
    return with_image_prompt(load(str(place[0])), str(place[1]), photos(), "sks", scale)


def asked(model, prompts, rows=2):
    x = torch.randn(rows, *model.latent_shape(64), generator=torch.Generator().manual_seed(0))
    t = model.schedule.timesteps[torch.tensor([5, 900][:rows])]
    with torch.no_grad():
        return model.predict(x, t, model.encode_prompts(prompts))


def test_text_prompts_are_the_bases_bit_for_bit(place):
    """Alone and in one batch with an image prompt; and the image prompt does something."""
    model, base = prompted(place)
    alone = load(str(place[0]))
    texts = ["a red car", "a photo of a dog"]
    assert torch.equal(asked(model, texts), asked(alone, texts))
    assert torch.equal(asked(base, texts), asked(alone, texts))
    mixed = asked(model, ["a sks dog", "a photo of a dog"])
    plain = asked(alone, ["a dog", "a photo of a dog"])
    torch.testing.assert_close(mixed[1], plain[1], rtol=1e-4, atol=1e-5)
    assert (mixed[0] - plain[0]).abs().max() > 1e-3
    assert torch.equal(asked(base, ["a sks dog", "a dog"]), asked(alone, ["a sks dog", "a dog"]))


def test_the_subjects_prompt_is_its_text_without_the_identifier(place):
    model, _ = prompted(place)
    cond = model.encode_prompts(["a sks dog in the snow", "a dog in the snow"])
    assert cond[SHOWN].tolist() == [True, False]
    assert cond[IMAGE][0].abs().max() > 0
    assert cond[IMAGE][1].abs().max() == 0
    assert cond[IMAGE].shape[1:] == (3, WIDTH)
    torch.testing.assert_close(cond["encoder_hidden_states"][0], cond["encoder_hidden_states"][1])


def test_pictures_are_those_of_diffusers_own_call(place):
    """Guided, with several pictures as one prompt, half the scale: to the rounding of a picture."""
    model, _ = prompted(place, 0.5)
    ours = generate(model, ["a sks dog"], [7], Sampling(3, 3.0, "ddim"))[0]
    pipeline = load(str(place[0])).pipeline
    how = {"clip_sample": False, "timestep_spacing": "leading"}
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **how)
    pipeline.load_ip_adapter(str(place[1]), "", "x.safetensors")
    pipeline.set_ip_adapter_scale(0.5)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(1, *model.latent_shape(64), generator=torch.Generator().manual_seed(7))
    theirs = pipeline(
        "a dog",
        ip_adapter_image=[photos()],
        latents=latents,
        num_inference_steps=3,
        guidance_scale=3.0,
        height=64,
        width=64,
    ).images[0]
    apart = [abs(a - b) for a, b in zip(ours.tobytes(), theirs.tobytes(), strict=True)]
    assert max(apart) <= 1


def test_a_scale_of_nearly_zero_is_nearly_the_base(place):
    """The image branch counts in proportion to the scale."""
    alone = asked(load(str(place[0])), ["a dog", "a dog"])
    apart = [
        float((asked(prompted(place, s)[0], ["a sks dog"] * 2) - alone).abs().max())
        for s in (0.001, 0.1)
    ]
    assert apart[0] < 0.05 * apart[1]


def test_drift_of_text_prompts_is_exactly_zero_and_gain_is_measured(place, tmp_path):
    """Path KL 0 with error 0, the base's own pictures, leak 0; so gain is binding."""
    model, base = prompted(place)
    prompts = ("a photo of sks dog", "a photo of a dog")
    held_out = held_out_config(workshop() / "photos", *prompts, gain_samples=20)
    found = run(
        model,
        tmp_path,
        Evaluators(left_out=[]),
        base=base,
        chains=2,
        held_out=held_out,
        seeds=SEEDS[:1],
        sampling=QUICK,
    )
    for group in ("class", "unrelated"):
        assert found.drift[group]["path_kl"] == {"mean": 0.0, "error": 0.0, "n": 2}
    learnt = found.summary["learning"]
    assert learnt["leak"] == learnt["leak_error"] == 0
    assert learnt["gain"] == learnt["binding"] != 0
    assert learnt["gain_error"] > 0
    for prompt in ("a photo of a dog", "a red car"):  # drawn in other batches: to rounding
        name = next(r["file"] for r in found.rows if r["prompt"] == prompt)
        both = (open_rgb(tmp_path / side / name).tobytes() for side in ("tuned", "base"))
        assert max(abs(a - b) for a, b in zip(*both, strict=True)) <= 1
    assert found.about["weights"] != found.about["base"]


def test_gain_of_the_base_against_itself_is_zero():
    model = load(str(workshop() / "sd"))
    prompts = ("a photo of sks dog", "a photo of a dog")
    config = held_out_config(workshop() / "photos", *prompts, gain_samples=20)
    assert set(gain_of(model, load(str(workshop() / "sd")), config).values()) == {0.0}


# ---- faults
def test_an_adapter_of_another_base_names_both_shapes(tmp_path):
    other = adapter(tmp_path / "adapter", tiny("sdxl").unet)
    with pytest.raises(UserError) as e:
        with_image_prompt(load(str(workshop() / "sd")), str(other), photos(), "sks")
    assert "its keys are 32 x 64, the base's 32 x 32" in str(e.value)
    assert "\n" not in str(e.value)


def test_an_image_encoder_of_another_adapter_names_both_shapes(tmp_path):
    other = adapter(tmp_path / "adapter", tiny().unet, encoder=10)
    with pytest.raises(UserError, match=r"projection is 128 x 24, its image encoder gives 10"):
        with_image_prompt(load(str(workshop() / "sd")), str(other), photos(), "sks")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("two files", r"name one \*\.safetensors in it \(there: x.safetensors, y.safetensors\)"),
        ("no encoder", "lacks the folder image_encoder/"),
        ("nothing", r"is not here; write FOLDER, FOLDER/x\.safetensors or OWNER/REPO/"),
        ("hub", "neither here nor given by the hub or its cache"),
        ("no adapter", "is no IP-Adapter"),
        ("sd3", r"for UNets \(SD-1.x, SDXL\), not for sd3"),
    ],
)
def test_what_is_no_adapter_is_one_line(tmp_path, fault, message):
    place = adapter(tmp_path / "adapter", tiny().unet)
    name, kind = str(place), "sd15"
    if fault == "two files":
        save_file({"a": torch.zeros(1)}, place / "y.safetensors")
    elif fault == "no encoder":
        (place / "image_encoder").rename(place / "other")
    elif fault == "nothing":
        name = "h94/IP-Adapter"
    elif fault == "hub":
        name = "h94/IP-Adapter/models/ip-adapter_sd15.safetensors"
    elif fault == "no adapter":
        save_file({"a": torch.zeros(1)}, place / "x.safetensors")
    else:
        kind = "sd3"
    tiny(kind, tmp_path / "base")
    with pytest.raises(UserError, match=message) as e:
        with_image_prompt(load(str(tmp_path / "base")), name, photos(), "sks")
    assert "\n" not in str(e.value)


def test_evaluate_from_the_command_line(tmp_path, capsys, words):
    """One line trains nothing and scores the base under the subject's pictures."""
    place = adapter(tmp_path / "adapter", tiny().unet)
    (tmp_path / "prompts.txt").write_text("a {0} {1} in the snow\n")
    photos_folder, out = str(workshop() / "photos"), tmp_path / "out"
    command = ["evaluate", "--model", str(workshop() / "sd"), "--ip_adapter", str(place)]
    command += ["--ip_adapter_scale", "0.7", "--reference", photos_folder, "--class_word", "dog"]
    command += ["--held_out_data_dir", photos_folder, "--gain_samples", "20"]
    command += ["--prompts", str(tmp_path / "prompts.txt"), "--out", str(out), *words]
    assert main(command) == 0
    assert "gain (nats)" in said(capsys)
    report = json.loads((out / "evaluation.json").read_text())
    assert report["image_prompt"]["scale"] == 0.7
    assert report["image_prompt"]["pictures"] == ["0.jpg", "1.jpg", "2.jpg"]
    assert report["drift"]["class"]["path_kl"]["mean"] == 0
    assert "gain" in report["learning"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ip_adapter_scale", "0.5"], "--ip_adapter_scale has no effect without --ip_adapter"),
        (["--ip_adapter", "x", "--ip_adapter_scale", "0"], "--ip_adapter_scale 0.0: above 0"),
        (["--ip_adapter", "x", "--base", "y"], "--base has no effect with --ip_adapter"),
        (["--gain_samples", "9"], "--gain_samples has no effect without --held_out_data_dir"),
    ],
)
def test_contradictory_flags_are_refused(flags, message, capsys):
    assert main(["evaluate", "--model", "mini", "--reference", "photos", *flags]) == 2
    assert message in said(capsys)
