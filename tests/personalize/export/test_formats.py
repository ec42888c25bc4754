"""Every kind of training in every format that can hold it: opened by the official loader, it
answers as the trained model did.
"""

import pickle
import re
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small import config, trained
from small import moved as shake

from personalize.__main__ import main
from personalize.adapters.spectral import merge_shifts
from personalize.adapters.trainable import choose
from personalize.config.kinds import TRAINING_KINDS, Word
from personalize.export.command import export_run
from personalize.export.delta_bin import read_delta
from personalize.export.formats import CROSS_ATTENTION, KOHYA, checked, leave, save_as
from personalize.export.model_card import model_card
from personalize.export.write import load_run
from personalize.pipeline.load import load
from personalize.pipeline.random_pipeline import tiny
from toy2d.runs.files import RunFailure, UserError, write_json

WORDS = (Word("<new1>", "dog"), Word("<new2>", "cat", 3))
PROMPT = "a photo of <new1> <new2> dog"
PAIRS = [(kind, form) for kind in TRAINING_KINDS for form in TRAINING_KINDS[kind].formats]
KV = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Tiny pipelines by family; copied by nobody, changed by nobody."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp("families") / family
            tiny(family, folder=made[family])
        return made[family]

    return folder


def moved(folder, kind, words=WORDS, text=True, **options):
    """A model that has trained, as far as anyone can see."""
    model = load(str(folder))
    what = {"words": words} if TRAINING_KINDS[kind].words else {"train_text_encoder": text}
    theta = choose(model, kind, **(what | options))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in theta.values():
            p += 0.05 * torch.randn(p.shape, generator=rng)
    return model


@torch.no_grad()
def answer(model, pipeline=None):
    """What the pipeline's own classes say to PROMPT."""
    opened = type(model)(pipeline or model.pipeline, model.family)
    x = torch.randn(1, *opened.latent_shape(64), generator=torch.Generator().manual_seed(0))
    return opened.predict(
        x, opened.schedule.timesteps[500].expand(1), opened.encode_prompts([PROMPT])
    )


def officially(base, form, folder):
    """The pipeline that the loader named in the format's documentation makes."""
    if form == "merged":
        return DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline = DiffusionPipeline.from_pretrained(base, use_safetensors=True)
    if form == "diffusers":
        pipeline.load_lora_weights(folder)
    elif form == "kohya":
        pipeline.load_lora_weights(folder / KOHYA)
    elif form == "svdiff":  # no other program reads it: by the code of the model card
        merge_shifts(pipeline, folder)
    elif form == "peft":
        for part in (p for p in folder.iterdir() if p.is_dir()):
            setattr(
                pipeline, part.name, PeftModel.from_pretrained(getattr(pipeline, part.name), part)
            )
    else:
        if form == "custom_diffusion":
            pipeline.unet.load_attn_procs(folder, weight_name=CROSS_ATTENTION, _pipeline=pipeline)
        for file in folder.glob("<*.safetensors"):
            learn(pipeline, file)
    return pipeline


def learn(pipeline, file):
    """A word's file, as diffusers' documentation says it for one text encoder and for two."""
    rows = load_file(file)
    if "clip_g" not in rows:
        pipeline.load_textual_inversion(file)
        return
    for key, number in (("clip_l", ""), ("clip_g", "_2")):
        parts = {n: getattr(pipeline, n + number) for n in ("tokenizer", "text_encoder")}
        pipeline.load_textual_inversion(rows[key], token=file.stem, **parts)


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


# ---- the authors' delta.bin
def delta_of(model):
    """What Custom Diffusion's own trainer saves of a model."""
    unet = {
        n: p.detach().clone()
        for n, p in model.denoiser.named_parameters()
        if "attn2.to_k" in n or "attn2.to_v" in n
    }
    return {
        "unet": unet,
        "modifier_token": {"<new1>": torch.ones(32) / 8, "<new2>": -torch.ones(32) / 8},
    }


def test_delta_bin_is_read_and_exported(folders, tmp_path):
    model = moved(folders("sd15"), "custom_diffusion", ())
    delta = delta_of(model)
    torch.save(delta, tmp_path / "delta.bin")
    again = load(str(folders("sd15")))
    read_delta(again, tmp_path / "delta.bin")
    for name, value in delta["unet"].items():
        assert torch.equal(again.denoiser.get_parameter(name), value)
    table = again.text_encoders[0].get_input_embeddings().get_merged_weights(["default"])
    ids = again.pipeline.tokenizer.convert_tokens_to_ids(list(delta["modifier_token"]))
    assert torch.equal(table[ids], torch.stack(list(delta["modifier_token"].values())))
    with again.base():
        assert torch.equal(
            again.denoiser.get_parameter(KV), load(str(folders("sd15"))).denoiser.get_parameter(KV)
        )
    for form in ("custom_diffusion", "merged"):
        asked = SimpleNamespace(
            source=str(tmp_path / "delta.bin"),
            format=form,
            out=None,
            pretrained_model_name_or_path=str(folders("sd15")),
        )
        out = export_run(asked, say=lambda text: None)
        assert out == tmp_path / "delta" / form
        opened = officially(folders("sd15"), form, out)
        torch.testing.assert_close(answer(again, opened), answer(again), rtol=1e-4, atol=1e-5)


def test_a_compressed_delta_is_a_change_of_the_base(folders, tmp_path):
    base = load(str(folders("sd15")))
    W = base.denoiser.get_parameter(KV).detach()
    u, v = torch.ones(W.shape[0], 2), torch.full((2, W.shape[1]), 0.25)
    torch.save({"unet": {KV: {"u": u, "v": v}}}, tmp_path / "delta.bin")
    model = load(str(folders("sd15")))
    read_delta(model, tmp_path / "delta.bin")
    torch.testing.assert_close(model.denoiser.get_parameter(KV), W + 0.5)


def test_a_delta_with_a_text_encoder_becomes_a_pipeline(folders, tmp_path):
    other = moved(folders("sd15"), "full")
    state = {f"text_model.{k}": v for k, v in other.text_encoders[0].state_dict().items()}
    torch.save(delta_of(other) | {"text_encoder": state, "modifier_token": {}}, tmp_path / "d.bin")
    model = load(str(folders("sd15")))
    read_delta(model, tmp_path / "d.bin")
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            model.text_encoders[0].state_dict().values(),
            other.text_encoders[0].state_dict().values(),
            strict=True,
        )
    )
    with pytest.raises(UserError, match="use merged"):
        save_as(model, "custom_diffusion", tmp_path / "x")


def test_sdxls_delta_has_two_rows_for_each_word(folders, tmp_path):
    model = load(str(folders("sdxl")))
    widths = [e.get_input_embeddings().weight.shape[1] for e in model.text_encoders]
    rows = [torch.ones(w) for w in widths]
    torch.save({"unet": {}, "modifier_token": {"<new1>": rows}}, tmp_path / "delta.bin")
    read_delta(model, tmp_path / "delta.bin")
    for encoder, row in zip(model.text_encoders, rows, strict=True):
        layer = encoder.get_input_embeddings()
        assert torch.equal(layer.get_merged_weights(["default"])[-1], row)
    with pytest.raises(UserError, match="does not fit the text encoders"):
        read_delta(load(str(folders("sd15"))), tmp_path / "delta.bin")


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def test_a_delta_that_is_none_is_refused_and_never_runs(folders, tmp_path):
    file, mark = tmp_path / "delta.bin", tmp_path / "OWNED"

    def said():
        with pytest.raises(UserError) as e:
            read_delta(load(str(folders("sd15"))), file)
        return str(e.value)

    file.write_bytes(pickle.dumps(Evil(mark)))
    assert "never runs" in said()
    torch.save({"unet": Evil(mark)}, file)
    assert "never runs" in said()
    assert not mark.exists()
    file.write_bytes(b"x" * 100)
    assert "cannot be opened" in said()
    torch.save({"state_dict": {}}, file)
    assert "is no delta.bin" in said()
    torch.save({"unet": {"nowhere.weight": torch.ones(1)}}, file)
    assert "no place for" in said()
    torch.save({"unet": {KV: torch.ones(3, 3)}}, file)
    assert "of shape (3, 3)" in said()
    torch.save({"unet": {"nowhere": {"u": torch.ones(1, 1), "v": torch.ones(1, 1)}}}, file)
    assert "no weight of the base" in said()


def test_words_carry_their_name_in_the_file(folders, tmp_path):
    model = moved(folders("sdxl"), "token", (Word("<new1>", "dog"),))
    save_as(model, "token", tmp_path / "t")
    with safe_open(tmp_path / "t" / "<new1>.safetensors", "pt") as f:
        assert set(f.keys()) == {"clip_l", "clip_g"}
        assert f.metadata()["word"] == "<new1>"
