"""At width 320 the random networks are the published ones."""

import pytest
import torch

from personalize.pipeline.scaled import NETWORKS
from personalize.pipeline.tiny import tiny

# counted in the published weights: stable-diffusion-v1-5, stable-diffusion-xl-base-1.0, stable-diffusion-3-medium, each with its text encoders
PUBLISHED = {
    "sd15": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sdxl": {"unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    "sd3": {"transformer": 2_028_328_000, "vae": 83_819_683, "text_encoder": 123_650_304, "text_encoder_2": 694_659_840, "text_encoder_3": 4_762_310_656},
}  # fmt: skip


@pytest.mark.parametrize("kind", NETWORKS)
def test_width_320_is_the_published_architecture(kind):
    tokenizer = tiny().tokenizer
    with torch.device("meta"):
        networks = NETWORKS[kind](320, tokenizer)
    counted = {part: sum(p.numel() for p in net.parameters()) for part, net in networks.items()}
    assert counted == PUBLISHED[kind]
