"""What each command of `personalize` is asked: one frozen dataclass a command. Nothing heavy is imported."""

from dataclasses import dataclass
from typing import Literal

import tyro

from personalize.config.rules import OBJECTIVES
from personalize.mini.shipped import WEIGHTS


@dataclass(frozen=True)
class Check:
    """Look at a folder of photos as `train` would, and say everything that is wrong with it. Changes nothing.

    $ personalize check photos/ --resolution 512
    """

    folder: tyro.conf.Positional[str]
    resolution: int | None = None  # pixels: marks pictures that are smaller
    ignore_captions: bool = False  # do not read .txt files


@dataclass(frozen=True)
class Generate:
    """Pictures from a finished run: one row for each prompt, one column for each seed; --base adds the base model's row above.

    $ personalize generate runs/rex --prompt "a photo of sks dog in the snow" "a photo of a dog" --base
    """

    run: tyro.conf.Positional[str]  # the run folder
    prompt: tuple[str, ...]
    base: bool = False  # the base model's pictures too, from the same seeds
    images: int = 4  # for each prompt
    seed: int = 0
    steps: int = 25
    guidance: float = 7.5  # 1: none
    sampler: str = "dpmsolver++"
    negative_prompt: str = ""
    sample_batch_size: int = 4
    resolution: int | None = None  # default: the run's
    out: str | None = None  # a PNG; default: figures/ of the run


@dataclass(frozen=True)
class Evaluate:
    """Scores of a model's pictures, and how far it moved from its base: DINO, CLIP-I, CLIP-T, PRES, DIV, memorization, drift, path KL.

    $ personalize evaluate --model runs/rex --reference photos/ --prompts dreambooth
    $ personalize evaluate --model runs/bench --reference dreambooth/        all of the benchmark's subjects that have a run
    """

    model: str  # run folder, pipeline folder, hub id or mini; a folder of runs for the benchmark
    reference: str  # folder of the subject's pictures, or the benchmark's root
    prompts: str | None = None  # dreambooth, dreambooth-live, dreambooth-object, mini or a file
    class_word: str | None = None  # default: of the run's prompts or the benchmark's folder
    identifier: str | None = None  # e.g. sks; default: from the run's prompts
    base: str | None = None  # what drift is measured from; default: the run's own base
    training: str | None = None  # pictures that may be memorized; default: the run's own
    images: int = 4  # for each prompt, from as many seeds
    seed: int = 0
    steps: int = 25
    guidance: float = 7.5  # 1: none
    sampler: str = "dpmsolver++"
    sample_batch_size: int = 8
    resolution: int | None = None  # default: the run's
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"  # of the pictures
    chains: int = 4  # base chains of path KL for each prompt; 0: none
    clip: str | None = None  # folder or hub id; default: CLIP ViT-B/32, or the mini's own
    dino: str | None = None  # folder or hub id; default: DINO ViT-S/16, or the mini's own
    out: str | None = None  # default: evaluation/ in the model's folder


@dataclass(frozen=True)
class Export:
    """A finished run's weights in the format that another program opens; opened again by its loader, to be sure. LoHa, LoKr, OFT and
    BOFT go as peft or merged: diffusers loads none of them.

    $ personalize export runs/rex --format kohya
    $ personalize export delta.bin --format merged --pretrained_model_name_or_path sd14/     Custom Diffusion's own file
    """

    source: tyro.conf.Positional[str]  # the run folder, or a delta.bin
    format: Literal["diffusers", "kohya", "peft", "custom_diffusion", "token", "merged"]
    out: str | None = None  # a folder; default: export/FORMAT of the run
    pretrained_model_name_or_path: str | None = None  # of a delta.bin: the base it was trained from


@dataclass(frozen=True)
class Bench:
    """Times and memory of the objectives, side by side in one process, as ratios to standard.

    $ personalize bench                                               a random model, minutes on a CPU
    $ personalize bench --model runwayml/stable-diffusion-v1-5        the real thing, on a GPU
    $ personalize bench --memory --width 320 --resolution 512         every preset's peak at full size, on a GPU
    """

    model: str | None = None  # pipeline folder or hub id; default: a random one of --width
    width: int = 32  # of the random model's first level; at 320 it is SD-1.5 (--memory: SDXL, SD-3)
    resolution: int = 256  # pixels
    batch_size: int = 1
    steps: int = 6  # timed for each objective, in three rounds after one that is not
    kinds: tuple[Literal["full", "lora"], ...] = ("full", "lora")  # what trains
    objectives: tuple[str, ...] = OBJECTIVES  # ratios are to the first
    parts: tuple[Literal["steps", "usual", "class_images"], ...] = (
        "steps",
        "usual",
        "class_images",
    )
    mixed_precision: str = "no"
    memory: bool = False  # instead: peak memory and time of every preset, foretold and measured
    presets: tuple[str, ...] = ()  # of --memory; default: all
    out: str | None = None  # a JSON file for the numbers


@dataclass(frozen=True)
class Report:
    """One page: a toy run and a comparison side by side. Self-contained; open it in any browser.

    $ personalize report --toy runs/toy2d/course --full runs/personalize/compare
    """

    toy: str = "runs/toy2d/course"  # a folder of `toy2d course` or `toy2d run`
    full: str = "runs/personalize/compare"  # a folder of `personalize compare`
    out: str | None = None  # an HTML file; default: report.html in the comparison's folder


@dataclass(frozen=True)
class Presets:
    """What --preset of `personalize train` knows: name, what for, source."""


Part = Literal["vae", "clip", "unet", "dino", "classifier"]


PARTS: tuple[Part, ...] = ("vae", "clip", "unet", "dino", "classifier")


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
