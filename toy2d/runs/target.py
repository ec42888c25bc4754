"""A target for drift instead of a weight: dual ascent on measured path KL, at both scales.

    log w  <-  log w + RATE * clip(log(path KL / target), -DOWN, UP)      after each measurement
    w stays between LEAST and MOST times the weight that the run began with

It is dual ascent on the Lagrangian of "least loss with path KL at most the target", in the
logarithm of the multiplier. If path KL answers a factor of w with that factor to the power -e, the
log ratio shrinks by 1 - RATE e at each measurement: from one side, without overshoot, for every
e <= 2, which is the most that a quadratic loss under L2 can give (tests/toy2d/runs/test_target.py).
That holds once the model has settled between two measurements. At the beginning it has not: path KL
may peak above the target until the weight has caught up. The weight falls more slowly than it
rises, because drift starts at 0, where a low path KL says nothing about the weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # flags are judged by `wrong_target` before torch is imported
    from torch import Tensor

RATE, DOWN, UP = 0.5, 0.2, 4.0
LEAST, MOST = 1e-3, 1e6


@dataclass(frozen=True)
class DriftTarget:
    """At most `path_kl` nats, by the weight of one term that began at `start` (a number, or one for
    each run of a stack).
    """

    path_kl: float
    start: float | Tensor

    def next_weight(self, weight: float | Tensor, path_kl: float | Tensor) -> Tensor:
        """The weight after a measurement (float64). One that is not finite changes nothing."""
        import torch

        w, start = (torch.as_tensor(v, dtype=torch.float64) for v in (weight, self.start))
        measured = torch.as_tensor(path_kl, dtype=torch.float64)
        ratio = (measured.clamp(min=1e-30) / self.path_kl).log().clamp(-DOWN, UP)
        new = torch.clamp(w * (RATE * ratio).exp(), LEAST * start, MOST * start)
        return torch.where(measured.isfinite(), new, w)

    def summary(self, reached: float, error: float, weight: float) -> dict:
        """What metrics.json says: path KLs in nats, the overshoot as a share of the target."""
        return {
            "path_kl": self.path_kl,
            "reached": reached,
            "reached_error": error,
            "overshoot": reached / self.path_kl - 1,
            "overshoot_error": error / self.path_kl,
            "weight": weight,
            "verdict": self.verdict(reached, error),
        }

    def verdict(self, reached: float, error: float) -> str:
        """ "kept" within a tenth of the target; else "exceeded" or "not needed", or "undecided"
        where two standard errors reach that tenth.
        """
        away, slack = reached - self.path_kl, 0.1 * self.path_kl
        if abs(away) <= slack:
            return "kept"
        if abs(away) - 2 * error <= slack:
            return "undecided"
        return "exceeded" if away > 0 else "not needed"


WORDS = {
    "kept": "the target was kept",
    "undecided": "the error is too large to say whether the target was kept: measure more chains",
    "exceeded": "the target was not reached: measure path KL more often, begin with a larger "
    "weight, take more steps or lower the learning rate",
    "not needed": "the run drifted less than it was allowed to: if the subject is not learnt yet, "
    "begin with a smaller weight or take more steps",
}


def in_words(summary: dict) -> str:
    """ "path KL 20.6 (standard error 0.8) for at most 20 nats, 3 % (4 %) above; ..." """
    over, error = (summary[k] for k in ("overshoot", "overshoot_error"))
    side = "above" if over >= 0 else "below"
    return (
        f"path KL {summary['reached']:.3g} (standard error {summary['reached_error']:.2g}) for at "
        f"most {summary['path_kl']:g} nats, {abs(over):.0%} ({error:.0%}) {side}; "
        f"weight {summary['weight']:.3g}: {WORDS[summary['verdict']]}"
    )


def wrong_target(path_kl: float) -> str | None:
    """What is wrong with the number after --max_path_kl, if anything."""
    if math.isfinite(path_kl) and path_kl > 0:
        return None
    return f"--max_path_kl {path_kl} must be a number of nats above 0"
