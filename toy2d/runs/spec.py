"""Names of runs: "standard", "prior:1", "l2:0.01", "prior:1+l2:0.01" -> objective, weight, value.

A run is written kind:weight; a sum of terms is joined by +.
"""

import math
from dataclasses import dataclass
from typing import Literal

from toy2d.core.objectives import FISHER, L2, OUTPUT, PRIOR, STANDARD, Objective
from toy2d.runs.files import UserError

OBJECTIVE_WORDS = {
    "standard": (lambda: STANDARD, "denoising loss on the new class's points alone"),
    "prior": (PRIOR, "+ weight * denoising loss on the base's samples of one class"),
    "replay_all": (PRIOR, "prior, with the base's samples of every old prompt"),
    "l2": (L2, "+ weight * ||theta - theta_star||^2"),
    "l2_tensor_mean": (lambda w: L2(w, "tensor_mean"), "l2 of the paper's code: mean per tensor"),
    "l2_decoupled": (lambda w: L2(w, decoupled=True), "l2 as a proximal step after Adam's step"),
    "output": (OUTPUT, "+ weight * mean (eps - eps_base)^2 on samples of every old prompt"),
    "fisher": (FISHER, "+ weight * sum F (theta - theta_star)^2, F: Fisher information"),
}

FIELDS = {"replay_all": "prior", "l2_tensor_mean": "l2", "l2_decoupled": "l2"}


@dataclass(frozen=True)
class RunSpec:
    """One parsed run: what is fine-tuned, with which weight, on what replay."""

    spec: str  # as written, e.g. "prior:1+l2:0.01"
    objective: str  # its kind, as logged: "l2", or "prior:1+l2" for a sum
    weight: float | None  # None for standard; of a sum, the last term's, which is the swept one
    value: Objective
    replay: Literal["class", "all"]  # what the prior term replays

    @property
    def last_term(self) -> str | None:
        """The field of Objective that `weight` is the weight of; None for standard."""
        kind = self.spec.split("+")[-1].split(":")[0]
        return None if kind == "standard" else FIELDS.get(kind, kind)


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
    value = parts[0][2]
    for _, _, more in parts[1:]:
        try:
            value = value + more
        except ValueError as e:
            raise UserError(f"run {spec!r}: {e}") from e
    kinds = [kind for kind, _, _ in parts]
    if "replay_all" in kinds and "prior" in kinds:
        raise UserError(
            f"run {spec!r}: prior and replay_all are one term with two sample sets; choose one"
        )
    label = "+".join([*spec.split("+")[:-1], kinds[-1]])
    return RunSpec(spec, label, parts[-1][1], value, "all" if "replay_all" in kinds else "class")


def _parse_term(term: str, spec: str) -> tuple[str, float | None, Objective]:
    kind, _, text = term.partition(":")
    if kind not in OBJECTIVE_WORDS:
        raise UserError(
            f"run {spec!r}: unknown objective {kind!r}; choose from {', '.join(OBJECTIVE_WORDS)}"
        )
    if kind == "standard":
        if text:
            raise UserError(f"run {spec!r}: the standard objective has no weight; write 'standard'")
        return kind, None, STANDARD
    try:
        weight = float(text)
    except ValueError:
        raise UserError(
            f"run {spec!r}: {kind} needs a number as its weight, e.g. {kind}:0.1"
        ) from None
    if not math.isfinite(weight) or weight < 0:
        raise UserError(f"run {spec!r}: the weight must be a finite number >= 0, not {text}")
    return kind, weight, OBJECTIVE_WORDS[kind][0](weight)


def grid(**weights: tuple[float, ...]) -> tuple[str, ...]:
    """grid(l2=(0.1, 1)) -> ("l2:0.1", "l2:1")."""
    return tuple(f"{kind}:{w:g}" for kind, values in weights.items() for w in values)
