"""Every format reloads with its official loader and answers as the trained model did."""

import json
import os
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import moved

from personalize.adapters.trainable import choose
from personalize.export.model_card import model_card, public_name
from personalize.export.write import (
    load_run,
    save_lora,
    save_merged,
    save_peft,
    save_pipeline,
)
from personalize.pipeline.families import SD15
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from toy2d.runs.files import RunFailure, UserError, verify_manifest, write_json
from toy2d.runs.folder import hash_tensors, whole_folder

PROMPTS = ["a photo of sks dog", "a cat on the beach"]
T = torch.tensor([5, 900])
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def answer(pipeline):
    """What the text encoder and the UNet of a pipeline say, by their own classes."""
    ids = pipeline.tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt")
    hidden = pipeline.text_encoder(ids.input_ids)[0]
    return pipeline.unet(X, T, encoder_hidden_states=hidden).sample


def train(model, kind="lora", text=True, **options):
    theta = choose(model, kind, train_text_encoder=text, **options)
    moved(theta)
    return answer(model.pipeline)


def official(folder):
    return DiffusionPipeline.from_pretrained(folder, use_safetensors=True)


# ---- round trips
@pytest.mark.parametrize("text", [False, True])
def test_a_pipeline_folder_reloads_bit_for_bit(model, tmp_path, text):
    expected = train(model, "full", text)
    save_pipeline(model, tmp_path / "p")
    pipeline = official(tmp_path / "p")
    assert isinstance(pipeline, StableDiffusionPipeline)
    assert torch.equal(answer(pipeline), expected)
    assert verify_manifest(tmp_path / "p")


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(("rank", "alpha"), [(4, 4), (8, 32), (16, 27)])
def test_lora_weights_reload_with_their_scale(model, tiny_folder, tmp_path, text, rank, alpha):
    """alpha != rank is where scripts that write no metadata change the picture."""
    expected = train(model, "lora", text, rank=rank, lora_alpha=alpha)
    save_lora(model, tmp_path / "l")
    pipeline = official(tiny_folder)
    before = answer(pipeline)
    pipeline.load_lora_weights(tmp_path / "l")
    assert torch.equal(answer(pipeline), expected)
    assert (expected - before).abs().max() > 0.01
    pipeline.fuse_lora()
    torch.testing.assert_close(answer(pipeline), expected, rtol=1e-4, atol=1e-5)
    pipeline.unfuse_lora()
    pipeline.unload_lora_weights()
    torch.testing.assert_close(answer(pipeline), before, rtol=1e-4, atol=1e-5)


def test_lora_keys_are_those_that_other_tools_know(model, tmp_path):
    train(model, rank=2, lora_alpha=3)
    save_lora(model, tmp_path / "l")
    with safe_open(tmp_path / "l/pytorch_lora_weights.safetensors", "pt") as f:
        keys, header = list(f.keys()), f.metadata()
    unet = r"unet\..*\.attn[12]\.(to_[kqv]|to_out\.0)\.lora\.(down|up)\.weight"
    layer = r"text_encoder\.text_model\.encoder\.layers\.\d\.self_attn\.(q|k|v|out)_proj"
    text = layer + r"\.lora_linear_layer\.(down|up)\.weight"
    assert all(re.fullmatch(unet, k) or re.fullmatch(text, k) for k in keys)
    scales = json.loads(header["lora_adapter_metadata"])
    assert (scales["unet.r"], scales["unet.lora_alpha"]) == (2, 3)


def test_exports_of_the_same_weights_are_the_same(tiny_folder, tmp_path):
    """PEFT folders to the byte; the LoRA file up to the order of safetensors' two header entries,
    which varies.
    """
    lora = []
    for name in ("a", "b"):
        model = load(tiny_folder)
        train(model)
        save_lora(model, tmp_path / name / "lora")
        save_peft(model, tmp_path / name / "peft")
        with safe_open(tmp_path / name / "lora/pytorch_lora_weights.safetensors", "pt") as f:
            names = f.keys()
            lora.append((f.metadata(), hash_tensors({k: f.get_tensor(k) for k in names})))
    assert lora[0] == lora[1]
    a, b = (json.loads((tmp_path / n / "peft/manifest.json").read_text()) for n in "ab")
    assert a == b


@pytest.mark.parametrize("text", [False, True])
def test_peft_folders_reload_with_peft(model, tiny_folder, tmp_path, text):
    expected = train(model, "lora", text, rank=8, lora_alpha=32)
    save_peft(model, tmp_path / "p")
    pipeline = official(tiny_folder)
    before = answer(pipeline)
    wrapped = PeftModel.from_pretrained(pipeline.unet, tmp_path / "p/unet")
    pipeline.unet = wrapped
    if text:
        pipeline.text_encoder = PeftModel.from_pretrained(
            pipeline.text_encoder, tmp_path / "p/text_encoder"
        )
    assert torch.equal(answer(pipeline), expected)
    if not text:
        with wrapped.disable_adapter():
            assert torch.equal(answer(pipeline), before)
    config = json.loads((tmp_path / "p/unet/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 8, 32)
    assert config["base_model_name_or_path"] == "tiny"  # the folder's name, not where it lies
    pipeline.unet = wrapped.merge_and_unload()
    torch.testing.assert_close(answer(pipeline), expected, rtol=1e-4, atol=1e-5)


def test_a_merged_pipeline_has_no_adapters_and_the_same_answers(model, tmp_path):
    expected = train(model, rank=8, lora_alpha=32, lora_target_modules=("to_q", "conv1", "proj_in"))
    save_merged(model, tmp_path / "m")
    names = load_file(tmp_path / "m/unet/diffusion_pytorch_model.safetensors")
    assert not [n for n in names if "lora" in n or "base_layer" in n]
    # W + s B A rounded once to float32, against W x + s B (A x)
    torch.testing.assert_close(answer(official(tmp_path / "m")), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(answer(model.pipeline), expected)  # the live model is as before


def test_half_precision_weights_are_exported_as_they_are(tiny_folder, tmp_path):
    model = load(tiny_folder, dtype=torch.bfloat16)
    choose(model, "lora")
    save_lora(model, tmp_path / "l")
    dtypes = {t.dtype for t in load_file(tmp_path / "l/pytorch_lora_weights.safetensors").values()}
    assert dtypes == {torch.float32}
    save_merged(model, tmp_path / "m")
    assert {
        t.dtype for t in load_file(tmp_path / "m/unet/diffusion_pytorch_model.safetensors").values()
    } == {torch.bfloat16}


def test_the_wrong_format_is_refused(tiny_folder, tmp_path):
    full, lora = load(tiny_folder), load(tiny_folder)
    choose(full, "full")
    choose(lora, "lora")
    for save in (save_lora, save_peft, save_merged):
        with pytest.raises(ValueError, match="save_pipeline"):
            save(full, tmp_path / "x")
    with pytest.raises(ValueError, match="save_merged"):
        save_pipeline(lora, tmp_path / "x")
    assert not list(tmp_path.iterdir())


# ---- folders appear whole
def test_a_failed_export_leaves_the_old_one(model, tmp_path, monkeypatch):
    train(model)
    save_lora(model, tmp_path / "l")
    before = {p.name: p.read_bytes() for p in (tmp_path / "l").iterdir()}

    def full_disk(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("toy2d.runs.folder.write_manifest", full_disk)
    with pytest.raises(RunFailure, match=r"cannot write .*: the disk of .* is full"):
        save_lora(model, tmp_path / "l")
    assert {p.name: p.read_bytes() for p in (tmp_path / "l").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["l"]


def test_a_disk_that_is_really_full_is_said_and_leaves_nothing(model, tmp_path):
    """A file size limit stands for the disk: every writer below (safetensors, transformers, json)
    meets it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(RunFailure, match="cannot write"):
            save_pipeline(model, tmp_path / "p")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_what_a_kill_left_is_cleared_the_next_time(model, tmp_path):
    for left in (".p.new.tmp", ".p.old.tmp"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "half").write_text("x")
    save_pipeline(model, tmp_path / "p")
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_an_export_replaces_ours_and_nothing_else(model, tmp_path):
    train(model)
    save_lora(model, tmp_path / "l")
    save_lora(model, tmp_path / "l")
    assert [p.name for p in tmp_path.iterdir()] == ["l"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not ours"):
        save_lora(model, tmp_path / "mine")
    assert (tmp_path / "mine/thesis.tex").read_text() == "x"
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="not ours"), whole_folder(tmp_path / "file"):
        pass


# ---- what a run left
def run_folder(tmp_path, tiny_folder, kind, text=True, **env):
    """config.json and weights, as an experiment leaves them."""
    run, model = tmp_path / "run", load(tiny_folder)
    expected = train(model, kind, text, **({"rank": 4, "lora_alpha": 9} if kind == "lora" else {}))
    (save_pipeline if kind == "full" else save_lora)(
        model, run / ("pipeline" if kind == "full" else "lora")
    )
    write_json(
        run / "config.json", {"pretrained_model_name_or_path": str(tiny_folder), "train": kind}
    )
    write_json(run / "env.json", {"base_hash": model.hash(), **env})
    return run, expected


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_opens_with_its_weights_and_with_its_base(tiny_folder, base, tmp_path, kind, text):
    run, expected = run_folder(tmp_path, tiny_folder, kind, text)
    model = load_run(run)
    assert torch.equal(answer(model.pipeline), expected)
    assert torch.equal(answer(load_run(run, base=True).pipeline), answer(base.pipeline))
    if kind == "lora":
        with model.base():
            assert torch.equal(answer(model.pipeline), answer(base.pipeline))
    assert not [p for part in model.parts.values() for p in part.parameters() if p.requires_grad]


def test_a_reopened_run_can_be_exported_again(tiny_folder, tmp_path):
    run, expected = run_folder(tmp_path, tiny_folder, "lora")
    model = load_run(run)
    for save, name in ((save_lora, "lora"), (save_peft, "peft"), (save_merged, "merged")):
        save(model, tmp_path / name)
    kept, again = (
        load_file(f / "pytorch_lora_weights.safetensors") for f in (run / "lora", tmp_path / "lora")
    )
    assert all(torch.equal(kept[k], again[k]) for k in kept.keys() | again.keys())
    torch.testing.assert_close(
        answer(official(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_damaged_or_foreign_run_is_refused(tiny_folder, tmp_path, kind):
    run, _ = run_folder(tmp_path, tiny_folder, kind)
    file = max((run / {"full": "pipeline", "lora": "lora"}[kind]).rglob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1  # one flipped bit: safetensors would not notice
    file.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        load_run(run)
    shutil.rmtree(run / {"full": "pipeline", "lora": "lora"}[kind])
    with pytest.raises(UserError, match="no trained weights"):
        load_run(run)
    for text in ("[]", "{", "{}"):
        (run / "config.json").write_text(text)
        with pytest.raises(UserError):
            load_run(run, base=True)
    with pytest.raises(UserError, match="no run folder"):
        load_run(tmp_path / "absent")


def test_a_base_that_changed_since_is_noticed(tiny_folder, tmp_path):
    run, _ = run_folder(tmp_path, tiny_folder, "lora", base_hash="0" * 16)
    with pytest.raises(UserError, match="changed since"):
        load_run(run)


# ---- the model card
NASTY = [
    "<script>alert(1)</script>",
    "a: b\n- c\n---\n",
    "``` \n# x",
    "{{7*7}} $\\frac",
    "a | b",
    "nul\0",
    "'\"\\",
    "🐕",
]


@pytest.mark.parametrize("prompt", NASTY)
def test_a_card_is_valid_and_prompts_are_data(tmp_path, prompt):
    home = Path.home()
    config = {
        "pretrained_model_name_or_path": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "instance_prompt": prompt,
        "instance_data_dir": f"{home}/photos",
        "logging_dir": f"/mnt{home}/logs",
        "objective": "l2",
        "train": "lora",
        "class_prompt": None,
    }
    command = f"personalize train --instance_data_dir {home}/photos --instance_prompt '{prompt}'"
    model_card(tmp_path, command, config, {"delta_theta": 1.5})
    text = (tmp_path / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["instance_prompt"] == prompt
    assert values["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert "<script>" not in body.replace(command.replace(str(home), "~"), "")
    assert command.replace(str(home), "~") in body
    assert os.fspath(home) + "/photos" not in text
    assert f"/mnt{home}/logs" in text  # another folder, whose name only ends like the home
    assert "| delta\\_theta | 1.5 |" in body
    assert 'load_lora_weights("lora")' in body


def test_public_names_hide_where_a_folder_lies(tmp_path):
    assert public_name(str(tmp_path)) == tmp_path.name
    assert public_name("org/model") == "org/model"
    assert public_name(None) is None


def test_a_pipeline_of_a_model_in_memory_has_no_source(tmp_path, base):
    model = Model(base.pipeline, SD15)
    save_pipeline(model, tmp_path / "p")
    assert load(tmp_path / "p").hash() == base.hash()


def test_old_and_new_text_encoder_names_load_alike(model, tiny_folder, tmp_path):
    expected = train(model)
    save_lora(model, tmp_path / "l")
    file = tmp_path / "l/pytorch_lora_weights.safetensors"
    with safe_open(file, "pt") as f:
        header = f.metadata()
    save_file({k.replace("text_model.", ""): v for k, v in load_file(file).items()}, file, header)
    pipeline = official(tiny_folder)
    pipeline.load_lora_weights(tmp_path / "l")
    assert torch.equal(answer(pipeline), expected)
