"""Put what a run left back onto its base: one reader for each folder that a run can hold.

Unmatched keys are errors.

The model is then what it was while it trained: `Model.base` works, and it can be exported again.
"""

import logging
import warnings
from pathlib import Path

import torch
from peft import PeftConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from personalize.adapters.spectral import read_shifts
from personalize.adapters.words import add_words, set_rows
from personalize.config.kinds import TRAINING_KINDS, new_words
from personalize.pipeline.model import Model
from toy2d.runs.files import UserError

CROSS_ATTENTION = "pytorch_custom_diffusion_weights.safetensors"  # diffusers' name


def read_lora(model: Model, folder: Path, config: dict) -> str:
    """By diffusers' own loader, under the adapter name that `choose` uses; nothing trains."""
    logger = logging.getLogger("diffusers.loaders.lora_base")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns when the text encoder has no adapter, which is usual
    try:
        name = "pytorch_lora_weights.safetensors"
        model.pipeline.load_lora_weights(str(folder), weight_name=name, adapter_name="default")
    finally:
        logger.setLevel(level)
    held = load_file(folder / name)
    adapted = [p for p in model.parts.values() if getattr(p, "peft_config", None)]
    _all_placed(str(folder / name), held, adapted)
    return "lora"


def _all_placed(where: str, held: dict[str, Tensor], networks: list) -> None:
    """Loaders pass over what they do not know, and leave at its start what they do not find."""
    placed = sum(len(get_peft_model_state_dict(n, save_embedding_layers=False)) for n in networks)
    if placed != len(held):
        raise UserError(
            f"{where} holds {len(held)} tensors, and {placed} of the adapter's have a place in "
            "the base"
        )


def read_peft(model: Model, folder: Path, config: dict) -> str:
    """adapter_config.json says which adapter, adapter_model.safetensors holds it."""
    for part in sorted(p for p in folder.iterdir() if p.is_dir()):
        if part.name not in model.parts:
            raise UserError(f"{part}: the base model has no {part.name}")
        adapter = PeftConfig.from_pretrained(str(part))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # BOFT speaks of an extension for GPUs
            model.parts[part.name].add_adapter(adapter)
        state = load_file(part / "adapter_model.safetensors")
        state = {k.removeprefix("base_model.model."): v for k, v in state.items()}
        report = set_peft_model_state_dict(model.parts[part.name], state)
        if report.unexpected_keys:
            raise UserError(
                f"{part} holds {report.unexpected_keys[0]!r}, which the base has no place for"
            )
        _all_placed(str(part), state, [model.parts[part.name]])
    return next(
        name for name, kind in TRAINING_KINDS.items() if kind.adapter == adapter.peft_type.value
    )


def read_words(model: Model, folder: Path, config: dict) -> str:
    """The words of config.json, with the rows they have learnt."""
    names = config.get("placeholder_token"), config.get("initializer_token")
    if words := new_words(*names, config.get("num_vectors", 1)):
        add_words(model, words)
    encoders = {f"{part}.safetensors": part for part in model.trainable_text_encoders}
    files = [
        f
        for f in sorted(folder.glob("*.safetensors"))
        if f.name not in (CROSS_ATTENTION, *encoders)
    ]
    for name, part in encoders.items():
        if (folder / name).exists():
            put_weights(model, part, load_file(folder / name), str(folder / name))
    read = dict(_word(model, f) for f in files)
    by_part = {p: {w: rows[p] for w, rows in read.items()} for p in model.trainable_text_encoders}
    order = [w.placeholder for w in words]
    if set(order) != read.keys():
        raise UserError(f"{folder} holds the words {sorted(read)}, not {order}")
    set_rows(model, {p: {w: rows[w] for w in order} for p, rows in by_part.items()})
    return "token"


def _word(model: Model, file: Path) -> tuple[str, dict[str, Tensor]]:
    try:
        with safe_open(file, "pt") as f:
            word = (f.metadata() or {}).get("word")
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as e:
        raise UserError(f"{file} cannot be read: {e}") from e
    keys = {p: model.family.embeddings.get(p, word) for p in model.trainable_text_encoders}
    if set(keys.values()) != tensors.keys():
        raise UserError(
            f"{file} holds {sorted(tensors)} instead of {sorted(map(str, keys.values()))}"
        )
    return word, {p: tensors[k] for p, k in keys.items()}


def read_custom_diffusion(model: Model, folder: Path, config: dict) -> str:
    state = load_file(folder / CROSS_ATTENTION)
    weights = {
        k.replace(".processor.", ".").replace("_custom_diffusion", ""): v
        for k, v in state.items()
        if v.numel()
    }
    put_weights(model, model.family.denoiser, weights, str(folder))
    read_words(model, folder, config)
    return "custom_diffusion"


@torch.no_grad()
def put_weights(model: Model, part: str, weights: dict[str, Tensor], where: str) -> None:
    """Weights of a network by their names; the base's own are kept apart.

    Raises UserError for a name or shape that does not fit.
    """
    own = dict(model.parts[part].named_parameters())
    for name, value in weights.items():
        if name not in own or own[name].shape != value.shape:
            raise UserError(
                f"{where} holds {name!r} of shape {tuple(value.shape)}, which the base has no "
                "place for"
            )
    model.keep_base([own[name] for name in weights])
    for name, value in weights.items():
        own[name].copy_(value)


def read_svdiff(model: Model, folder: Path, config: dict) -> str:
    read_shifts(model.parts, folder)
    return "svdiff"


READERS = {
    "svdiff": read_svdiff,
    "lora": read_lora,
    "peft": read_peft,
    "custom_diffusion": read_custom_diffusion,
    "token": read_words,
}
