"""What differs between backbones: a `Family` is names, a few small functions, and the field's
habits. The next one is another value.

The pipeline's own classes do all the work; every number (betas, shift, prediction type, lengths) is
read from its configuration files.

    family   denoiser                 text                                  predicts
    SD15     UNet                     one CLIP                              eps or v
    SDXL     UNet                     two CLIPs, the second's pooled too    eps or v
    SD3      multimodal transformer   two CLIPs, both pooled too, and T5    flow

SDXL is told the frame too: original size, crop corner, target size.
Shapes: B batch, L tokens, E their size; x_t is B C h w.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor, nn

from toy2d.core.schedule import Schedule
from toy2d.runs.files import UserError

Cond = dict[str, Tensor]  # batch first; only the family knows its keys
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}  # diffusers' word -> ours


def as_many(uncond: Cond, cond: Cond) -> Cond:
    """One row of `uncond` for each of `cond`: what guidance goes away from."""
    return {k: uncond[k].expand_as(v) for k, v in cond.items()}


@dataclass(frozen=True)
class Family:
    """What differs between backbones.

    `encode(pipeline, prompts) -> cond`; `call(denoiser, x_t, t, cond) -> its output`;
    `unconditional(uncond of one row, cond) -> uncond of as many rows as cond`.
    """

    name: str
    pipeline_class: type[DiffusionPipeline]
    denoiser: str  # the pipeline's attribute
    text_encoders: tuple[str, ...]
    encode: Callable[[DiffusionPipeline, list[str]], Cond]
    call: Callable[[nn.Module, Tensor, Tensor, Cond], Tensor]
    schedule: Callable[[Any], Schedule]  # of the pipeline's scheduler
    fits: Callable[[Any], tuple[int, float]]  # denoiser's config -> (divisor, largest) of h and w
    lora_targets: tuple[str, ...]  # diffusers' own choice, so that other tools know these keys
    text_lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    peft_keys: tuple[str, ...] = ()  # networks whose LoRA files keep PEFT's names
    optional: tuple[str, ...] = ()  # text encoders that a pipeline may do without; they never train
    framed: bool = False  # cond has "frame" (B 6): original h w, crop top left, target h w
    weighting: str = "none"  # of timesteps, as the base was trained (timesteps.py)
    load_options: dict[str, Any] = field(default_factory=dict)
    # where text becomes keys and values, and the rest of those layers: what Custom Diffusion trains
    cross_attention: tuple[str, ...] = ("attn2.to_k", "attn2.to_v")
    cross_attention_rest: tuple[str, ...] = ("attn2.to_q", "attn2.to_out.0")
    kohya: dict[str, str] = field(default_factory=dict)  # part -> prefix of kohya's LoRA keys
    embeddings: dict[str, str] = field(
        default_factory=dict
    )  # part -> key in a file of learnt words
    unconditional: Callable[[Cond, Cond], Cond] = as_many


# ---- text -> cond, and cond -> the denoiser's answer
def _encode_sd(pipeline, prompts):
    device = pipeline.text_encoder.device
    return {"encoder_hidden_states": pipeline.encode_prompt(prompts, device, 1, False)[0]}


def _call_sd(denoiser, x_t, t, cond):
    return denoiser(x_t, t, encoder_hidden_states=cond["encoder_hidden_states"]).sample


def _encode_sdxl(pipeline, prompts):
    """The empty prompt is zeros where the configuration says so: SDXL's own unconditional."""
    device = pipeline.text_encoder.device
    hidden, _, pooled, _ = pipeline.encode_prompt(
        prompts, device=device, do_classifier_free_guidance=False
    )
    if pipeline.config.force_zeros_for_empty_prompt:
        said = torch.tensor([p != "" for p in prompts], device=device)
        hidden, pooled = hidden * said[:, None, None], pooled * said[:, None]
    return {"encoder_hidden_states": hidden, "pooled": pooled}


def _call_sdxl(denoiser, x_t, t, cond):
    added = {"text_embeds": cond["pooled"], "time_ids": cond["frame"]}
    hidden = cond["encoder_hidden_states"]
    return denoiser(x_t, t, encoder_hidden_states=hidden, added_cond_kwargs=added).sample


def _encode_sd3(pipeline, prompts):
    """Without T5 the pipeline itself puts zeros in its place."""
    hidden, _, pooled, _ = pipeline.encode_prompt(
        prompts, None, None, pipeline.text_encoder.device, do_classifier_free_guidance=False
    )
    return {"encoder_hidden_states": hidden, "pooled": pooled}


def _call_sd3(denoiser, x_t, t, cond):
    return denoiser(x_t, cond["encoder_hidden_states"], cond["pooled"], t).sample


# ---- the scheduler's configuration -> Schedule
def from_diffusers(scheduler) -> Schedule:
    """The schedule that a diffusers scheduler was configured with: its own alphas_cumprod and
    prediction type.

    Raises UserError for what the objectives cannot use, naming it: another prediction type, or zero
    terminal SNR.
    """
    word = scheduler.config.get("prediction_type", "epsilon")
    if word not in PREDICTIONS or not hasattr(scheduler, "alphas_cumprod"):
        raise UserError(
            f"the model predicts {word!r} under a {type(scheduler).__name__}; personalize "
            f"knows {', '.join(PREDICTIONS)} "
            "with a table alphas_cumprod: choose another base model"
        )
    try:
        return Schedule(scheduler.alphas_cumprod.double(), PREDICTIONS[word])
    except ValueError as e:
        raise UserError(f"the model's noise schedule cannot be used: {e}") from e


def from_flow_matching(scheduler) -> Schedule:
    """The table s_t of a FlowMatchEulerDiscreteScheduler, shifted as its configuration says, and
    the timesteps the network knows.

    Its last node is pure noise (s = 1, alpha_bar = 0), where a step of the ancestral chain would be
    0/0: there beta is clipped at .999 (Nichol & Dhariwal 2021), which moves s by 1e-5. Raises
    UserError for a shift that depends on the resolution.
    """
    c = scheduler.config
    if "shift" not in c or c.get("use_dynamic_shifting") or c.get("shift_terminal"):
        raise UserError(
            f"the model's {type(scheduler).__name__} has no fixed shift; SD-3 needs a "
            "FlowMatchEulerDiscreteScheduler: "
            "choose another base model"
        )
    u = torch.arange(1, c.num_train_timesteps + 1, dtype=torch.float64) / c.num_train_timesteps
    s = c.shift * u / (1 + (c.shift - 1) * u)
    ratio = s[-2] / (1 - s[-2])  # of noise to signal, at the last node but one
    ab = 0.001 / (1 + ratio**2)
    clipped = torch.cat([s[:-1], (1 / (1 + (ab / (1 - ab)).sqrt()))[None]])
    return Schedule.from_flow(clipped, (s * c.num_train_timesteps).float())


# ---- what must divide the latent's sides, and their largest size
def _unet_fits(config):
    return 2 ** (len(config.block_out_channels) - 1), math.inf


def _transformer_fits(config):
    return config.patch_size, config.pos_embed_max_size * config.patch_size


# ---- the three
SD15 = Family(
    name="sd15",  # SD-1.x and SD-2.x: they differ in numbers that the configuration files hold
    pipeline_class=StableDiffusionPipeline,
    denoiser="unet",
    text_encoders=("text_encoder",),
    encode=_encode_sd,
    call=_call_sd,
    schedule=from_diffusers,
    fits=_unet_fits,
    lora_targets=("to_k", "to_q", "to_v", "to_out.0"),
    load_options={"safety_checker": None, "requires_safety_checker": False},
    kohya={"unet": "lora_unet", "text_encoder": "lora_te"},
)
SDXL = Family(
    name="sdxl",
    pipeline_class=StableDiffusionXLPipeline,
    denoiser="unet",
    text_encoders=("text_encoder", "text_encoder_2"),
    encode=_encode_sdxl,
    call=_call_sdxl,
    schedule=from_diffusers,
    fits=_unet_fits,
    lora_targets=("to_k", "to_q", "to_v", "to_out.0"),
    framed=True,
    kohya={"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    embeddings={"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
)
SD3 = Family(
    name="sd3",  # and SD-3.5
    pipeline_class=StableDiffusion3Pipeline,
    denoiser="transformer",
    text_encoders=("text_encoder", "text_encoder_2", "text_encoder_3"),
    encode=_encode_sd3,
    call=_call_sd3,
    schedule=from_flow_matching,
    fits=_transformer_fits,
    lora_targets=(
        *("attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0"),
        *("attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out"),
    ),
    peft_keys=("transformer",),
    optional=("text_encoder_3",),
    weighting="logit_normal",
    cross_attention=("attn.add_k_proj", "attn.add_v_proj"),
    cross_attention_rest=("attn.add_q_proj", "attn.to_add_out"),
    embeddings={"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
)
FAMILIES = {f.pipeline_class.__name__: f for f in (SD15, SDXL, SD3)}
