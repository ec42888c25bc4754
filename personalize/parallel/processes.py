"""Several processes, one run (`accelerate launch`, `torchrun`): each takes its share of a minibatch, gradients are averaged, one writes.

Sample i of a role is a function of (seed, role, i) alone, and step k sees samples kG ... (k+1)G - 1, G = processes x minibatch x
accumulation (train.Streams). So several processes see what one would see with the same G, never the same noise twice, and a run
can go on under another number of them: G stays, the minibatch or the accumulation changes.
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
    """How many the launcher started; 1 without one. Raises UserError if it was asked for several and started one."""
    names = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # torchrun's, mpirun's
    count = next((int(os.environ[n]) for n in names if n in os.environ), 0)
    if not count and {"MASTER_ADDR", "ACCELERATE_USE_CPU"} <= set(os.environ):
        raise UserError(
            "accelerate launch was asked for several processes and started one: on a CPU, say "
            "`accelerate launch --config_file personalize/parallel/configs/cpu.yaml`"
        )
    return count or 1


def processes_at_start(folder: Path) -> int:
    """With how many the run in `folder` was begun; those that are here if it is new."""
    try:
        return json.loads((Path(folder) / "env.json").read_text())["processes"]
    except (OSError, ValueError, KeyError):
        return processes_here()


def keep_step(config: TrainConfig, begun: int, now: int) -> TrainConfig:
    """The same samples in a step under `now` processes as under the `begun` ones: another accumulation, or a smaller minibatch."""
    if begun == now:
        return config
    samples = begun * config.train_batch_size * config.gradient_accumulation_steps
    mine, rest = divmod(samples, now)
    if rest:
        raise UserError(
            f"the run takes steps of {samples} samples, which {now} processes cannot share equally; start 1 or {begun}"
        )
    largest = min(config.train_batch_size, mine)
    batch = next(b for b in range(largest, 0, -1) if mine % b == 0)
    return replace(config, train_batch_size=batch, gradient_accumulation_steps=mine // batch)


def average_(tensors: list[Tensor]) -> None:
    """Each tensor becomes its mean over the processes, in place. Sharded ones (FSDP) are averaged already."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return
    whole = [t for t in tensors if not isinstance(t, DTensor)]
    if not whole:
        return
    for handle in [dist.all_reduce(t, async_op=True) for t in whole]:
        handle.wait()
    torch._foreach_div_(whole, dist.get_world_size())


def largest(number: int, device: torch.device) -> int:
    """The largest of the processes' numbers, known to all: so that a signal to one stops all at the same step."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return number
    shared = torch.tensor(number, device=device)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return int(shared)


@contextlib.contextmanager
def opened_by_one(folder: RunFolder, accelerator: Accelerator) -> Iterator[None]:
    """`folder.open()` by the main process; the others wait for it, and share its fate if the folder is refused."""
    with contextlib.ExitStack() as stack:
        fault = None
        if accelerator.is_main_process:
            try:
                stack.enter_context(folder.open())
            except (UserError, RunFailure) as e:
                fault = e
        said = [str(fault) if fault else None]
        broadcast_object_list(said)
        if said[0]:
            raise fault or SystemExit(2)
        yield
