"""One resumable loop that trains each part of the mini base: AdamW, warm-up and cosine, an average of the weights, checkpoints by the clock."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from toy2d.data import generator
from toy2d.runfolder import RunFailure, RunFolder, UserError, read_csv, write_csv

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
    name: str, network: nn.Module, terms_of: Terms, steps: int, peak: float, folder: Path, seed: int
) -> nn.Module:
    """Train in place and load the averaged weights; the newest checkpoint in folder/name is continued, bit for bit.

    Args:
        terms_of: (network, generator of this step) -> named terms; their sum is minimized. All randomness comes from the generator.
    Raises:
        RunFailure: the loss is not finite.
    """
    run = RunFolder(folder / name, {"name": name, "steps": steps, "peak": peak, "seed": seed})
    with run.open():
        parameters = dict(network.named_parameters())
        optimizer = torch.optim.AdamW(parameters.values(), lr=peak, weight_decay=1e-4)
        average = EMAModel(parameters.values(), decay=0.999, use_ema_warmup=True, power=0.75)
        first, history = _restore(run, parameters, optimizer, average)
        saved = time.monotonic()
        network.train()
        for step in tqdm(range(first, steps), name, initial=first, total=steps, disable=None):
            for group in optimizer.param_groups:
                group["lr"] = rate(step, steps, peak)
            terms = terms_of(network, generator(seed, f"{name} {step}"))
            optimizer.zero_grad(set_to_none=True)
            sum(terms.values()).backward()
            nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            average.step(parameters.values())
            if step % LOG_EVERY == 0:
                row = {k: float(v.detach()) for k, v in terms.items()}
                if not all(map(math.isfinite, row.values())):
                    raise RunFailure(f"{name}: the loss at step {step} is not finite: {row}")
                history.append({"step": step, **row})
            if step + 1 == steps or time.monotonic() - saved > SAVE_EVERY:
                _save(run, step + 1, parameters, optimizer, average, history)
                saved = time.monotonic()
        average.copy_to(parameters.values())
    return network.eval()


def trained(folder: Path, network: nn.Module, steps: int | None = None) -> nn.Module:
    """The network with the averaged weights of the newest checkpoint.

    Raises:
        UserError: there is none, or it is of fewer steps.
    """
    newest = RunFolder(folder, {}).newest_checkpoint()
    if newest is None or (steps is not None and newest[1]["step"] < steps):
        raise UserError(
            f"{folder.name} is not trained yet in {folder.parent}: personalize pretrain --parts {folder.name}"
        )
    average = {k[8:]: v for k, v in newest[0].items() if k.startswith("average.")}
    network.load_state_dict(average, strict=False)
    return network.eval().requires_grad_(False)


def _save(run, step, parameters, optimizer, average, history) -> None:
    tensors = {}
    for i, (name, p) in enumerate(parameters.items()):
        tensors[f"weights.{name}"], tensors[f"average.{name}"] = p, average.shadow_params[i]
        for key, value in optimizer.state[p].items():
            tensors[f"adam.{key}.{name}"] = value
    run.save_checkpoint(step, tensors, {"step": step, "average_steps": average.optimization_step})
    write_csv(run.path / "history.csv", history)


def _restore(run, parameters, optimizer, average) -> tuple[int, list[dict]]:
    """Everything as it was after the newest whole checkpoint; (steps done, history up to there)."""
    if (newest := run.newest_checkpoint()) is None:
        return 0, []
    tensors, scalars = newest
    for i, (name, p) in enumerate(parameters.items()):
        p.data.copy_(tensors[f"weights.{name}"])
        average.shadow_params[i].copy_(tensors[f"average.{name}"])
        keys = ("step", "exp_avg", "exp_avg_sq")
        optimizer.state[p] = {k: tensors[f"adam.{k}.{name}"] for k in keys}
    average.optimization_step = scalars["average_steps"]
    rows = read_csv(run.path / "history.csv")
    return scalars["step"], [r for r in rows if int(r["step"]) < scalars["step"]]
