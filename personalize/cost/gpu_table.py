"""The table of a GPU: s/step, memory, host syncs of SD-1.5, SDXL and SD-3 at full width.

    python -m personalize.cost.gpu_table --out gpu.jsonl --minutes 25

Random weights of the real architectures: speed does not depend on them. A cell is one backbone,
precision, kind of training, objective and variant (plain, 8-bit Adam, torch.compile, the loop of
the usual example script), or a backbone's class images. Each is written to --out as one line as
soon as it is measured, and the same command goes on with the first cell that is missing, so a cut
loses one cell. A cell that does not fit the memory says so.
Its test runs it at width 32 on a CPU, where memory and syncs are not counted.
"""

import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro
from accelerate import Accelerator
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from personalize.config.commands import Bench
from personalize.config.rules import OBJECTIVES
from personalize.cost import measuring
from personalize.cost.dry_run import memory
from personalize.cost.fixture import BenchFixture
from personalize.cost.speed import class_image_rates, device_name, seconds_of
from personalize.train.loop import TrainingLoop, fit
from personalize.train.setup import make_state
from personalize.train.state import State

SYNCS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaMemcpy")
RESOLUTION = {"sd15": 512, "sdxl": 1024, "sd3": 1024}  # of the published models
ROUNDS = 3
# usual: the loop of the example scripts, without caches. class images: per second, ours and usual
VARIANTS = ("plain", "adam8bit", "usual", "class images", "compile")


@dataclass(frozen=True)
class Cell:
    family: str
    precision: str
    kind: str = "-"
    objective: str = "-"
    variant: str = "plain"  # a name in VARIANTS


@dataclass(frozen=True)
class GpuPlan:
    """Which cells to measure, and where to write them."""

    out: str = "gpu.jsonl"  # one line a cell; cells that are there are not measured again
    families: tuple[str, ...] = ("sd15", "sdxl", "sd3")
    precisions: tuple[str, ...] = ("bf16", "fp16")
    kinds: tuple[str, ...] = ("lora", "full")
    objectives: tuple[str, ...] = OBJECTIVES
    variants: tuple[str, ...] = VARIANTS  # all but plain: standard only
    width: int = 320
    resolution: int | None = None  # pixels; default: the backbone's own, 512 or 1024
    batch_size: int = 1
    steps: int = 10  # of each of three timed rounds, after three steps that are not timed
    minutes: float = 25.0  # no cell is begun later than this


def cells(plan: GpuPlan) -> Iterator[Cell]:
    """A precision of every backbone before the next one; torch.compile, slow to start, last."""
    now = [v for v in plan.variants if v != "compile"]
    for precision in plan.precisions:
        for family in plan.families:
            for kind in plan.kinds:
                where = family, precision, kind
                yield from (Cell(*where, o, v) for v in now for o in _of(plan, v))
            if "class images" in now:
                yield Cell(family, precision, variant="class images")
    if "compile" in plan.variants:
        for precision in plan.precisions:
            for family in plan.families:
                for kind in plan.kinds:
                    yield Cell(family, precision, kind, plan.objectives[0], "compile")


def _of(plan: GpuPlan, variant: str) -> tuple[str, ...]:
    if variant == "class images":
        return ()
    return plan.objectives if variant == "plain" else plan.objectives[:1]


def main(plan: GpuPlan) -> list[dict]:
    """Measure what is missing; returns every record of the file."""
    out, begun = Path(plan.out), time.monotonic()
    records, bench = read(out), Workbench(plan)
    done = {Cell(**r["cell"]) for r in records}
    for cell in cells(plan):
        if cell in done:
            continue
        if time.monotonic() - begun > 60 * plan.minutes:
            break
        records.append({"cell": asdict(cell)} | tried(bench, cell))
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


# ---- one cell
class Workbench:
    """Opens a model once for all cells of its backbone, precision and kind."""

    def __init__(self, plan: GpuPlan):
        self.plan, self.of, self.fixture, self.forward = plan, None, None, 0.0

    def command(self, cell: Cell) -> Bench:
        return Bench(
            width=self.plan.width,
            resolution=self.plan.resolution or RESOLUTION[cell.family],
            batch_size=self.plan.batch_size,
            mixed_precision=cell.precision,
        )

    def open(self, cell: Cell) -> BenchFixture:
        of = cell.family, cell.precision, cell.kind
        if self.of != of:
            self.close()
            accelerator = Accelerator(mixed_precision=cell.precision)
            self.fixture = BenchFixture(self.command(cell), cell.kind, accelerator, cell.family)
            self.forward = measuring.forward_seconds(self.fixture, seconds_of)
            self.of = of
        return self.fixture

    def close(self) -> None:
        self.of = self.fixture = None
        free()


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def tried(bench: Workbench, cell: Cell) -> dict:
    try:
        return measured(bench, cell)
    except torch.cuda.OutOfMemoryError as e:
        return {"failed": f"out of memory: {str(e)[:200]}"}
    except ImportError as e:
        return {"failed": str(e)[:200]}
    finally:
        free()


def measured(bench: Workbench, cell: Cell) -> dict:
    where = {"device": device_name(), "torch": torch.__version__}
    if cell.variant == "class images":
        bench.close()
        return class_image_rates(bench.command(cell), cell.family) | where
    found = step(bench.open(cell), cell, bench.plan.steps) | {"forward": bench.forward} | where
    share = measuring.share(cell.objective, cell.kind, found["seconds"], bench.forward)
    return found | {"measuring": share}


def step(fixture: BenchFixture, cell: Cell, steps: int) -> dict:
    """Median seconds of a step; bytes at the peak, and of what stays by the dry run's count.

    "start": seconds of the three steps before, in which torch.compile compiles. "busy": seconds a
    step in which the GPU computes; "syncs": host waits and copies a step, a few of them for the
    last log row. The profiler needs a minute on a slow processor: it reads plain standard alone.
    """
    cuda, accelerator = torch.cuda.is_available(), fixture.accelerator
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        if cell.variant == "usual":
            loop = fixture.usual_loop(Path(folder))
        else:
            loop = fixture.loop(cell.objective)
        if cell.variant == "adam8bit":
            loop.config = replace(loop.config, use_8bit_adam=True)
        if cell.variant == "compile":
            fixture.model.denoiser.compile()
        state = make_state(fixture.theta, loop.config, accelerator.scaler)
        start = take_steps(loop, state, accelerator, 3)
        rounds = [take_steps(loop, state, accelerator, steps) for _ in range(ROUNDS)]
        peak = torch.cuda.max_memory_allocated() if cuda else None
        first = cell.variant == "plain" and cell.objective == "standard"
        seen = profiled(loop, state, accelerator) if cuda and first else {}
    return {
        "seconds": statistics.median(rounds) / steps,
        "start": start,
        "peak_bytes": peak,
        "stays_bytes": sum(memory(loop.config, fixture.model, fixture.theta).values()),
        **seen,
    }


def take_steps(loop: TrainingLoop, state: State, accelerator: Accelerator, n: int) -> float:
    """Seconds of n steps."""
    loop.config = replace(loop.config, max_train_steps=state.step + n)
    return seconds_of(lambda: fit(loop, state, accelerator, lambda row: None, lambda state: None))


def profiled(
    loop: TrainingLoop, state: State, accelerator: Accelerator, steps: int = 2
) -> dict[str, float]:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        take_steps(loop, state, accelerator, steps)
    events = seen.key_averages()
    return {
        "busy": sum(e.self_device_time_total for e in events if e.device_type == DeviceType.CUDA)
        / 1e6
        / steps,
        "syncs": sum(e.count for e in events if e.key.startswith(SYNCS)) / steps,
    }


if __name__ == "__main__":
    main(tyro.cli(GpuPlan))
