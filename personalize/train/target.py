"""--max_path_kl: after each measurement of path KL, adapt the weight of the objective's last term.

The rule is toy2d/runs/target.py's. The weight is part of the state, so a resumed run goes on with
the weight that it had; measuring itself changes nothing.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from personalize.config.train_config import TrainConfig
from personalize.train.loop import TrainingLoop
from personalize.train.state import State
from toy2d.runs.target import DriftTarget


class Observer(Protocol):
    """measurements.Observer: writes a row when it is called."""

    rows: list[dict]

    def __call__(self, terms: dict[str, float]) -> dict[str, float]: ...


def target_of(config: TrainConfig) -> DriftTarget | None:
    if config.max_path_kl is None:
        return None
    return DriftTarget(config.max_path_kl, config.weights[config.parts[-1]])


def use_weight(loop: TrainingLoop, state: State) -> None:
    """Give the loop the state's weight: at the start, and when a checkpoint was restored."""
    if state.weight is not None:
        loop.objective = replace(loop.objective, **{loop.config.parts[-1]: state.weight})


def adapting(observe: Observer, loop: TrainingLoop, state: State) -> Callable[[dict], dict]:
    """`observe`, and after it the next weight if its row holds a measured path KL.

    Not after the last step, whose drift is the weight's that is reported.
    """
    target = target_of(loop.config)
    if target is None:
        return observe

    def both(terms: dict) -> dict:
        shown = observe(terms)
        path_kl = observe.rows[-1].get("path_kl")
        if path_kl is not None and state.step < loop.config.max_train_steps:
            state.weight = float(target.next_weight(state.weight, path_kl))
            use_weight(loop, state)
        return shown

    return both


def target_summary(config: TrainConfig, state: State, rows: list[dict], columns: dict) -> dict:
    """{"target": what metrics.json says of it}, empty without the flag. `columns`: path KL and its
    error of the exported weights; "highest" is the largest that was measured on the way.
    """
    target = target_of(config)
    if target is None:
        return {}
    measured = [float(r["path_kl"]) for r in rows if r.get("path_kl") not in (None, "")]
    summary = target.summary(columns["path_kl"], columns["path_kl_error"], state.weight)
    return {"target": summary | {"highest": max(measured)}}
