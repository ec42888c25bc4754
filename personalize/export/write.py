"""Write trained weights in the formats that other programs open, and open a run's own again.

    save_pipeline   a diffusers folder
    save_lora       pytorch_lora_weights.safetensors, its scale kept in the header
    save_peft       unet/ and text_encoder/, PEFT's own
    save_merged     a diffusers folder with W + s B A

A folder appears whole under its name or the old one stays (toy2d.runs.folder.whole_folder).
`load_run` opens the weights of a finished run.
"""

import copy
import json
from pathlib import Path

import torch
from diffusers.utils import convert_state_dict_to_diffusers
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from personalize.adapters.spectral import merge_spectral_, shifts_of
from personalize.export.model_card import public_name
from personalize.export.read import READERS
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from toy2d.runs.files import UserError, verify_manifest
from toy2d.runs.folder import whole_folder


# ---- the four formats
def save_pipeline(model: Model, folder: str | Path) -> None:
    """The whole pipeline as it is now.

    Raises ValueError while it carries adapters: `save_merged` is meant then.
    """
    if any(carries_adapters(part) for part in model.parts.values()):
        raise ValueError(
            "save_pipeline of a model with adapters: use save_merged, save_lora or save_peft"
        )
    with whole_folder(folder) as f:
        model.pipeline.save_pretrained(f)


def save_merged(model: Model, folder: str | Path) -> None:
    """The pipeline with every adapter merged into its weight, in that weight's dtype (a copy: the
    model goes on training).
    """
    merged = {name: _merged(part) for name, part in _adapted(model).items()}
    pipeline = type(model.pipeline)(**{**model.pipeline.components, **merged}, **_flags(model))
    with whole_folder(folder) as f:
        pipeline.save_pretrained(f)


def save_lora(model: Model, folder: str | Path) -> None:
    """`pytorch_lora_weights.safetensors` with diffusers' keys, and PEFT's configuration in its
    header so that alpha != rank survives.
    """
    layers = {}
    for name, part in _adapted(model).items():
        state = adapter_state(part)
        if name not in model.family.peft_keys:
            state = convert_state_dict_to_diffusers(state)
        # the text encoder's keys as older transformers had them: newer loaders take both, older
        # ones only this
        old = "text_model." if hasattr(part, "encoder") else ""
        layers[f"{name}_lora_layers"] = {old + k: v.detach().cpu() for k, v in state.items()}
        config = part.peft_config["default"].to_dict()
        config["target_modules"] = sorted(config["target_modules"])  # a set: the file would vary
        layers[f"{name}_lora_adapter_metadata"] = config
    with whole_folder(folder) as f:
        type(model.pipeline).save_lora_weights(f, **layers)


def save_peft(model: Model, folder: str | Path) -> None:
    """One PEFT folder per adapted network: adapter_config.json and adapter_model.safetensors."""
    with whole_folder(folder) as f:
        for name, part in _adapted(model).items():
            config = copy.deepcopy(part.peft_config["default"])
            config.inference_mode = True
            config.target_modules = sorted(config.target_modules)
            config.base_model_name_or_path = public_name(model.source)
            config.save_pretrained(f / name)
            state = adapter_state(part)
            tensors = {
                f"base_model.model.{k}": v.detach().cpu().contiguous() for k, v in state.items()
            }
            save_file(tensors, f / name / "adapter_model.safetensors", {"format": "pt"})


def adapter_state(part: nn.Module) -> dict[str, torch.Tensor]:
    """PEFT's own names.

    Embeddings are never adapted here; the default would look for a vocabulary on the hub.
    """
    return get_peft_model_state_dict(part, save_embedding_layers=False)


def carries_adapters(part: nn.Module) -> bool:
    return bool(getattr(part, "peft_config", None) or shifts_of(part))


def _adapted(model: Model) -> dict[str, nn.Module]:
    adapted = {n: p for n, p in model.parts.items() if carries_adapters(p)}
    if not adapted:
        raise ValueError("the model has no adapters; use save_pipeline")
    return adapted


@torch.no_grad()
def _merged(part: nn.Module) -> nn.Module:
    part = copy.deepcopy(part).cpu()
    if shifts_of(part):
        return merge_spectral_(part)
    for layer in part.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
    part = recurse_remove_peft_layers(part)
    del part.peft_config
    part._hf_peft_config_loaded = False  # what both libraries' save_pretrained look at
    return part


def _flags(model: Model) -> dict:
    """The pipeline's own settings, besides its parts."""
    pipeline = model.pipeline
    return {
        k: v for k, v in pipeline.config.items() if k[0] != "_" and k not in pipeline.components
    }


# ---- opening a finished run
def load_run(folder: str | Path, base: bool = False, dtype: torch.dtype = torch.float32) -> Model:
    """The model of a run folder with its trained weights; `base` leaves them out.

    Full training wrote a whole pipeline. Every other kind wrote adapters or words, which are loaded
    onto the base that config.json names (read.py), so that `Model.base()` works. Raises UserError
    for a folder that is no run, is not finished, is damaged, or whose base has changed since.
    """
    folder = Path(folder).expanduser()
    config = _read_json(folder / "config.json")
    trained = next((folder / n for n in ("pipeline", *READERS) if (folder / n).is_dir()), None)
    if not base and trained is None:
        raise UserError(
            f"{folder} holds no trained weights yet ({', '.join(('pipeline', *READERS))}): "
            "finish the run"
        )
    if not base and not verify_manifest(trained):
        raise UserError(
            f"{trained} is damaged: a file differs from its manifest; run the same command again"
        )
    if not base and trained.name == "pipeline":
        model = load(str(trained), dtype=dtype)
        model.trained = "full"
        return model
    name = config.get("pretrained_model_name_or_path")
    if not isinstance(name, str):
        raise UserError(f"{folder}/config.json names no base model")
    model = load(
        name, config.get("revision"), config.get("variant"), dtype, config.get("without_t5", False)
    )
    _check_base(model, folder)
    if not base:
        model.hash()
        model.trained = READERS[trained.name](model, trained, config)
        for part in model.parts.values():
            part.requires_grad_(False)
    return model


def _check_base(model: Model, folder: Path) -> None:
    recorded = (
        _read_json(folder / "env.json").get("base_hash") if (folder / "env.json").exists() else None
    )
    if recorded and recorded != model.hash():
        raise UserError(
            f"the base model {model.source} has changed since this run ({recorded} then, "
            f"{model.hash()} now); "
            "put the old one back"
        )


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        why = "is not there" if isinstance(e, FileNotFoundError) else f"cannot be read ({e})"
        raise UserError(f"{path.parent} is no run folder: {path.name} {why}") from e
    if not isinstance(value, dict):
        raise UserError(f"{path.parent} is no run folder: {path.name} is not an object")
    return value
