"""What a comparison is: objectives and weights x subjects x seeds, all from one base.

Each run is an ordinary `personalize train` run, named as in the toy: "standard", "l2:0.01",
"prior:1+l2:0.01". Nothing heavy is imported here: compare/jobs.py plans what is to be done,
compare/run.py does it.
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

from personalize.config.effects import RULES
from personalize.config.presets import PRESETS as TRAIN_PRESETS
from personalize.config.train_config import TrainConfig
from personalize.mini.shipped import GUIDANCE
from toy2d.runs.files import UserError

# objective as the toy writes it -> (--objective, the flag of its weight, further flags)
OBJECTIVE_FLAGS = {
    "standard": ("standard", None, {}),
    "prior": ("prior", "prior_loss_weight", {}),
    "l2": ("l2", "l2_reg_weight", {}),
    "l2_tensor_mean": ("l2", "l2_reg_weight", {"reg_reduction": "tensor_mean"}),
    "l2_decoupled": ("l2", "l2_reg_weight", {"reg_decoupled": True}),
    "output": ("output", "output_weight", {}),
    "fisher": ("fisher", "fisher_weight", {}),
}
ENGINES = ("local", "dask", "ray", "slurm")
DECIDED = {  # flag of `train` that a comparison sets itself -> flag of `compare` that decides it
    "instance_data_dir": "--subjects",
    "concepts_list": "--subjects",
    "instance_prompt": "--subjects and --identifier",
    "class_prompt": "--subjects",
    "held_out_data_dir": "--subjects (FOLDER:CLASS:HELD_OUT)",
    "class_data_dir": "--output_dir",
    "objective": "--runs",
    "with_prior_preservation": "--runs",
    "prior_loss_weight": "--runs",
    "l2_reg_weight": "--runs",
    "output_weight": "--runs",
    "fisher_weight": "--runs",
    "reg_reduction": "--runs (l2_tensor_mean)",
    "reg_decoupled": "--runs (l2_decoupled)",
    "seed": "--seeds",
    "context_prompts": "--prompts",
    "unrelated_prompts": "--prompts",
    "validation_prompt": "--prompts",
    "resume_from_checkpoint": "nothing: it resumes by itself",
    "dry_run": "`personalize train`",
}


@dataclass(frozen=True)
class ComparePlan:
    """What is compared. Every other flag is one of `personalize train` and holds for all runs."""

    title: ClassVar = "comparison"

    # FOLDER:CLASS, e.g. photos/rex:dog, or FOLDER:CLASS:HELD_OUT with a folder of pictures that do
    # not train but measure what is learnt; or names of the mini's subjects. Default: six of those
    subjects: tuple[str, ...] = ()
    # objectives and weights; an objective's first weight runs on every seed, others: --sweep_seeds
    runs: tuple[str, ...] = ("standard",)
    seeds: tuple[int, ...] = (0, 1, 2)  # each has its own noise, order and class images
    sweep_seeds: int = 1  # number of seeds on which an objective's other weights run
    quick: bool = False  # one subject, one seed, at most 100 steps, fewer pictures
    # to choose weights: try each objective's first weight times 0.03 to 30, on one seed
    tune: bool = False
    identifier: str = "sks"  # the word for the subject
    # dreambooth, mini or a text file; default: the model's own (`personalize evaluate --help`)
    prompts: str | None = None
    prompts_each: int = 4  # number of subject, context and unrelated prompts each; 0: all
    images: int = 4  # pictures for each prompt, from the same seeds for every run
    subject_images: int | None = None  # the same for the subject's prompts; default: --images
    # number of seeds whose runs draw and score pictures; default: all. Others have curves alone
    picture_seeds: int | None = None
    inference_steps: int = 25  # steps of dpmsolver++ for these pictures
    guidance: float = 7.5  # classifier-free guidance of these pictures; 1: none
    # a run has learnt as well as standard if it gained this share of standard's fidelity
    equal_fidelity: float = 0.9
    # column of history.csv that counts as learning, in nats on the held-out pictures
    learning: Literal["gain", "gain/detail", "gain/shape", "gain/identity", "binding"] = "gain"
    clip: str | None = None  # folder or hub id; default: CLIP ViT-B/32, or the mini's own
    dino: str | None = None  # folder or hub id; default: DINO ViT-S/16, or the mini's own
    keep_weights: bool = False  # keep full training's pipelines too; adapters are always kept
    engine: str = "local"  # local, dask:ADDRESS, ray:ADDRESS or slurm[:PARTITION]
    workers: int | None = None  # runs at a time; default: 1 with a GPU, else one for each core
    threads: int = 1  # torch threads of a run; another number may round differently
    json: bool = False  # print the numbers as JSON, for scripts; messages go to stderr


@dataclass(frozen=True, kw_only=True)
class CompareConfig(ComparePlan):
    """Train every objective from one base on the same subjects, and compare all in one table.

    Noise and budget are the same for every objective.

    $ personalize compare               the mini model: 6 subjects x 3 seeds x 5 objectives
    $ personalize compare --quick       1 subject, 1 seed, fewer pictures
    $ personalize compare --pretrained_model_name_or_path sd15/
        --subjects photos/rex:dog photos/tea:teapot --preset paper_sd15_lora
        --runs standard prior:1 l2:1e-3 output:1 fisher:1 --output_dir runs/personalize/sd15

    If it was killed, the same command continues.
    """

    each: TrainConfig  # what all runs share
    # no flag: where several comparisons of one base keep class images and the base's pictures
    shared: str | None = None

    @property
    def of_base(self) -> str:
        """The folder of what is made of the base; comparisons that draw alike share it."""
        e = self.each
        size = f"{e.resolution or 'own'}-{e.mixed_precision}"
        return f"{self.shared}/{size}" if self.shared else e.output_dir


def completed(c: CompareConfig, given: set[str]) -> CompareConfig:
    """`c` with --preset's settings, but for the flags `given` on the command line.

    Raises UserError for another base than the mini whose runs, rate and steps are not given: the
    defaults are the mini's.
    """
    if c.each.preset:
        if c.each.preset not in TRAIN_PRESETS:
            raise UserError(f"--preset {c.each.preset} is none of {', '.join(TRAIN_PRESETS)}")
        settings = TRAIN_PRESETS[c.each.preset]().items()
        mine = {k: v for k, v in settings if k not in given and k not in DECIDED}
        c = replace(c, each=replace(c.each, **mine))
    needed = {"runs", *(() if c.each.preset else ("learning_rate", "max_train_steps"))}
    if "pretrained_model_name_or_path" in given and (missing := sorted(needed - given)):
        remedy = "" if c.each.preset else " (or a --preset: see `personalize presets`)"
        raise UserError(
            "the defaults of compare are the mini model's; for another base say "
            f"--{' --'.join(missing)}{remedy}"
        )
    return c


def quickened(c: CompareConfig) -> CompareConfig:
    """One seed, 100 steps, 8 class images, 2 prompts of each list, 3 pictures, all at most.

    Its folder is NAME-quick.
    """
    few = {"max_train_steps": 100}
    if any(term.startswith(("prior", "output")) for r in c.runs for term in r.split("+")):
        few["num_class_images"] = 8  # elsewhere it would be a flag without effect
    least = {k: min(getattr(c.each, k) or n, n) for k, n in few.items()}
    each = replace(c.each, output_dir=f"{c.each.output_dir}-quick", **least)
    shown = {"prompts_each": min(c.prompts_each or 2, 2), "images": min(c.images, 3)}
    shown["subject_images"] = min(c.subject_images or c.images, 3)
    return replace(c, each=each, seeds=c.seeds[:1], **shown)


FACTORS = (0.03, 0.1, 0.3, 1, 3, 10, 30)


def widened(c: CompareConfig) -> CompareConfig:
    """Every objective's first weight times FACTORS, on one seed. Its folder is NAME-tune."""
    firsts = {objective_name(r): r for r in reversed(c.runs) if ":" in r and "+" not in r}
    parts = [firsts[o].split(":") for o in reversed(firsts)]
    runs = tuple(f"{kind}:{float(w) * f:g}" for kind, w in parts for f in FACTORS)
    each = replace(c.each, output_dir=f"{c.each.output_dir}-tune")
    return replace(c, each=each, runs=("standard", *runs), seeds=c.seeds[:1])


def each_run(c: CompareConfig) -> list[tuple[str, tuple[int, ...]]]:
    """(run, its seeds). Raises UserError for values that make no comparison."""
    problems = [f"--{name} is decided by {by}" for name, by in DECIDED.items() if _given(c, name)]
    for name in ("images", "inference_steps", "threads", "sweep_seeds"):
        if getattr(c, name) < 1:
            problems.append(f"--{name} {getattr(c, name)}: at least 1")
    if c.subject_images is not None and c.subject_images < 1:
        problems.append(f"--subject_images {c.subject_images}: at least 1")
    if c.picture_seeds is not None and c.picture_seeds < 0:
        problems.append(f"--picture_seeds {c.picture_seeds}: at least 0, no pictures")
    engine, _, address = c.engine.partition(":")
    if engine not in ENGINES or (engine == "local" and address):
        problems.append(f"--engine {c.engine}: use local, dask:ADDRESS, ray:ADDRESS or slurm")
    if not 0 < c.equal_fidelity <= 1:
        problems.append(f"--equal_fidelity {c.equal_fidelity} must be above 0 and at most 1")
    if "standard" not in c.runs:
        problems.append("--runs needs standard: the others are compared with it")
    for name in ("runs", "seeds"):
        if len(set(getattr(c, name))) != len(getattr(c, name)) or not getattr(c, name):
            problems.append(f"--{name} must be different from each other, and at least one")
    if problems:
        raise UserError("; ".join(problems))
    first = {objective_name(r): r for r in reversed(c.runs)}
    return [(r, c.seeds if r in first.values() else c.seeds[: c.sweep_seeds]) for r in c.runs]


def objective_name(run: str) -> str:
    """ "prior:1+l2:0.01" -> "prior+l2"."""
    return "+".join(term.partition(":")[0] for term in run.split("+"))


def _given(c: CompareConfig, name: str) -> bool:
    default = {f.name: f.default for f in fields(TrainConfig)}[name]
    return getattr(c.each, name) not in (default, "")


def without_idle_flags(config: TrainConfig) -> TrainConfig:
    """`config` with flags that have no effect on this run back at their defaults.

    All runs of a comparison share their flags, but class images, say, mean nothing to l2.
    """
    default = {f.name: f.default for f in fields(TrainConfig)}
    idle = {r.field: default[r.field] for r in RULES if not r.when(config)}
    return replace(config, **idle)


# ---- presets
def mini_compare() -> CompareConfig:
    """The offline mini model: every run records gain and path KL every 6 steps.

    Learning rate and steps: where standard's gain on the polar bear peaks. Weights: from single
    runs on the striped cat, which is not compared (lab log, 25 November 2026); prior:1 is
    DreamBooth's.
    """
    return CompareConfig(
        each=TrainConfig(
            pretrained_model_name_or_path="mini",
            instance_data_dir="",
            train="full",
            learning_rate=5e-5,
            max_train_steps=48,
            train_batch_size=2,
            center_crop=True,
            num_class_images=16,
            class_steps=12,
            class_guidance=GUIDANCE,
            sample_batch_size=32,
            fisher_samples=32,
            checkpointing_steps=24,
            log_every=6,
            probe_steps=6,
            path_kl_steps=6,
            gain_samples=48,
            measure_chains=2,
            nodes_per_chain=3,  # 1.1 to 1.3 times the error of all 9, a third of the cost
            output_dir="runs/personalize/compare",
        ),
        runs=(
            "standard",
            *("prior:1", "prior:0.1"),
            *("l2:0.1", "l2:0.01"),
            *("output:3", "output:0.3"),
            *("fisher:0.3", "fisher:0.03"),
        ),
        prompts_each=2,
        images=3,
        picture_seeds=1,
        inference_steps=12,
        guidance=GUIDANCE,
    )
