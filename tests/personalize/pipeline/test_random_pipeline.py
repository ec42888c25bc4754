"""At width 320 the random networks are the published ones."""

import pytest
import torch

from personalize.pipeline.random_pipeline import PUBLISHED, tiny

# weights of stable-diffusion-v1-5, stable-diffusion-xl-base-1.0 and stable-diffusion-3-medium
VAE, CLIP_L, BIG_G = 83_653_863, 123_060_480, 694_659_840
COUNTED = {
    "sd15": {"unet": 859_520_964, "vae": VAE, "text_encoder": CLIP_L},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": VAE,
        "text_encoder": CLIP_L,
        "text_encoder_2": BIG_G,
    },
    "sd3": {
        "transformer": 2_028_328_000,
        "vae": 83_819_683,
        "text_encoder": 123_650_304,
        "text_encoder_2": BIG_G,
        "text_encoder_3": 4_762_310_656,
    },
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_width_320_is_the_published_architecture(kind):
    tokenizer = tiny().tokenizer
    with torch.device("meta"):
        networks = PUBLISHED[kind](320, tokenizer)
    counted = {part: sum(p.numel() for p in net.parameters()) for part, net in networks.items()}
    assert counted == COUNTED[kind]
