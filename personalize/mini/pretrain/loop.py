"""One resumable loop that trains each part of the mini base: AdamW, warm-up and cosine, an average of the weights, checkpoints by the clock."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from personalize.mini.pretrain.muon import Muon
from personalize.train.state import State
from toy2d.core.rng import generator
from toy2d.runs.files import RunFailure, UserError, read_csv, write_csv
from toy2d.runs.folder import RunFolder, hash_tensors

WARMUP = 100  # steps
SAVE_EVERY = 180.0  # seconds
LOG_EVERY = 25  # steps

Terms = Callable[[nn.Module, torch.Generator], dict[str, Tensor]]


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
    bf16: bool = False,
) -> nn.Module:
    """Train in place and load the averaged weights; the newest checkpoint in folder/name is continued, bit for bit.

    The weights that it begins with belong to its configuration: with others (another --start) the folder is refused.

    Args:
        terms_of: (network, generator of this step) -> named terms; their sum is minimized. All randomness comes from the generator.
        bf16: the forward pass computes in bfloat16 where torch's autocast says so; weights, gradients and the optimizer stay in float32.
    Raises:
        UserError: folder/name was begun with another configuration, or with other weights.
        RunFailure: the loss is not finite.
    """
    start = hash_tensors(network.state_dict())
    asked = {"name": name, "steps": steps, "peak": peak, "seed": seed, "start": start}
    if bf16:
        asked["precision"] = "bf16"
    run = RunFolder(folder / name, asked)
    with run.open():
        state = _start(network, steps, peak)
        history = _restore(run, state, network)
        saved = time.monotonic()
        network.train()
        for step in tqdm(
            range(state.step, steps), name, initial=state.step, total=steps, disable=None
        ):
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
                run.save_checkpoint(state.step, tensors, scalars)
                write_csv(run.path / "history.csv", history)
                saved = time.monotonic()
        state.ema.copy_to(state.theta.values())
    return network.eval()


def _start(network: nn.Module, steps: int, peak: float) -> State:
    theta = dict(network.named_parameters())
    optimizer = Muon(theta.values(), lr=peak)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps, 1.0))
    average = EMAModel(theta.values(), decay=0.9995, use_ema_warmup=True, power=0.75)
    return State(theta, optimizer, schedule, average)


def _restore(run: RunFolder, state: State, network: nn.Module) -> list[dict]:
    """Everything as it was after the newest whole checkpoint; the history up to there."""
    if (newest := run.newest_checkpoint()) is None:
        return []
    state.restore(*newest)
    network.load_state_dict(_named(newest[0], "buffer/"), strict=False)
    return [r for r in read_csv(run.path / "history.csv") if int(r["step"]) < state.step]


def trained(folder: Path, network: nn.Module, steps: int | None = None) -> nn.Module:
    """The network with the averaged weights of the newest checkpoint, and its running statistics (batch normalization's).

    Raises:
        UserError: there is none, or it is of fewer steps.
    """
    newest = RunFolder(folder, {}).newest_checkpoint()
    if newest is None or (steps is not None and newest[1]["step"] < steps):
        raise UserError(
            f"{folder.name} is not trained yet in {folder.parent}: personalize pretrain --parts {folder.name}"
        )
    average = _named(newest[0], "ema/") | _named(newest[0], "buffer/")
    missing = network.load_state_dict(average, strict=False).missing_keys
    assert not missing, missing
    return network.eval().requires_grad_(False)


def _named(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {k.removeprefix(kind): v for k, v in tensors.items() if k.startswith(kind)}
