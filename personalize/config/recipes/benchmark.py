"""The command `personalize benchmark`, and what it trains each method with.

The published backbones take the paper's presets where there is one, then diffusers'; OFT and SVDiff
have none that fits, and take the rate of --train (kinds.py) with LoRA's steps. The mini's rates
are guesses by ratio to full's and LoRA's, not tuned (lab log, 25 November 2026).
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from personalize.config.commands import Command, below
from personalize.config.recipes.diffusers import Settings, diffusers_textual_inversion
from personalize.config.recipes.paper import (
    paper_sd3_custom_diffusion,
    paper_sd3_lora,
    paper_sd15_custom_diffusion,
    paper_sd15_full,
    paper_sd15_lora,
    paper_sdxl_custom_diffusion,
    paper_sdxl_lora,
)
from personalize.mini.shipped import is_mini

TRAINED = ("full", "lora", "custom_diffusion", "oft", "svdiff", "token")
IP_ADAPTER = "ip_adapter"
METHODS = (*TRAINED, IP_ADAPTER)
NAMES = {  # as the paper's tables write them
    "full": "DreamBooth",
    "lora": "LoRA",
    "custom_diffusion": "Custom Diffusion",
    "oft": "OFT",
    "svdiff": "SVDiff",
    "token": "Textual Inversion",
    IP_ADAPTER: "IP-Adapter",
}
NEW_WORD = "<new1>"
BACKBONES = {"sd15": "SD-1.5", "sdxl": "SDXL", "sd3": "SD-3"}


@dataclass(frozen=True)
class Recipe:
    """Flags of `train`, and the run of each objective that is named without a weight."""

    settings: Settings
    runs: dict[str, str] = field(default_factory=dict)


USUAL = {"standard": "standard", "prior": "prior:1"}
WORD = {"placeholder_token": NEW_WORD}
MINI_RUNS = USUAL | {"l2": "l2:0.1", "output": "output:3", "fisher": "fisher:0.3"}
MINI_RATES = {
    "full": 5e-5,
    "lora": 1e-3,
    "custom_diffusion": 2e-4,
    "oft": 1e-3,
    "svdiff": 1e-2,
    "token": 5e-3,
}


def mini_recipe(method: str) -> Recipe:
    more = WORD if method in ("custom_diffusion", "token") else {}
    return Recipe({"train": method, "learning_rate": MINI_RATES[method], **more}, MINI_RUNS)


def _of(preset: Settings, l2: str) -> Recipe:
    return Recipe(preset, USUAL | {"l2": l2})


def published_recipe(backbone: str, method: str) -> Recipe:
    """Raises KeyError for a method that has none on this backbone."""
    lora = {"sd15": paper_sd15_lora, "sdxl": paper_sdxl_lora, "sd3": paper_sd3_lora}[backbone]()
    trains = {k: v for k, v in lora.items() if k not in ("train", "rank", "lora_alpha")}
    trains = {k: v for k, v in trains.items() if k != "lora_target_modules"}
    weight = {"sd15": "l2:1e-7", "sdxl": "l2:1e-6", "sd3": "l2:15"}[backbone]
    size = {k: lora[k] for k in ("resolution", "mixed_precision") if k in lora}
    word = diffusers_textual_inversion() | size | WORD
    found = {
        "lora": _of(lora, weight),
        "oft": _of(trains | {"train": "oft", "learning_rate": 1e-4}, weight),
        "svdiff": _of(trains | {"train": "svdiff", "learning_rate": 1e-3}, weight),
        "token": _of({k: v for k, v in word.items() if k != "initializer_token"}, weight),
        "custom_diffusion": {
            "sd15": _of(paper_sd15_custom_diffusion(), "l2_tensor_mean:175"),
            "sdxl": _of(paper_sdxl_custom_diffusion(), "l2_tensor_mean:50"),
            "sd3": _of(paper_sd3_custom_diffusion(), "l2_tensor_mean:10.1"),
        }[backbone],
        # the paper has no full training of SDXL and SD-3: the rate and weight of SD-1.5's
        "full": _of(paper_sd15_full() | size, "l2_tensor_mean:500"),
    }
    return found[method]


@dataclass(frozen=True)
class Benchmark(Command):
    """The paper's table in one command: subjects x methods x objectives, trained and scored alike.

    $ personalize benchmark --quick                the mini model, one subject
    $ personalize benchmark                        the mini model, six subjects
    $ personalize benchmark --pretrained_model_name_or_path sd15/ --backbone sd15
        --subjects photos/rex:dog --ip_adapter h94/IP-Adapter/models/ip-adapter_sd15.safetensors

    Columns: DINO, CLIP-I, CLIP-T, seconds as in the paper; gain, path KL; the paper's own numbers
    beside them where method and objective are the same. If it was killed, the same command goes on.
    """

    pretrained_model_name_or_path: str = "mini"  # the base: mini, a pipeline folder or a hub id
    # whose recipe a base other than the mini is trained with: sd15, sdxl or sd3
    backbone: Literal["sd15", "sdxl", "sd3"] | None = None
    # FOLDER:CLASS or FOLDER:CLASS:HELD_OUT; or names of the mini's subjects. Default: six of those
    subjects: tuple[str, ...] = ()
    # full (DreamBooth), lora, custom_diffusion, oft, svdiff, token (Textual Inversion), ip_adapter;
    # default: all, without ip_adapter where none is at hand
    methods: tuple[str, ...] = ()
    # standard, prior, l2, output, fisher; with a weight of your own: l2:0.01
    objectives: tuple[str, ...] = ("standard", "prior", "l2")
    seeds: tuple[int, ...] = (0,)  # of training; the sampling seeds are those of `compare`
    quick: bool = False  # one subject, at most 40 steps, fewer pictures
    max_train_steps: int | None = None  # of every method; default: the recipe's
    resolution: int | None = None  # pixels, for every method; default: the recipe's
    images: int = 4  # for each prompt, from the same seeds for every run
    prompts_each: int = 4  # number of subject, context and unrelated prompts each; 0: all
    # the IP-Adapter, as in `personalize evaluate`; default: the mini's own
    ip_adapter: str | None = None
    ip_adapter_scale: float = 1.0  # what the image prompt counts beside the text; above 0
    clip: str | None = None  # folder or hub id; default: CLIP ViT-B/32, or the mini's own
    dino: str | None = None  # folder or hub id; default: DINO ViT-S/16, or the mini's own
    engine: str = "local"  # local, dask:ADDRESS, ray:ADDRESS or slurm[:PARTITION]
    workers: int | None = None  # runs at a time; default: 1 with a GPU, else one for each core
    output_dir: str = "runs/personalize/benchmark"  # with --quick: NAME-quick
    dry_run: bool = False  # count runs, steps, pictures and passes of the network; train nothing
    json: bool = False  # print the numbers as JSON, for scripts

    def problems(self) -> list[str]:
        wrong = below(self, images=1, prompts_each=0, max_train_steps=1, resolution=1)
        for name in ("methods", "objectives", "seeds", "subjects"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                wrong.append(f"--{name} must be different from each other")
        if unknown := [m for m in self.methods if m not in METHODS]:
            wrong.append(f"--methods {unknown[0]}: choose from {', '.join(METHODS)}")
        if "standard" not in self.objectives:
            wrong.append("--objectives needs standard: the others are compared with it")
        return wrong + self._wrong_base() + self._wrong_adapter()

    def _wrong_base(self) -> list[str]:
        if is_mini(self.pretrained_model_name_or_path):
            return ["--backbone has no effect: the mini has a recipe of its own"] * bool(
                self.backbone
            )
        wrong = [] if self.backbone else ["--backbone: say sd15, sdxl or sd3 for this base"]
        return wrong + ([] if self.subjects else ["--subjects are missing: FOLDER:CLASS"])

    def _wrong_adapter(self) -> list[str]:
        asked = IP_ADAPTER in self.methods
        mini = is_mini(self.pretrained_model_name_or_path)
        wrong = []
        if not 0 < self.ip_adapter_scale < math.inf:
            wrong.append(f"--ip_adapter_scale {self.ip_adapter_scale}: above 0")
        if self.methods and not asked and self.ip_adapter:
            wrong.append("--ip_adapter has no effect: --methods has no ip_adapter")
        if self.ip_adapter_scale != 1.0 and not (asked or (self.ip_adapter and not self.methods)):
            wrong.append("--ip_adapter_scale has no effect without an IP-Adapter")
        if asked and not mini and not self.ip_adapter:
            wrong.append("--methods ip_adapter needs --ip_adapter for this base")
        if self.backbone == "sd3" and (asked or self.ip_adapter):
            wrong.append("ip_adapter is for UNets (sd15, sdxl): leave it out for sd3")
        return wrong
