"""Pipelines for trying things: the real classes of SD-1.5, SDXL and SD-3, random weights, a
vocabulary of common prompt words.

The whole code runs on it offline in seconds. It learns nothing worth looking at; the mini base
model is for that.
"""

from collections import Counter
from itertools import pairwise
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
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WORDS = """
a an the of in on at with and near under by wearing holding photo picture drawing painting close up good nice cool
sks zwx new my one this that is it red blue green yellow purple pink white black brown shiny wet small big old
dog cat fox panda bear bird horse cow pig sheep rabbit mouse lion tiger monkey frog fish duck owl wolf elephant
toy vase backpack bowl can candle clock boot teapot stuffed animal plushie sneaker sunglasses sloth monster person man woman
beach snow jungle forest street city desert mountain sea sky night farm room kitchen garden field river park house road grass
wooden floor cobblestone rug autumn leaves eiffel tower water tree trees background top dirt hat santa scarf
rainbow wheat cube shaped bad blurry low quality high detailed style art
"""


def tiny(
    kind: Literal["sd15", "sdxl", "sd3"] = "sd15",
    folder: str | Path | None = None,
    prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    seed: int = 0,
) -> DiffusionPipeline:
    """The kind's pipeline with a million random weights: 64 px, f = 8, its own scheduler and text
    encoders. Saved in `folder` if given.

    Every word of WORDS is one token; CLIP spells others in bytes, as it does, so that any caption
    can be encoded; T5 reads "unknown".
    """
    if kind not in BUILD:
        raise ValueError(f"tiny knows {', '.join(BUILD)}, not {kind!r}")
    if kind == "sd3" and prediction != "epsilon":
        raise ValueError("tiny('sd3') predicts the flow: leave prediction out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = BUILD[kind](word_tokenizer(set(WORDS.split())), prediction)
    if folder is not None:
        pipeline.save_pretrained(folder)
    return pipeline


def _sd15(tokenizer, prediction):
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(tokenizer, CLIPTextModel),
        tokenizer=tokenizer,
        unet=_unet(),
        scheduler=PNDMScheduler(
            **BETAS, skip_prk_steps=True, steps_offset=1, prediction_type=prediction
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(tokenizer, prediction):
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(tokenizer, CLIPTextModel),
        text_encoder_2=_clip(tokenizer, CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        tokenizer_2=word_tokenizer(set(WORDS.split())),
        unet=_unet(
            cross_attention_dim=64,  # both encoders' side by side
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,  # frame and pooled text
        ),
        scheduler=EulerDiscreteScheduler(
            **BETAS, timestep_spacing="leading", steps_offset=1, prediction_type=prediction
        ),
    )


def _sd3(tokenizer, prediction):
    return StableDiffusion3Pipeline(
        vae=_vae(
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=_clip(tokenizer, CLIPTextModelWithProjection),
        text_encoder_2=_clip(tokenizer, CLIPTextModelWithProjection),
        text_encoder_3=_t5(),
        tokenizer=tokenizer,
        tokenizer_2=word_tokenizer(set(WORDS.split())),
        tokenizer_3=_t5_tokenizer(),
        transformer=SD3Transformer2DModel(
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
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


BUILD = {"sd15": _sd15, "sdxl": _sdxl, "sd3": _sd3}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _unet(**more):
    return UNet2DConditionModel(
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


def _vae(**more):
    return AutoencoderKL(
        **{
            "block_out_channels": (8, 8, 16, 16),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "latent_channels": 4,
            "sample_size": 64,
        }
        | more
    )


def _clip(tokenizer, kind):
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            projection_dim=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _t5():
    size = len(_t5_tokenizer())
    return T5EncoderModel(
        T5Config(vocab_size=size, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4)
    )


def _t5_tokenizer() -> T5Tokenizer:
    """One piece per word of WORDS; everything else is unknown."""
    words = [("\u2581" + w, -1.0) for w in sorted(set(WORDS.split()))]
    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=marks + words, extra_ids=0, model_max_length=512)


def word_tokenizer(words: set[str], length: int = 77) -> CLIPTokenizer:
    """Byte-pair merges learnt on the words alone until every one is one token; the same in every
    process. Prompts of `length` tokens.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _byte_pair_merges(words)
    tokens = [*letters, *(c + "</w>" for c in letters), *("".join(pair) for pair in merges)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *dict.fromkeys(tokens)]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def _byte_pair_merges(words: set[str]) -> list[tuple[str, str]]:
    """The commonest neighbours first, ties by spelling (tokenizers' own trainer breaks them by
    chance).
    """
    split = [[*w[:-1], w[-1] + "</w>"] for w in words]
    merges = []
    while counts := Counter(pair for w in split for pair in pairwise(w)):
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        split = [_merged(w, best) for w in split]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out
