"""A text-to-image pipeline, opened: what denoises, what encodes, what the frozen base answers.

What differs between backbones is in its `Family` (families.py); nothing here asks which one it is.

Shapes: B batch, C latent channels, h w latent size, f = 2^(VAE levels - 1), H = f h, W = f w
pixels. cond: a dict of tensors, batch first, handed through unread; only the family knows its keys.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from personalize.config.kinds import TRAINING_KINDS
from personalize.pipeline.families import Cond, Family
from toy2d.core.schedule import Schedule
from toy2d.runs.files import RunFailure, UserError
from toy2d.runs.folder import hash_tensors

MAX_TOKENS = 256  # what diffusers' SD-3 pipeline lets T5 read; CLIP's own limit is 77


# ---- the open pipeline
@dataclass(eq=False, repr=False)
class Model:
    """A pipeline and what training needs of it."""

    pipeline: DiffusionPipeline
    family: Family
    source: str | None = None  # folder or hub id; None for a model made in memory
    denoiser: nn.Module = field(init=False)
    schedule: Schedule = field(init=False)
    trained: str = field(default="nothing", init=False)  # a word of --train (kinds.py)
    _apart: list[list] = field(default_factory=list, init=False)  # [parameter, its base value]
    _hash: str = field(default="", init=False)

    def __post_init__(self):
        self.denoiser = getattr(self.pipeline, self.family.denoiser)
        self.schedule = self.family.schedule(self.pipeline.scheduler).to(self.device)
        if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            warnings.warn(
                "the VAE overflows in float16 (force_upcast): it computes in float32", stacklevel=3
            )
            self.vae.float()
        for part in self.parts.values():
            part.requires_grad_(False).eval()

    def put_denoiser(self, network: nn.Module) -> None:
        self.denoiser = network
        setattr(self.pipeline, self.family.denoiser, network)

    @property
    def text_encoder_names(self) -> list[str]:
        """Of the text encoders that are there: SD-3 may do without T5."""
        return [n for n in self.family.text_encoders if getattr(self.pipeline, n) is not None]

    @property
    def text_encoders(self) -> list[nn.Module]:
        return [getattr(self.pipeline, name) for name in self.text_encoder_names]

    @property
    def trainable_text_encoders(self) -> list[str]:
        return [n for n in self.text_encoder_names if n not in self.family.optional]

    @property
    def vae(self) -> nn.Module:
        return self.pipeline.vae

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Every network by its name in the pipeline folder, without wrappers."""
        names = (self.family.denoiser, *self.text_encoder_names, "vae")
        return {name: getattr(self.pipeline, name) for name in names}

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the denoiser computes in, here and now: autocast's choice, or that of its own
        weights.
        """
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
        """(C, h, w) of a square picture.

        Raises UserError for one that the denoiser's levels or patches do not fit.
        """
        config, f = self.parts[self.family.denoiser].config, self.latent_scale
        divisor, largest = self.family.fits(config)
        multiple = f * divisor
        if resolution < multiple or resolution % multiple or resolution > f * largest:
            near = max(1, round(min(resolution, f * largest) / multiple)) * multiple
            raise UserError(
                f"resolution {resolution} does not fit this model: it must be a multiple of "
                f"{multiple}"
                f"{f' up to {f * largest}' if resolution > f * largest else ''}, try {near}"
            )
        return config.in_channels, resolution // f, resolution // f

    def to(self, device) -> "Model":
        for part in self.parts.values():
            part.to(device)
        self.schedule = self.schedule.to(device)
        return self

    # ---- the four things a pipeline does
    def lost_text(self, prompt: str) -> str:
        """The end of a prompt that no text encoder will see (CLIP reads 77 tokens, T5 256); empty
        when one sees all.
        """
        ends = []
        for name in self.text_encoder_names:
            tokenizer = getattr(self.pipeline, name.replace("text_encoder", "tokenizer"))
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
            ends.append(tokenizer.decode(ids[min(tokenizer.model_max_length, MAX_TOKENS) - 1 : -1]))
        return min(ends, key=len)

    def encode_prompts(self, prompts: list[str]) -> Cond:
        """The pipeline's own text encoding, one row per prompt; differentiable when the text
        encoder trains.
        """
        with contextlib.ExitStack() as stack:
            for encoder in self.text_encoders:
                stack.enter_context(self._resident(encoder))
            cond = self.family.encode(self.pipeline, list(prompts))
        return {k: v.to(self.device) for k, v in cond.items()}

    def unread(self, part: str) -> list[str]:
        """The modules of a text encoder that no embedding depends on (SDXL reads its first one's
        last layer but one); else empty.

        They would get no gradient: they neither train nor carry adapters.
        """
        if part not in self.text_encoder_names:
            return []
        names, weights = zip(*self.parts[part].named_parameters(), strict=True)
        for w in weights:
            w.requires_grad_(True)
        read = sum(v.float().sum() for v in self.encode_prompts(["a"]).values())
        grads = torch.autograd.grad(read, weights, allow_unused=True)
        for w in weights:
            w.requires_grad_(False)
        return sorted(
            {n.rpartition(".")[0] for n, g in zip(names, grads, strict=True) if g is None}
        )

    @torch.no_grad()
    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B C h w) of the latents of pixels (B 3 H W) in [-1, 1],
        scaled as the denoiser sees them.
        """
        config = self.vae.config
        with self._resident(self.vae), self._without_autocast():
            law = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        self._check_finite(law.mean, "latents")
        mean = law.mean - (config.shift_factor or 0.0)
        return mean.float() * config.scaling_factor, law.std.float() * config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B 3 H W) in [-1, 1] of scaled latents."""
        config = self.vae.config
        z = latents / config.scaling_factor + (config.shift_factor or 0.0)
        with self._resident(self.vae), self._without_autocast():
            pixels = self.vae.decode(z.to(self.device, self.vae.dtype)).sample.float()
        self._check_finite(pixels, "pictures")
        return pixels.clamp(-1, 1)

    def _check_finite(self, made: Tensor, what: str) -> None:
        """Where others draw black."""
        if not torch.isfinite(made).all():
            raise RunFailure(
                f"the VAE's {what} are not finite numbers in "
                f"{str(self.vae.dtype).removeprefix('torch.')}: "
                "its weights overflow there or are damaged; load it in float32, or download "
                "the model again"
            )

    def predict(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The denoiser's output (a `Predict`), computed in its own dtype, returned in x_t's. t as
        in `schedule.timesteps`.

        A backbone that is told the frame of a picture, and was not, is told that x_t shows all of
        it.
        """
        dtype = next(self.denoiser.parameters()).dtype
        if self.family.framed and "frame" not in cond:
            H, W = (self.latent_scale * side for side in x_t.shape[-2:])
            whole = torch.tensor([H, W, 0, 0, H, W], device=x_t.device)
            cond = cond | {"frame": whole.expand(len(x_t), 6)}
        cond = {
            k: v.to(dtype, non_blocking=True) if v.is_floating_point() else v
            for k, v in cond.items()
        }
        return self.family.call(self.denoiser, x_t.to(dtype), t, cond).to(x_t.dtype)

    # ---- the frozen base
    @contextlib.contextmanager
    def base(self) -> Iterator["Model"]:
        """Inside, everything answers as the base model did: adapters off, the few weights that were
        kept apart put back.

        Raises RuntimeError after `choose(train="full")`: those weights are gone; cache the base's
        outputs before training.
        """
        if self.trained in TRAINING_KINDS and not TRAINING_KINDS[self.trained].keeps_base:
            raise RuntimeError(
                "full training overwrites the base: cache its outputs before the first step"
            )
        layers = list(_adapter_layers(self))
        trainable = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
        for layer in layers:
            layer.enable_adapters(False)
        self._swap_base()
        try:
            yield self
        finally:
            self._swap_base()
            for layer in layers:
                layer.enable_adapters(True)
            # PEFT's switch makes adapters trainable, also those that were not
            for p, flag in trainable:
                p.requires_grad_(flag)

    def keep_base(self, weights: list[nn.Parameter]) -> None:
        """Copy `weights` as they are now, for `base`."""
        self._apart += [[p, p.detach().clone()] for p in weights]

    def kept_apart(self, part: str) -> dict[str, nn.Parameter]:
        """Those of a network's own weights that `keep_base` has copied, by name."""
        kept = {id(p) for p, _ in self._apart}
        return {n: p for n, p in self.parts[part].named_parameters() if id(p) in kept}

    def _swap_base(self) -> None:
        for pair in self._apart:
            p, other = pair
            pair[1], p.data = p.data, other.to(p.device)

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
        """16 hex digits of the base's weights (denoiser, text encoders, VAE) as loaded; `choose`
        takes it before anything trains.
        """
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
        """Park a part in the host's memory; a use brings it back for the length of the call."""
        for module in [self.vae] if what == "vae" else self.text_encoders:
            if any(p.requires_grad for p in module.parameters()):
                raise ValueError(f"{what} cannot be unloaded: it trains")
            module.to("cpu")

    @contextlib.contextmanager
    def _resident(self, module: nn.Module):
        parked = next(module.parameters()).device
        if parked == self.device:  # `to` walks every module, also where nothing moves
            yield
            return
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
