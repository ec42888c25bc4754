"""`personalize train --dry_run`: print the resolved configuration and what the run will cost.

It also says how often each picture is seen, and it writes nothing. Time and peak memory are
measured: three whole steps of this configuration are taken in a temporary folder, and rates are
multiplied by counts. What stays in memory for the whole run is computed besides, to show what the
peak is made of. `personalize bench --memory` compares these estimates with real runs.
"""

import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from personalize.adapters.anchors import plain_parameters
from personalize.config.train_config import TrainConfig
from personalize.data.latents import instance_set
from personalize.data.photos import Scan
from personalize.drift import measure
from personalize.drift.chains import prompt_groups
from personalize.parallel.processes import processes_here
from personalize.pipeline.model import Model
from personalize.sample.sampler import Sampling, generate
from personalize.train.assembly import Predictors
from personalize.train.experiment import Experiment, read
from personalize.train.from_base import DTYPES, resolution_of
from personalize.train.loop import TrainingLoop, fit
from personalize.train.setup import Clock, make_accelerator, peak_memory, start_peak
from personalize.train.state import State
from toy2d.runs.folder import RunFolder

MIB = 2**20
# settings of the trial run; rates are multiplied by the real counts
SHORT = {
    "measure_nodes": 2,
    "measure_chains": 2,
    "context_prompts": (),
    "fisher_samples": 1,
    "output_draws": 1,
    "log_every": 10**6,
    "checkpointing_steps": 0,
}


@dataclass(frozen=True)
class Cost:
    """Seconds of a step, of the class images, of all and by phase; bytes by use and at the peak.

    The peak is counted above what was held before: on a CPU libraries are left out.
    """

    step: float
    class_images: float
    total: float
    memory: dict[str, int]
    peak: int
    phases: dict[str, float]


def dry_run(config: TrainConfig, console: Console | None = None) -> Cost:
    """Print the plan; raise UserError exactly where `train` would."""
    config, pictures = read(config, processes_here())
    accelerator = make_accelerator(config)
    console = console or Console(quiet=not accelerator.is_main_process)
    console.print(_settings(config))
    for line in pairing(config, len(pictures.records), accelerator.num_processes):
        console.print(line, markup=False)
    cost = measure_cost(config, pictures, accelerator)
    console.print(_costs(cost))
    return cost


def pairing(config: TrainConfig, pictures: int, processes: int = 1) -> list[str]:
    """What one step contains, and how often each picture is seen."""
    c, batch = config, config.train_batch_size
    ticks = c.max_train_steps * c.gradient_accumulation_steps * processes
    each = f" in each of {processes} processes" if processes > 1 else ""
    lines = [
        f"{c.max_train_steps} steps of {c.gradient_accumulation_steps} x {batch}{each}: each of "
        f"{pictures} pictures is seen {ticks * batch / pictures:.1f} times under its own prompt"
    ]
    for role in ("prior", "output"):
        if c.uses(role):
            own = role == "output" and c.output_source == "instance"
            n = pictures if own else c.num_class_images * len(c.concepts)
            prompts = " and ".join(map(repr, c.class_prompts))
            what = "of your pictures" if own else "of the base's own pictures"
            lines.append(
                f"{role}: beside each minibatch, {batch} {what} under {prompts}; "
                f"each of {n} is seen {ticks * batch / n:.1f} times"
            )
    return lines


def measure_cost(config: TrainConfig, pictures: Scan, accelerator: Accelerator) -> Cost:
    """Run the parts of a real run in a temporary folder, with one picture in every pool."""
    before, took = start_peak(accelerator.device), Clock()
    with tempfile.TemporaryDirectory() as folder:
        one = config.unrelated_prompts[:1]
        short = replace(config, output_dir=folder, unrelated_prompts=one, **SHORT)
        run_folder, silent = RunFolder(folder, {}), lambda text: None
        experiment = Experiment(short, pictures, run_folder, accelerator, silent)
        with took("load"):
            model = experiment.open_model()
        with took("picture"):
            prompt, resolution = config.instance_prompt or "a photo", resolution_of(config, model)
            pool = instance_set(model, pictures.records[:1], prompt, resolution).cache()
        picture = class_picture(config, model) if config.needs_class_images else 0.0
        theta = experiment.choose_what_trains(model)
        roles = [r for r in ("instance", "prior", "output") if r == "instance" or config.uses(r)]
        pools = dict.fromkeys(roles, pool)
        predictors = experiment.encode(model, pools)
        experiment.make_chains(predictors)
        loop, theta, _ = experiment.assemble(predictors, theta, pools)
        forward = forward_seconds(short, predictors)
        step = step_seconds(loop, experiment.make_state(model, theta), accelerator)
        stays = memory(config, model, theta)
    phases = {
        "load": took["load"],
        "pictures": took["picture"] * len(pictures.records),
        "class images": picture * config.num_class_images * len(config.concepts),
        "base": forward * base_forwards(config),
        "training": step * config.max_train_steps,
        "measuring": forward * measuring_forwards(config),
    }
    peak = peak_memory(accelerator.device) - before
    return Cost(step, phases["class images"], sum(phases.values()), stays, peak, phases)


def step_seconds(loop: TrainingLoop, state: State, accelerator: Accelerator) -> float:
    """Seconds of an optimizer step: the mean of the second and the third."""
    times = []
    for steps in (1, 3):
        loop.config = replace(loop.config, max_train_steps=steps)
        start = time.perf_counter()
        fit(loop, state, accelerator, lambda terms: None, lambda state: None)
        _wait(accelerator.device)
        times.append(time.perf_counter() - start)
    return times[1] / 2


def forward_seconds(config: TrainConfig, predictors: Predictors) -> float:
    """Seconds of one sample through the network, without a gradient, in batches as measuring."""
    model, n = predictors.model, config.sample_batch_size
    x_t = torch.zeros(n, *model.latent_shape(resolution_of(config, model)), device=model.device)
    t = model.schedule.timesteps[torch.zeros(n, dtype=torch.long, device=model.device)]
    prompts = [next(iter(prompt_groups(config).values()))[0]] * n
    with torch.no_grad(), model.evaluating():
        return _seconds(lambda: predictors.live(x_t, t, prompts), model.device) / n


def class_picture(config: TrainConfig, model: Model) -> float:
    """Seconds of one class picture: decoding, and sampler steps that each take as the second."""
    n, resolution = config.sample_batch_size, resolution_of(config, model)
    prompts, how = [config.class_prompts[0]], (config.class_guidance, config.class_sampler)
    times = []
    for steps in (1, 2):
        sampling = Sampling(steps, *how, resolution, n)
        make = partial(generate, model, prompts, list(range(n)), sampling)
        times.append(_seconds(make, model.device, 1))
    return (times[0] + max(0.0, times[1] - times[0]) * (config.class_steps - 1)) / n


def base_forwards(c: TrainConfig) -> int:
    """Forward passes of one sample for chains and stored answers; one of Fisher counts as three."""
    ticks = c.max_train_steps * c.gradient_accumulation_steps
    stored = min(c.output_draws, c.train_batch_size * ticks)
    answers = stored if c.uses("output") and not c.kind.keeps_base else 0
    fisher = 3 * c.fisher_samples if c.uses("fisher") else 0
    held_out = c.gain_samples * (2 if c.class_prompts else 1) if c.holds_out else 0
    return _chains(c) * (c.measure_nodes - 1) + answers + fisher + held_out


def measuring_forwards(c: TrainConfig) -> int:
    """Forward passes of one sample: drift and gain at their steps, validation's pictures."""
    every = [n for n in (c.probe_steps, c.path_kl_steps) if n]
    rows = 1 + sum(any(s % n == 0 for n in every) for s in range(1, c.max_train_steps))
    groups = 2 if c.class_prompts else 1
    gains = c.gain_samples * groups * rows if c.holds_out else 0
    grids = 1 + c.max_train_steps // c.validation_steps if c.validation_prompt else 0
    passes = c.validation_inference_steps * (2 if c.validation_guidance > 1 else 1)
    pictures = len(c.validation_prompt) * c.num_validation_images
    return measure.evaluations(c) + gains + grids * pictures * passes


def _chains(c: TrainConfig) -> int:
    return c.measure_chains * sum(len(g) for g in prompt_groups(c).values())


def memory(config: TrainConfig, model: Model, theta) -> dict[str, int]:
    """Bytes that stay for the whole run, by what they hold."""
    c = config
    networks = [model.denoiser, *(model.text_encoders if c.train_text_encoder else [])]
    trained = sum(p.numel() for p in theta.values())
    plain = sum(p.numel() for p in plain_parameters(theta).values())
    copy = torch.finfo(DTYPES[c.anchor_dtype]).bits // 8
    return {
        "networks": sum(t.nbytes for n in networks for t in (*n.parameters(), *n.buffers())),
        "gradients": 4 * trained,
        "moments": (2 if c.use_8bit_adam else 8) * trained,
        "average": 4 * trained if c.use_ema else 0,
        "anchors": copy * plain if c.uses("l2", "fisher") and c.anchor_device == "train" else 0,
        "fisher": 4 * plain if c.uses("fisher") else 0,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(work, device: torch.device, repeats: int = 2) -> float:
    """The fastest of `repeats` after one that is not timed."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _settings(config: TrainConfig) -> Table:
    table = Table("setting", "value", title="what will run")
    for name, value in asdict(config).items():
        if value is not None and value is not False and value != ():
            table.add_row(name, escape(str(value)))
    return table


def _costs(cost: Cost) -> Table:
    table = Table("cost", "estimate", title="on this machine")
    table.add_row("one step", f"{cost.step:.3g} s")
    for name, seconds in cost.phases.items():
        if seconds:
            table.add_row(f"time: {name}", f"{seconds:.3g} s")
    table.add_row("time: all but the export", f"{cost.total:.4g} s")
    for name, size in cost.memory.items():
        if size:
            table.add_row(f"memory: {name}", f"{size / MIB:.1f} MiB")
    table.add_row("memory: peak, with activations", f"{cost.peak / MIB:.0f} MiB")
    return table
