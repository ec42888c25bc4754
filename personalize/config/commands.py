"""The commands of `personalize`: one frozen dataclass each, with help texts.

Nothing heavy is imported.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from personalize.config.kinds import TRAINING_KINDS
from personalize.config.rules import OBJECTIVES
from personalize.mini.shipped import WEIGHTS
from toy2d.runs.files import readable

SD15_WEIGHTS = 1_066_000_000  # denoiser, VAE and text encoder of SD-1.5


def below(command, **least: float) -> list[str]:
    """The flags whose number is not finite or is below the least that makes sense."""
    values = {name: getattr(command, name) for name in least}
    return [
        f"--{name} {value}: at least {least[name]}"
        for name, value in values.items()
        if value is not None and not least[name] <= value < math.inf
    ]


def no_folders(command, *names: str) -> list[str]:
    """The flags whose value is given and is no folder here."""
    values = {name: getattr(command, name) for name in names}
    return [
        f"--{name} {value} is not a folder; pass the folder that holds the pictures"
        for name, value in values.items()
        if value and not Path(value).expanduser().is_dir()
    ]


def memory_here() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Command:
    """A command's flags. Comments above or beside a field are its help text."""

    def problems(self) -> list[str]:
        """What is wrong with the flags, in the user's words: asked before anything heavy is
        imported.
        """
        return []


@dataclass(frozen=True)
class Check(Command):
    """Look at a folder of photos as `train` would, and list everything that is wrong with it.

    Changes nothing.

    $ personalize check photos/ --resolution 512

    Exit code 0: all pictures can be used; 2: some cannot.
    """

    folder: tyro.conf.Positional[str]  # the folder of photos
    resolution: int | None = None  # pixels: marks pictures that are smaller
    ignore_captions: bool = False  # do not read .txt files
    json: bool = False  # print the result as JSON, for scripts

    def problems(self) -> list[str]:
        return below(self, resolution=1)


@dataclass(frozen=True)
class Generate(Command):
    """Draw pictures from a finished run: one row for each prompt, one column for each seed.

    $ personalize generate runs/rex --prompt "a photo of sks dog" "a photo of a dog" --base
    """

    run: tyro.conf.Positional[str]  # the run folder
    prompt: tuple[str, ...]  # what to draw, one row each
    base: bool = False  # the base model's pictures too, from the same seeds, in a row above
    images: int = 4  # pictures for each prompt
    seed: int = 0  # seed of the first picture; the others follow from it
    steps: int = 25  # steps of the sampler
    # classifier-free guidance; 1: none; default: the base's own (7.5; the mini's is 1.25)
    guidance: float | None = None
    sampler: str = "dpmsolver++"  # dpmsolver++, unipc, ddim, euler or pndm
    negative_prompt: str = ""  # what the pictures are guided away from
    sample_batch_size: int = 4  # pictures drawn at once
    resolution: int | None = None  # pixels; default: the run's
    out: str | None = None  # a PNG file; default: figures/ of the run

    def problems(self) -> list[str]:
        wrong = below(self, images=1, steps=1, guidance=1, sample_batch_size=1, resolution=1)
        if not Path(self.run, "config.json").expanduser().is_file():
            wrong.append(f"{self.run} is no run folder: config.json is not there")
        return wrong


@dataclass(frozen=True)
class Evaluate(Command):
    """Score a model's pictures and measure its drift from the base.

    $ personalize evaluate --model runs/rex --reference photos/ --prompts dreambooth
    $ personalize evaluate --model runs/bench --reference dreambooth/
    $ personalize evaluate --model mini --ip_adapter mini --reference photos/ --class_word dog

    Scores: DINO, CLIP, PRES, DIV, memorization, drift of pictures and path KL, defined in
    lectures/09_evaluation.md. The second form scores all subjects of the DreamBooth benchmark that
    have a run in runs/bench. The third trains
    nothing: the subject's pictures are an image prompt.
    """

    model: str  # run folder, pipeline folder, hub id or mini; for the benchmark a folder of runs
    reference: str  # folder of the subject's pictures, or the benchmark's folder
    # dreambooth, dreambooth-live, dreambooth-object, mini or a file with one prompt a line
    prompts: str | None = None
    class_word: str | None = None  # default: from the run's prompts or the benchmark's folder
    identifier: str | None = None  # e.g. sks; default: from the run's prompts
    base: str | None = None  # drift is measured from this model; default: the run's base
    training: str | None = None  # pictures to test for memorization; default: those of the run
    images: int = 4  # pictures for each prompt, each from its own seed
    seed: int = 0  # seed of the first picture; the others follow from it
    steps: int = 25  # steps of the sampler
    # classifier-free guidance; 1: none; default: the base's own (7.5; the mini's is 1.25)
    guidance: float | None = None
    sampler: str = "dpmsolver++"  # dpmsolver++, unipc, ddim, euler or pndm
    sample_batch_size: int = 8  # pictures drawn at once
    resolution: int | None = None  # pixels; default: the run's
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"  # precision in which pictures are drawn
    chains: int = 4  # sampling chains of the base for path KL, for each prompt; 0: no path KL
    # points of each prompt (at least 2) to measure KL(base || tuned) of the deterministic samplers'
    # laws by likelihoods; 0: do not. A point costs hundreds of passes through the network
    ode_points: int = 0
    ode_nodes: int = 100  # timesteps of that ODE; with too few its stated error is large
    clip: str | None = None  # folder or hub id; default: CLIP ViT-B/32, or the mini's own
    dino: str | None = None  # folder or hub id; default: DINO ViT-S/16, or the mini's own
    # an IP-Adapter for the base named by --model: mini, a folder or its *.safetensors, or one of
    # the hub, OWNER/REPO/SUBFOLDER/x.safetensors. Prompts with the identifier are asked with the
    # pictures of --training (default: --reference) and without the identifier; others as text
    ip_adapter: str | None = None
    ip_adapter_scale: float = 1.0  # weight of the image prompt beside the text; above 0
    # folder of pictures of the subject that did not train: measures gain on them, in nats
    held_out_data_dir: str | None = None
    gain_samples: int = 64  # noisy versions of those pictures, under each prompt
    out: str | None = None  # a folder; default: evaluation/ in the model's folder
    json: bool = False  # print the result as JSON, for scripts

    def problems(self) -> list[str]:
        least = {"images": 1, "steps": 1, "guidance": 1, "sample_batch_size": 1, "resolution": 1}
        least |= {"chains": 0, "ode_points": 0, "ode_nodes": 7, "gain_samples": 1}
        wrong = below(self, **least) + _wrong_image_prompt(self)
        if self.ode_points == 1:
            wrong.append("--ode_points 1: one point has no standard error; use at least 2, or 0")
        if not self.ode_points and self.ode_nodes != Evaluate.ode_nodes:
            wrong.append("--ode_nodes has no effect without --ode_points")
        if self.chains == 1:
            wrong.append(
                "--chains 1: one chain has no standard error; use at least 2, or 0 for none"
            )
        return wrong + no_folders(self, "reference", "training", "held_out_data_dir")


def _wrong_image_prompt(c: Evaluate) -> list[str]:
    wrong = []
    if not 0 < c.ip_adapter_scale < math.inf:
        wrong.append(f"--ip_adapter_scale {c.ip_adapter_scale}: above 0 (0 would be the base)")
    if c.ip_adapter is None and c.ip_adapter_scale != Evaluate.ip_adapter_scale:
        wrong.append("--ip_adapter_scale has no effect without --ip_adapter")
    if c.ip_adapter is not None and c.base:
        wrong.append("--base has no effect with --ip_adapter: --model is the base itself")
    if c.held_out_data_dir is None and c.gain_samples != Evaluate.gain_samples:
        wrong.append("--gain_samples has no effect without --held_out_data_dir")
    return wrong


@dataclass(frozen=True)
class Export(Command):
    """Write a finished run's weights in another program's format, and open them again to be sure.

    $ personalize export runs/rex --format kohya
    $ personalize export delta.bin --format merged --pretrained_model_name_or_path sd14/

    The second form reads Custom Diffusion's own file. diffusers loads no LoHa, LoKr, OFT or BOFT:
    those go as peft or merged.
    """

    source: tyro.conf.Positional[str]  # the run folder, or a delta.bin
    # the program that shall open it: see the table in personalize/export/formats.py
    format: Literal["diffusers", "kohya", "peft", "custom_diffusion", "token", "svdiff", "merged"]
    out: str | None = None  # a folder; default: export/FORMAT of the run
    pretrained_model_name_or_path: str | None = None  # for a delta.bin: the base it belongs to

    def problems(self) -> list[str]:
        return [*_wrong_format(self), *_wrong_base(self)]


def _wrong_format(c: Export) -> list[str]:
    """The format against the kind of training that the run's config.json names."""
    try:
        trained = json.loads(Path(c.source, "config.json").expanduser().read_text())["train"]
        kind = TRAINING_KINDS[trained]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []  # the export itself says what is wrong with the folder
    if c.format in kind.formats:
        return []
    fit = " or ".join(kind.formats)
    return [f"--format {c.format} cannot hold --train {trained}: {kind.hint}; use {fit}"]


def _wrong_base(c: Export) -> list[str]:
    source, base = Path(c.source).expanduser(), c.pretrained_model_name_or_path
    if source.is_dir() and base:
        return ["--pretrained_model_name_or_path has no effect: a run names its own base"]
    if source.is_file() and not base:
        return [f"{source} needs --pretrained_model_name_or_path: the base it was trained from"]
    return [] if source.exists() else [f"{source} is neither a run folder nor a file"]


@dataclass(frozen=True)
class Bench(Command):
    """Time and memory of the objectives, side by side in one process, as ratios to standard.

    $ personalize bench                                        a random model, minutes on a CPU
    $ personalize bench --model runwayml/stable-diffusion-v1-5      the published model, on a GPU
    $ personalize bench --memory --width 320 --resolution 512       every preset's peak, on a GPU
    $ personalize bench --peer train_dreambooth_lora.py             diffusers' script against ours
    """

    model: str | None = None  # pipeline folder or hub id; default: a random one of --width
    # of the random model's first level; 320 is SD-1.5 (with --memory also SDXL, SD-3)
    width: int = 32
    resolution: int = 256  # side of the pictures, in pixels
    batch_size: int = 1  # pictures of a minibatch
    steps: int = 6  # timed for each objective, in three rounds after one that is not timed
    kinds: tuple[Literal["full", "lora"], ...] = ("full", "lora")  # kinds of training
    objectives: tuple[str, ...] = OBJECTIVES  # ratios are to the first
    # what to time: our steps, the usual script's loop, making class images
    parts: tuple[Literal["steps", "usual", "class_images"], ...] = (
        "steps",
        "usual",
        "class_images",
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"  # precision of the computation
    # instead: peak memory and time of every preset, predicted and measured
    memory: bool = False
    presets: tuple[str, ...] = ()  # the presets of --memory; default: all
    # instead: this script (diffusers' train_dreambooth.py or _lora.py) against ours, whole
    # processes
    peer: str | None = None
    photos: str | None = None  # folder of pictures for --peer; default: five JPEGs made here
    peer_steps: tuple[int, int] = (20, 100)  # two lengths; their difference is the time of steps
    peer_rounds: int = 3  # runs of each length; medians are shown
    out: str | None = None  # a JSON file for the numbers

    def problems(self) -> list[str]:
        wrong = below(self, width=8, resolution=8, batch_size=1, steps=1, peer_rounds=1)
        return wrong or [*too_wide(self), *_wrong_peer(self)]


def _wrong_peer(c: Bench) -> list[str]:
    usual = Bench()
    if c.peer is None:
        flags = ("photos", "peer_steps", "peer_rounds")
        given = [n for n in flags if getattr(c, n) != getattr(usual, n)]
        return [f"--{n} has no effect without --peer" for n in given]
    wrong = ["--peer and --memory are two measurements; choose one"] if c.memory else []
    if not Path(c.peer).expanduser().is_file():
        wrong.append(f"--peer {c.peer} is no file: it is a training script, such as diffusers'")
    wrong += no_folders(c, "photos")
    if not 0 < c.peer_steps[0] < c.peer_steps[1]:
        wrong.append(f"--peer_steps {c.peer_steps[0]} {c.peer_steps[1]}: two lengths, short first")
    return wrong


def too_wide(c: Bench) -> list[str]:
    """Weights of a random model of this width against the machine's memory, in float32."""
    need = 4 * SD15_WEIGHTS * (c.width / 320) ** 2
    if c.model or need < memory_here():
        return []
    return [
        f"--width {c.width} needs about {readable(need)} for the weights alone; "
        f"this machine has {readable(memory_here())}"
    ]


@dataclass(frozen=True)
class Validate(Command):
    """Ask which measure of learning agrees with the pictures: rank correlations over all runs.

    $ personalize validate --full runs/personalize/compare
    $ personalize validate --full runs/12-steps runs/48-steps runs/120-steps

    Needs comparisons with held-out pictures, and runs that differ: in objective, weight, steps.
    Comparisons of several --max_train_steps are also read as curves of what pictures show
    (subject_seen) against drift. Writes validation.json beside the first one's metrics.
    """

    # folders of `personalize compare`, of one base; runs of one subject are ranked together
    full: tuple[str, ...] = ("runs/personalize/compare",)


@dataclass(frozen=True)
class Report(Command):
    """One page of a toy run and a comparison side by side. Self-contained: open it in any browser.

    $ personalize report --toy runs/toy2d/course --full runs/personalize/compare
    """

    toy: str = "runs/toy2d/course"  # a folder of `toy2d course` or `toy2d run`
    full: str = "runs/personalize/compare"  # a folder of `personalize compare`
    out: str | None = None  # an HTML file; default: report.html in the comparison's folder


@dataclass(frozen=True)
class Presets(Command):
    """List the presets of `personalize train --preset`: name, purpose, source."""


Part = Literal["vae", "clip", "unet", "dino", "classifier", "subject_judge", "ip_adapter"]


# the base and its judges
PARTS: tuple[Part, ...] = ("vae", "clip", "unet", "dino", "classifier", "subject_judge")
JUDGES: tuple[Part, ...] = ("dino", "classifier", "subject_judge")  # networks that score pictures
ADAPTER: Part = "ip_adapter"


@dataclass(frozen=True)
class Pretrain(Command):
    """Train the mini base model from openly licensed drawings.

    Hours on two cores; it continues where it stopped.

    $ personalize pretrain                     all parts, then the folders that `mini` names
    $ personalize pretrain --parts unet        only this one; those it needs must be trained
    $ personalize pretrain --parts unet --start personalize/mini/weights
    $ personalize pretrain --parts subject_judge --start personalize/mini/weights --anew
    $ personalize pretrain --parts ip_adapter --start personalize/mini/weights --anew

    The third form trains the published UNet further and publishes it again; the last two make a
    judge or an IP-Adapter anew and leave all other weights as they are. npm fetches the drawings
    once.
    """

    parts: tuple[Part, ...] = (*PARTS, ADAPTER)  # what to train
    out: str = "runs/pretrain"  # folder of checkpoints, losses and data
    artwork: str = "runs/pretrain/artwork"  # folder of the npm packages; fetched if absent
    weights: str = str(WEIGHTS)  # folder for the fp16 weights, once all parts are trained
    pictures: int = 2000  # number of generated pictures that measure the model; 0: none
    # published weights: --parts start from them, the other parts are taken from there as they are
    start: str | None = None
    anew: bool = False  # with --start: --parts start from random weights all the same
    steps: int | None = None  # steps of each of --parts; default: as planned (PLAN)
    seed: int = 0  # of data, weights and noise
    # of the VAE and the UNet; auto: bf16 where the CPU multiplies it (AMX, AVX-512)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int = 0  # torch's threads; 0: its default

    def problems(self) -> list[str]:
        if self.anew and not self.start:
            return [
                "--anew without --start: all parts start from random weights already; leave it out"
            ]
        return []
