"""What can train, as data: one `Kind` for each word of --train. Nothing heavy is imported here.

    full               every weight of the denoiser
    lora               W + s B A                                         Hu et al. 2021
    loha               W + s (B1 A1) * (B2 A2), elementwise       Hyeon-Woo et al. 2021 (FedPara)
    lokr               W + s (W1 kron W2)                                Edalati et al. 2022 (KronA)
    oft                W R, R block-diagonal and orthogonal              Qiu et al. 2023
    boft               diag(s) W R, R a product of butterflies           Liu et al. 2023
    svdiff             U diag(relu(s + delta)) V', W = U diag(s) V'      Han et al. 2023
    custom_diffusion   keys and values of the cross-attention, new words Kumari et al. 2023
    token              new words alone: textual inversion                Gal et al. 2022

The loop, the distances and the formats read these fields; none of them asks for a kind by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class Word(NamedTuple):
    """`placeholder` is learnt; it starts as the embedding of `initializer`, `vectors` times."""

    placeholder: str
    initializer: str
    vectors: int = 1

    @property
    def tokens(self) -> list[str]:
        return [self.placeholder, *(f"{self.placeholder}_{i}" for i in range(1, self.vectors))]


@dataclass(frozen=True)
class Kind:
    """`adapter`: PEFT's name of it, or SVDIFF, which is ours (adapters/spectral.py).

    `flags`: PEFT's keyword -> field of TrainConfig; `fixed`: PEFT's keyword -> value.

    `weights` names the denoiser's own weights that train, `words` says whether there are new words
    (--train_text_encoder then leaves the embedding table alone). `objectives` and `decoupled` list
    what acts on it while text encoders are frozen; `formats` what `export` writes, `leaves` what a
    run folder holds of them from the start; `hint` says why others are missing.
    """

    learning_rate: float
    adapter: str | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    weights: Literal["all", "cross_attention", "none"] = "none"
    words: bool = False
    objectives: tuple[str, ...] = ("prior", "l2", "output", "fisher")
    decoupled: tuple[str, ...] = ("l2", "fisher")
    formats: tuple[str, ...] = ("peft", "merged")
    leaves: tuple[str, ...] = ("peft",)
    hint: str = "diffusers' LoRA loader cannot hold it"

    @property
    def keeps_base(self) -> bool:
        """Can the trained model still answer as its base did, without a second network?"""
        return self.weights != "all"

    def options(self, settings: Any) -> dict[str, Any]:
        """PEFT's keywords, read from `settings` (a TrainConfig)."""
        return dict(self.fixed) | {k: getattr(settings, name) for k, name in self.flags.items()}


def new_words(placeholders: str | None, initializers: str | None, vectors: int) -> tuple[Word, ...]:
    """The words of "<new1>+<new2>": one initializer serves all, or there is one for each (rules.py
    sees to it).
    """
    if not placeholders:
        return ()
    new, known = placeholders.split("+"), (initializers or "").split("+")
    known = known * len(new) if len(known) == 1 else known
    return tuple(Word(n, k, vectors) for n, k in zip(new, known, strict=True))


def wrong_words(placeholders: str | None, initializers: str | None) -> list[str]:
    """What is wrong with the flags that name new words, empty if nothing is."""
    if not placeholders:
        return []
    flag, new = f"--placeholder_token {placeholders!r}", placeholders.split("+")
    if not all(new) or any(c.isspace() for c in placeholders) or len(set(new)) < len(new):
        return [f"{flag} must be words without spaces, joined by +, no two alike"]
    if word := next((w for w in new if w.rpartition("_")[0] in new), None):
        return [f"{flag}: {word!r} would be read as a second vector of another word; rename it"]
    if word := next((w for w in new if "/" in w or "\\" in w or w.startswith(".")), None):
        return [f"{flag}: {word!r} names a file too: leave out / and \\, and begin with no dot"]
    if not initializers:
        return [
            "--placeholder_token needs --initializer_token, the known word it starts from, e.g. dog"
        ]
    if (known := len(initializers.split("+"))) not in (1, len(new)):
        return [f"--initializer_token names {known} words for {len(new)} new ones"]
    return []


PRODUCT = {"r": "rank", "alpha": "lora_alpha"}
TRAINING_KINDS = {
    "full": Kind(
        5e-6,
        weights="all",
        formats=("merged",),
        leaves=("merged",),
        hint="every weight has moved, so it is a pipeline of its own",
    ),
    "lora": Kind(
        5e-4,
        adapter="LORA",
        flags={"r": "rank", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"},
        fixed={"init_lora_weights": "gaussian"},
        formats=("diffusers", "peft", "kohya", "merged"),
        leaves=("diffusers", "peft"),
        hint="it is low-rank factors of the denoiser's layers",
    ),
    "loha": Kind(5e-4, adapter="LOHA", flags=PRODUCT, decoupled=("l2",)),
    "lokr": Kind(
        5e-4,
        adapter="LOKR",
        flags=PRODUCT | {"decompose_factor": "decompose_factor"},
        decoupled=("l2",),
    ),
    # the exact Cayley map: PEFT's default cuts its series, and R is then orthogonal only nearly
    "oft": Kind(
        1e-4,
        adapter="OFT",
        flags={"oft_block_size": "oft_block_size"},
        fixed={"r": 0, "use_cayley_neumann": False},
        decoupled=(),
    ),
    "boft": Kind(
        1e-4,
        adapter="BOFT",
        flags={
            "boft_block_size": "oft_block_size",
            "boft_n_butterfly_factor": "boft_n_butterfly_factor",
        },
        decoupled=(),
    ),
    "svdiff": Kind(
        1e-3,
        adapter="SVDIFF",
        decoupled=("l2",),
        formats=("svdiff", "merged"),
        leaves=("svdiff",),
        hint="it is shifts of singular values",
    ),
    "custom_diffusion": Kind(
        1e-5,
        weights="cross_attention",
        words=True,
        formats=("custom_diffusion", "merged"),
        leaves=("custom_diffusion",),
        hint="it is whole keys and values, and new words",
    ),
    # no prompt of the base holds the new word: the other terms would be constants
    "token": Kind(
        5e-4,
        words=True,
        objectives=("l2",),
        decoupled=("l2",),
        formats=("token", "merged"),
        leaves=("token",),
        hint="it is new words alone",
    ),
}
