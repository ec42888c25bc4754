"""Load a pipeline; choose.py says what of it trains.

Weights are safetensors only, every network must be whole, and no code from a model folder ever
runs.
"""

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import DiffusionPipeline
from torch import nn

from personalize.mini.shipped import model_folder
from personalize.pipeline.families import FAMILIES, Family
from personalize.pipeline.model import Model
from toy2d.runs.files import UserError

LIBRARIES = (
    None,
    "diffusers",
    "transformers",
    "stable_diffusion",
)  # the last: SD-1.x's safety checker


# ---- loading
def load(
    name_or_path: str,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
    without_t5: bool = False,
) -> Model:
    """A model from a pipeline folder, a hub id (the local cache serves when there is no network),
    or "mini", the one that ships here.

    `dtype` is that of the denoiser and the text encoders; the VAE stays in float32, because it runs
    once per picture and half precision overflows in some. The safety checker is left out, and
    SD-3's T5 if asked. Raises UserError that says what is missing and what to do.
    """
    folder = model_folder() if name_or_path == "mini" else Path(name_or_path).expanduser()
    name = str(folder if folder.is_dir() else name_or_path)
    try:
        config = DiffusionPipeline.load_config(name, revision=revision)
        family = _family(name, config)
        encoders = _text_encoders(name, family, config, without_t5)
        where = {"revision": revision, "variant": variant, "use_safetensors": True}
        pipeline = family.pipeline_class.from_pretrained(
            name,
            dtype={"default": dtype, "vae": torch.float32},
            trust_remote_code=False,
            **where,
            **family.load_options,
            **{p: _text_encoder(name, p, config, dtype, where) for p in encoders},
            **_left_out(family, encoders),
        )
    except UserError:
        raise
    # a folder that others wrote can fail in any way; the reason is passed on
    except Exception as e:
        raise UserError(_cannot_load(name, variant, e)) from e
    model = Model(pipeline, family, source=name)
    for part, module in model.parts.items():
        if any(p.is_meta for p in module.parameters()):
            raise UserError(f"{name}/{part} lacks some of its weights; download the model again")
        if broken := not_finite(module):
            raise UserError(
                f"{name}/{part} holds weights that are not finite numbers ({broken}); "
                "download the model again, or choose another base model"
            )
    return model


@torch.no_grad()
def not_finite(module: nn.Module) -> str | None:
    """The first weight that holds NaN or infinity: its sum does too. One reading of all weights."""
    weights = ((n, p) for n, p in module.named_parameters() if p.is_floating_point())
    return next((n for n, p in weights if not p.sum(dtype=torch.float32).isfinite()), None)


def _text_encoders(name, family, config, without_t5) -> list[str]:
    """Those to load: all of the family's, but for an optional one that the folder lacks or the user
    does without.
    """
    if without_t5 and not family.optional:
        raise UserError(f"--without_t5 has no effect: {name} has no T5")
    there = [p for p in family.text_encoders if (config.get(p) or [None])[0] is not None]
    if missing := sorted({*family.text_encoders} - {*there, *family.optional}):
        raise UserError(f"{name} lacks {missing[0]}; download the model again")
    return [p for p in there if not (without_t5 and p in family.optional)]


def _left_out(family, encoders) -> dict[str, None]:
    absent = [p for p in family.text_encoders if p not in encoders]
    return {name: None for p in absent for name in (p, p.replace("text_encoder", "tokenizer"))}


def _text_encoder(name, part, config, dtype, where) -> nn.Module:
    """Loaded apart from the pipeline, because transformers fills missing weights at random and only
    says so in a log.
    """
    kind = getattr(transformers, config[part][1])
    encoder, report = kind.from_pretrained(
        name, subfolder=part, dtype=dtype, output_loading_info=True, **where
    )
    if report["missing_keys"]:
        raise UserError(f"{name}/{part} lacks some of its weights; download the model again")
    return encoder


def _family(name: str, config: dict[str, Any]) -> Family:
    word = config.get("_class_name")
    if not isinstance(word, str) or word not in FAMILIES:
        raise UserError(
            f"{name} is a {word!r}; personalize trains {', '.join(FAMILIES)} (SD-1.x, SD-2.x, "
            "SDXL, SD-3): choose such a base model"
        )
    for part, value in config.items():
        if isinstance(value, list | tuple) and value[0] not in LIBRARIES:
            raise UserError(
                f"{name} asks for code of its own ({part}: {value[0]}.{value[1]}), which is "
                "never run; "
                "choose a model made of diffusers' and transformers' classes"
            )
    return FAMILIES[word]


def _cannot_load(name: str, variant: str | None, error: Exception) -> str:
    reason = re.sub(r"\s+", " ", str(error))[:300] or type(error).__name__
    folder = Path(name)
    if folder.is_dir() and not (folder / "model_index.json").exists():
        return f"{name} is not a pipeline folder: it has no model_index.json"
    if folder.is_dir():
        return (
            f"{name} cannot be loaded{f' with variant {variant!r}' if variant else ''}: {reason}; "
            "every network must be whole and in safetensors"
        )
    return (
        f"{name} is neither a folder here nor a model that the hub or its local cache gave "
        f"({reason}); "
        "check the spelling and the network, or pass a pipeline folder"
    )
