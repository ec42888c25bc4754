"""What `personalize pretrain` is asked, and how long each part trains. Light: the command line's help reads it."""

from dataclasses import dataclass
from typing import Literal

from personalize.mini import WEIGHTS

Part = Literal["vae", "clip", "unet", "dino", "classifier"]
PARTS: tuple[Part, ...] = ("vae", "clip", "unet", "dino", "classifier")
# steps and peak learning rate
PLAN = {
    "vae": (7000, 2e-3),
    "clip": (1200, 1e-3),
    "unet": (4800, 1e-3),
    "dino": (800, 1e-3),
    "classifier": (1200, 2e-3),
}


@dataclass(frozen=True)
class Pretrain:
    """Train the mini base model from openly licensed drawings (fetched once by npm). Hours on two cores; continues where it stopped.

    $ personalize pretrain                          all parts, then the folders that --pretrained_model_name_or_path mini opens
    $ personalize pretrain --parts unet             only this one; those it needs must be trained
    $ personalize pretrain --parts unet --start personalize/mini/weights      train the published UNet further, publish it again
    """

    parts: tuple[Part, ...] = PARTS
    out: str = "runs/pretrain"  # checkpoints, losses and data
    artwork: str = "runs/pretrain/artwork"  # the npm packages, fetched if absent
    weights: str = str(WEIGHTS)  # where the fp16 folders go once all parts are trained
    pictures: int = 2000  # generated to measure the model; 0: none
    # published weights: --parts begin with them (warm-up anew), all others are taken from there as they are
    start: str | None = None
    steps: int | None = None  # of each of --parts; default: the plan's
    seed: int = 0
    threads: int = 0  # 0: torch's default
