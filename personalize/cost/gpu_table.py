"""The table of a GPU: s/step, memory, host syncs of SD-1.5, SDXL and SD-3 at full width.

    python -m personalize.cost.gpu_table --out gpu.jsonl --minutes 25

Random weights of the real architectures: speed does not depend on them. A cell is one backbone,
precision, kind of training, objective and variant (plain, 8-bit Adam, torch.compile). Each is
written to --out as one line as soon as it is measured, and the same command goes on with the first
cell that is missing, so a cut loses one cell. A cell that does not fit the memory says so.
Not run on a GPU yet; its test runs it at width 32 on a CPU, where memory and syncs are not counted.
"""

import gc
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro
from accelerate import Accelerator
from torch.profiler import ProfilerActivity, profile

from personalize.config.commands import Bench
from personalize.config.rules import OBJECTIVES
from personalize.cost.dry_run import memory
from personalize.cost.fixture import BenchFixture
from personalize.train.loop import TrainingLoop, fit
from personalize.train.setup import make_state
from personalize.train.state import State

SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy")


@dataclass(frozen=True)
class Cell:
    family: str
    precision: str
    kind: str
    objective: str
    variant: str = "plain"  # plain, adam8bit, compile


@dataclass(frozen=True)
class GpuPlan:
    """Which cells to measure, and where to write them."""

    out: str = "gpu.jsonl"  # one line a cell; cells that are there are not measured again
    families: tuple[str, ...] = ("sd15", "sdxl", "sd3")
    precisions: tuple[str, ...] = ("bf16", "fp16")
    kinds: tuple[str, ...] = ("lora", "full")
    objectives: tuple[str, ...] = OBJECTIVES
    variants: tuple[str, ...] = ("plain", "adam8bit", "compile")  # all but plain: standard only
    width: int = 320
    resolution: int = 512
    batch_size: int = 1
    steps: int = 10  # timed, after three that are not
    minutes: float = 25.0  # no cell is begun later than this


def cells(plan: GpuPlan) -> Iterator[Cell]:
    """The objectives of the smallest backbone first, so that a cut leaves whole comparisons."""
    for family in plan.families:
        for precision in plan.precisions:
            for kind in plan.kinds:
                where = family, precision, kind
                yield from (Cell(*where, o, v) for v in plan.variants for o in _of(plan, v))


def _of(plan: GpuPlan, variant: str) -> tuple[str, ...]:
    return plan.objectives if variant == "plain" else plan.objectives[:1]


def main(plan: GpuPlan) -> list[dict]:
    """Measure what is missing; returns every record of the file."""
    out, begun = Path(plan.out), time.monotonic()
    records = read(out)
    done = {Cell(**r["cell"]) for r in records}
    for cell in cells(plan):
        if cell in done:
            continue
        if time.monotonic() - begun > 60 * plan.minutes:
            break
        records.append({"cell": asdict(cell)} | tried(plan, cell))
        append(out, records[-1])
        print(json.dumps(records[-1]), flush=True)
    return records


def read(file: Path) -> list[dict]:
    """Whole lines; one that a cut has torn is measured again."""
    records = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def append(file: Path, record: dict) -> None:
    """A line of its own, also after a torn one."""
    torn = file.exists() and file.read_bytes()[-1:] not in (b"", b"\n")
    with open(file, "a") as f:
        f.write(("\n" if torn else "") + json.dumps(record) + "\n")
        f.flush()
        os.fsync(f.fileno())


def tried(plan: GpuPlan, cell: Cell) -> dict:
    try:
        return measured(plan, cell)
    except torch.cuda.OutOfMemoryError as e:
        return {"failed": f"out of memory: {str(e)[:200]}"}
    except ImportError as e:
        return {"failed": str(e)[:200]}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measured(plan: GpuPlan, cell: Cell) -> dict:
    """Median seconds of a step; bytes at the peak, and of what stays by the dry run's count."""
    cuda = torch.cuda.is_available()
    command = Bench(
        width=plan.width,
        resolution=plan.resolution,
        batch_size=plan.batch_size,
        mixed_precision=cell.precision,
    )
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    accelerator = Accelerator(mixed_precision=cell.precision)
    fixture = BenchFixture(command, cell.kind, accelerator, cell.family)
    loop = fixture.loop(cell.objective)
    if cell.variant == "adam8bit":
        loop.config = replace(loop.config, use_8bit_adam=True)
    if cell.variant == "compile":
        fixture.model.denoiser.compile()
    state = make_state(fixture.theta, loop.config, accelerator.scaler)
    take_steps(loop, state, accelerator, 3)
    seconds = [take_steps(loop, state, accelerator, 1) for _ in range(plan.steps)]
    record = {
        "seconds": statistics.median(seconds),
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "stays_bytes": sum(memory(loop.config, fixture.model, fixture.theta).values()),
        "syncs": syncs(loop, state, accelerator) if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
    }
    return record


def take_steps(loop: TrainingLoop, state: State, accelerator: Accelerator, n: int) -> float:
    """Seconds of n steps, the device included."""
    loop.config = replace(loop.config, max_train_steps=state.step + n)
    started = time.perf_counter()
    fit(loop, state, accelerator, lambda row: None, lambda state: None)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def syncs(loop: TrainingLoop, state: State, accelerator: Accelerator, steps: int = 5) -> float:
    """Host waits and copies a step, as the profiler names them; the last log row adds a few."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        take_steps(loop, state, accelerator, steps)
    events = seen.key_averages()
    return sum(e.count for e in events if e.key.startswith(SYNCS)) / steps


if __name__ == "__main__":
    main(tyro.cli(GpuPlan))
