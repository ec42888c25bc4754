"""The formats of `personalize export`: who writes each, and how its official loader opens it.

    diffusers          pytorch_lora_weights.safetensors
    kohya              kohya_lora.safetensors (A1111, Comfy)
    peft               unet/ or transformer/, text_encoder/, ...
    custom_diffusion   pytorch_custom_diffusion_weights.safetensors and <new1>.safetensors
    token              learned_embeds.safetensors, or one file per word
    svdiff             spectral_shifts.safetensors; no other program reads it
    merged             a whole pipeline

official.py opens each as its documentation says.

diffusers loads no LoHa, LoKr, OFT or BOFT: those are exported merged, and as PEFT folders. Every
export is opened again by its loader and must answer as the run does (`checked`).
"""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from personalize.adapters.spectral import FILE as SHIFTS
from personalize.adapters.spectral import merge_shifts, shift_tensors
from personalize.adapters.words import learnt_rows
from personalize.config.kinds import TRAINING_KINDS
from personalize.export.official import (
    KOHYA,
    open_custom_diffusion,
    open_kohya,
    open_lora,
    open_peft,
    open_words,
)
from personalize.export.read import CROSS_ATTENTION
from personalize.export.write import (
    adapter_state,
    carries_adapters,
    save_lora,
    save_merged,
    save_peft,
    save_pipeline,
)
from personalize.pipeline.model import Model
from toy2d.runs.files import RunFailure, UserError
from toy2d.runs.folder import whole_folder

EMBEDS = "learned_embeds.safetensors"  # diffusers' name for a single word
HEADER = {"format": "pt"}


# ---- kohya
def save_kohya(model: Model, folder: str | Path) -> None:
    """lora_unet_..., lora_te_... (SDXL: lora_te1_, lora_te2_): lora_down, lora_up and alpha of each
    layer.
    """
    tensors = {}
    for part, network in model.parts.items():
        if not getattr(network, "peft_config", None):
            continue
        old = "text_model." if hasattr(network, "encoder") else ""  # as kohya knows text encoders
        alpha = torch.tensor(float(network.peft_config["default"].lora_alpha))
        for key, value in adapter_state(network).items():
            layer, _, factor = key.removesuffix(".weight").rpartition(".")
            name = f"{model.family.kohya[part]}_{(old + layer).replace('.', '_')}"
            tensors[f"{name}.{KOHYA_NAMES[factor]}.weight"] = value.detach().cpu().contiguous()
            tensors[f"{name}.alpha"] = alpha.clone()
    with whole_folder(folder) as f:
        save_file(tensors, f / KOHYA, HEADER)


KOHYA_NAMES = {"lora_A": "lora_down", "lora_B": "lora_up"}


# ---- new words
def save_words(model: Model, folder: str | Path) -> None:
    """The new words alone."""
    with whole_folder(folder) as f:
        write_words(model, f, alone=True)
        write_text_encoders(model, f)


def write_words(model: Model, folder: Path, alone: bool = False) -> None:
    """A file per word: {"<new1>": rows (k E)}, or one tensor for each text encoder ({"clip_l": ...,
    "clip_g": ...}).
    """
    by_part, keys = learnt_rows(model), model.family.embeddings
    words = next(iter(by_part.values()), {})
    for word in words:
        tensors = {keys.get(p, word): rows[word].cpu().contiguous() for p, rows in by_part.items()}
        name = EMBEDS if alone and len(words) == 1 and not keys else f"{word}.safetensors"
        save_file(tensors, folder / name, HEADER | {"word": word})


def write_text_encoders(model: Model, folder: Path) -> None:
    """Their own weights, if those train: for the run's folder alone, no other program looks for
    them.
    """
    for part in model.trainable_text_encoders:
        if own := model.kept_apart(part):
            tensors = {n: p.detach().cpu().contiguous() for n, p in own.items()}
            save_file(tensors, folder / f"{part}.safetensors", HEADER)


# ---- Custom Diffusion
def save_custom_diffusion(model: Model, folder: str | Path) -> None:
    """The cross-attention's weights under diffusers' names of attention processors, and a file for
    each new word.
    """
    with whole_folder(folder) as f:
        save_file(cross_attention_state(model), f / CROSS_ATTENTION, HEADER)
        write_words(model, f)
        write_text_encoders(model, f)


def cross_attention_state(model: Model) -> dict[str, torch.Tensor]:
    """ ".attn2.to_k.weight" -> ".attn2.processor.to_k_custom_diffusion.weight".

    diffusers wants every attention of the network named: those that did not train have an empty
    tensor.
    """
    family, denoiser = model.family, model.parts[model.family.denoiser]
    ends = (*family.cross_attention, *family.cross_attention_rest)
    trained = {id(p) for p in model.kept_apart(family.denoiser).values()}
    tensors = {name: torch.empty(0) for name in getattr(denoiser, "attn_processors", {})}
    for name, module in denoiser.named_modules():
        end = next((e for e in ends if name.endswith(e)), None)
        for key, p in module.named_parameters(recurse=False) if end else ():
            if id(p) in trained:
                processor, layer = _processor(name, end)
                tensors.pop(processor, None)
                tensors[f"{processor}.{layer}.{key}"] = p.detach().cpu().contiguous()
    return tensors


def _processor(name: str, end: str) -> tuple[str, str]:
    """("....attn2.processor", "to_out_custom_diffusion.0") of "....attn2.to_out.0"."""
    attention, _, layer = end.partition(".")
    first, dot, rest = layer.partition(".")
    return f"{name.removesuffix(end)}{attention}.processor", f"{first}_custom_diffusion{dot}{rest}"


# ---- SVDiff
def save_shifts(model: Model, folder: str | Path) -> None:
    with whole_folder(folder) as f:
        save_file(shift_tensors(model), f / SHIFTS, HEADER)


# ---- the whole pipeline
def save_whole(model: Model, folder: str | Path) -> None:
    adapted = any(carries_adapters(p) for p in model.parts.values())
    (save_merged if adapted else save_pipeline)(model, folder)


# ---- the table
class Format(NamedTuple):
    """`save(model, folder)`; `place`: its folder's name in a run; `how` and `open(pipeline,
    folder)`: the official loader (None: it is a pipeline); `lacks(model)`: why it cannot hold or
    open this one, empty if it can.
    """

    save: Callable[[Model, Path], None]
    place: str
    how: str
    open: Callable[[DiffusionPipeline, Path], None] | None
    lacks: Callable[[Model], str] = lambda model: ""


def _lacks_kohya(model: Model) -> str:
    return "" if model.family.kohya else "diffusers reads kohya's keys for UNets only"


def _lacks_processors(model: Model) -> str:
    if not hasattr(model.parts[model.family.denoiser], "load_attn_procs"):
        return "diffusers opens these weights in UNets only"
    return _lacks_text(model)


def _lacks_words(model: Model) -> str:
    if not hasattr(model.pipeline, "load_textual_inversion"):
        return "diffusers teaches this pipeline no words"
    return _lacks_text(model)


def _lacks_text(model: Model) -> str:
    trained = any(model.kept_apart(part) for part in model.trainable_text_encoders)
    return "it has no place for the text encoder, which has trained" if trained else ""


_PEFT = "PeftModel.from_pretrained(pipeline.X, folder + '/X'), for each folder X in it"
_PROCESSORS = "pipeline.unet.load_attn_procs(folder, weight_name=..., _pipeline=pipeline)"
FORMATS = {
    "diffusers": Format(save_lora, "lora", "pipeline.load_lora_weights(folder)", open_lora),
    "kohya": Format(
        save_kohya,
        "kohya",
        "A1111, Comfy, or pipeline.load_lora_weights(folder)",
        open_kohya,
        _lacks_kohya,
    ),
    "peft": Format(save_peft, "peft", _PEFT, open_peft),
    "custom_diffusion": Format(
        save_custom_diffusion,
        "custom_diffusion",
        _PROCESSORS,
        open_custom_diffusion,
        _lacks_processors,
    ),
    "token": Format(
        save_words, "token", "pipeline.load_textual_inversion(folder)", open_words, _lacks_words
    ),
    "svdiff": Format(
        save_shifts,
        "svdiff",
        "personalize.adapters.spectral.merge_shifts(pipeline, folder)",
        merge_shifts,
    ),
    "merged": Format(save_whole, "pipeline", "DiffusionPipeline.from_pretrained(folder)", None),
}


def leave(model: Model, run: Path) -> None:
    """What a run folder holds of its trained weights."""
    for name in TRAINING_KINDS[model.trained].leaves:
        FORMATS[name].save(model, run / FORMATS[name].place)


def formats_for(model: Model) -> list[str]:
    return [f for f in TRAINING_KINDS[model.trained].formats if not FORMATS[f].lacks(model)]


def save_as(model: Model, name: str, folder: str | Path) -> None:
    """Write the trained weights as `name`.

    Raises UserError for a format that cannot hold them, saying which can.
    """
    kind, fit = TRAINING_KINDS[model.trained], " or ".join(formats_for(model))
    if name not in kind.formats:
        raise UserError(
            f"--format {name} cannot hold --train {model.trained}: {kind.hint}; use {fit}"
        )
    if lack := FORMATS[name].lacks(model):
        raise UserError(f"--format {name} is of no use here: {lack}; use {fit}")
    FORMATS[name].save(model, folder)


# ---- is it what it should be?
SHARE = 1e-4  # of what training changed in the answer
# units in the last place of the largest answer. Measured in float32 on the tiny models and the
# mini: factors 0, merged and Custom
# Diffusion below 10. A layer whose loss stays below this in the one answer compared (some of the
# mini's) is not seen
ROUNDING = 16


class LoaderCheck(NamedTuple):
    """Largest differences of answers, relative to the run's largest answer."""

    difference: float  # between the run and its export
    moved: float  # between the run and its base
    rounding: float  # what either may be without meaning anything

    @property
    def tells(self) -> bool:
        """Has training moved the answer so far that a part of it would be missed?"""
        return self.moved > 10 * self.rounding


@torch.no_grad()
def checked(model: Model, name: str, folder: str | Path, base: Callable[[], Model]) -> LoaderCheck:
    """Open `folder` by its official loader on a fresh `base()`, and compare its answer with the
    run's and with its base's.

    Raises RunFailure if it differs from the run by more than rounding and a ten-thousandth of what
    training changed: another scale, a key that was passed over, a word that means something else.
    """
    form = FORMATS[name]
    if form.open is None:
        pipeline = DiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    else:
        pipeline = base().pipeline
        form.open(pipeline, Path(folder))
    words = next(iter(learnt_rows(model).values()), {})
    prompt = " ".join(["a photo of", *words, "dog"])
    ours, theirs = (_answer(m, prompt) for m in (model, Model(pipeline, model.family)))
    with model.base() if TRAINING_KINDS[model.trained].keeps_base else nullcontext(base()) as start:
        before = _answer(start, prompt)
    difference, moved = (float((ours - x).abs().max() / ours.abs().max()) for x in (theirs, before))
    check = LoaderCheck(difference, moved, ROUNDING * torch.finfo(model.compute_dtype).eps)
    if not difference <= SHARE * moved + check.rounding:
        raise RunFailure(
            f"{folder}: opened by its loader it answers otherwise (by {difference:.2g} of the "
            "largest answer, of which training "
            f"changed {moved:.2g}); please report this"
        )
    return check


def _answer(model: Model, prompt: str) -> torch.Tensor:
    """The denoiser's answer to one noise."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, *model.latent_shape(model.default_resolution), generator=rng)
    t = model.schedule.timesteps[len(model.schedule) // 2].expand(1)
    with model.evaluating():
        return model.predict(x.to(model.device), t, model.encode_prompts([prompt])).cpu()
