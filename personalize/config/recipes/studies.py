"""The command `personalize study`, and the arms that its two studies train.

The settings are those of the DreamBooth report that this course starts from (regimes.py), with one
setting changed at a time where the report changed several. The mini takes them scaled: SCALE, RATE.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import tyro

from personalize.config.commands import Command, below
from personalize.config.compare_config import ENGINES
from personalize.config.recipes.diffusers import Settings
from personalize.config.recipes.regimes import (
    balanced,
    face,
    face_first_look,
    monster_toy,
    overfit,
    underfit,
)
from personalize.mini.shipped import is_mini

# On the mini: the report's steps (and warmup, class images) are divided by SCALE, its rates times
# RATE. So balanced has 80 steps at 3e-5: rate x steps are those at which standard's gain peaks (48
# at 5e-5, lab log, 25 November 2026). With 20 and 50 overfit drew no animal in two of
# four runs (lab log, 26 November 2026).
SCALE, RATE = 10.0, 30.0
FACE, TOY = 0, 1  # places in --subjects
# what depends on the size of the network, or what a study decides itself
NOT_OF_THE_MINI = ("resolution", "mixed_precision", "gradient_checkpointing", "train_batch_size")
NOT_OF_THE_MINI += ("gradient_accumulation_steps",)
DECIDED = ("objective", "prior_loss_weight", "seed", "checkpointing_steps")


class Arm(NamedTuple):
    """One way to train, in the report's numbers.

    `role`: the place of its subject in --subjects; None: every subject. `after`: the arm from whose
    last checkpoint it goes on.
    """

    name: str
    settings: Settings
    role: int | None = None
    after: str | None = None

    @property
    def run(self) -> str:
        """As `compare` writes it: "standard", "prior:0.6"."""
        weight = self.settings.get("prior_loss_weight")
        return "standard" if self.settings["objective"] == "standard" else f"prior:{weight:g}"


def regimes() -> tuple[Arm, ...]:
    """The report's three regimes (4.1.1), and the balanced one with one setting changed."""
    usual = balanced()
    return (
        Arm("overfit", overfit()),
        Arm("balanced", usual),
        Arm("underfit", underfit()),
        Arm("frozen-text", usual | {"train_text_encoder": False}),
        Arm("no-class-images", {**usual, "objective": "standard"}),
        Arm("fast", usual | {"learning_rate": overfit()["learning_rate"]}),
    )


def face_and_toy() -> tuple[Arm, ...]:
    """The report's face (5) and monster toy (6), resumed to 1,200 steps.

    toy-1200-weight-1 is the control that the report lacks: as many steps, the weight unchanged.
    """
    first = monster_toy() | {"prior_loss_weight": 1.0}
    return (
        Arm("face-300", face_first_look(), FACE),
        Arm("face-1200", face(), FACE, "face-300"),
        Arm("toy-600", first | {"max_train_steps": 600}, TOY),
        Arm("toy-1200-weight-1", first, TOY, "toy-600"),
        Arm("toy-1200-weight-0.5", monster_toy(), TOY, "toy-600"),
    )


STUDIES = {"regimes": regimes, "face_and_toy": face_and_toy}
MINI_SUBJECTS = {
    "regimes": ("polar_bear", "black_cat"),
    "face_and_toy": ("polar_bear", "black_cat"),
}


def scaled(settings: Settings, scale: float, rate: float, mini: bool) -> Settings:
    """Flags of `train`: steps, warmup and class images divided by `scale` (at least 1), the
    learning rate multiplied by `rate`. The mini takes two pictures a step in all arms.
    """
    found = {k: v for k, v in settings.items() if k not in DECIDED}
    if mini:
        found = {k: v for k, v in found.items() if k not in NOT_OF_THE_MINI}
    for name in ("max_train_steps", "lr_warmup_steps", "num_class_images"):
        if name in found:
            found[name] = max(1, round(found[name] / scale))
    return found | {"learning_rate": found["learning_rate"] * rate}


@dataclass(frozen=True)
class Study(Command):
    """Train what the DreamBooth report trained, and ask whether its conclusions hold here.

    $ personalize study regimes               overfit, balanced, underfit, and what makes the
        difference: the text encoder, the class images or the learning rate
    $ personalize study face_and_toy          300 steps resumed to 1,200 on a face; on a toy 600,
        resumed with and without a smaller prior weight
    $ personalize study regimes --dry_run     count runs, steps and pictures first
    $ personalize study regimes --pretrained_model_name_or_path sd15/ --subjects photos/rex:dog

    The page report.html has identity, adherence, diversity, stability, memorization, gain and path
    KL of every arm, and a verdict on each conclusion: it holds here, it does not, or these runs do
    not decide. If it was killed, the same command goes on.
    """

    name: tyro.conf.Positional[Literal["regimes", "face_and_toy"]]  # which of the two studies
    pretrained_model_name_or_path: str = "mini"  # the base: mini, a pipeline folder or a hub id
    # FOLDER:CLASS or FOLDER:CLASS:HELD_OUT; or names of the mini's subjects. face_and_toy takes
    # two, the face first. Default: the mini's polar_bear (a face) and black_cat (a purple figure)
    subjects: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)  # of training
    # the report's steps, warmup and class images are divided by this; default: 10 for the mini,
    # 1 for another base
    scale: float | None = None
    # its learning rates are multiplied by this; default: 30 for the mini, 1 for another base
    rate: float | None = None
    resolution: int | None = None  # pixels, for every arm; default: the report's, or the mini's own
    images: int = 4  # pictures for each prompt of the subject, from the same seeds in every arm
    prompts_each: int = 2  # number of subject, context and unrelated prompts each; 0: all
    clip: str | None = None  # folder or hub id; default: CLIP ViT-B/32, or the mini's own
    dino: str | None = None  # folder or hub id; default: DINO ViT-S/16, or the mini's own
    engine: str = "local"  # local, dask:ADDRESS, ray:ADDRESS or slurm[:PARTITION]
    workers: int | None = None  # runs at a time; default: 1 with a GPU, else one for each core
    output_dir: str = "runs/personalize/study"  # the study's name is added: study/regimes
    dry_run: bool = False  # count runs, steps, pictures and passes of the network; train nothing
    json: bool = False  # print the numbers as JSON, for scripts

    @property
    def mini(self) -> bool:
        return is_mini(self.pretrained_model_name_or_path)

    @property
    def scales(self) -> tuple[float, float]:
        """(of steps, of learning rates)."""
        usual = (SCALE, RATE) if self.mini else (1.0, 1.0)
        return self.scale or usual[0], self.rate or usual[1]

    def problems(self) -> list[str]:
        wrong = below(self, images=2, prompts_each=0, resolution=1)
        for name in ("scale", "rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                wrong.append(f"--{name} {value}: above 0")
        for name in ("seeds", "subjects"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                wrong.append(f"--{name} must be different from each other")
        engine, _, address = self.engine.partition(":")
        if engine not in ENGINES or (engine == "local" and address):
            wrong.append(f"--engine {self.engine}: use local, dask:ADDRESS, ray:ADDRESS or slurm")
        if not self.seeds:
            wrong.append("--seeds: at least one")
        if not self.mini and not self.subjects:
            wrong.append("--subjects are missing: FOLDER:CLASS")
        if self.name == "face_and_toy" and len(self.subjects) not in (0, 2):
            wrong.append(f"--subjects: face_and_toy takes two, and {len(self.subjects)} are given")
        return wrong
