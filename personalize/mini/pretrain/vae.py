"""The mini base's VAE: diffusers' AutoencoderKL, 64 x 64 pixels to 8 x 16 x 16 latents."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from personalize.mini.pretrain.data import Data

CHANNELS = 8  # of the latents; by PCA of 4 x 4 patches, 4 leave 2.3 times the squares of 8
BATCH = 16  # crops; or a quarter as many whole pictures, which cost the same
CROP = 32  # pixels
WHOLE = 0.5  # share of steps on whole pictures: group normalization sees other statistics in a crop
KL_WEIGHT = 1e-6  # of the sum of a crop's latents


def build() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=16,
        sample_size=64,
        mid_block_add_attention=False,
    )


def pixels(pictures: np.ndarray) -> Tensor:
    """(N, 64, 64, 3) uint8 -> (N, 3, 64, 64) in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw(pictures: np.ndarray, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw n random pictures as pixels, and their indices."""
    index = torch.randint(len(pictures), (n,), generator=rng)
    return pixels(pictures[index.numpy()]), index


def edges(x: Tensor) -> Tensor:
    """Differences of neighbours to the right and below: (B, C, H, W) -> (B, 2C, H-1, W-1)."""
    return torch.cat([x.diff(dim=3)[:, :, 1:], x.diff(dim=2)[..., 1:]], 1)


def crop(x: Tensor, rng: torch.Generator) -> Tensor:
    """Cut one random CROP x CROP window out of all, at a multiple of 4, where a latent begins."""
    top, left = (4 * torch.randint((64 - CROP) // 4 + 1, (2,), generator=rng)).tolist()
    return x[..., top : top + CROP, left : left + CROP]


def terms(world: Data):
    """The VAE's loss: squares of pixels, L1 of pixels and of their edges, a weak KL to N(0, I).

    The squares weigh most: decibels are measured. L1 keeps outlines sharp. Half of each batch are
    other drawings than the world's, so that subjects that training never saw are drawn well too.
    """

    def of(vae: AutoencoderKL, rng: torch.Generator) -> dict[str, Tensor]:
        whole = bool(torch.rand((), generator=rng) < WHOLE)
        n = BATCH // 8 if whole else BATCH // 2
        x = torch.cat([draw(p, n, rng)[0] for p in (world.train, world.instances)])
        if not whole:
            x = crop(x, rng)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample(rng)).sample.float()
        return {
            "pixels": 0.5 * (x - y).abs().mean(),
            "squares": 10 * (x - y).square().mean(),
            "edges": 0.5 * (edges(x) - edges(y)).abs().mean(),
            "kl": KL_WEIGHT * posterior.kl().float().mean() * (CROP / x.shape[-1]) ** 2,
        }

    return of


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: np.ndarray, batch: int = 64) -> Tensor:
    """Posterior means, (N, CHANNELS, 16, 16), not scaled."""
    parts = [
        vae.encode(pixels(pictures[i : i + batch])).latent_dist.mean
        for i in range(0, len(pictures), batch)
    ]
    return torch.cat(parts)


@torch.no_grad()
def standardize(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Make the latents (z - mean) / std, channel by channel; pictures stay the same.

    The 1 x 1 convolutions around the latents take this up, so that SD's one scaling_factor is 1.
    """
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]
    n = len(mean)
    before.weight[:n] /= std[:, None, None, None]
    before.bias[:n] = (before.bias[:n] - mean) / std
    before.bias[n:] -= 2 * std.log()  # log variance
    vae.register_to_config(scaling_factor=1.0)


def moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of (N, C, H, W)."""
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))
