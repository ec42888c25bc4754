"""Choose what trains, by a `Kind` (kinds.py): the denoiser's own weights, PEFT's adapters, new words, the text encoders.

Trainable parameters are float32 whatever the rest is, and every kind starts as its base.
"""

import warnings
from types import SimpleNamespace
from typing import Literal

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from personalize.adapters.deltas import FACTORS
from personalize.adapters.words import add_words
from personalize.config.kinds import TRAINING_KINDS, Kind, Word
from personalize.pipeline.model import Model
from toy2d.runs.files import UserError


def choose(
    model: Model,
    train: str = "full",
    train_text_encoder: bool = False,
    rank: int = 4,
    lora_alpha: float | None = None,
    lora_dropout: float = 0.0,
    targets: tuple[str, ...] | None = None,
    seed: int = 0,
    *,
    decompose_factor: int = -1,
    oft_block_size: int = 8,
    boft_n_butterfly_factor: int = 1,
    words: tuple[Word, ...] = (),
    freeze_model: Literal["crossattn_kv", "crossattn"] = "crossattn_kv",
) -> dict[str, nn.Parameter]:
    """Make the kind `train` trainable; returns theta by name, "unet.down_blocks..." first.

    LoRA's A ~ N(0, 1/rank^2) is drawn from `seed` alone, B = 0; other adapters start as PEFT starts them, from `seed` too. `targets`
    are the denoiser's module names. `words` are learnt besides. Kinds that move few weights keep a copy of them, so that `Model.base`
    can answer. Raises ValueError on a second call, UserError for what does not fit the model.
    """
    if model.trained != "nothing":
        raise ValueError("choose was called before on this model; load it anew")
    model.hash()  # of the base, before anything changes
    kind = TRAINING_KINDS[train]
    settings = SimpleNamespace(
        rank=rank,
        lora_alpha=rank if lora_alpha is None else lora_alpha,
        lora_dropout=lora_dropout,
        decompose_factor=decompose_factor,
        oft_block_size=oft_block_size,
        boft_n_butterfly_factor=boft_n_butterfly_factor,
    )
    parts = {model.family.denoiser: targets or model.family.lora_targets}
    if train_text_encoder:
        parts |= dict.fromkeys(model.trainable_text_encoders, model.family.text_lora_targets)
    if words:
        add_words(model, words)  # before the rest: PEFT freezes what is not its own
    for part, part_targets in parts.items():
        network, unread = getattr(model.pipeline, part), model.unread(part)
        if kind.adapter:
            add_adapter(network, kind, settings, part_targets, seed, unread)
        else:
            _set_free(network, _own_weights(kind, model, part, freeze_model))
            if kind.words and part != model.family.denoiser:
                table = network.get_input_embeddings()
                getattr(table, "base_layer", table).requires_grad_(False)  # new rows lie beside it
            for name in unread:
                network.get_submodule(name).requires_grad_(False)
    theta = trainable(model)
    _start(theta, rank, seed)
    model.trained = train
    if kind.keeps_base:
        model.keep_base(_own(theta))
    return theta


def choose_as(model: Model, config) -> dict[str, nn.Parameter]:
    """`choose` what a TrainConfig says."""
    c = config
    return choose(
        model,
        c.train,
        c.train_text_encoder,
        c.rank,
        c.lora_alpha,
        c.lora_dropout,
        c.lora_target_modules or None,
        c.seed,
        decompose_factor=c.decompose_factor,
        oft_block_size=c.oft_block_size,
        boft_n_butterfly_factor=c.boft_n_butterfly_factor,
        words=c.words,
        freeze_model=c.freeze_model,
    )


# ---- the denoiser's own weights
def _own_weights(kind: Kind, model: Model, part: str, freeze_model: str) -> tuple[str, ...] | None:
    """The modules whose weights train; None means all of them."""
    family = model.family
    if kind.weights == "all" or part != family.denoiser:
        return None
    if kind.weights == "none":
        return ()
    more = family.cross_attention_rest if freeze_model == "crossattn" else ()
    return (*family.cross_attention, *more)


def _set_free(network: nn.Module, modules: tuple[str, ...] | None) -> None:
    if modules is None:
        network.requires_grad_(True)
    for name, module in network.named_modules():
        if modules and name.endswith(modules):
            module.requires_grad_(True)


# ---- adapters
def add_adapter(
    network: nn.Module, kind: Kind, settings, targets: tuple[str, ...], seed: int, unread: list[str]
) -> None:
    """PEFT's layers on `targets`, but for the modules `unread` (`Model.unread`). Raises UserError where PEFT cannot, or where it would take other settings than were asked for."""
    layers = [f".{name}" for name, _ in network.named_modules()]
    if missing := [t for t in targets if not any(name.endswith(f".{t}") for name in layers)]:
        raise UserError(f"--lora_target_modules {' '.join(missing)}: {type(network).__name__} has no such layer")  # fmt: skip
    try:
        options = {"target_modules": list(targets), "exclude_modules": unread or None}
        config = PEFT_TYPE_TO_CONFIG_MAPPING[kind.adapter](**options, **kind.options(settings))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.manual_seed(seed)  # PEFT draws from the global generator
            network.add_adapter(config)
    except ValueError as e:
        raise UserError(f"{kind.adapter} cannot be added: {e}") from e
    changed = [str(w.message) for w in said if "djusted" in str(w.message)]
    if changed:
        raise UserError(f"{kind.adapter} does not fit this model: {changed[0]}")
    if settings.boft_n_butterfly_factor > 1 and any("butterfly" in str(w.message) for w in said):
        raise UserError("--boft_n_butterfly_factor above 1 needs PEFT's CUDA extension (a GPU, nvcc and ninja); use 1 here")  # fmt: skip


# ---- theta
def trainable(model: Model) -> dict[str, nn.Parameter]:
    """theta by name, as `choose` left it; anew once the denoiser is sharded."""
    return {
        f"{part}.{n}": p
        for part, network in model.parts.items()
        for n, p in network.named_parameters()
        if p.requires_grad
    }


def _start(theta: dict[str, nn.Parameter], rank: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    for name, p in theta.items():
        p.data = p.data.float()
        if ".lora_A." in name:
            p.data = torch.randn(p.shape, generator=rng).div(rank).to(p)


def _own(theta: dict[str, nn.Parameter]) -> list[nn.Parameter]:
    """Weights of the base itself that train; adapters and new rows lie beside theirs."""
    return [p for n, p in theta.items() if n.endswith((".weight", ".bias")) and not any(f in n for f in FACTORS)]  # fmt: skip
