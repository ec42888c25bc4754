"""Every kind of training in every format that holds it, opened by the official loaders."""

import re

import pytest
import torch
from diffusers import DiffusionPipeline
from exported import PAIRS, answer, moved, officially
from safetensors import safe_open
from safetensors.torch import load_file

from personalize.config.kinds import TRAINING_KINDS, Word
from personalize.export.formats import CROSS_ATTENTION, KOHYA, leave, save_as
from personalize.export.model_card import model_card
from personalize.pipeline.load import load
from toy2d.runs.files import UserError


def check_round_trip(base, kind, form, tmp_path):
    model = moved(base, kind)
    expected = answer(model)
    assert (expected - answer(load(str(base)))).abs().max() > 1e-3
    save_as(model, form, tmp_path / "out")
    opened = officially(base, form, tmp_path / "out")
    # merged weights are rounded once to float32: W x + s B (A x) against (W + s B A) x
    torch.testing.assert_close(answer(model, opened), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(answer(model), expected)  # the live model is as before


@pytest.mark.parametrize(("kind", "form"), PAIRS)
def test_every_kind_reloads_in_every_format_that_holds_it(folders, tmp_path, kind, form):
    check_round_trip(folders("sd15"), kind, form, tmp_path)


QUICK = [("lora", "kohya"), ("custom_diffusion", "custom_diffusion")]


@pytest.mark.parametrize(
    ("kind", "form"),
    [pytest.param(*p, marks=() if p in QUICK else pytest.mark.slow) for p in PAIRS],
)
def test_so_does_sdxl(folders, tmp_path, kind, form):
    check_round_trip(folders("sdxl"), kind, form, tmp_path)


ELSEWHERE = [("lora", "kohya"), ("custom_diffusion", "custom_diffusion"), ("token", "token")]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(k, marks=() if k == "custom_diffusion" else pytest.mark.slow)
        for k in TRAINING_KINDS
    ],
)
def test_so_does_sd3_and_says_which_formats_diffusers_cannot_open(folders, tmp_path, kind):
    base = folders("sd3")
    model = moved(base, kind, (Word("<new1>", "dog"),))
    expected = answer(model)
    for form in TRAINING_KINDS[kind].formats:
        if (kind, form) in ELSEWHERE:
            with pytest.raises(UserError, match=f"--format {form} is of no use here: diffusers"):
                save_as(model, form, tmp_path / form)
            continue
        save_as(model, form, tmp_path / form)
        opened = officially(base, form, tmp_path / form)
        torch.testing.assert_close(answer(model, opened), expected, rtol=1e-4, atol=1e-5)


def test_sd3_reads_one_vector_per_word(folders):
    with pytest.raises(UserError, match="--num_vectors"):
        moved(folders("sd3"), "token")


# ---- the files themselves
@pytest.mark.parametrize(("rank", "alpha"), [(4, 4), (8, 32), (16, 27)])
def test_kohya_keys_are_those_that_other_tools_know(folders, tmp_path, rank, alpha):
    model = moved(folders("sd15"), "lora", rank=rank, lora_alpha=alpha)
    save_as(model, "kohya", tmp_path / "k")
    tensors = load_file(tmp_path / "k" / KOHYA)
    unet = r"lora_unet_\w+_attn[12]_to_(q|k|v|out_0)\.(alpha|lora_(down|up)\.weight)"
    layer = r"lora_te_text_model_encoder_layers_\d_self_attn_(q|k|v|out)_proj"
    text = layer + r"\.(alpha|lora_(down|up)\.weight)"
    assert all(re.fullmatch(f"{unet}|{text}", key) for key in tensors)
    assert {float(v) for k, v in tensors.items() if k.endswith(".alpha")} == {float(alpha)}
    # alpha / rank is the scale for every reader of this format
    opened = officially(folders("sd15"), "kohya", tmp_path / "k")
    torch.testing.assert_close(answer(model, opened), answer(model), rtol=1e-4, atol=1e-5)


def test_kohya_holds_convolutions_too(folders, tmp_path):
    targets = ("to_q", "proj_in", "conv1", "ff.net.2")
    model = moved(folders("sd15"), "lora", text=False, lora_target_modules=targets)
    save_as(model, "kohya", tmp_path / "k")
    opened = officially(folders("sd15"), "kohya", tmp_path / "k")
    torch.testing.assert_close(answer(model, opened), answer(model), rtol=1e-4, atol=1e-5)


def test_a_single_word_has_the_name_that_the_loader_looks_for(folders, tmp_path):
    model = moved(folders("sd15"), "token", (Word("<new1>", "dog", 2),))
    save_as(model, "token", tmp_path / "t")
    pipeline = DiffusionPipeline.from_pretrained(folders("sd15"))
    pipeline.load_textual_inversion(tmp_path / "t")  # learned_embeds.safetensors
    assert torch.equal(answer(model, pipeline), answer(model))


def test_custom_diffusion_without_a_new_word_is_saved_too(folders, tmp_path):
    """diffusers' script ends in a traceback after the last step."""
    for freeze in ("crossattn_kv", "crossattn"):
        model = moved(folders("sd15"), "custom_diffusion", (), freeze_model=freeze)
        save_as(model, "custom_diffusion", tmp_path / freeze)
        opened = officially(folders("sd15"), "custom_diffusion", tmp_path / freeze)
        torch.testing.assert_close(answer(model, opened), answer(model), rtol=1e-4, atol=1e-5)


def test_custom_diffusion_keys_are_diffusers_own(folders, tmp_path):
    model = moved(folders("sd15"), "custom_diffusion", freeze_model="crossattn")
    save_as(model, "custom_diffusion", tmp_path / "c")
    pipeline = DiffusionPipeline.from_pretrained(folders("sd15"))
    pipeline.unet.load_attn_procs(tmp_path / "c", weight_name=CROSS_ATTENTION, _pipeline=pipeline)
    theirs = {
        k
        for k, v in pipeline.unet._get_custom_diffusion_state_dict().items()
        if isinstance(v, torch.Tensor)
    }
    ours = {k for k, v in load_file(tmp_path / "c" / CROSS_ATTENTION).items() if v.numel()}
    assert ours == theirs


def test_diffusers_sets_no_processors_unless_it_is_given_the_pipeline(folders, tmp_path):
    """Why the model card says `_pipeline=`.

    If this fails, diffusers has mended it: shorten the card.
    """
    model = moved(folders("sd15"), "custom_diffusion", ())
    save_as(model, "custom_diffusion", tmp_path / "c")
    pipeline = DiffusionPipeline.from_pretrained(folders("sd15"))
    pipeline.unet.load_attn_procs(tmp_path / "c", weight_name=CROSS_ATTENTION)
    assert torch.equal(answer(model, pipeline), answer(load(str(folders("sd15")))))


@pytest.mark.parametrize(
    ("kind", "family"),
    [*((k, "sd15") for k in ("full", "lora", "loha", "custom_diffusion")), ("token", "sdxl")],
)
def test_the_code_on_the_model_card_opens_the_run(folders, tmp_path, monkeypatch, kind, family):
    model = moved(folders(family), kind)
    leave(model, tmp_path)
    model_card(tmp_path, "personalize train", {"train": kind}, {})
    code = re.search(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    names = {"BASE": str(folders(family))}
    exec(code, names)
    torch.testing.assert_close(
        answer(model, names["pipeline"]), answer(model), rtol=1e-4, atol=1e-5
    )


# ---- formats that cannot hold it
@pytest.mark.parametrize(
    ("kind", "form", "said"),
    [
        ("loha", "diffusers", "diffusers' LoRA loader cannot hold it; use peft or merged"),
        ("lokr", "kohya", "diffusers' LoRA loader cannot hold it; use peft or merged"),
        ("oft", "custom_diffusion", "use peft or merged"),
        ("full", "diffusers", "every weight has moved, so it is a pipeline of its own; use merged"),
        (
            "custom_diffusion",
            "token",
            "it is whole keys and values, and new words; use custom_diffusion or merged",
        ),
        ("token", "peft", "it is new words alone; use token or merged"),
    ],
)
def test_a_format_that_cannot_hold_it_is_refused_with_those_that_can(
    folders, tmp_path, kind, form, said
):
    model = moved(folders("sd15"), kind)
    with pytest.raises(
        UserError, match=f"--format {form} cannot hold --train {kind}: .*{re.escape(said)}"
    ):
        save_as(model, form, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_words_carry_their_name_in_the_file(folders, tmp_path):
    model = moved(folders("sdxl"), "token", (Word("<new1>", "dog"),))
    save_as(model, "token", tmp_path / "t")
    with safe_open(tmp_path / "t" / "<new1>.safetensors", "pt") as f:
        assert set(f.keys()) == {"clip_l", "clip_g"}
        assert f.metadata()["word"] == "<new1>"
