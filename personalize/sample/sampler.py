"""Prompts x seeds -> pictures.

    x_T from the seed's own generator;  eps = eps(uncond) + guidance (eps(cond) - eps(uncond));
    x_{t-1} by a diffusers scheduler

Every (prompt, seed) has a generator of its own: a picture depends neither on the batch it was made
in (to rounding: one of 256 levels) nor on what was made before, and training's generators are
never touched. Shapes: N pictures of a batch, C h w latents, H W pixels.
"""

import contextlib
import hashlib
import math
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from personalize.pipeline.families import Cond
from personalize.pipeline.model import Model
from toy2d.runs.files import RunFailure, UserError
from toy2d.runs.progress import progress

Encode = Callable[[list[str]], Cond]
Wanted = tuple[str, int]  # a picture: its prompt and its seed


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn."""

    steps: int = 25
    guidance: float = 7.5  # 1: none, the conditional law itself
    sampler: str = "dpmsolver++"  # a name in SAMPLERS or FLOW_SAMPLERS
    resolution: int | None = None  # pixels; None: the model's own
    batch_size: int = 8


USUAL = Sampling()
# name -> (scheduler, what must differ from the model's own scheduler configuration); all
# deterministic given x_T.
# The spacing is each scheduler's default, stated: a configuration that went through a file carries
# the default of another.
SAMPLERS = {
    "dpmsolver++": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "timestep_spacing": "linspace"},
    ),
    "unipc": (UniPCMultistepScheduler, {"timestep_spacing": "linspace"}),
    "ddim": (
        DDIMScheduler,
        {"clip_sample": False, "timestep_spacing": "leading"},
    ),  # latents leave [-1, 1]
    "euler": (EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
    "pndm": (
        PNDMScheduler,
        {"skip_prk_steps": True, "timestep_spacing": "leading"},
    ),  # diffusers' for SD-1.x, 50 steps
}

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOW_SAMPLERS = {
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", **FLOW}),
    "unipc": (UniPCMultistepScheduler, FLOW),
    "euler": (FlowMatchEulerDiscreteScheduler, {}),  # diffusers' for SD-3, 28 steps
}


def samplers_of(model: Model) -> dict:
    return FLOW_SAMPLERS if model.schedule.prediction == "flow" else SAMPLERS


def make_sampler(model: Model, name: str, steps: int):
    """A fresh scheduler on the model's own noise schedule, set to `steps`. Raises UserError for
    what cannot be.
    """
    known = samplers_of(model)
    if name not in known:
        raise UserError(f"no sampler {name!r} for this model; choose one of {', '.join(known)}")
    if not 1 <= steps <= len(model.schedule):
        raise UserError(f"steps must lie between 1 and {len(model.schedule)}, not {steps}")
    kind, changes = known[name]
    config = dict(model.pipeline.scheduler.config)
    if "shift" in config:  # the solvers' own name for it
        config["flow_shift"] = config["shift"]
    scheduler = kind.from_config(config, **changes)
    scheduler.set_timesteps(steps, device=model.device)
    return scheduler


def batches(items: list, size: int) -> list[list]:
    """`items` in order, `size` at a time; the last may be shorter."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def image_seed(seed: int, index: int) -> int:
    """The seed of picture `index` of a set: never shared with another picture or another set's
    seed.
    """
    return int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:7])


@torch.no_grad()
def sample_latents(
    model: Model,
    cond: Cond,
    seeds: list[int],
    sampling: Sampling,
    uncond: Cond | None = None,
) -> Tensor:
    """Scaled latents (N C h w) in one batch, one per seed.

    `uncond` (one row) is needed when guidance > 1.

    Raises UserError for a sampler, steps, guidance or resolution that cannot be; RunFailure if the
    network's answers are not finite.
    """
    guidance = sampling.guidance
    if not (math.isfinite(guidance) and guidance >= 1):
        raise UserError(f"guidance must be a number >= 1 (1 = none), not {guidance}")
    scheduler = make_sampler(model, sampling.sampler, sampling.steps)
    shape = model.latent_shape(sampling.resolution or model.default_resolution)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
    # flow matching's Euler has neither: its noise and its inputs are not scaled
    x = torch.stack(noise).to(model.device) * getattr(scheduler, "init_noise_sigma", 1.0)
    scale = getattr(scheduler, "scale_model_input", lambda x, t: x)
    if guidance > 1:
        without = model.family.unconditional(uncond, cond)
        both = {k: torch.cat([without[k], v]) for k, v in cond.items()}
    for t in progress(scheduler.timesteps, "steps of the sampler", leave=False):
        x_in = scale(x, t)
        if guidance > 1:
            without, output = _predict(model, torch.cat([x_in, x_in]), t, both).chunk(2)
            output = without + guidance * (output - without)
        else:
            output = _predict(model, x_in, t, cond)
        x = scheduler.step(output, t, x).prev_sample
    if not torch.isfinite(x).all():
        raise RunFailure(
            "the model's pictures are not finite numbers: it has diverged, or needs float32"
        )
    return x


def _predict(model, x, t, cond):
    return model.predict(x, t.to(x.device).expand(len(x)), cond)


def generate(
    model: Model, prompts: list[str], seeds: list[int], sampling: Sampling = USUAL, **how
) -> list[Image.Image]:
    """len(prompts) * len(seeds) pictures, prompt by prompt; `how` as in `draw_pictures`."""
    return draw_pictures(
        model, [(prompt, seed) for prompt in prompts for seed in seeds], sampling, **how
    )


def draw_pictures(
    model: Model,
    wanted: list[Wanted],
    sampling: Sampling = USUAL,
    negative_prompt: str = "",
    base: bool = False,
    encode: Encode | None = None,
) -> list[Image.Image]:
    """One picture for each (prompt, seed).

    `base` answers as the frozen base did (adapters off; see `Model.base`). `encode` defaults to
    `model.encode_prompts`. Dropout is off inside; the model's mode, gradients and generators are
    as before afterwards.
    """
    guided = sampling.guidance > 1
    if negative_prompt and not guided:
        raise UserError("a negative prompt has no effect with guidance 1: raise it or leave it out")
    encode, images = encode or model.encode_prompts, []
    with torch.no_grad(), model.evaluating(), model.base() if base else contextlib.nullcontext():
        uncond = encode([negative_prompt]) if guided else None
        parts = batches(wanted, sampling.batch_size)
        for batch in progress(parts, "pictures", leave=False):
            prompts, seeds = map(list, zip(*batch, strict=True))
            latents = sample_latents(model, encode(prompts), seeds, sampling, uncond)
            images += to_pil(model.decode(latents))
    return images


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Pictures of pixels (N 3 H W) in [-1, 1], rounded to the nearest of 256 levels."""
    levels = ((pixels + 1) * 127.5).round().clamp(0, 255).byte()
    return [Image.fromarray(p) for p in levels.permute(0, 2, 3, 1).cpu().numpy()]


# ---- many pictures on one
def grid(
    images: list[Image.Image],
    columns: int,
    row_labels: list[str] | None = None,
    column_labels: list[str] | None = None,
    gap: int = 4,
) -> Image.Image:
    """Pictures of one size, row by row, a strip of text above each row and above the columns.
    White ground.

    Raises ValueError if the pictures do not fill the rows.
    """
    rows, rest = divmod(len(images), columns)
    if rest or not images or len(row_labels or images[::columns]) != rows:
        raise ValueError(f"grid: {len(images)} pictures do not fill rows of {columns}")
    w, h = images[0].size
    size = max(10, min(18, w // 8))
    font = ImageFont.load_default(size)
    width = columns * (w + gap) + gap
    strips = [_wrap(label, width // max(1, size // 2)) for label in row_labels or [""] * rows]
    tops, y = [], (size + gap if column_labels else 0) + gap
    for lines in strips:
        y += (size + gap) * len(lines)
        tops.append(y)
        y += h + gap
    page = Image.new("RGB", (width, y), "white")
    draw = ImageDraw.Draw(page)
    for c, label in enumerate(column_labels or []):
        draw.text((gap + c * (w + gap), gap), _plain(label), "black", font)
    for r, (lines, top) in enumerate(zip(strips, tops, strict=True)):
        for k, line in enumerate(lines):
            draw.text((gap, top - (size + gap) * (len(lines) - k)), line, "black", font)
        for c in range(columns):
            page.paste(images[r * columns + c], (gap + c * (w + gap), top))
    return page


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _wrap(label: str, width: int) -> list[str]:
    """At most three lines: a prompt of 10 kB must not make a page of its own."""
    return textwrap.wrap(_plain(label), max(8, width), max_lines=3, placeholder=" ...")
