"""`personalize bench`: what each objective costs, side by side in one process, as ratios.

    steps          seconds of a real training step (`train.loop.fit`) and what stays in memory, for
                   every objective x {full, lora}
    usual          the same network and loop, but photo, VAE and text encoder in every step, as the
                   field's example scripts work
    class_images   our sampler in large batches against 50 PNDM steps in fours
    to a model     800 steps and 200 class images, computed from these rates
    --peer         instead: another training script against ours, as whole processes (peer.py)
    --memory       instead: peak memory and time of every preset, predicted and measured (memory.py)

Latents and, unless --model is given, weights are random: speed does not depend on them. On a CPU
the clock is this process's CPU time, because other programs come and go. `held` counts every tensor
alive between two steps, in units of the denoiser's weights: full training holds 3 (weights and
Adam's two moments; gradients are freed) and the parked VAE and text encoder. An L2 anchor adds 1,
Fisher 2; a second network would add 1.
"""

import gc
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from personalize.config.commands import Bench
from personalize.cost import measuring, memory, peer
from personalize.cost.fixture import BenchFixture, bench_model
from personalize.sample.sampler import Sampling, generate
from personalize.train.experiment import PACKAGES
from personalize.train.from_base import DTYPES
from personalize.train.loop import TrainingLoop, fit
from personalize.train.setup import make_state
from personalize.train.state import State
from toy2d.runs.files import UserError, write_json
from toy2d.runs.folder import environment

# diffusers' README for DreamBooth with prior preservation
RECIPE = {"steps": 800, "class_images": 200}
USUAL_SAMPLING = {"sd15": ("pndm", 50), "sdxl": ("euler", 50), "sd3": ("euler", 28)}
ROUNDS = 3


def bench(command: Bench, console: Console | None = None) -> dict:
    """Print the tables; return (and with --out write) the numbers."""
    console = console or Console()
    numbers = {
        "command": "personalize bench " + " ".join(sys.argv[2:]),
        "device": device_name(),
        **{k: v for k, v in vars(command).items() if k != "out"},
        "environment": environment(PACKAGES),
        "matmul_flops": matmul_rate(DTYPES[command.mixed_precision]),
    }
    kinds = command.kinds
    if command.memory:
        numbers["memory"] = memory.memory_of_presets(command)
    elif command.presets:
        raise UserError("--presets has no effect without --memory")
    if command.peer:
        numbers["peer_times"] = peer.peer_times(command)
    parts = () if command.memory or command.peer else command.parts
    if "steps" in parts:
        numbers["steps_by_kind"] = {kind: step_times(command, kind) for kind in kinds}
    if "usual" in parts:
        numbers["usual_example"] = {kind: usual_example(command, kind) for kind in kinds}
    if "class_images" in parts:
        numbers["class_images"] = class_image_rates(command)
    if {"steps", "usual", "class_images"} <= set(parts):
        numbers["to_a_model"] = times_to_a_model(numbers)
    for table in tables(numbers):
        console.print(table)
    if command.out:
        write_json(command.out, numbers)
    return numbers


# ---- what is measured
def step_times(command: Bench, kind: str) -> dict[str, dict]:
    """By objective: seconds of a step, bytes held, on a GPU bytes at the peak, and what measuring
    drift adds to a default run (measuring.py).

    Seconds are the fastest of ROUNDS after one that is not timed, all objectives in turns: they
    train one network, so a slow minute of the machine slows them all. `held` leaves out what the
    other objectives hold.
    """
    accelerator = Accelerator(mixed_precision=command.mixed_precision)
    fixture, loops, own = BenchFixture(command, kind, accelerator), {}, {}
    for objective in command.objectives:
        before = held_bytes()
        loops[objective] = fixture.loop(objective)
        own[objective] = held_bytes() - before
    first = loops[command.objectives[0]]
    state = make_state(fixture.theta, first.config, accelerator.scaler)
    seconds, peaks = in_turns(loops, state, accelerator, command.steps)
    forward = measuring.forward_seconds(fixture, seconds_of)
    unet = sum(p.numel() * p.element_size() for p in fixture.model.denoiser.parameters())
    common, out = held_bytes() - sum(own.values()), {}
    for objective, took in seconds.items():
        others = sum(own.values()) - own[objective]
        out[objective] = {
            "seconds": took,
            "ratio": took / seconds[command.objectives[0]],
            "held": (common + own[objective]) / unet,
            "peak_bytes": peaks[objective] - others if peaks[objective] else None,
            "drift": measuring.share(objective, kind, took, forward),
        }
    out[command.objectives[0]]["flops"] = step_flops(first, fixture.theta)
    return out


def usual_example(command: Bench, kind: str) -> dict[str, float]:
    """Seconds of the standard step, ours and without caches as the example scripts work."""
    accelerator = Accelerator(mixed_precision=command.mixed_precision)
    fixture = BenchFixture(command, kind, accelerator)
    with tempfile.TemporaryDirectory() as folder:
        loops = {
            "seconds": fixture.loop("standard"),
            "usual_seconds": fixture.usual_loop(Path(folder)),
        }
        state = make_state(fixture.theta, loops["seconds"].config, accelerator.scaler)
        seconds, _ = in_turns(loops, state, accelerator, command.steps)
    return {**seconds, "ratio": seconds["seconds"] / seconds["usual_seconds"]}


def in_turns(
    loops: dict[str, TrainingLoop], state: State, accelerator: Accelerator, steps: int
) -> tuple[dict, dict]:
    """(seconds of a step, bytes at the peak on a GPU) of each loop; all train one state."""
    cuda, each = accelerator.device.type == "cuda", max(1, steps // ROUNDS)
    rounds, peaks = {name: [] for name in loops}, dict.fromkeys(loops)
    for _ in range(ROUNDS + 1):
        for name, loop in loops.items():
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            loop.config = replace(loop.config, max_train_steps=state.step + each)
            work = partial(fit, loop, state, accelerator, lambda row: None, lambda state: None)
            rounds[name].append(seconds_of(work) / each)
            peaks[name] = torch.cuda.max_memory_allocated() if cuda else None
    return {name: min(took[1:]) for name, took in rounds.items()}, peaks


def held_bytes() -> int:
    """Bytes of every tensor alive, each storage once. `fit` leaves no gradients."""
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            for t in (thing, thing.grad if thing.is_leaf else None):
                if t is not None and t.layout == torch.strided and not t.is_meta:
                    storage = t.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def step_flops(loop: TrainingLoop, theta: dict) -> int:
    """Floating-point operations of one step, forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        terms = loop.objective.terms(loop.predict, loop.schedule, *loop.batch(0))
        torch.autograd.grad(sum(terms.values()), list(theta.values()), allow_unused=True)
    return counter.get_total_flops()


def class_image_rates(command: Bench, family: str = "sd15") -> dict[str, float]:
    """Images per second, ours and usual, both with guidance 7.5.

    Ours: 20 steps of dpmsolver++ in batches of 16. Usual: the published pipeline's own sampler and
    steps, in fours. On a CPU both in twos.
    """
    model = bench_model(command, "lora", family)
    batch = 16 if model.device.type == "cuda" else 2
    dtype, mixed = DTYPES[command.mixed_precision], command.mixed_precision != "no"

    def rate(sampler, steps, size):
        def make(steps):
            sampling = Sampling(steps, 7.5, sampler, command.resolution, size)
            generate(model, ["a photo of a dog"], list(range(size)), sampling)

        make(2)
        return size / seconds_of(lambda: make(steps))

    with torch.autocast(model.device.type, dtype, enabled=mixed):
        ours = rate("dpmsolver++", 20, batch)
        usual = rate(*USUAL_SAMPLING[family], min(batch, 4))
    return {"images_per_second": ours, "usual_images_per_second": usual, "speedup": ours / usual}


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product here; a step's rate is shown as a share of it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n = 8192 if device == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / statistics.median(seconds_of(lambda: a @ a) for _ in range(5))


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def seconds_of(work) -> float:
    """On a GPU by the clock, the device included; on a CPU of all its threads."""
    cuda = torch.cuda.is_available()
    now = time.perf_counter if cuda else time.process_time
    start = now()
    work()
    if cuda:
        torch.cuda.synchronize()
    return now() - start


def times_to_a_model(numbers: dict) -> dict[str, dict[str, float]]:
    """Seconds for RECIPE by objective; "usual prior" is the example's prior preservation."""
    rates, out = numbers["class_images"], {}
    images = {"prior": RECIPE["class_images"], "output": RECIPE["class_images"]}
    for kind, records in numbers["steps_by_kind"].items():
        out[kind] = {
            name: RECIPE["steps"] * r["seconds"] + images.get(name, 0) / rates["images_per_second"]
            for name, r in records.items()
        }
        if "prior" in records:
            usual = records["prior"]["seconds"] / numbers["usual_example"][kind]["ratio"]
            class_set = RECIPE["class_images"] / rates["usual_images_per_second"]
            out[kind]["usual prior"] = RECIPE["steps"] * usual + class_set
    return out


def tables(numbers: dict) -> list[Table]:
    made = []
    if whole := numbers.get("peer_times"):
        made.append(peer.table(whole, Path(numbers["peer"]).name))
    if predicted := numbers.get("memory"):
        made.append(memory.table(predicted, numbers["device"]))
    if kinds := numbers.get("steps_by_kind"):
        made.append(step_table(kinds, numbers["device"], numbers["matmul_flops"]))
    if "usual_example" in numbers or "class_images" in numbers:
        made.append(usual_table(numbers.get("usual_example", {}), numbers.get("class_images")))
    if totals := numbers.get("to_a_model"):
        made.append(total_table(totals))
    return made


def step_table(kinds: dict, device: str, matmul_flops: float) -> Table:
    columns = ("kind", "objective", "s / step", "ratio", "held", "peak MiB", "GFLOP/s", "of matmul")
    drift = f"drift measured, of {measuring.STEPS} steps"
    table = Table(*columns, drift, title=f"steps on {device}")
    for kind, records in kinds.items():
        for name, r in records.items():
            numbers = [f"{r['seconds']:.4g}", f"{r['ratio']:.3f}", f"{r['held']:.2f}"]
            peak = f"{r['peak_bytes'] / 2**20:.0f}" if r["peak_bytes"] else "-"
            rate = r.get("flops", 0) / r["seconds"]
            share = [f"{rate / 1e9:.1f}", f"{rate / matmul_flops:.0%}"] if rate else ["", ""]
            table.add_row(kind, name, *numbers, peak, *share, f"{r['drift']:.1%}")
    return table


def usual_table(examples: dict, images: dict | None) -> Table:
    table = Table("what", "ours", "usual", "ratio", title="against the usual example")
    for kind, u in examples.items():
        ours, usual = u["seconds"], u["usual_seconds"]
        table.add_row(f"step, {kind}, s", f"{ours:.4g}", f"{usual:.4g}", f"{u['ratio']:.3f}")
    if images:
        ours, usual = images["images_per_second"], images["usual_images_per_second"]
        speedup = f"{images['speedup']:.2f}x"
        table.add_row("class images / s", f"{ours:.4g}", f"{usual:.4g}", speedup)
    return table


def total_table(totals: dict) -> Table:
    recipe = f"{RECIPE['steps']} steps, {RECIPE['class_images']} class images (computed)"
    table = Table("kind", "objective", "s", title=f"to a model: {recipe}")
    for kind, records in totals.items():
        for name, seconds in records.items():
            table.add_row(kind, name, f"{seconds:.0f}")
    return table
