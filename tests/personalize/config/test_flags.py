"""Every flag has an effect that can be seen, or says why not.

The table is checked for completeness.
"""

import functools
import tempfile
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from flag_table import ELSEWHERE, REFUSED, SEEN
from photographs import photo
from small import config, history, photos, same, trained, workshop

from personalize.config.effects import RULES
from personalize.config.flags import explain_foreign_flags
from personalize.config.rules import resolve
from personalize.config.train_config import TrainConfig
from personalize.pipeline.random_pipeline import tiny
from toy2d.runs.files import UserError

torch.set_num_threads(1)


def test_every_flag_is_in_the_table():
    tables = [*SEEN, *REFUSED, *ELSEWHERE]
    assert sorted(tables) == sorted(f.name for f in fields(TrainConfig))


@functools.cache
def place(name: str) -> str:
    if name == "@other_sd":
        tiny(folder=workshop() / "other_sd", seed=1)
        return str(workshop() / "other_sd")
    if name == "@sd3":
        tiny("sd3", folder=workshop() / "sd3")
        return str(workshop() / "sd3")
    if name == "@five":
        return str(photos(workshop() / "five", 5))
    if name == "@others":
        folder = workshop() / "others"
        folder.mkdir(exist_ok=True)
        photo().save(folder / "new.jpg")
        return str(folder)
    if name == "@captioned":
        folder = photos(workshop() / "captioned", 2)
        (folder / "0.txt").write_text("a green sks toy")
        return str(folder)
    if name == "@concepts":
        folder = photos(workshop() / "two", 2)
        return f'[{{"instance_data_dir": "{folder}", "instance_prompt": "a green sks toy"}}]'
    return str(workshop() / "class")


def made(**chosen) -> TrainConfig:
    out = Path(tempfile.mkdtemp(dir=workshop()))
    chosen = {"max_train_steps": 2, **chosen}
    for key, value in chosen.items():
        if value == "@new":
            chosen[key] = str(out / "new")
        elif isinstance(value, str) and value.startswith("@"):
            chosen[key] = place(value)
    return config(
        chosen.pop("output_dir", out / "run"),
        chosen.pop("objective", "standard"),
        chosen.pop("kind", "lora"),
        **chosen,
    )


@functools.cache
def outcome(items: tuple) -> dict:
    c = made(**dict(items))
    weights, folder = trained(c), Path(c.output_dir)
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    return {
        "weights": weights,
        "history": history(c),
        "files": sorted(files),
        "sizes": {n: p.stat().st_size for n, p in files.items() if n.endswith(".safetensors")},
        "pictures": {n: p.read_bytes() for n, p in files.items() if n.endswith(".png")},
        "folder": folder,
        "class_folder": c.class_data_dir,
    }


@pytest.mark.parametrize("flag", SEEN)
def test_the_flag_is_seen(flag):
    shared, changed, where = SEEN[flag]
    a = outcome(tuple(sorted(shared.items())))[where]
    b = outcome(tuple(sorted((shared | changed).items())))[where]
    assert not same(a, b) if where == "weights" else a != b


@pytest.mark.parametrize("flag", REFUSED)
def test_the_flag_is_refused_with_a_reason(flag):
    chosen, reason = REFUSED[flag]
    with pytest.raises(UserError, match=reason):
        trained(made(**chosen))


SENSELESS = {
    "rank": {"kind": "full", "rank": 8},
    "lora_alpha": {"kind": "full", "lora_alpha": 8.0},
    "lora_dropout": {"kind": "full", "lora_dropout": 0.1},
    "lora_target_modules": {"kind": "full", "lora_target_modules": ("to_q",)},
    "decompose_factor": {"kind": "loha", "decompose_factor": 2},
    "oft_block_size": {"oft_block_size": 4},
    "boft_n_butterfly_factor": {"kind": "oft", "boft_n_butterfly_factor": 2},
    "placeholder_token": {"placeholder_token": "<new1>"},
    "initializer_token": {"initializer_token": "dog"},
    "held_out_data_dir": {"held_out": 1, "held_out_data_dir": "@held_out"},
    "gain_samples": {"gain_samples": 99},
    "num_vectors": {"num_vectors": 2},
    "freeze_model": {"freeze_model": "crossattn"},
    "prior_loss_weight": {"prior_loss_weight": 2.0},
    "l2_reg_weight": {"l2_reg_weight": 2.0},
    "output_weight": {"output_weight": 2.0},
    "fisher_weight": {"fisher_weight": 2.0},
    "reg_reduction": {"reg_reduction": "tensor_mean"},
    "l2_layers": {"l2_layers": ("conv:1",)},
    "max_path_kl": {"max_path_kl": 1.0, "path_kl_steps": 1},
    "reg_decoupled": {"reg_decoupled": True},
    "anchor_dtype": {"anchor_dtype": "bf16", "objective": "l2"},
    "anchor_device": {"anchor_device": "cpu", "objective": "l2"},
    "output_source": {"output_source": "instance"},
    "output_draws": {"output_draws": 5, "objective": "output"},
    "fisher_samples": {"fisher_samples": 5},
    "class_data_dir": {"class_data_dir": "x"},
    "num_class_images": {"num_class_images": 5},
    "class_sampler": {"class_sampler": "ddim"},
    "class_steps": {"class_steps": 5},
    "class_guidance": {"class_guidance": 5.0},
    "class_keep": {"class_keep": "latents"},
    "prior_generation_precision": {"prior_generation_precision": "bf16"},
    "logit_mean": {"weighting_scheme": "mode", "logit_mean": 1.0},
    "logit_std": {"weighting_scheme": "mode", "logit_std": 2.0},
    "mode_scale": {"weighting_scheme": "logit_normal", "mode_scale": 1.0},
    "repeats": {"repeats": 2},
    "num_train_epochs": {"num_train_epochs": 2},
    "text_encoder_lr": {"text_encoder_lr": 1e-5},
    "lr_warmup_steps": {"lr_warmup_steps": 1},
    "lr_num_cycles": {"lr_num_cycles": 2},
    "lr_power": {"lr_power": 2.0},
    "ema_decay": {"ema_decay": 0.5},
    "pad": {"pad": True},
    "revision": {"revision": "main"},
    "num_validation_images": {"num_validation_images": 2},
    "validation_steps": {"validation_steps": 5},
    "validation_inference_steps": {"validation_inference_steps": 5},
    "validation_guidance": {"validation_guidance": 2.0},
    "checkpoint_weights_only": {"checkpoint_weights_only": True},
    "checkpoints_total_limit": {"checkpoints_total_limit": 5},
}


def test_every_rule_has_its_senseless_case():
    assert sorted(SENSELESS) == sorted(r.field for r in RULES)


@pytest.mark.parametrize("flag", SENSELESS)
def test_a_flag_without_effect_is_an_error_that_says_why(flag):
    with pytest.raises(UserError, match=f"--{flag} has no effect: "):
        resolve(made(**SENSELESS[flag]))


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"l2_reg_weight": -1.0, "objective": "l2"}, "--l2_reg_weight -1.0 must not be negative"),
        ({"prior_loss_weight": float("nan"), "objective": "prior"}, "--prior_loss_weight nan"),
        ({"learning_rate": float("inf")}, "--learning_rate inf"),
        ({"train_batch_size": 0}, "--train_batch_size 0 must be above 0"),
        ({"objective": "l3"}, "'l3' is none of standard, prior, l2, output, fisher"),
        ({"objective": "output", "class_data_dir": None}, "needs --class_data_dir"),
        ({"objective": "prior", "class_prompt": None}, "needs --class_prompt"),
        ({"class_prompt": "a photo of sks dog"}, "--class_prompt equals --instance_prompt"),
        ({"measure_chains": 1}, "--measure_chains 1 must be at least 2"),
        ({"measure_nodes": 2}, "--measure_nodes 2 must be at least 3"),
        (
            {"mode_scale": 2.0, "weighting_scheme": "mode"},
            "--mode_scale must lie between -1 and 1.75",
        ),
        (
            {"weighting_scheme": "cosmap"},
            "--weighting_scheme has no effect: this model knows no flow matching",
        ),
        (
            {"pretrained_model_name_or_path": "@sd3", "snr_gamma": 5.0},
            "--snr_gamma has no effect: this model is trained by flow matching",
        ),
        ({"without_t5": True}, "--without_t5 has no effect: .* has no T5"),
        ({"probe_steps": 5, "log_every": 2}, "must be multiples of --log_every 2"),
        (
            {"objective": "l2+fisher", "reg_reduction": "tensor_mean"},
            "cannot be combined with fisher",
        ),
        ({"mixed_precision": "fp16"}, "fp16 needs a CUDA device"),
        (
            {"lr_scheduler": "linear", "lr_warmup_steps": 2},
            "the learning rate would never be reached",
        ),
        (
            {"lora_target_modules": ("to_q", "nowhere")},
            "nowhere: UNet2DConditionModel has no such layer",
        ),
        ({"resolution": 40}, "must be a multiple of 16"),
    ],
)
def test_wrong_values_are_refused_in_the_users_words(chosen, said):
    with pytest.raises(UserError, match=said):
        trained(made(**chosen))


def test_several_problems_come_in_one_message():
    with pytest.raises(UserError) as e:
        resolve(made(rank=0, l2_reg_weight=5.0, class_prompt=None, objective="prior"))
    assert all(word in str(e.value) for word in ("--rank", "--l2_reg_weight", "--class_prompt"))


def test_diffusers_flags_that_are_already_so_are_noted_and_others_explained():
    kept, notes = explain_foreign_flags(["train", "--set_grads_to_none", "--seed", "1"])
    assert kept == ["train", "--seed", "1"]
    assert "always freed" in notes[0]
    with pytest.raises(UserError, match="hf upload"):
        explain_foreign_flags(["train", "--push-to-hub"])


def test_gradient_checkpointing_recomputes(tmp_path, monkeypatch):
    """Same weights, and torch's checkpoint is really used."""
    import torch.utils.checkpoint as recompute

    calls, real = [], recompute.checkpoint
    monkeypatch.setattr(recompute, "checkpoint", lambda *a, **k: calls.append(1) or real(*a, **k))
    plain = trained(config(tmp_path / "plain", kind="full", max_train_steps=2))
    assert not calls
    again = trained(
        config(tmp_path / "again", kind="full", max_train_steps=2, gradient_checkpointing=True)
    )
    assert calls
    assert all(torch.allclose(plain[k], again[k], rtol=1e-4, atol=1e-6) for k in plain)


def test_the_anchor_waits_where_it_is_told_to(base, monkeypatch):
    """On a CPU both places are the host, so only the order is checked."""
    from personalize.train import from_base as prepare

    asked = []
    monkeypatch.setattr(
        prepare,
        "anchors_for",
        lambda m, theta, reduction, dtype, device, layers: asked.append(device) or {"l2": None},
    )
    monkeypatch.setattr(prepare, "_theta_star", lambda anchor: None)
    for where in ("train", "cpu"):
        c = config("unused", "l2", "full", anchor_device=where)
        prepare.make_anchors(c, base, {}, None, Path())
    assert asked == [base.device, torch.device("cpu")]
