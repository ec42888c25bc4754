"""The mini base's UNet.

It is trained on cached latents by STANDARD, the objective that all others are compared with.
"""

import random

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from personalize.mini.pretrain.clip import tokenizer
from personalize.mini.pretrain.data import Data
from personalize.mini.pretrain.vae import CHANNELS
from personalize.mini.pretrain.world import Content, caption
from personalize.pipeline.families import from_diffusers
from toy2d.core.objectives import STANDARD, Example

BATCH = 48
DROPPED = 0.1  # share of empty captions, for guidance
SNR_GAMMA = 5.0


def build() -> UNet2DConditionModel:
    """Attention at 8 x 8 and 4 x 4 only; 5.6 million weights."""
    network = UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,  # heads, as in SD-1.5
        norm_num_groups=16,
    )
    # on a CPU the backward pass of torch's fused attention is slow in bfloat16: a third of a step
    network.set_attn_processor(AttnProcessor())
    return network


def scheduler() -> DDIMScheduler:
    """DDPM's linear betas: alpha_bar_T = 4e-5, and every weight of the path KL is finite."""
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class Prompts:
    """The text tower's last hidden states of each caption, computed once per caption."""

    def __init__(self, text_encoder):
        self.encoder, self.words, self.known = text_encoder, tokenizer(), {}

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> Tensor:
        if new := sorted(set(captions) - self.known.keys()):
            tokens = self.words(new, padding="max_length", return_tensors="pt").input_ids
            self.known |= dict(zip(new, self.encoder(tokens)[0], strict=True))
        return torch.stack([self.known[c] for c in captions])


def terms(world: Data, latents: Tensor, text_encoder):
    """The loss of the noise that the UNet predicts, with min-SNR weights (Hang et al. 2023).

    Args:
        latents: (N, CHANNELS, 16, 16), of world.train, standardized.
    """
    schedule, prompts = from_diffusers(scheduler()), Prompts(text_encoder)
    weights = schedule.min_snr_weights(SNR_GAMMA)

    def captioned(content: Content, dice: random.Random) -> str:
        return "" if dice.random() < DROPPED else caption(content, dice)

    def of(network: UNet2DConditionModel, rng: torch.Generator) -> dict[str, Tensor]:
        index = torch.randint(len(latents), (BATCH,), generator=rng)
        dice = random.Random(int(torch.randint(2**31, (), generator=rng)))
        cond = prompts([captioned(world.train_contents[i], dice) for i in index])
        t = torch.randint(len(schedule.alpha_bar), (BATCH,), generator=rng)
        eps = torch.randn(BATCH, *latents.shape[1:], generator=rng)

        def predict(x_t, steps, cond):
            return network(x_t, steps, cond).sample

        return STANDARD.terms(
            predict, schedule, {"instance": Example(latents[index], t, eps, cond)}, weights=weights
        )

    return of
