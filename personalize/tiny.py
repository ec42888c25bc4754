"""A pipeline for trying things: Stable Diffusion's real classes, random weights, a vocabulary of common prompt words.

The whole code runs on it offline in seconds. It learns nothing worth looking at; the mini base model is for that.
"""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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
    kind: Literal["sd15"] = "sd15",
    folder: str | Path | None = None,
    prediction: Literal["epsilon", "v_prediction"] = "epsilon",
    seed: int = 0,
) -> StableDiffusionPipeline:
    """StableDiffusionPipeline with 0.9 million random weights: 64 px, f = 8, the scheduler of SD-1.5. Saved in `folder` if given.

    Every word of WORDS is one token; others are spelled in bytes, as CLIP does, so that any caption can be encoded.
    """
    if kind != "sd15":
        raise ValueError(f"tiny knows 'sd15', not {kind!r}")
    tokenizer = _word_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=_tiny_vae(),
            text_encoder=_tiny_text_encoder(tokenizer),
            tokenizer=tokenizer,
            unet=_tiny_unet(),
            scheduler=PNDMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                skip_prk_steps=True,
                steps_offset=1,
                prediction_type=prediction,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    if folder is not None:
        pipeline.save_pretrained(folder)
    return pipeline


def _tiny_unet():
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def _tiny_vae():
    return AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
    )


def _tiny_text_encoder(tokenizer):
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _word_tokenizer() -> CLIPTokenizer:
    """Byte-pair merges learnt on WORDS alone until every word is one token; the same in every process."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _byte_pair_merges(set(WORDS.split()))
    tokens = [*letters, *(c + "</w>" for c in letters), *("".join(pair) for pair in merges)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *dict.fromkeys(tokens)]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def _byte_pair_merges(words: set[str]) -> list[tuple[str, str]]:
    """The commonest neighbours first, ties by spelling (tokenizers' own trainer breaks them by chance)."""
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
