"""The real architectures with every width scaled and random weights: what a step costs, with
nothing to download.

Sizes are those in the config.json files of stable-diffusion-v1-5, stable-diffusion-xl-base-1.0 and
stable-diffusion-3-medium; at width 320 they are exactly those networks. Heads and layers stay as
many, so that a smaller one has the same shape of cost. Only the vocabulary is tiny's: its
tokenizers know a few hundred words, the embedding tables have all their rows.
"""

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SD3Transformer2DModel, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from personalize.pipeline.tiny import tiny

CLIP_L = {"heads": 12, "layers": 12, "act": "quick_gelu"}  # 768 wide at 320: 12 heads of 64
CLIP_BIG_G = {"heads": 20, "layers": 32, "act": "gelu"}  # 1280
T5_XXL = {"heads": 64, "layers": 24}  # 4096


def random_pipeline(kind: str = "sd15", width: int = 320, seed: int = 0) -> DiffusionPipeline:
    """`kind`: sd15, sdxl or sd3.

    `width`: of the UNet's first level in SD-1.5; all others follow in proportion.
    """
    pipeline = tiny(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part, network in NETWORKS[kind](width, pipeline.tokenizer).items():
            pipeline.register_modules(**{part: network})
    return pipeline


def _sd15(width: int, tokenizer) -> dict:
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        cross_attention_dim=12 * _head(width),
        attention_head_dim=8,
        norm_num_groups=_groups(width),
    )
    vae = _vae(width, latent_channels=4, sample_size=512, scaling_factor=0.18215)
    return {
        "unet": unet,
        "vae": vae,
        "text_encoder": _clip(CLIPTextModel, width, tokenizer, **CLIP_L),
    }


def _sdxl(width: int, tokenizer) -> dict:
    pooled = 20 * _head(width)
    unet = UNet2DConditionModel(
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
    )
    return {
        "unet": unet,
        "vae": _vae(width, latent_channels=4, sample_size=1024, scaling_factor=0.13025),
        "text_encoder": _clip(CLIPTextModel, width, tokenizer, **CLIP_L),
        "text_encoder_2": _clip(CLIPTextModelWithProjection, width, tokenizer, **CLIP_BIG_G),
    }


def _sd3(width: int, tokenizer) -> dict:
    head = _head(width)
    transformer = SD3Transformer2DModel(
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
    )
    vae = _vae(
        width,
        latent_channels=16,
        sample_size=1024,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return {
        "transformer": transformer,
        "vae": vae,
        "text_encoder": _clip(CLIPTextModelWithProjection, width, tokenizer, **CLIP_L),
        "text_encoder_2": _clip(CLIPTextModelWithProjection, width, tokenizer, **CLIP_BIG_G),
        "text_encoder_3": _t5(width, **T5_XXL),
    }


NETWORKS = {"sd15": _sd15, "sdxl": _sdxl, "sd3": _sd3}


def _head(width: int) -> int:
    """Features of one attention head of a text encoder: 64 at 320."""
    return max(1, round(width / 5))


def _vae(width: int, **more) -> AutoencoderKL:
    first = 8 * max(1, round(width / 20))  # 128 channels at 320
    return AutoencoderKL(
        block_out_channels=(first, 2 * first, 4 * first, 4 * first),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=_groups(first),
        **more,
    )


def _clip(network: type, width: int, tokenizer, heads: int, layers: int, act: str):
    size = heads * _head(width)
    return network(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=size,
            intermediate_size=4 * size,
            projection_dim=size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act=act,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _t5(width: int, heads: int, layers: int) -> T5EncoderModel:
    head = _head(width)
    return T5EncoderModel(
        T5Config(
            vocab_size=32128,
            d_model=heads * head,
            d_kv=head,
            d_ff=heads * head * 5 // 2,
            num_layers=layers,
            num_heads=heads,
            feed_forward_proj="gated-gelu",
        )
    )


def _groups(channels: int) -> int:
    return 32 if channels % 32 == 0 else 8
