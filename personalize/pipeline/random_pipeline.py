"""Pipelines with random weights: the real classes of SD-1.5, SDXL and SD-3, nothing to download.

    tiny(kind)                      a million weights, 64 px: the whole code runs on it in seconds
    random_pipeline(kind, width)    the published architecture at any width: what a step costs

At width 320 the networks are exactly those of stable-diffusion-v1-5, stable-diffusion-xl-base-1.0
and stable-diffusion-3-medium (their config.json files). Heads and layers stay as many, so a smaller
one has the same shape of cost. The tokenizers know a few hundred words (tokenizer.py).
"""

from functools import partial
from pathlib import Path
from typing import Literal

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from personalize.pipeline.tokenizer import WORDS, t5_tokenizer, word_tokenizer

Kind = Literal["sd15", "sdxl", "sd3"]
KINDS: tuple[Kind, ...] = ("sd15", "sdxl", "sd3")
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD3_VAE = {
    "latent_channels": 16,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def tiny(
    kind: Kind = "sd15",
    folder: str | Path | None = None,
    prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    seed: int = 0,
) -> DiffusionPipeline:
    """The kind's pipeline with a million random weights: 64 px, f = 8. Saved in `folder` if given.

    Every word of WORDS is one token; CLIP spells others in bytes, as it does, so that any caption
    can be encoded; T5 reads "unknown". It learns nothing worth looking at: the mini base does.
    """
    if kind not in KINDS:
        raise ValueError(f"tiny knows {', '.join(KINDS)}, not {kind!r}")
    if kind == "sd3" and prediction != "epsilon":
        raise ValueError("tiny('sd3') predicts the flow: leave prediction out")
    pipeline = _assembled(kind, TINY[kind], prediction, seed)
    if folder is not None:
        pipeline.save_pretrained(folder)
    return pipeline


def random_pipeline(
    kind: Kind = "sd15", width: int = 320, seed: int = 0, device: str = "cpu"
) -> DiffusionPipeline:
    """`width`: of the UNet's first level in SD-1.5; all others follow in proportion.

    `device`: where the weights are drawn: seconds on a GPU, minutes for SD-3 on a CPU.
    """
    networks = partial(PUBLISHED[kind], width)
    return _assembled(kind, networks, "epsilon", seed, device)


def _assembled(
    kind: Kind, networks, prediction: str, seed: int, device: str = "cpu"
) -> DiffusionPipeline:
    """The pipeline around `networks(tokenizer)`, whose weights are drawn from `seed`."""
    tokenizer = word_tokenizer(set(WORDS.split()))
    gpus = range(torch.cuda.device_count()) if device != "cpu" else ()
    with torch.random.fork_rng(gpus), torch.device(device):
        torch.manual_seed(seed)
        parts = networks(tokenizer)
    if kind == "sd15":
        scheduler = PNDMScheduler(
            **BETAS, skip_prk_steps=True, steps_offset=1, prediction_type=prediction
        )
        return StableDiffusionPipeline(
            **parts,
            tokenizer=tokenizer,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    second = {"tokenizer": tokenizer, "tokenizer_2": word_tokenizer(set(WORDS.split()))}
    if kind == "sdxl":
        scheduler = EulerDiscreteScheduler(
            **BETAS, timestep_spacing="leading", steps_offset=1, prediction_type=prediction
        )
        return StableDiffusionXLPipeline(**parts, **second, scheduler=scheduler)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return StableDiffusion3Pipeline(
        **parts, **second, tokenizer_3=t5_tokenizer(), scheduler=scheduler
    )


# ---- networks of any size; in both tables below the denoiser is made last
def _unet(**config) -> UNet2DConditionModel:
    return UNet2DConditionModel(**config)


def _vae(first: int, layers: int, groups: int, **more) -> AutoencoderKL:
    """Four levels, so f = 8; `first`: channels of the first."""
    return AutoencoderKL(
        block_out_channels=(first, *(first * n for n in more.pop("levels", (2, 4, 4)))),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=layers,
        norm_num_groups=groups,
        **{"latent_channels": 4} | more,
    )


def _clip(
    network: type, tokenizer: CLIPTokenizer, size: int, heads: int, layers: int, **more
) -> nn.Module:
    """`size`: features of a token, and of the projection."""
    config = {
        "vocab_size": 49408,
        "hidden_size": size,
        "intermediate_size": 4 * size,
        "projection_dim": size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return network(CLIPTextConfig(**config | more))


# ---- tiny
def _tiny_unet(**more) -> UNet2DConditionModel:
    return _unet(
        **{
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "layers_per_block": 1,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
        }
        | more
    )


def _tiny_vae(**more) -> AutoencoderKL:
    return _vae(8, 1, 4, levels=(1, 2, 2), sample_size=64, **more)


def _tiny_clip(network: type, tokenizer: CLIPTokenizer) -> nn.Module:
    size = {"intermediate_size": 64, "vocab_size": len(tokenizer)}
    return _clip(network, tokenizer, 32, heads=4, layers=2, **size)


def _tiny_sd15(tokenizer) -> dict[str, nn.Module]:
    return {
        "vae": _tiny_vae(),
        "text_encoder": _tiny_clip(CLIPTextModel, tokenizer),
        "unet": _tiny_unet(),
    }


def _tiny_sdxl(tokenizer) -> dict[str, nn.Module]:
    return {
        "vae": _tiny_vae(),
        "text_encoder": _tiny_clip(CLIPTextModel, tokenizer),
        "text_encoder_2": _tiny_clip(CLIPTextModelWithProjection, tokenizer),
        "unet": _tiny_unet(
            cross_attention_dim=64,  # both encoders' side by side
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,  # frame and pooled text
        ),
    }


def _tiny_sd3(tokenizer) -> dict[str, nn.Module]:
    t5 = {"vocab_size": len(t5_tokenizer()), "d_model": 64, "d_kv": 16, "d_ff": 64}
    return {
        "vae": _tiny_vae(**SD3_VAE),
        "text_encoder": _tiny_clip(CLIPTextModelWithProjection, tokenizer),
        "text_encoder_2": _tiny_clip(CLIPTextModelWithProjection, tokenizer),
        "text_encoder_3": T5EncoderModel(T5Config(**t5, num_layers=2, num_heads=4)),
        "transformer": SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            num_attention_heads=4,
            attention_head_dim=8,
            joint_attention_dim=64,  # T5's width; the two CLIPs' side by side are as wide
            caption_projection_dim=32,
            pooled_projection_dim=64,
            pos_embed_max_size=16,
        ),
    }


TINY = {"sd15": _tiny_sd15, "sdxl": _tiny_sdxl, "sd3": _tiny_sd3}


# ---- the published architectures at any width
def _head(width: int) -> int:
    """Features of one attention head of a text encoder: 64 at 320."""
    return max(1, round(width / 5))


def _groups(channels: int) -> int:
    return 32 if channels % 32 == 0 else 8


def _published_vae(width: int, **more) -> AutoencoderKL:
    first = 8 * max(1, round(width / 20))  # 128 channels at 320
    return _vae(first, 2, _groups(first), **more)


def _clip_l(network: type, width: int, tokenizer) -> nn.Module:
    """OpenAI's ViT-L/14: 768 wide at 320, 12 heads of 64."""
    return _clip(network, tokenizer, 12 * _head(width), 12, 12, hidden_act="quick_gelu")


def _clip_big_g(width: int, tokenizer) -> nn.Module:
    """OpenCLIP's ViT-bigG/14: 1280 wide at 320, 20 heads of 64."""
    network = CLIPTextModelWithProjection
    return _clip(network, tokenizer, 20 * _head(width), 20, 32, hidden_act="gelu")


def _sd15(width: int, tokenizer) -> dict[str, nn.Module]:
    return {
        "vae": _published_vae(width, sample_size=512, scaling_factor=0.18215),
        "text_encoder": _clip_l(CLIPTextModel, width, tokenizer),
        "unet": _unet(
            sample_size=64,
            block_out_channels=(width, 2 * width, 4 * width, 4 * width),
            cross_attention_dim=12 * _head(width),
            attention_head_dim=8,
            norm_num_groups=_groups(width),
        ),
    }


def _sdxl(width: int, tokenizer) -> dict[str, nn.Module]:
    pooled = 20 * _head(width)
    return {
        "vae": _published_vae(width, sample_size=1024, scaling_factor=0.13025),
        "text_encoder": _clip_l(CLIPTextModel, width, tokenizer),
        "text_encoder_2": _clip_big_g(width, tokenizer),
        "unet": _unet(
            sample_size=128,
            block_out_channels=(width, 2 * width, 4 * width),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=12 * _head(width) + pooled,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=6 * 256 + pooled,  # frame and pooled text
            norm_num_groups=_groups(width),
        ),
    }


def _sd3(width: int, tokenizer) -> dict[str, nn.Module]:
    head = _head(width)
    t5_xxl = {"vocab_size": 32128, "d_model": 64 * head, "d_kv": head, "d_ff": 64 * head * 5 // 2}
    return {
        "vae": _published_vae(width, sample_size=1024, **SD3_VAE),
        "text_encoder": _clip_l(CLIPTextModelWithProjection, width, tokenizer),
        "text_encoder_2": _clip_big_g(width, tokenizer),
        "text_encoder_3": T5EncoderModel(
            T5Config(**t5_xxl, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
        ),
        "transformer": SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=24,
            num_attention_heads=24,
            attention_head_dim=head,
            joint_attention_dim=64 * head,
            caption_projection_dim=24 * head,
            pooled_projection_dim=32 * head,  # both CLIPs'
            pos_embed_max_size=192,
        ),
    }


PUBLISHED = {"sd15": _sd15, "sdxl": _sdxl, "sd3": _sd3}
