"""A text-to-image pipeline, opened: what denoises, what encodes, what the frozen base answers.

A backbone is a `Family`: names and two small functions, so that the next one is another value and not a branch in the loop.
The pipeline's own classes do all the work; every number (betas, prediction type, scaling factor, resolution) is read from its
configuration files.

Shapes: B batch, C latent channels, h w latent size, f = 2^(VAE levels - 1), H = f h, W = f w pixels.
cond: a dict of tensors, batch first, handed through unread; only the family knows its keys.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from toy2d.runfolder import UserError, hash_tensors
from toy2d.schedule import Schedule

Cond = dict[str, Tensor]
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}  # diffusers' word -> ours


# ---- what a backbone is
@dataclass(frozen=True)
class Family:
    """What differs between backbones. `encode(pipeline, prompts) -> cond`; `call(denoiser, x_t, t, cond) -> its output`."""

    name: str
    pipeline_class: type[DiffusionPipeline]
    denoiser: str  # the pipeline's attribute
    text_encoders: tuple[str, ...]
    encode: Callable[[DiffusionPipeline, list[str]], Cond]
    call: Callable[[nn.Module, Tensor, Tensor, Cond], Tensor]
    lora_targets: tuple[str, ...]  # diffusers' own choice, so that other tools know these keys
    text_lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")


def _encode_sd(pipeline, prompts):
    device = pipeline.text_encoder.device
    return {"encoder_hidden_states": pipeline.encode_prompt(prompts, device, 1, False)[0]}


def _call_sd(denoiser, x_t, t, cond):
    return denoiser(x_t, t, encoder_hidden_states=cond["encoder_hidden_states"]).sample


SD15 = Family(
    name="sd15",  # SD-1.x and SD-2.x: they differ in numbers that the configuration files hold
    pipeline_class=StableDiffusionPipeline,
    denoiser="unet",
    text_encoders=("text_encoder",),
    encode=_encode_sd,
    call=_call_sd,
    lora_targets=("to_k", "to_q", "to_v", "to_out.0"),
)
FAMILIES = {"StableDiffusionPipeline": SD15}


def from_diffusers(scheduler) -> Schedule:
    """The schedule that a diffusers scheduler was configured with: its own alphas_cumprod and prediction type.

    Raises UserError for what the objectives cannot use, naming it: another prediction type, or zero terminal SNR.
    """
    word = scheduler.config.get("prediction_type", "epsilon")
    if word not in PREDICTIONS:
        raise UserError(
            f"the model predicts {word!r}; personalize knows {', '.join(PREDICTIONS)}: choose another base model"
        )
    try:
        return Schedule(scheduler.alphas_cumprod.double(), PREDICTIONS[word])
    except ValueError as e:
        raise UserError(f"the model's noise schedule cannot be used: {e}") from e


# ---- the open pipeline
@dataclass(eq=False, repr=False)
class Model:
    """A pipeline and what training needs of it. `denoiser` may be replaced by its accelerate wrapper."""

    pipeline: DiffusionPipeline
    family: Family
    source: str | None = None  # folder or hub id; None for a model made in memory
    denoiser: nn.Module = field(init=False)
    schedule: Schedule = field(init=False)
    trained: Literal["nothing", "full", "lora"] = field(default="nothing", init=False)
    _hash: str = field(default="", init=False)

    def __post_init__(self):
        self.denoiser = getattr(self.pipeline, self.family.denoiser)
        self.schedule = from_diffusers(self.pipeline.scheduler)
        for part in self.parts.values():
            part.requires_grad_(False).eval()

    @property
    def text_encoders(self) -> list[nn.Module]:
        return [getattr(self.pipeline, name) for name in self.family.text_encoders]

    @property
    def vae(self) -> nn.Module:
        return self.pipeline.vae

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Every network by its name in the pipeline folder, without wrappers."""
        names = (self.family.denoiser, *self.family.text_encoders, "vae")
        return {name: getattr(self.pipeline, name) for name in names}

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the denoiser computes in, here and now: autocast's choice, or that of its own weights."""
        kind = self.device.type
        if torch.is_autocast_enabled(kind):
            return torch.get_autocast_dtype(kind)
        return next(self.denoiser.parameters()).dtype

    @property
    def latent_scale(self) -> int:
        """f: pixels per latent pixel."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def default_resolution(self) -> int:
        """Pixels, from the denoiser's configuration."""
        return self.parts[self.family.denoiser].config.sample_size * self.latent_scale

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(C, h, w) of a square picture. Raises UserError unless the denoiser's levels divide it."""
        unet = self.parts[self.family.denoiser].config
        multiple = self.latent_scale * 2 ** (len(unet.block_out_channels) - 1)
        if resolution < multiple or resolution % multiple:
            near = max(1, round(resolution / multiple)) * multiple
            raise UserError(
                f"resolution {resolution} does not fit this model: it must be a multiple of {multiple}, try {near}"
            )
        return unet.in_channels, resolution // self.latent_scale, resolution // self.latent_scale

    def to(self, device) -> "Model":
        for part in self.parts.values():
            part.to(device)
        self.schedule = self.schedule.to(device)
        return self

    # ---- the four things a pipeline does
    def lost_text(self, prompt: str) -> str:
        """The end of a prompt that the text encoder will not see (SD reads 77 tokens); empty when it sees all."""
        tokenizer = self.pipeline.tokenizer
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        return tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1])

    def encode_prompts(self, prompts: list[str]) -> Cond:
        """The pipeline's own text encoding, one row per prompt; differentiable when the text encoder trains."""
        with contextlib.ExitStack() as stack:
            for encoder in self.text_encoders:
                stack.enter_context(self._resident(encoder))
            cond = self.family.encode(self.pipeline, list(prompts))
        return {k: v.to(self.device) for k, v in cond.items()}

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B C h w) of the latents of pixels (B 3 H W) in [-1, 1], scaled as the denoiser sees them."""
        config = self.vae.config
        with self._resident(self.vae), self._without_autocast():
            law = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        mean = law.mean - (config.shift_factor or 0.0)
        return mean.float() * config.scaling_factor, law.std.float() * config.scaling_factor

    def encode_images(self, pixels: Tensor, rng: torch.Generator) -> Tensor:
        """Latents (B C h w) of pixels (B 3 H W) in [-1, 1], drawn from the posterior with `rng`."""
        mean, std = self.posterior(pixels)
        return mean + std * torch.randn(mean.shape, generator=rng, device=rng.device).to(mean)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B 3 H W) in [-1, 1] of scaled latents."""
        config = self.vae.config
        z = latents / config.scaling_factor + (config.shift_factor or 0.0)
        with self._resident(self.vae), self._without_autocast():
            return self.vae.decode(z.to(self.device, self.vae.dtype)).sample.float().clamp(-1, 1)

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The denoiser's output (a `Predict`), computed in its own dtype, returned in x_t's. t as in `schedule.timesteps`."""
        dtype = next(self.denoiser.parameters()).dtype
        cond = {
            k: v.to(dtype, non_blocking=True) if v.is_floating_point() else v
            for k, v in cond.items()
        }
        return self.family.call(self.denoiser, x_t.to(dtype), t, cond).to(x_t.dtype)

    # ---- the frozen base
    @contextlib.contextmanager
    def base(self) -> Iterator["Model"]:
        """Inside, everything answers as the base model did: adapters off, no second copy.

        Raises RuntimeError after `choose(train="full")`: those weights are gone; cache the base's outputs before training.
        """
        if self.trained == "full":
            raise RuntimeError(
                "full training overwrites the base: cache its outputs before the first step"
            )
        layers = list(_adapter_layers(self))
        trainable = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield self
        finally:
            for layer in layers:
                layer.enable_adapters(True)
            # PEFT's switch makes adapters trainable, also those that were not
            for p, flag in trainable:
                p.requires_grad_(flag)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator["Model"]:
        """Inside, dropout is off; the modes of before come back."""
        modes = {name: part.training for name, part in self.parts.items()}
        for part in self.parts.values():
            part.eval()
        try:
            yield self
        finally:
            for name, part in self.parts.items():
                part.train(modes[name])

    def hash(self) -> str:
        """16 hex digits of the base's weights (denoiser, text encoders, VAE) as loaded; `choose` takes it before anything trains."""
        if not self._hash:
            weights = {
                f"{part}.{name}": w
                for part, module in self.parts.items()
                for name, w in module.state_dict().items()
            }
            self._hash = hash_tensors(weights)
        return self._hash

    # ---- memory
    def unload(self, what: Literal["vae", "text_encoders"]) -> None:
        """Park a part in the host's memory; a later use brings it back for the length of that call."""
        for module in [self.vae] if what == "vae" else self.text_encoders:
            if any(p.requires_grad for p in module.parameters()):
                raise ValueError(f"{what} cannot be unloaded: it trains")
            module.to("cpu")

    @contextlib.contextmanager
    def _resident(self, module: nn.Module):
        parked = next(module.parameters()).device
        module.to(self.device)
        try:
            yield
        finally:
            module.to(parked)

    def _without_autocast(self):
        return torch.autocast(self.device.type, enabled=False)


def _adapter_layers(model: Model) -> Iterator[BaseTunerLayer]:
    for part in model.parts.values():
        for module in part.modules():
            if isinstance(module, BaseTunerLayer):
                yield module
