"""Choose what trains, by a `Kind` (kinds.py): the model's own weights, PEFT's adapters, new words.

Trainable parameters are float32 whatever the rest is. Before the first step the model gives the
same answers as its base, for every kind.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from personalize.adapters.deltas import FACTORS
from personalize.adapters.spectral import add_spectral_shifts
from personalize.adapters.words import add_words
from personalize.config.kinds import TRAINING_KINDS, Kind, Word
from personalize.config.train_config import TrainConfig
from personalize.pipeline.model import Model
from toy2d.runs.files import UserError


@dataclass(frozen=True)
class Choice:
    """What trains: the fields of TrainConfig that `choose_as` reads, under the same names."""

    train: str = "full"
    train_text_encoder: bool = False
    rank: int = 4
    lora_alpha: float | None = None  # default: the rank
    lora_dropout: float = 0.0
    lora_target_modules: tuple[str, ...] = ()  # of the denoiser; default: the family's
    decompose_factor: int = -1
    oft_block_size: int = 8
    boft_n_butterfly_factor: int = 1
    freeze_model: Literal["crossattn_kv", "crossattn"] = "crossattn_kv"
    words: tuple[Word, ...] = ()
    seed: int = 0

    @property
    def kind(self) -> Kind:
        return TRAINING_KINDS[self.train]


def choose(model: Model, train: str = "full", **more) -> dict[str, nn.Parameter]:
    """`choose_as` for a model in a script or a test: `choose(model, "lora", rank=8)`."""
    return choose_as(model, Choice(train, **more))


def choose_as(model: Model, choice: Choice | TrainConfig) -> dict[str, nn.Parameter]:
    """Make what `choice` names trainable; returns theta by name, "unet.down_blocks..." first.

    LoRA's A ~ N(0, 1/rank^2) is drawn from `seed` alone, B = 0; other adapters start as PEFT starts
    them, from `seed` too. `words` are learnt besides. Kinds that train few weights of the base keep
    a copy of them for `Model.base`. Raises ValueError on a second call, UserError for what does not
    fit the model.
    """
    if model.trained != "nothing":
        raise ValueError("choose was called before on this model; load it anew")
    model.hash()  # of the base, before anything changes
    if choice.lora_alpha is None:
        choice = replace(choice, lora_alpha=choice.rank)
    if choice.words:
        add_words(model, choice.words)  # before the rest: PEFT freezes what is not its own
    targets = choice.lora_target_modules or model.family.lora_targets
    set_trainable(model, choice, model.family.denoiser, targets)
    if choice.train_text_encoder:
        for part in model.trainable_text_encoders:
            set_trainable(model, choice, part, model.family.text_lora_targets)
    theta = trainable(model)
    _start(theta, choice.rank, choice.seed)
    model.trained = choice.train
    if choice.kind.keeps_base:
        model.keep_base(_own(theta))
    return theta


def set_trainable(
    model: Model, choice: Choice | TrainConfig, part: str, targets: tuple[str, ...]
) -> None:
    """Make one network trainable: adapters on `targets`, or its own weights.

    Modules that no output reads stay frozen.
    """
    kind, network, unread = choice.kind, getattr(model.pipeline, part), model.unread(part)
    if kind.adapter == "SVDIFF":
        own = choice.lora_target_modules if part == model.family.denoiser else ()
        add_spectral_shifts(network, own, unread)
        return
    if kind.adapter:
        add_adapter(network, choice, targets, unread)
        return
    _set_free(network, _own_weights(kind, model, part, choice.freeze_model))
    if kind.words and part != model.family.denoiser:
        table = network.get_input_embeddings()
        getattr(table, "base_layer", table).requires_grad_(False)  # new rows lie beside it
    for name in unread:
        network.get_submodule(name).requires_grad_(False)


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
    network: nn.Module, choice: Choice | TrainConfig, targets: tuple[str, ...], unread: list[str]
) -> None:
    """Put PEFT's layers on `targets`, except in the modules `unread` (`Model.unread`).

    Raises UserError where PEFT cannot, or where it would silently take other settings.
    """
    kind = choice.kind
    layers = [f".{name}" for name, _ in network.named_modules()]
    if missing := [t for t in targets if not any(name.endswith(f".{t}") for name in layers)]:
        network_name = type(network).__name__
        raise UserError(
            f"--lora_target_modules {' '.join(missing)}: {network_name} has no such layer"
        )
    try:
        options = {"target_modules": list(targets), "exclude_modules": unread or None}
        config = PEFT_TYPE_TO_CONFIG_MAPPING[kind.adapter](**options, **kind.options(choice))
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            torch.manual_seed(choice.seed)  # PEFT draws from the global generator
            network.add_adapter(config)
    except ValueError as e:
        raise UserError(f"{kind.adapter} cannot be added: {e}") from e
    changed = [str(w.message) for w in notes if "djusted" in str(w.message)]
    if changed:
        raise UserError(f"{kind.adapter} does not fit this model: {changed[0]}")
    if choice.boft_n_butterfly_factor > 1 and any("butterfly" in str(w.message) for w in notes):
        raise UserError(
            "--boft_n_butterfly_factor above 1 needs PEFT's CUDA extension "
            "(a GPU, nvcc and ninja); use 1 here"
        )


# ---- theta
def trainable(model: Model) -> dict[str, nn.Parameter]:
    """theta by name, as `choose` left it. Call it again once the denoiser is sharded."""
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
    """The base's own weights among theta: no adapters, no rows of new words."""
    weights = {n: p for n, p in theta.items() if n.endswith((".weight", ".bias"))}
    return [p for n, p in weights.items() if not any(factor in n for factor in FACTORS)]
