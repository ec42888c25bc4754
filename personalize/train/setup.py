"""Set a run up: accelerate, optimizer, learning-rate schedule, EMA; measure its time and memory.

Raises UserError for what this machine cannot do.
"""

import contextlib
import math
import os
import resource
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

from personalize.config.train_config import TrainConfig
from personalize.parallel.processes import processes_here
from personalize.parallel.sharding import refuse_what_is_not_sharded, sharded
from personalize.train.state import State
from toy2d.core.drift import Params
from toy2d.runs.files import UserError

LAUNCHES = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.FSDP,
)
LONGEST_WAIT = timedelta(hours=12)  # one process makes class images while the others wait


def with_steps(config: TrainConfig, pictures: int, processes: int = 1) -> TrainConfig:
    """Epochs become steps: an epoch shows each picture `repeats` times.

    Warmup defaults to a tenth of the steps, at most 500. Raises UserError if it takes them all.
    """
    per_step = processes * config.train_batch_size * config.gradient_accumulation_steps
    epoch = math.ceil(pictures * config.repeats / per_step)
    steps = config.max_train_steps or epoch * config.num_train_epochs
    warmup = config.lr_warmup_steps
    if warmup is None:
        warmup = 0 if config.lr_scheduler == "constant" else min(500, steps // 10)
    if warmup >= steps:
        raise UserError(
            f"--lr_warmup_steps {warmup} is not below the {steps} steps of this run: "
            "the learning rate would never be reached"
        )
    return replace(config, max_train_steps=steps, lr_warmup_steps=warmup)


def make_accelerator(config: TrainConfig) -> Accelerator:
    tracker, cuda = config.report_to, torch.cuda.is_available()
    if tracker and tracker not in [str(t) for t in get_available_trackers()]:
        raise UserError(
            f"--report_to {tracker} is not installed here: install it, or leave it out "
            "(history.csv is always written)"
        )
    if config.mixed_precision == "fp16" and not cuda:
        raise UserError("--mixed_precision fp16 needs a CUDA device; use bf16 or no")
    if config.allow_tf32 and not cuda:
        raise UserError("--allow_tf32 has no effect: there is no CUDA device")
    refuse_what_is_not_sharded(config)
    refuse_what_the_launcher_contradicts(config)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.allow_tf32
    # without this a second run in this process could not choose another precision
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=processes_here() > 1 and not cuda,  # otherwise accelerate sees one process there
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=tracker,
        project_dir=config.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )
    if accelerator.distributed_type not in LAUNCHES:
        raise UserError(
            f"{accelerator.distributed_type.value} makes backward pass, clipping and update one "
            "call, so no distance term can be added between them: "
            "personalize/parallel/configs/fsdp.yaml divides the same memory"
        )
    return accelerator


def refuse_what_the_launcher_contradicts(config: TrainConfig) -> None:
    """Raises UserError where the launcher's configuration and a flag differ.

    accelerate would take one of the two silently.
    """
    for flag in ("mixed_precision", "gradient_accumulation_steps"):
        ours = str(getattr(config, flag))
        theirs = os.environ.get(f"ACCELERATE_{flag.upper()}", ours)
        if theirs not in (ours, "no"):
            raise UserError(
                f"the launcher's {flag} is {theirs}, personalize's is {ours}: pass "
                f"--{flag} {theirs} to personalize, or leave it out of the launcher's configuration"
            )


def make_state(theta: Params, config: TrainConfig, scaler=None) -> State:
    """The state at step 0: fresh moments, the schedule at its start, the average at theta."""
    optimizer = make_optimizer(theta, config)
    lr_scheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    )
    return State(theta, optimizer, lr_scheduler, make_average(theta, config), scaler)


def make_average(theta: Params, config: TrainConfig) -> EMAModel | None:
    if not config.use_ema:
        return None
    at_once = not any(sharded(p) for p in theta.values())  # DTensors lack _foreach_copy_
    return EMAModel(theta.values(), decay=config.ema_decay, foreach=at_once)


def make_optimizer(theta: Params, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, fused: its kernels read the guard's flag (`guard.Guard`).

    Denoiser and text encoder may learn at different rates.
    """
    text = [p for name, p in theta.items() if name.startswith("text_encoder")]
    rest = [p for name, p in theta.items() if not name.startswith("text_encoder")]
    rates = ((rest, config.learning_rate), (text, config.text_encoder_lr))
    groups = [{"params": parameters, "lr": lr} for parameters, lr in rates if parameters]
    settings = {
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    if not config.use_8bit_adam:
        return torch.optim.AdamW(groups, fused=True, **settings)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as e:
        raise UserError("--use_8bit_adam needs bitsandbytes: pip install bitsandbytes") from e
    return AdamW8bit(groups, **settings)


class Clock(dict):
    """Seconds by phase. `with clock("load"): ...`"""

    @contextlib.contextmanager
    def __call__(self, phase: str):
        start = time.perf_counter()
        yield
        self[phase] = self.get(phase, 0.0) + time.perf_counter() - start


# ---- memory
def start_peak(device: torch.device) -> int:
    """Bytes held now. `peak_memory` starts anew from here (on a CPU where Linux allows it)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS") or 0


def peak_memory(device: torch.device) -> int:
    """The most bytes that the device held, or on a CPU this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _resident(which: str) -> int | None:
    """A line of Linux's /proc/self/status, in bytes; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(which)), None)
    return int(found.split()[1]) * 1024 if found else None
