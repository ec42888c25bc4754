"""Names of runs: "standard", "prior:1", "l2:0.01", "prior:1+l2:0.01" -> objective, weight, value.

A run is written kind:weight; a sum of terms is joined by +.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from toy2d.runs.files import UserError

if TYPE_CHECKING:  # runs are judged before torch is imported
    from toy2d.core.objectives import Objective


class Word(NamedTuple):
    """What a kind's weight is the weight of, in words and as a field of Objective."""

    field: str | None  # None: standard, which has no weight
    says: str
    settings: tuple[tuple[str, str | bool], ...] = ()  # other fields of that distance


OBJECTIVE_WORDS = {
    "standard": Word(None, "denoising loss on the new class's points alone"),
    "prior": Word("prior", "+ weight * denoising loss on the base's samples of one class"),
    "replay_all": Word("prior", "prior, with the base's samples of every old prompt"),
    "l2": Word("l2", "+ weight * ||theta - theta_star||^2"),
    "l2_tensor_mean": Word(
        "l2", "l2 of the paper's code: mean per tensor", (("reduction", "tensor_mean"),)
    ),
    "l2_decoupled": Word("l2", "l2 as a proximal step after Adam's step", (("decoupled", True),)),
    "output": Word("output", "+ weight * mean (eps - eps_base)^2 on samples of every old prompt"),
    "fisher": Word("fisher", "+ weight * sum F (theta - theta_star)^2, F: Fisher information"),
}
DISTANCES = ("l2", "fisher")


@dataclass(frozen=True)
class RunSpec:
    """One parsed run: what is fine-tuned, with which weight, on what replay."""

    spec: str  # as written, e.g. "prior:1+l2:0.01"
    objective: str  # its kind, as logged: "l2", or "prior:1+l2" for a sum
    weight: float | None  # None for standard; of a sum, the last term's, which is the swept one
    replay: Literal["class", "all"]  # what the prior term replays
    terms: tuple[tuple[Word, float], ...] = field(repr=False)

    @property
    def last_term(self) -> str | None:
        """The field of Objective that `weight` is the weight of; None for standard."""
        return OBJECTIVE_WORDS[self.spec.split("+")[-1].split(":")[0]].field

    @property
    def active(self) -> frozenset[str]:
        """The fields of Objective whose weights are not zero."""
        return frozenset(word.field for word, weight in self.terms if word.field and weight)

    @cached_property
    def value(self) -> "Objective":
        from toy2d.core.objectives import STANDARD, Objective

        found = STANDARD
        for word, weight in self.terms:
            if word.field:
                found = found + Objective(**{word.field: weight}, **dict(word.settings))
        return found


@dataclass(frozen=True)
class SeededRun:
    """One fine-tuning: a run and its seed."""

    spec: RunSpec
    seed: int

    def __str__(self) -> str:
        return f"{self.spec.spec}, seed {self.seed}"


def parse_run(spec: str) -> RunSpec:
    """ "l2:0.01" -> RunSpec. Raises UserError naming the spec, the fault and the remedy."""
    parts = [_parse_term(term, spec) for term in spec.split("+")]
    kinds = [kind for kind, _ in parts]
    terms = tuple((OBJECTIVE_WORDS[kind], weight or 0.0) for kind, weight in parts)
    distances = [w.settings for w, weight in terms if w.field in DISTANCES and weight]
    if any(settings != distances[0] for settings in distances):
        raise UserError(
            f"run {spec!r}: a sum of two distance terms needs one reduction and one coupling"
        )
    if "replay_all" in kinds and "prior" in kinds:
        raise UserError(
            f"run {spec!r}: prior and replay_all are one term with two sample sets; choose one"
        )
    label = "+".join([*spec.split("+")[:-1], kinds[-1]])
    replay = "all" if "replay_all" in kinds else "class"
    return RunSpec(spec, label, parts[-1][1], replay, terms)


def _parse_term(term: str, spec: str) -> tuple[str, float | None]:
    kind, _, text = term.partition(":")
    if kind not in OBJECTIVE_WORDS:
        raise UserError(
            f"run {spec!r}: unknown objective {kind!r}; choose from {', '.join(OBJECTIVE_WORDS)}"
        )
    if OBJECTIVE_WORDS[kind].field is None:
        if text:
            raise UserError(f"run {spec!r}: the standard objective has no weight; write 'standard'")
        return kind, None
    try:
        weight = float(text)
    except ValueError:
        raise UserError(
            f"run {spec!r}: {kind} needs a number as its weight, e.g. {kind}:0.1"
        ) from None
    if not math.isfinite(weight) or weight < 0:
        raise UserError(f"run {spec!r}: the weight must be a finite number >= 0, not {text}")
    return kind, weight


def grid(**weights: tuple[float, ...]) -> tuple[str, ...]:
    """grid(l2=(0.1, 1)) -> ("l2:0.1", "l2:1")."""
    return tuple(f"{kind}:{w:g}" for kind, values in weights.items() for w in values)
