"""delta.bin of Custom Diffusion's authors: read, exported, refused where it is none."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from exported import KV, answer, moved, officially

from personalize.export.command import export_run
from personalize.export.delta_bin import read_delta
from personalize.export.formats import save_as
from personalize.pipeline.load import load
from toy2d.runs.files import UserError


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
