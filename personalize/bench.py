"""`personalize bench`: what each objective costs, side by side in one process, as ratios.

    steps          seconds of a real training step (`train.fit`), every objective x {full, lora}, and what stays in memory
    usual example  the same network with VAE and text encoder in every step, as the field's example scripts do
    class images   our sampler in large batches against 50 PNDM steps in fours
    to a model     800 steps and 200 class images at these rates (computed from the measured ones)

Latents and, unless --model is given, weights are random: speed does not depend on them. On a CPU the clock is this process's CPU time,
because other programs come and go. `held` counts every tensor alive between two steps, in units of the denoiser's weights: full training
holds 3 (weights and Adam's two moments; gradients are freed) and the parked VAE; an L2 anchor is 1 more, Fisher 2, a second network
would be 1 more.
"""

import gc
import statistics
import sys
import time
from dataclasses import replace
from functools import partial

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from personalize.engine import make_state
from personalize.experiment import PACKAGES
from personalize.model import choose
from personalize.prepare import DTYPES
from personalize.rules import OBJECTIVES
from personalize.sample import generate
from personalize.stand import RandomPool, assemble, configuration, open_model
from personalize.train import Run, Streams, fit
from toy2d.objectives import denoising_loss
from toy2d.runfolder import environment, write_json

RECIPE = {
    "steps": 800,
    "class_images": 200,
}  # diffusers' README for DreamBooth with prior preservation
ROUNDS = 3


def bench(asked, console: Console | None = None) -> dict:
    """`asked`: __main__.Bench. Prints the tables; returns (and with --out writes) the numbers."""
    console = console or Console()
    numbers = {
        "command": "personalize bench " + " ".join(sys.argv[2:]),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        **{k: v for k, v in vars(asked).items() if k != "out"},
        "environment": environment(PACKAGES),
        "steps_by_kind": {kind: step_times(asked, kind) for kind in ("full", "lora")},
        "usual_example": usual_example(asked),
        "class_images": class_image_rates(asked),
        "matmul_flops": matmul_rate(DTYPES[asked.mixed_precision]),
    }
    numbers["to_a_model"] = times_to_a_model(numbers)
    for table in tables(numbers):
        console.print(table)
    if asked.out:
        write_json(asked.out, numbers)
    return numbers


# ---- what is measured
def step_times(asked, kind: str) -> dict[str, dict]:
    """Seconds of a step (the fastest of three rounds, after two steps that are not timed), tensors held, peak bytes on a GPU."""
    out = {}
    for objective in OBJECTIVES:
        accelerator = Accelerator(mixed_precision=asked.mixed_precision)
        cuda = accelerator.device.type == "cuda"
        run, model, theta = assemble(asked, objective, kind, accelerator)
        state = make_state(theta, run.config, accelerator.scaler)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        rounds = []
        for _ in range(ROUNDS + 1):
            steps = max(2, asked.steps // ROUNDS)
            run.config = replace(run.config, max_train_steps=state.step + steps)
            work = partial(fit, run, state, accelerator, lambda row: None, lambda state: None)
            rounds.append(_seconds(work) / steps)
        unet = sum(p.numel() * p.element_size() for p in model.denoiser.parameters())
        out[objective] = {
            "seconds": min(rounds[1:]),
            "held": held_bytes() / unet,
            "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        }
        if objective == "standard":
            out[objective]["flops"] = step_flops(run, theta)
        del run, model, theta, state
        gc.collect()
    for record in out.values():
        record["ratio"] = record["seconds"] / out["standard"]["seconds"]
    return out


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


def usual_example(asked) -> dict[str, float]:
    """Ours: latents and embeddings cached. Theirs: the same step with VAE and text encoder inside it. Forward and backward, no update."""
    model = open_model(asked)
    theta = choose(model, "full")
    texts = ["a photo of sks dog"] * asked.batch_size
    pixels = torch.zeros(asked.batch_size, 3, asked.resolution, asked.resolution)
    rng = torch.Generator().manual_seed(0)
    config = configuration(asked, "standard", "full", 2)
    pool = RandomPool(model, asked.resolution, texts[0])
    example = Streams({"instance": pool}, config, len(model.schedule)).example("instance", 0)
    cached = model.encode_prompts(texts)

    def backward(x0, cond):
        def predict(x_t, t, _):
            with torch.autocast(model.device.type, DTYPES[asked.mixed_precision], enabled=asked.mixed_precision != "no"):  # fmt: skip
                return model.predict(x_t, t, cond)

        denoising_loss(predict, model.schedule, example._replace(x0=x0)).backward()
        for p in theta.values():
            p.grad = None

    def theirs():
        with torch.no_grad():
            x0, cond = model.encode_images(pixels, rng), model.encode_prompts(texts)
        backward(x0, cond)

    seconds = {"ours": [], "theirs": []}
    for _ in range(ROUNDS + 1):  # in turns, so that a slow minute of the machine meets both
        seconds["ours"].append(_seconds(lambda: backward(example.x0, cached)))
        seconds["theirs"].append(_seconds(theirs))
    ours, usual = (min(seconds[k][1:]) for k in ("ours", "theirs"))
    return {"seconds": ours, "usual_seconds": usual, "ratio": ours / usual}


def class_image_rates(asked) -> dict[str, float]:
    """Images per second: dpmsolver++ 20 in batches of 16 against PNDM 50 in fours, guidance 7.5 both; on a CPU both in twos."""
    model = open_model(asked, "lora")
    batch = 16 if model.device.type == "cuda" else 2

    def rate(sampler, steps, size):
        def make(steps):
            generate(model, ["a photo of a dog"], list(range(size)), steps, 7.5, sampler, size, resolution=asked.resolution)  # fmt: skip

        make(2)
        return size / _seconds(lambda: make(steps))

    with torch.autocast(model.device.type, DTYPES[asked.mixed_precision], enabled=asked.mixed_precision != "no"):  # fmt: skip
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
        training = RECIPE["steps"] * records["prior"]["seconds"] / numbers["usual_example"]["ratio"]
        class_set = RECIPE["class_images"] / rates["usual_images_per_second"]
        out[kind]["usual prior"] = training + class_set
    return out


def tables(numbers: dict) -> list[Table]:
    steps = Table("kind", "objective", "s / step", "ratio", "held", "peak MiB", "GFLOP/s", "of matmul", title=f"steps on {numbers['device']}")  # fmt: skip
    for kind, records in numbers["steps_by_kind"].items():
        for name, r in records.items():
            rate = r.get("flops", 0) / r["seconds"]
            peak = f"{r['peak_bytes'] / 2**20:.0f}" if r["peak_bytes"] else "-"
            share = [f"{rate / 1e9:.1f}", f"{rate / numbers['matmul_flops']:.0%}"] if rate else ["", ""]  # fmt: skip
            steps.add_row(kind, name, f"{r['seconds']:.4g}", f"{r['ratio']:.3f}", f"{r['held']:.2f}", peak, *share)  # fmt: skip
    others = Table("what", "ours", "usual", "ratio", title="against the usual example")
    u, i = numbers["usual_example"], numbers["class_images"]
    others.add_row("step, s", f"{u['seconds']:.4g}", f"{u['usual_seconds']:.4g}", f"{u['ratio']:.3f}")  # fmt: skip
    others.add_row("class images / s", f"{i['images_per_second']:.4g}", f"{i['usual_images_per_second']:.4g}", f"{i['speedup']:.2f}x")  # fmt: skip
    totals = Table("kind", "objective", "s", title=f"to a model: {RECIPE['steps']} steps, {RECIPE['class_images']} class images (computed)")  # fmt: skip
    for kind, records in numbers["to_a_model"].items():
        for name, seconds in records.items():
            totals.add_row(kind, name, f"{seconds:.0f}")
    return [steps, others, totals]
