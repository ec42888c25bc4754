"""The command line: personalize train | presets | check | generate | evaluate | export | compare | report | bench. Faults of the user: one line, exit 2; of the machine: one line, exit 1."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from personalize.compare import CompareConfig, completed, mini_compare
from personalize.config import TrainConfig
from personalize.flags import given_flags, split_negations, with_preset
from personalize.mini.plan import Pretrain
from personalize.presets import PRESETS
from personalize.rules import OBJECTIVES, explain_foreign_flags
from toy2d.files import RunFailure, UserError


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


MINI = mini_compare()


def compare_command(config: tyro.conf.OmitArgPrefixes[CompareConfig] = MINI) -> CompareConfig:
    """Its help is CompareConfig's, its defaults the mini's."""
    return config


compare_command.__doc__ = CompareConfig.__doc__


@dataclass(frozen=True)
class Presets:
    """What --preset of `personalize train` knows: name, what for, source."""


COMMANDS = {
    "train": TrainConfig,
    "presets": Presets,
    "check": Check,
    "generate": Generate,
    "evaluate": Evaluate,
    "export": Export,
    "compare": compare_command,
    "report": Report,
    "pretrain": Pretrain,
    "bench": Bench,
}


def in_short(command) -> Callable[[], None]:
    """What `personalize --help` lists of a command: its first sentence. Never called: without a command there is nothing to parse."""

    def listed() -> None: ...

    listed.__doc__ = command.__doc__.split("\n\n")[0]
    return listed


IN_SHORT = {name: in_short(command) for name, command in COMMANDS.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        kept, notes = explain_foreign_flags(list(sys.argv[1:] if arguments is None else arguments))
        kept, switched_off = split_negations(kept)
        asked = tyro.extras.subcommand_cli_from_dict(
            COMMANDS if set(kept[:1]) & set(COMMANDS) else IN_SHORT,
            prog="personalize",
            description="Personalize Stable Diffusion with your photos, and measure what that does to the rest.",
            args=kept,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        for note in notes:
            print(f"note: {note}")
        if isinstance(asked, CompareConfig):
            asked = completed(asked, given_flags(kept) | switched_off)
        if isinstance(asked, TrainConfig):
            asked = with_preset(asked, given_flags(kept) | switched_off)
        act(asked)
    except UserError as e:
        return _end(e, 2)
    except RunFailure as e:  # a signal that was obeyed ends as the shell expects
        return _end(e, 128 + e.number if hasattr(e, "number") else 1)
    except KeyboardInterrupt:
        return _end("interrupted; the same command goes on from the newest checkpoint", 130)
    return 0


def _end(reason, code: int) -> int:
    print(f"personalize: {' '.join(str(reason).split())}", file=sys.stderr)
    return code


def quiet_libraries() -> None:
    """Their warnings are about their own optional parts, and to each other about versions to come; ours are errors."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def act(asked) -> None:
    """Heavy imports happen here, so that --help and a wrong flag answer at once."""
    if isinstance(asked, Check):
        check(asked)
        return
    if isinstance(asked, Presets):
        print_presets()
        return
    if isinstance(asked, Report):
        from personalize.report import write

        print(f"report: {write(asked.toy, asked.full, asked.out)}")
        return
    quiet_libraries()
    if isinstance(asked, Generate):
        from personalize.pictures import pictures_of_run

        print(pictures_of_run(asked))
    elif isinstance(asked, Evaluate):
        from personalize.evaluate_run import evaluate

        evaluate(asked)
    elif isinstance(asked, Export):
        from personalize.export_run import export_run

        export_run(asked)
    elif isinstance(asked, CompareConfig):
        from personalize.comparison import run as compare
        from personalize.comparison import show

        show(compare(asked))
    elif isinstance(asked, Pretrain):
        from personalize.mini.pretrain import pretrain

        pretrain(asked)
    elif isinstance(asked, Bench):
        from personalize.bench import bench

        bench(asked)
    elif asked.dry_run:
        from personalize.dryrun import dry_run

        dry_run(asked)
    else:
        from personalize.experiment import run

        run(asked)


def print_presets() -> None:
    for name, settings in PRESETS.items():
        print(f"{name}\n    {' '.join(settings.__doc__.split())}")


def check(asked: Check) -> None:
    from personalize.photos import print_scan, scan

    found = scan(asked.folder, asked.resolution, not asked.ignore_captions)
    print_scan(found)
    if found.problems:
        raise UserError(f"{asked.folder}: {len(found.problems)} problem(s), listed above")


if __name__ == "__main__":
    sys.exit(main())
