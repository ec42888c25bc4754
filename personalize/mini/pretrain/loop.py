"""The one loop that trains each part of the mini base.

The learning rate warms up and follows a cosine, the weights are averaged, and the loop saves a
checkpoint every three minutes. A run that was stopped continues from the newest one, bit for bit.
"""

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from personalize.train.state import State
from toy2d.core.rng import generator
from toy2d.runs.files import RunFailure, UserError, read_csv, write_csv
from toy2d.runs.folder import RunFolder, hash_tensors
from toy2d.runs.progress import progress

WARMUP = 100  # steps
SAVE_EVERY = 180.0  # seconds
LOG_EVERY = 25  # steps

Terms = Callable[[nn.Module, torch.Generator], dict[str, Tensor]]
Optimizer = Callable[[Iterable[Tensor], float], torch.optim.Optimizer]


def adamw(params: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=lr, weight_decay=1e-4)


def has_bf16(capabilities: dict[str, object] | None = None) -> bool:
    """Can this CPU multiply bfloat16 matrices (AMX, or AVX-512 BF16)? Others would emulate it."""
    own = torch.cpu.get_capabilities() if capabilities is None else capabilities
    return bool(own.get("amx_bf16") or own.get("avx512_bf16"))


def rate(step: int, steps: int, peak: float) -> float:
    """Learning rate: linear over WARMUP steps, then a cosine to a fiftieth of the peak."""
    share = min(1.0, step / steps)
    return (
        peak * min(1.0, (step + 1) / WARMUP) * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)
    )


def fit(
    name: str,
    network: nn.Module,
    terms_of: Terms,
    steps: int,
    peak: float,
    folder: Path,
    seed: int,
    optimizer: Optimizer = adamw,
    bf16: bool = False,
) -> nn.Module:
    """Train `network` in place, then give it its averaged weights.

    Continues from the newest checkpoint in folder/name, bit for bit on one machine. The weights
    that training begins with belong to its configuration: with others (another --start) the folder
    is refused.

    Args:
        terms_of: (network, generator of this step) -> named terms, whose sum is minimized. All
            randomness comes from the generator.
        peak: the highest learning rate.
        optimizer: makes the optimizer from the weights and the learning rate.
        bf16: compute the terms under torch's bfloat16 autocast. Weights, their gradients and the
            optimizer's state stay in float32.
    Raises:
        UserError: folder/name was begun with another configuration, or with other weights.
        RunFailure: the loss is not finite.
    """
    start = hash_tensors(network.state_dict())
    asked = {"name": name, "steps": steps, "peak": peak, "seed": seed, "start": start}
    if bf16:
        asked["precision"] = "bf16"
    if optimizer is not adamw:
        asked["optimizer"] = optimizer.__name__.lower()
    run = RunFolder(folder / name, asked)
    with run.open():
        state = _start(network, steps, peak, optimizer)
        history = _restore(run, state, network)
        saved = time.monotonic()
        network.train()
        for step in progress(range(state.step, steps), name, steps, state.step):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                terms = terms_of(network, generator(seed, f"{name} {step}"))
            state.optimizer.zero_grad(set_to_none=True)
            sum(terms.values()).backward()
            nn.utils.clip_grad_norm_(state.theta.values(), 1.0)
            state.optimizer.step()
            state.lr_scheduler.step()
            state.ema.step(state.theta.values())
            state.step = step + 1
            if step % LOG_EVERY == 0:
                row = {k: float(v.detach()) for k, v in terms.items()}
                if not all(map(math.isfinite, row.values())):
                    raise RunFailure(f"{name}: the loss at step {step} is not finite: {row}")
                history.append({"step": step, **row})
            if state.step == steps or time.monotonic() - saved > SAVE_EVERY:
                tensors, scalars = state.exact()
                tensors |= {f"buffer/{k}": b for k, b in network.named_buffers()}
                # history first: `_restore` leaves out the rows that a checkpoint has not reached
                write_csv(run.path / "history.csv", history)
                run.save_checkpoint(state.step, tensors, scalars)
                saved = time.monotonic()
        state.ema.copy_to(state.theta.values())
    return network.eval()


def _start(network: nn.Module, steps: int, peak: float, make: Optimizer) -> State:
    theta = dict(network.named_parameters())
    optimizer = make(theta.values(), peak)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps, 1.0))
    average = EMAModel(theta.values(), decay=0.9995, use_ema_warmup=True, power=0.75)
    return State(theta, optimizer, schedule, average)


def _restore(run: RunFolder, state: State, network: nn.Module) -> list[dict]:
    """Put everything back as it was after the newest whole checkpoint; the history up to there."""
    if (newest := run.newest_checkpoint()) is None:
        return []
    state.restore(*newest)
    network.load_state_dict(_named(newest[0], "buffer/"), strict=False)
    return [r for r in read_csv(run.path / "history.csv") if int(r["step"]) < state.step]


def trained(folder: Path, network: nn.Module, steps: int | None = None) -> nn.Module:
    """Load the newest checkpoint's averaged weights and running statistics into the network.

    Raises:
        UserError: there is none, or it is of fewer steps.
    """
    newest = RunFolder(folder, {}).newest_checkpoint()
    if newest is None or (steps is not None and newest[1]["step"] < steps):
        raise UserError(
            f"{folder.name} is not trained yet in {folder.parent}: personalize pretrain "
            f"--parts {folder.name}"
        )
    average = _named(newest[0], "ema/") | _named(newest[0], "buffer/")
    missing = network.load_state_dict(average, strict=False).missing_keys
    assert not missing, missing
    return network.eval().requires_grad_(False)


def _named(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {k.removeprefix(kind): v for k, v in tensors.items() if k.startswith(kind)}
