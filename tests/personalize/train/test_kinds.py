"""Every kind of training: which weights move, the base beside them, exact resume."""

import json
from dataclasses import replace

import pytest
import torch
from small import (
    MORE_KINDS,
    config,
    gradient,
    history_cells,
    killed_at_row,
    load_quickly,
    moved,
    opened,
    same,
    trained,
    workshop,
)

from personalize.adapters.deltas import changes
from personalize.adapters.trainable import choose
from personalize.adapters.words import learnt_rows
from personalize.config.kinds import TRAINING_KINDS, Word
from personalize.config.rules import resolve
from personalize.cost.dry_run import dry_run
from personalize.export.write import load_run
from personalize.pipeline.model import Model
from toy2d.runs.files import UserError, read_csv

FAST = ("loha", "oft", "svdiff", "custom_diffusion", "token")
WORDS = (Word("<new1>", "dog"), Word("<new2>", "cat", 3))
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([5, 900])


def fresh() -> Model:
    return load_quickly(str(workshop() / "sd"))


def chosen(train, **options):
    model = fresh()
    kind = TRAINING_KINDS[train]
    options = {"words": WORDS} | options if kind.words else options
    return model, choose(model, train, **options)


@torch.no_grad()
def answer(model, prompt="a photo of <new1> <new2> dog"):
    return model.predict(X, T, model.encode_prompts([prompt, "a cat on the beach"]))


# ---- every kind
@pytest.mark.parametrize("train", TRAINING_KINDS)
def test_every_kind_starts_as_its_base_and_moves(train):
    """New words start as known words, so the base under those known words is the reference."""
    model, theta = chosen(train)
    before = opened()
    prompt = "a photo of <new1> <new2> dog"
    spoken = (
        prompt.replace("<new1>", "dog").replace("<new2>", "cat cat cat")
        if TRAINING_KINDS[train].words
        else prompt
    )
    torch.testing.assert_close(answer(model, prompt), answer(before, spoken), rtol=0, atol=1e-5)
    moved(theta)
    assert (answer(model, prompt) - answer(before, spoken)).abs().max() > 1e-3
    assert all(p.dtype == torch.float32 and p.requires_grad for p in theta.values())


@pytest.mark.parametrize("train", [k for k, kind in TRAINING_KINDS.items() if kind.keeps_base])
def test_inside_base_every_kind_answers_as_its_base_did(train):
    model, theta = chosen(train)
    star = answer(model)
    moved(theta)
    with torch.no_grad(), model.base():
        assert torch.equal(answer(model), star)
    assert not torch.equal(answer(model), star)


@pytest.mark.parametrize("train", ["lora", "oft", "custom_diffusion", "token"])
def test_asking_the_base_within_a_step_changes_no_gradient(train):
    model, theta = chosen(train)
    moved(theta)

    def gradients(ask):
        cond = model.encode_prompts(["a photo of <new1> <new2> dog", "a cat"])
        loss = model.predict(X, T, cond).square().mean()
        if ask:
            with torch.no_grad(), model.base():
                model.predict(X, T, cond)
        return torch.autograd.grad(loss, list(theta.values()))

    assert all(torch.equal(a, b) for a, b in zip(gradients(False), gradients(True), strict=True))


@pytest.mark.parametrize("train", [k for k, kind in TRAINING_KINDS.items() if kind.adapter])
def test_adapters_depend_on_the_seed_alone_and_leave_the_global_generator(train):
    def factors(seed):
        torch.rand(17)
        before = torch.get_rng_state()
        _, theta = chosen(train, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return {n: p.detach().clone() for n, p in theta.items()}

    assert same(factors(0), factors(0))
    if train not in ("oft", "boft", "svdiff"):  # which start at the identity
        assert not same(factors(0), factors(1))


def test_custom_diffusion_trains_keys_and_values_of_the_cross_attention_and_nothing_else():
    _, theta = chosen("custom_diffusion")
    unet = [n for n in theta if n.startswith("unet.")]
    assert all(n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for n in unet)
    assert len(unet) == 2 * sum("attn2" in n for n in opened().denoiser.attn_processors)
    assert len(theta) == len(unet) + 1
    _, more = chosen("custom_diffusion", freeze_model="crossattn")
    extra = {n.split(".attn2.")[1] for n in more if ".attn2." in n}
    assert extra == {
        "to_k.weight",
        "to_v.weight",
        "to_q.weight",
        "to_out.0.weight",
        "to_out.0.bias",
    }


def test_new_words_alone_are_as_many_numbers_as_their_rows():
    model, theta = chosen("token")
    (rows,) = theta.values()
    table = opened().text_encoders[0].get_input_embeddings().weight
    assert rows.shape == (4, table.shape[1])
    tokenizer = model.pipeline.tokenizer
    start = table[[tokenizer.convert_tokens_to_ids(w) for w in ("dog</w>", "cat</w>")]]
    assert torch.equal(rows, start[[0, 1, 1, 1]])
    assert {w: tuple(r.shape) for w, r in learnt_rows(model)["text_encoder"].items()} == {
        "<new1>": (1, 32),
        "<new2>": (3, 32),
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((Word("<new1>", "xylophone"),), "is .* tokens for the model's text_encoder"),
        ((Word("dog</w>", "cat"),), "is a word of this model already"),
    ],
)
def test_words_that_cannot_be_learnt_are_refused(words, said):
    with pytest.raises(UserError, match=said):
        choose(fresh(), "token", words=words)


@pytest.mark.parametrize("train", ["lokr", "boft", "custom_diffusion", "token"])
def test_half_precision_trains_in_float32_beside_a_half_precision_rest(train):
    """Under autocast, as in training: gradients are float32, near those of the float32 model."""
    prompts = ["a photo of <new1> <new2> dog", "a cat"]
    words = WORDS if TRAINING_KINDS[train].words else ()
    half, whole = (
        gradient(d, workshop() / "sd", train, prompts, words=words)
        for d in (torch.bfloat16, torch.float32)
    )
    assert torch.cosine_similarity(half, whole, 0) > 0.98


# ---- a run of each
@pytest.mark.parametrize("train", ["custom_diffusion", "token"])
def test_every_other_row_of_the_table_is_unchanged_to_the_bit(tmp_path, train):
    """With a weight decay that would halve any row it touched.

    (The usual scripts set the gradient to zero, and weight decay still acts.)
    """
    c = config(tmp_path / "run", kind=train, adam_weight_decay=5.0 if train == "token" else 500.0)
    trained(c)
    table = opened().text_encoders[0].get_input_embeddings().weight
    model = load_run(tmp_path / "run")
    layer = model.text_encoders[0].get_input_embeddings()
    after = layer.get_merged_weights(layer.active_adapters)
    assert len(after) == len(table) + 1
    assert torch.equal(after[:-1], table)
    assert not torch.equal(after[-1], layer.base_layer.weight[-1])


def test_textual_inversion_moves_no_prompt_that_lacks_the_word(tmp_path):
    """Its drift is zero by construction, and measured as exactly that."""
    c = config(tmp_path / "run", kind="token", class_prompt="a photo of a dog")
    trained(c)
    last = read_csv(tmp_path / "run" / "history.csv")[-1]
    assert last["delta_theta"] > 0
    assert last["delta_eps"] == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["path_kl"] == 0


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=() if k in FAST else pytest.mark.slow) for k in MORE_KINDS],
)
def test_killed_and_resumed_equals_never_stopped(tmp_path, kind):
    whole = config(tmp_path / "whole", "l2", kind, checkpointing_steps=2)
    cut = replace(whole, output_dir=str(tmp_path / "cut"))
    killed_at_row(cut, step=3)
    assert same(trained(whole), trained(cut))
    assert history_cells(whole) == history_cells(cut)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["prior", "output", "fisher", "prior+l2"])
@pytest.mark.parametrize("kind", MORE_KINDS)
def test_every_objective_trains_every_kind_or_says_why_not(tmp_path, kind, objective):
    c = config(tmp_path / "run", objective, kind, max_train_steps=2)
    if kind == "token":
        with pytest.raises(UserError, match="no prompt of the class holds the new word"):
            trained(c)
    else:
        trained(c)
        last = read_csv(tmp_path / "run" / "history.csv")[-1]
        assert last["delta_theta"] > 0
        assert last["delta_eps"] > 0


def test_a_heavier_anchor_keeps_every_kind_nearer(tmp_path):
    """lambda || delta W ||^2 acts on what trains, whatever that is."""
    for kind in ("loha", "boft", "token"):
        ends = []
        for weight in (1e-6, 1e3):
            c = config(
                tmp_path / f"{kind}-{weight}",
                "l2",
                kind,
                l2_reg_weight=weight,
                max_train_steps=3,
                max_grad_norm=0.0,
            )
            trained(c)
            ends.append(read_csv(tmp_path / f"{kind}-{weight}" / "history.csv")[-1]["delta_theta"])
        assert ends[1] < 0.9 * ends[0], kind


def test_a_dry_run_counts_what_each_kind_stores(tmp_path):
    from rich.console import Console

    quiet = Console(quiet=True)
    costs = {
        k: dry_run(config(tmp_path / k, "l2", k), quiet).memory
        for k in ("loha", "custom_diffusion", "token")
    }
    assert costs["loha"]["anchors"] == 0 < costs["loha"]["gradients"]
    assert costs["token"]["anchors"] == costs["token"]["gradients"] == 4 * 32
    assert costs["custom_diffusion"]["anchors"] == costs["custom_diffusion"]["gradients"] > 4 * 32


# ---- combinations without effect
def test_what_acts_on_nothing_is_refused(tmp_path):
    def said(**chosen):
        with pytest.raises(UserError) as e:
            resolve(
                config(
                    tmp_path / "run",
                    chosen.pop("objective", "standard"),
                    chosen.pop("kind"),
                    **chosen,
                )
            )
        return str(e.value)

    assert "needs --placeholder_token" in said(
        kind="token", placeholder_token=None, initializer_token=None
    )
    assert "needs --initializer_token" in said(kind="token", initializer_token=None)
    assert "names 2 words for 1" in said(kind="token", initializer_token="cat+dog")
    assert "without spaces" in said(kind="token", placeholder_token="my dog")
    assert "second vector" in said(kind="token", placeholder_token="<a>+<a>_1")
    assert "names a file too" in said(kind="token", placeholder_token="../x")
    assert "--reg_decoupled is not built for l2 with --train oft" in said(
        kind="oft", objective="l2", reg_decoupled=True
    )
    assert "--reg_decoupled is not built for fisher with --train loha" in said(
        kind="loha", objective="fisher", reg_decoupled=True
    )
    assert "moves text encoders alone, at --learning_rate" in said(
        kind="token", text_encoder_lr=1e-2
    )
    assert "holds the new word" in said(kind="token", objective="prior")
    text = config(tmp_path / "run", "prior", "token", train_text_encoder=True)
    assert resolve(text).objective == "prior"  # now the class prompt feels what trains


def test_a_word_that_no_prompt_says_is_refused(tmp_path):
    with pytest.raises(UserError, match="<new1> has no effect: no prompt or caption contains it"):
        trained(config(tmp_path / "run", kind="token", instance_prompt="a photo of a dog"))


@pytest.mark.parametrize(
    ("kind", "flag", "said"),
    [
        ("oft", {"oft_block_size": 7}, "Adjusted"),
        ("boft", {"oft_block_size": 7}, "divisible"),
        ("boft", {"boft_n_butterfly_factor": 2}, "CUDA"),
    ],
)
def test_what_peft_would_change_silently_is_refused(kind, flag, said):
    with pytest.raises(UserError, match=said):
        choose(fresh(), kind, **flag)


def test_adapters_scale_and_shape_are_what_was_asked(tmp_path):
    for kind, flags in (
        ("loha", {"rank": 3, "lora_alpha": 6}),
        ("lokr", {"rank": 2, "lora_alpha": 4, "decompose_factor": 2}),
    ):
        model = fresh()
        choose(model, kind, **flags)
        assert {c.scale for c in changes(model.parts)} == {2.0}
    assert {tuple(c.factors["lokr_w1"].shape) for c in changes(model.parts)} == {(2, 2)}
