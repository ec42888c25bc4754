"""Which layers moved, and what the change of each kind of layer does alone.

    delta theta of a layer     ||theta_b - theta_star_b||, of the effective weights
    path KL of a layer         of the model theta_star + delta_b: this kind of layer as trained, all
                               others as the base has them

The path KLs of the layers need not add up to the model's: layers act on each other's outputs.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator

import torch

from personalize.adapters.anchors import (
    effective_delta_theta,
    effective_names,
    plain_parameters,
)
from personalize.adapters.deltas import changes
from personalize.adapters.layers import LAYERS
from personalize.drift.measure import DriftMeter, path_columns
from personalize.pipeline.model import Model
from toy2d.core.drift import Params
from toy2d.runs.layers import OTHER, layer_of


def kind_of(name: str) -> str:
    return layer_of(name, LAYERS)


@contextlib.contextmanager
def only(model: Model, theta: Params, theta_star: Params, kind: str) -> Iterator[None]:
    """Inside, every layer but those of `kind` answers as the base's; afterwards as before."""
    off = [c.layer for c in changes(model.parts) if kind_of(c.name) != kind]
    back = {n: p for n, p in plain_parameters(theta).items() if kind_of(n) != kind}
    trained = {n: p.detach().clone() for n, p in back.items()}
    flags = [(p, p.requires_grad) for layer in off for p in layer.parameters()]
    try:
        _put(back, theta_star)
        for layer in off:
            layer.enable_adapters(False)
        yield
    finally:
        _put(back, trained)
        for layer in off:
            layer.enable_adapters(True)
        for p, flag in flags:  # PEFT's switch makes adapters trainable
            p.requires_grad_(flag)


@torch.no_grad()
def _put(theta: Params, values: Params) -> None:
    for name, p in theta.items():
        p.copy_(values[name])


def layers_table(meter: DriftMeter, step: int, drift: bool) -> dict[str, dict]:
    """{kind of layer: {"weights", "delta_theta"}}; `weights` counts tensors.

    With `drift` also "path_kl" of its change alone: [mean, standard error, chains], nats, on the
    meter's own probes.
    """
    model, theta, star = meter.model, meter.theta, meter.theta_star
    moved = effective_delta_theta(model, theta, star, kind_of)
    count = Counter(kind_of(n) for n in effective_names(model, theta))
    table = {}
    for kind in (k for k in (*LAYERS, OTHER) if count[k]):
        table[kind] = {"weights": count[kind], "delta_theta": moved[kind]}
        if drift:
            with only(model, theta, star, kind):
                _, paths = meter.everything(step)
            columns, n = path_columns(paths), sum(chains for *_, chains in paths.values())
            table[kind]["path_kl"] = [columns["path_kl"], columns["path_kl_error"], n]
    return table
