"""Several processes train one run (`accelerate launch`, `torchrun`).

Each takes its share of a minibatch, gradients are averaged, and the main process writes.

Sample i of a role is a function of (seed, role, i) alone, and step k sees samples kG ... (k+1)G - 1
with G = processes x minibatch x accumulation (train/streams.py). So several processes see what one
would see with the same G, never the same noise twice, and a run can continue under another number
of processes: G stays, the minibatch or the accumulation changes.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.distributed.tensor import DTensor

from personalize.config.train_config import TrainConfig
from toy2d.runs.files import RunFailure, UserError
from toy2d.runs.folder import RunFolder


def processes_here() -> int:
    """How many processes the launcher started; 1 without a launcher.

    Raises UserError if it was told to start several and started one.
    """
    names = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # torchrun's, mpirun's
    count = next((int(os.environ[n]) for n in names if n in os.environ), 0)
    if not count and {"MASTER_ADDR", "ACCELERATE_USE_CPU"} <= set(os.environ):
        raise UserError(
            "accelerate launch was told to start several processes and started one: on a CPU, use "
            "`accelerate launch --config_file personalize/parallel/configs/cpu.yaml`"
        )
    return count or 1


def processes_at_start(folder: Path) -> int:
    """How many processes began the run in `folder`; if it is new, those that are here."""
    try:
        return json.loads((Path(folder) / "env.json").read_text())["processes"]
    except (OSError, ValueError, KeyError):
        return processes_here()


def keep_step(config: TrainConfig, begun: int, now: int) -> TrainConfig:
    """Keep the samples of a step under `now` processes as they were under `begun` processes.

    The accumulation changes, or the minibatch shrinks. Raises UserError if they cannot be shared.
    """
    if begun == now:
        return config
    samples = begun * config.train_batch_size * config.gradient_accumulation_steps
    mine, rest = divmod(samples, now)
    if rest:
        raise UserError(
            f"the run takes steps of {samples} samples, which {now} processes cannot share "
            f"equally; start 1 or {begun}"
        )
    largest = min(config.train_batch_size, mine)
    batch = next(b for b in range(largest, 0, -1) if mine % b == 0)
    return replace(config, train_batch_size=batch, gradient_accumulation_steps=mine // batch)


def average_(tensors: list[Tensor]) -> None:
    """Replace each tensor by its mean over the processes; sharded ones (FSDP) are that already."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return
    whole = [t for t in tensors if not isinstance(t, DTensor)]
    if not whole:
        return
    for handle in [dist.all_reduce(t, async_op=True) for t in whole]:
        handle.wait()
    torch._foreach_div_(whole, dist.get_world_size())


def largest(number: int, device: torch.device) -> int:
    """The largest of the processes' numbers, so that a signal to one stops all at the same step."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return number
    shared = torch.tensor(number, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


@contextlib.contextmanager
def opened_by_one(folder: RunFolder, accelerator: Accelerator) -> Iterator[None]:
    """`folder.open()` by the main process; if it is refused, the other processes end too."""
    with contextlib.ExitStack() as stack:
        refusal = None
        if accelerator.is_main_process:
            try:
                stack.enter_context(folder.open())
            except (UserError, RunFailure) as e:
                refusal = e
        message = [str(refusal) if refusal else None]
        broadcast_object_list(message)
        if message[0]:
            raise refusal or SystemExit(2)
        yield
