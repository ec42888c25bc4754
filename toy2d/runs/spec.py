"""Names of runs: "standard", "prior:1", "l2:0.01", "prior:1+l2:0.01" -> objective, weight, value.

A run is written kind:weight; a sum of terms is joined by +.
"""

import math
from dataclasses import dataclass
from typing import Literal

from toy2d.core.objectives import FISHER, L2, OUTPUT, PRIOR, STANDARD, Objective
from toy2d.runs.files import UserError

KINDS = {
    "standard": (lambda: STANDARD, "denoising loss on the subject's points alone"),
    "prior": (PRIOR, "+ weight * denoising loss on the base's samples of one class"),
    "replay_all": (PRIOR, "the same on samples of every old prompt"),
    "l2": (L2, "+ weight * ||theta - theta_star||^2"),
    "l2_tensor_mean": (lambda w: L2(w, "tensor_mean"), "the paper's code: mean per tensor"),
    "l2_decoupled": (lambda w: L2(w, decoupled=True), "l2 as a proximal step after Adam's"),
    "output": (OUTPUT, "+ weight * mean (eps - eps_base)^2 on samples of every old prompt"),
    "fisher": (FISHER, "+ weight * sum F (theta - theta_star)^2"),
}


@dataclass(frozen=True)
class Run:
    """One parsed run: `objective` (its kind, as logged), `weight` (None for standard), the value, and what prior replays."""

    spec: str
    objective: str
    weight: float | None
    value: Objective
    replay: Literal["class", "all"]


def parse_run(spec: str) -> Run:
    """ "l2:0.01" -> Run. Raises UserError naming the spec, the fault and the remedy."""
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
    replay = "all" if "replay_all" in kinds else "class"
    # a sum is told apart by its spec; its last weight is the one that is swept
    label = "+".join([*(s for s in spec.split("+")[:-1]), kinds[-1]])
    return Run(spec, label, parts[-1][1], value, replay)


def _parse_term(term: str, spec: str) -> tuple[str, float | None, Objective]:
    kind, _, text = term.partition(":")
    if kind not in KINDS:
        raise UserError(f"run {spec!r}: unknown objective {kind!r}; choose from {', '.join(KINDS)}")
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
    return kind, weight, KINDS[kind][0](weight)


def grid(**weights: tuple[float, ...]) -> tuple[str, ...]:
    """grid(l2=(0.1, 1)) -> ("l2:0.1", "l2:1")."""
    return tuple(f"{kind}:{w:g}" for kind, values in weights.items() for w in values)
