"""`personalize train --dry_run`: the resolved configuration, what will be seen how often, and what it will cost. Writes nothing.

Time is measured, not guessed: two minibatches of each role go forward and back on this machine, without an update.
Memory of weights, gradients, moments, anchors and averages is arithmetic; activations are measured where the device can tell.
"""

import time
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table

from personalize.adapters import plain_parameters
from personalize.config import TrainConfig
from personalize.data import Prompts, instance_set
from personalize.engine import make_accelerator, peak_memory
from personalize.experiment import read
from personalize.model import Model, choose_as, load
from personalize.prepare import DTYPES
from personalize.rules import refuse_for_model
from personalize.train import Streams, objective_of
from toy2d.objectives import denoising_loss

MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """Seconds of a training step, of the class images, of all; bytes by what they are for; bytes at the peak, if known."""

    step: float
    class_images: float
    total: float
    memory: dict[str, int]
    peak: int | None


def dry_run(config: TrainConfig, console: Console | None = None) -> Cost:
    """Print the plan; raise UserError exactly where `train` would."""
    console = console or Console()
    config, pictures = read(config)
    accelerator = make_accelerator(config)
    console.print(_settings(config))
    for line in pairing(config, len(pictures.records)):
        console.print(line)
    cost = measure_cost(config, pictures.records, accelerator)
    console.print(_costs(cost))
    return cost


def pairing(config: TrainConfig, pictures: int) -> list[str]:
    """Who is beside whom in a step, and how often each picture is seen."""
    c, batch = config, config.train_batch_size
    ticks = c.max_train_steps * c.gradient_accumulation_steps
    seen = ticks * batch / pictures
    lines = [
        f"{c.max_train_steps} steps of {c.gradient_accumulation_steps} x {batch}: each of {pictures} pictures is seen "
        f"{seen:.1f} times under its own prompt"
    ]
    for role in ("prior", "output"):
        if c.uses(role):
            own = role == "output" and c.output_source == "instance"
            n = pictures if own else c.num_class_images * len(c.concepts)
            said = " and ".join(map(repr, c.class_prompts))
            what = "of your pictures" if own else "of the base's own pictures"
            lines.append(
                f"{role}: beside each minibatch, {batch} {what} under {said}; each of {n} is seen {ticks * batch / n:.1f} times"
            )
    return lines


def measure_cost(config: TrainConfig, records, accelerator) -> Cost:
    c, device = config, accelerator.device
    dtype = DTYPES[c.mixed_precision] if c.kind.keeps_base else torch.float32
    source = c.pretrained_model_name_or_path
    model = load(source, c.revision, c.variant, dtype, c.without_t5).to(device)
    refuse_for_model(c, model.schedule.prediction == "flow")
    resolution = c.resolution or model.default_resolution
    model.latent_shape(resolution)  # raises UserError for a resolution that does not fit
    theta = choose_as(model, c)
    if c.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()
    pool = instance_set(model, records[:1], c.instance_prompt or "a photo", resolution)
    prompts = Prompts(model, cache=not c.text_trains)
    example = Streams({"instance": pool}, c, len(model.schedule)).example("instance", 0)

    def predict(x_t, t, texts):
        with accelerator.autocast():
            return model.predict(x_t, t, prompts(texts))

    def backward():
        denoising_loss(predict, model.schedule, example).backward()

    forward = _seconds(lambda: _no_grad(predict, example), device)
    one = _seconds(backward, device)
    extra = {"prior": one, "output": one + (forward if c.kind.keeps_base else 0.0)}
    micro = one + sum(extra.get(part, 0.0) for part in objective_of(c).active)
    step = micro * c.gradient_accumulation_steps
    per_picture = 2 * c.class_steps * forward / c.train_batch_size  # guidance asks twice
    made = per_picture * c.num_class_images * len(c.concepts) if c.needs_class_images else 0.0
    peak = peak_memory(device) if device.type == "cuda" else None
    return Cost(step, made, made + step * c.max_train_steps, memory(c, model, theta), peak)


def memory(config: TrainConfig, model: Model, theta) -> dict[str, int]:
    """Bytes that stay for the whole run, by what they are for."""
    c = config
    networks = [model.denoiser, *(model.text_encoders if c.train_text_encoder else [])]
    trained = sum(p.numel() for p in theta.values())
    plain = sum(p.numel() for p in plain_parameters(theta).values())
    copy = torch.finfo(DTYPES[c.anchor_dtype]).bits // 8
    return {
        "networks": sum(p.numel() * p.element_size() for n in networks for p in n.parameters()),
        "gradients": 4 * trained,
        "moments": (2 if c.use_8bit_adam else 8) * trained,
        "average": 4 * trained if c.use_ema else 0,
        "anchors": copy * plain if c.uses("l2", "fisher") and c.anchor_device == "train" else 0,
        "fisher": 4 * plain if c.uses("fisher") else 0,
    }


def _no_grad(predict, example):
    with torch.no_grad():
        predict(example.x0, example.t, example.cond)


def _seconds(work, device: torch.device, repeats: int = 2) -> float:
    """The fastest of `repeats` after one that is not timed."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _settings(config: TrainConfig) -> Table:
    table = Table("setting", "value", title="what will run")
    for name, value in asdict(config).items():
        if value is not None and value is not False and value != ():
            table.add_row(name, str(value))
    return table


def _costs(cost: Cost) -> Table:
    table = Table("cost", "estimate", title="on this machine")
    table.add_row("one step", f"{cost.step:.3g} s")
    if cost.class_images:
        table.add_row("class images, if none are there", f"{cost.class_images:.3g} s")
    table.add_row("class images and training", f"{cost.total:.4g} s")
    for name, size in cost.memory.items():
        if size:
            table.add_row(f"memory: {name}", f"{size / MIB:.1f} MiB")
    unknown = "not measured on the CPU"
    table.add_row("memory: peak of a step", f"{cost.peak / MIB:.0f} MiB" if cost.peak else unknown)
    return table
