"""delta.bin of Custom Diffusion's authors (and of Preserve-and-Personalize), put onto a base.

    {"unet": {"down_blocks. ... attn2.to_k.weight": W, ...},
     "modifier_token": {"<new1>": row},
     "text_encoder": its state}

A weight may be {"u": U, "v": V} for a change U V (their compress.py); a word of SDXL is a list of
rows, one for each text encoder; the text encoder is there if it trained.
Opened with weights_only=True and nothing else: the file is a pickle.
"""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from personalize.adapters.words import add_rows
from personalize.export.read import put_weights
from personalize.pipeline.model import Model
from toy2d.runs.files import UserError

KNOWN = {"unet", "modifier_token", "text_encoder"}


def read_delta(model: Model, file: str | Path) -> None:
    """Put the file's weights and words onto `model`, a freshly loaded base.

    Raises UserError for anything that has no place in it.
    """
    file = Path(file).expanduser()
    model.hash()
    delta = _opened(file)
    weights = {
        name: _weight(model, name, value, file) for name, value in delta.get("unet", {}).items()
    }
    put_weights(model, model.family.denoiser, weights, str(file))
    if state := delta.get("text_encoder"):
        _put_text_encoder(model, state, file)
    if words := delta.get("modifier_token"):
        add_rows(model, _rows(model, words, file))
    for part in model.parts.values():
        part.requires_grad_(False)
    # with a text encoder of its own nothing but a whole pipeline can hold it
    model.trained = "full" if "text_encoder" in delta else "custom_diffusion"


def _opened(file: Path) -> dict:
    try:
        delta = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError) as e:
        reason = " ".join(str(e).split())[:200]
        raise UserError(
            f"{file} cannot be opened as weights alone ({reason}); it is damaged, or holds "
            "code, which never runs here"
        ) from e
    if not isinstance(delta, dict) or not delta or not delta.keys() <= KNOWN:
        held = sorted(map(str, delta)) if isinstance(delta, dict) else type(delta).__name__
        raise UserError(f"{file} is no delta.bin: it holds {held}, not {sorted(KNOWN)}")
    return delta


def _weight(model: Model, name: str, value, file: Path) -> Tensor:
    if isinstance(value, Tensor):
        return value
    own = dict(model.parts[model.family.denoiser].named_parameters()).get(name)
    if not isinstance(value, dict) or value.keys() != {"u", "v"} or own is None:
        raise UserError(f"{file}: {name!r} is no weight of the base, nor a change u v of one")
    return own.detach() + (value["u"] @ value["v"]).to(own)


def _rows(model: Model, words: dict, file: Path) -> dict[str, dict[str, Tensor]]:
    """One row per text encoder: a tensor where there is one encoder, a list where there are two."""
    parts = model.trainable_text_encoders
    found = {part: {} for part in parts}
    for word, rows in words.items():
        rows = list(rows) if isinstance(rows, list | tuple) else [rows]
        widths = [getattr(model.pipeline, p).get_input_embeddings().weight.shape[1] for p in parts]
        if [getattr(r, "shape", (0,))[-1] for r in rows] != widths:
            raise UserError(
                f"{file}: the word {word!r} does not fit the text encoders of this base"
            )
        for part, row in zip(parts, rows, strict=True):
            found[part][str(word)] = row.reshape(-1, row.shape[-1])
    return found


def _put_text_encoder(model: Model, state: dict, file: Path) -> None:
    encoder = model.text_encoders[0]
    # older transformers: a "text_model." in front, and the positions saved too
    state = {
        k.removeprefix("text_model."): v for k, v in state.items() if not k.endswith("position_ids")
    }
    own = dict(encoder.named_parameters())
    strange = state.keys() ^ own.keys() or {k for k, v in state.items() if v.shape != own[k].shape}
    if strange:
        raise UserError(f"{file}: its text encoder does not fit this base ({min(strange)})")
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)
