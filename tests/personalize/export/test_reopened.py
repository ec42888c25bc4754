"""What a run left is put back onto its base, and an export is checked before it is announced."""

import re

import pytest
import torch
from exported import PROMPT, WORDS, answer, moved
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import config, trained
from small import moved as shake

from personalize.__main__ import main
from personalize.adapters.trainable import choose
from personalize.config.kinds import TRAINING_KINDS, Word
from personalize.export.formats import CROSS_ATTENTION, KOHYA, checked, leave, save_as
from personalize.export.write import load_run
from personalize.pipeline.load import load
from toy2d.runs.files import RunFailure, UserError, write_json


# ---- what a run left is put back
def run_of(folders, tmp_path, kind, words=WORDS, family="sd15", **options):
    model = moved(folders(family), kind, words, **options)
    names = "+".join(w.placeholder for w in words) if TRAINING_KINDS[kind].words else None
    run = tmp_path / "run"
    leave(model, run)
    write_json(
        run / "config.json",
        {
            "pretrained_model_name_or_path": str(folders(family)),
            "train": kind,
            "placeholder_token": names,
            "initializer_token": "dog",
            "num_vectors": 2,
        },
    )
    return run, model


TWO = (Word("<new1>", "dog", 2), Word("<new2>", "dog", 2))


@pytest.mark.parametrize("kind", [k for k in TRAINING_KINDS if k not in ("full", "lora")])
def test_a_run_of_every_kind_opens_with_its_weights_and_its_base(folders, tmp_path, kind):
    run, model = run_of(folders, tmp_path, kind, TWO)
    again = load_run(run)
    assert again.trained == kind
    assert torch.equal(answer(again), answer(model))
    with model.base(), again.base():
        assert torch.equal(answer(again), answer(model))
    assert not [p for part in again.parts.values() for p in part.parameters() if p.requires_grad]
    for form in TRAINING_KINDS[kind].formats:
        save_as(again, form, tmp_path / form)
        assert (
            checked(again, form, tmp_path / form, lambda: load(str(folders("sd15")))).difference
            < 1e-5
        )


@pytest.mark.parametrize("family", ["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["custom_diffusion", "token"])
def test_words_and_the_whole_text_encoder_together(folders, tmp_path, kind, family):
    """The table stays; the rest of the encoder moves, is kept in the run, and goes elsewhere only
    as a pipeline.
    """
    run, model = run_of(folders, tmp_path, kind, TWO, family, train_text_encoder=True)
    table = load(str(folders(family))).text_encoders[0].get_input_embeddings().weight
    layer = model.text_encoders[0].get_input_embeddings()
    assert torch.equal(layer.base_layer.weight[: len(table)], table)
    again = load_run(run)
    assert torch.equal(answer(again), answer(model))
    with model.base(), again.base():
        assert torch.equal(answer(again), answer(model))
    with pytest.raises(
        UserError, match="it has no place for the text encoder, which has trained; use merged"
    ):
        save_as(again, kind, tmp_path / "x")
    save_as(again, "merged", tmp_path / "m")
    assert checked(again, "merged", tmp_path / "m", None).difference < 1e-5


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("lokr", "peft/unet/adapter_model.safetensors"),
        ("custom_diffusion", f"custom_diffusion/{CROSS_ATTENTION}"),
    ],
)
def test_a_key_without_a_place_is_an_error(folders, tmp_path, monkeypatch, kind, file):
    run, _ = run_of(folders, tmp_path, kind, TWO)
    tensors = load_file(run / file)
    key = next(k for k, v in tensors.items() if v.numel())
    save_file(tensors | {key.replace("to_", "no_"): tensors[key].clone()}, run / file)
    monkeypatch.setattr("personalize.export.write.verify_manifest", lambda folder: True)
    with pytest.raises(UserError, match="which the base has no place for"):
        load_run(run)


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("lora", "lora/pytorch_lora_weights.safetensors"),
        ("oft", "peft/unet/adapter_model.safetensors"),
    ],
)
@pytest.mark.parametrize("harm", ["added", "lost"])
def test_a_tensor_that_a_loader_would_pass_over_is_an_error(
    folders, tmp_path, monkeypatch, kind, file, harm
):
    run, _ = run_of(folders, tmp_path, kind)
    with safe_open(run / file, "pt") as f:
        header = f.metadata()
    tensors = load_file(run / file)
    key = next(k for k in tensors if "unet" in k or kind == "oft")
    if harm == "added":
        tensors[key.replace("attn1", "attn9")] = tensors[key].clone()
    else:
        del tensors[key]
    save_file(tensors, run / file, header)
    monkeypatch.setattr("personalize.export.write.verify_manifest", lambda folder: True)
    with pytest.raises(UserError, match="place"):
        load_run(run)


def test_words_that_are_not_the_runs_are_an_error(folders, tmp_path, monkeypatch):
    run, _ = run_of(folders, tmp_path, "token", TWO)
    monkeypatch.setattr("personalize.export.write.verify_manifest", lambda folder: True)
    (run / "token" / "<new1>.safetensors").rename(run / "token" / "lost")
    with pytest.raises(
        UserError, match=re.escape("holds the words ['<new2>'], not ['<new1>', '<new2>']")
    ):
        load_run(run)


# ---- an export is opened again before anyone is told that it is there
def test_an_export_that_means_something_else_is_found(folders, tmp_path):
    """Negative control: alpha lost, as in scripts that write none; a key lost; a row lost."""
    base = folders("sd15")
    model = moved(base, "lora", rank=8, lora_alpha=32)
    save_as(model, "kohya", tmp_path / "k")
    whole = load_file(tmp_path / "k" / KOHYA)
    assert checked(model, "kohya", tmp_path / "k", lambda: load(str(base))).difference < 1e-5
    for lost in (".alpha", "lora_te_"):
        save_file({k: v for k, v in whole.items() if lost not in k}, tmp_path / "k" / KOHYA)
        with pytest.raises(RunFailure, match="answers otherwise"):
            checked(model, "kohya", tmp_path / "k", lambda: load(str(base)))


@pytest.mark.parametrize("moved_by", [1e-2, 1e-3])
def test_one_lost_layer_of_a_light_training_is_found(folders, tmp_path, moved_by):
    """Far below a thousandth of the answer: what counts is the share of what training changed."""
    base = folders("sd15")
    model = load(str(base))
    theta = choose(model, "lora")
    shake({n: p for n, p in theta.items() if "lora_B" in n}, by=moved_by)
    save_as(model, "kohya", tmp_path / "k")
    file, again = tmp_path / "k" / KOHYA, lambda: load(str(base))
    honest, whole = checked(model, "kohya", tmp_path / "k", again), load_file(file)
    assert honest.tells
    assert honest.difference < honest.rounding
    gone = sorted({k.split(".")[0] for k in whole})[0]
    for broken in (
        {k: v for k, v in whole.items() if not k.startswith(f"{gone}.")},
        {k: v * 0 if "lora_up" in k else v for k, v in whole.items()},
        {k: v * 2 if k.endswith("alpha") else v for k, v in whole.items()},
    ):
        save_file(broken, file)
        with pytest.raises(RunFailure, match="answers otherwise"):
            checked(model, "kohya", tmp_path / "k", again)


def test_a_training_that_moved_nothing_measurable_is_no_failure(folders, tmp_path):
    base = folders("sd15")
    model = load(str(base))
    choose(model, "lora")  # B = 0: the base's answers
    save_as(model, "kohya", tmp_path / "k")
    check = checked(model, "kohya", tmp_path / "k", lambda: load(str(base)))
    assert (check.difference, check.moved) == (0, 0)
    assert not check.tells


def test_export_from_the_command_line(tmp_path, capsys):
    c = config(tmp_path / "run", kind="custom_diffusion", max_train_steps=1)
    trained(c)
    assert main(["export", str(tmp_path / "run"), "--format", "custom_diffusion"]) == 0
    assert (tmp_path / "run" / "export" / "custom_diffusion" / "<new1>.safetensors").exists()
    assert "load_attn_procs" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "run"), "--format", "kohya"]) == 2
    assert "use custom_diffusion or merged" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nowhere"), "--format", "kohya"]) == 2
    picture = ["--images", "1", "--steps", "2", "--out", str(tmp_path / "g.png")]
    assert main(["generate", str(tmp_path / "run"), "--prompt", PROMPT, "--base", *picture]) == 0
    assert (tmp_path / "g.png").exists()
