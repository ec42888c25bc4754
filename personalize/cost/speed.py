"""`personalize bench`: what each objective costs, side by side in one process, as ratios.

    steps          seconds of a real training step (`train.fit`), every objective x {full, lora}, and what stays in memory
    usual example  the same network and loop, but photo, VAE and text encoder in every step, as the field's example scripts do
    class images   our sampler in large batches against 50 PNDM steps in fours
    --memory       instead: peak memory and time of every preset, foretold by the dry run and measured (memory.py)
    to a model     800 steps and 200 class images at these rates (computed from the measured ones)

Latents and, unless --model is given, weights are random: speed does not depend on them. On a CPU the clock is this process's CPU time,
because other programs come and go. `held` counts every tensor alive between two steps, in units of the denoiser's weights: full training
holds 3 (weights and Adam's two moments; gradients are freed) and the parked VAE and text encoder; an L2 anchor is 1 more, Fisher 2, a second network
would be 1 more.
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
from personalize.cost import memory
from personalize.cost.rig import Stand, open_model
from personalize.sample.sampler import generate
from personalize.train.experiment import PACKAGES
from personalize.train.from_base import DTYPES
from personalize.train.loop import Run, fit
from personalize.train.setup import make_state
from toy2d.runs.files import UserError, write_json
from toy2d.runs.folder import environment

RECIPE = {
    "steps": 800,
    "class_images": 200,
}  # diffusers' README for DreamBooth with prior preservation
ROUNDS = 3


def bench(command: Bench, console: Console | None = None) -> dict:
    """Prints the tables; returns (and with --out writes) the numbers."""
    console = console or Console()
    numbers = {
        "command": "personalize bench " + " ".join(sys.argv[2:]),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **{k: v for k, v in vars(command).items() if k != "out"},
        "environment": environment(PACKAGES),
        "matmul_flops": matmul_rate(DTYPES[command.mixed_precision]),
    }
    kinds = command.kinds
    if command.memory:
        numbers["memory"] = memory.memory_of_presets(command)
    elif command.presets:
        raise UserError("--presets has no effect without --memory")
    parts = () if command.memory else command.parts
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
    """Seconds of a step by objective: the fastest of ROUNDS after one that is not timed, in turns; bytes held and, on a GPU, at the peak.

    All objectives move one network, so a slow minute of the machine meets them all alike; `held` leaves out what the others hold.
    """
    accelerator = Accelerator(mixed_precision=command.mixed_precision)
    stand, runs, own = Stand(command, kind, accelerator), {}, {}
    for objective in command.objectives:
        before = held_bytes()
        runs[objective] = stand.run(objective)
        own[objective] = held_bytes() - before
    state = make_state(stand.theta, runs[command.objectives[0]].config, accelerator.scaler)
    seconds, peaks = in_turns(runs, state, accelerator, command.steps)
    unet = sum(p.numel() * p.element_size() for p in stand.model.denoiser.parameters())
    common, out = held_bytes() - sum(own.values()), {}
    for objective, took in seconds.items():
        others = sum(own.values()) - own[objective]
        out[objective] = {
            "seconds": took,
            "ratio": took / seconds[command.objectives[0]],
            "held": (common + own[objective]) / unet,
            "peak_bytes": peaks[objective] - others if peaks[objective] else None,
        }
    out[command.objectives[0]]["flops"] = step_flops(runs[command.objectives[0]], stand.theta)
    return out


def usual_example(command: Bench, kind: str) -> dict[str, float]:
    """Seconds of the standard step, ours against the example scripts': the same network, loop and update, nothing cached."""
    accelerator = Accelerator(mixed_precision=command.mixed_precision)
    stand = Stand(command, kind, accelerator)
    with tempfile.TemporaryDirectory() as folder:
        runs = {"seconds": stand.run("standard"), "usual_seconds": stand.usual(Path(folder))}
        state = make_state(stand.theta, runs["seconds"].config, accelerator.scaler)
        seconds, _ = in_turns(runs, state, accelerator, command.steps)
    return {**seconds, "ratio": seconds["seconds"] / seconds["usual_seconds"]}


def in_turns(runs: dict[str, Run], state, accelerator, steps: int) -> tuple[dict, dict]:
    """(seconds of a step, bytes at the peak on a GPU) of each run; they move one state by turns."""
    cuda, each = accelerator.device.type == "cuda", max(1, steps // ROUNDS)
    rounds, peaks = {name: [] for name in runs}, dict.fromkeys(runs)
    for _ in range(ROUNDS + 1):
        for name, run in runs.items():
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            run.config = replace(run.config, max_train_steps=state.step + each)
            work = partial(fit, run, state, accelerator, lambda row: None, lambda state: None)
            rounds[name].append(_seconds(work) / each)
            peaks[name] = torch.cuda.max_memory_allocated() if cuda else None
    return {name: min(took[1:]) for name, took in rounds.items()}, peaks


def held_bytes() -> int:
    """Bytes of every tensor alive, each storage once. Gradients are freed between steps, so `fit` leaves none."""
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):
            for t in (thing, thing.grad if thing.is_leaf else None):
                if t is not None and t.layout == torch.strided and not t.is_meta:
                    storage = t.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def step_flops(run: Run, theta: dict) -> int:
    """Floating-point operations of one step, forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        terms = run.objective.terms(run.predict, run.schedule, *run.batch(0))
        torch.autograd.grad(sum(terms.values()), list(theta.values()), allow_unused=True)
    return counter.get_total_flops()


def class_image_rates(command: Bench) -> dict[str, float]:
    """Images per second: dpmsolver++ 20 in batches of 16 against PNDM 50 in fours, guidance 7.5 both; on a CPU both in twos."""
    model = open_model(command, "lora")
    batch = 16 if model.device.type == "cuda" else 2

    def rate(sampler, steps, size):
        def make(steps):
            generate(model, ["a photo of a dog"], list(range(size)), steps, 7.5, sampler, size, resolution=command.resolution)  # fmt: skip

        make(2)
        return size / _seconds(lambda: make(steps))

    with torch.autocast(model.device.type, DTYPES[command.mixed_precision], enabled=command.mixed_precision != "no"):  # fmt: skip
        ours, usual = rate("dpmsolver++", 20, batch), rate("pndm", 50, min(batch, 4))
    return {"images_per_second": ours, "usual_images_per_second": usual, "speedup": ours / usual}


def matmul_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a plain large product here: what "achieved" is compared with."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    n = 8192 if device == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / statistics.median(_seconds(lambda: a @ a) for _ in range(5))


def _seconds(work) -> float:
    cuda = torch.cuda.is_available()
    now = time.perf_counter if cuda else time.process_time
    start = now()
    work()
    if cuda:
        torch.cuda.synchronize()
    return now() - start


def times_to_a_model(numbers: dict) -> dict[str, dict[str, float]]:
    """Seconds for RECIPE: "ours" makes class images with our sampler; "usual" is the example's prior preservation."""
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
    if foretold := numbers.get("memory"):
        made.append(memory.table(foretold, numbers["device"]))
    if kinds := numbers.get("steps_by_kind"):
        steps = Table("kind", "objective", "s / step", "ratio", "held", "peak MiB", "GFLOP/s", "of matmul", title=f"steps on {numbers['device']}")  # fmt: skip
        for kind, records in kinds.items():
            for name, r in records.items():
                rate = r.get("flops", 0) / r["seconds"]
                peak = f"{r['peak_bytes'] / 2**20:.0f}" if r["peak_bytes"] else "-"
                share = [f"{rate / 1e9:.1f}", f"{rate / numbers['matmul_flops']:.0%}"] if rate else ["", ""]  # fmt: skip
                steps.add_row(kind, name, f"{r['seconds']:.4g}", f"{r['ratio']:.3f}", f"{r['held']:.2f}", peak, *share)  # fmt: skip
        made.append(steps)
    others = Table("what", "ours", "usual", "ratio", title="against the usual example")
    for kind, u in numbers.get("usual_example", {}).items():
        others.add_row(f"step, {kind}, s", f"{u['seconds']:.4g}", f"{u['usual_seconds']:.4g}", f"{u['ratio']:.3f}")  # fmt: skip
    if i := numbers.get("class_images"):
        others.add_row("class images / s", f"{i['images_per_second']:.4g}", f"{i['usual_images_per_second']:.4g}", f"{i['speedup']:.2f}x")  # fmt: skip
    made += [others] if others.row_count else []
    if totals := numbers.get("to_a_model"):
        table = Table("kind", "objective", "s", title=f"to a model: {RECIPE['steps']} steps, {RECIPE['class_images']} class images (computed)")  # fmt: skip
        for kind, records in totals.items():
            for name, seconds in records.items():
                table.add_row(kind, name, f"{seconds:.0f}")
        made.append(table)
    return made
