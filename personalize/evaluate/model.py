"""Evaluate a model: draw its pictures, score them, measure how far it moved from its base.

`Evaluation.write` leaves in a folder:

    evaluation.json   headline, drift by group, means with intervals over seeds, evaluators
    pictures.csv      one row a picture
    prompts.csv       one row a prompt
    tuned/ base/      the pictures, kept: evaluating again draws only those that are missing

`evaluate_model` takes models in memory; command.py is the command line around it, and `compare`
calls it too.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from personalize.config.train_config import TrainConfig
from personalize.data.photos import Scan, scan
from personalize.data.prompts import PromptSet
from personalize.drift import measure
from personalize.drift.chains import ChainSampling, make_chains
from personalize.drift.ode_law import ode_kl_of_groups
from personalize.evaluate.judges import Evaluators
from personalize.evaluate.learning import gain_of, predictor
from personalize.evaluate.rows import look_at, score
from personalize.evaluate.summary import INTERVALS, METRICS, prompt_rows, summarise
from personalize.export.model_card import public_name
from personalize.pipeline.model import Model
from personalize.sample.gallery import pictures, weights_hash
from personalize.sample.sampler import USUAL, Sampling
from toy2d.core.drift import Predict
from toy2d.runs.files import UserError, write_csv, write_json
from toy2d.runs.folder import environment

ONE_CHAIN = "chains must be 0 (no path KL) or at least 2: a single one has no standard error"
CONVENTION = (
    "CLIP-T compares with the prompt without its identifier: "
    "'a dog in the snow' for 'a sks dog in the snow'"
)


@dataclass(frozen=True)
class Evaluation:
    """rows: one a picture (pictures.csv); prompts: one a prompt (prompts.csv); summary:
    `summary.summarise`; about: how it was made.
    """

    rows: list[dict]
    prompts: list[dict]
    summary: dict
    about: dict

    @property
    def headline(self) -> dict:
        """dino, clip_i, subject_max, clip_t, pres, div, ...: each {"mean", "low", "high", "n"}
        or None.
        """
        return self.summary["headline"]

    @property
    def drift(self) -> dict:
        """group -> moved_dino, moved_clip, moved_perceptual, clip_t_change (intervals),
        mmd2_dino, path_kl; {} without a base.
        """
        return self.summary["drift"]

    def write(self, folder: Path) -> None:
        write_csv(folder / "pictures.csv", self.rows)
        write_csv(folder / "prompts.csv", self.prompts)
        write_json(
            folder / "evaluation.json", {**self.summary, **self.about, "definitions": METRICS}
        )


@dataclass(frozen=True)
class Plan:
    """What a model is evaluated on, and how its pictures are drawn.

    reference: folder of the subject's pictures. training: those it was trained on (default: the
    same). chains: base chains for each prompt of path KL, at least 2; 0: no path KL (a run's
    metrics.json has it already). subject_seeds: of the subject's prompts, if they are drawn with
    others (more pictures tell more of the subject). ode_points: points of each prompt for KL of the
    deterministic samplers' laws, on ode_nodes nodes; 0: not measured (it is dear). held_out: of
    pictures that did not train, for gain (learning.py).
    Raises UserError for a single chain.
    """

    reference: str | Path
    prompts: PromptSet
    seeds: list[int]
    training: Scan | None = None
    sampling: Sampling = USUAL
    chains: int = 4
    subject_seeds: list[int] = field(default_factory=list)
    ode_points: int = 0
    ode_nodes: int = 100
    held_out: TrainConfig | None = None

    def jobs(self) -> list[tuple[str, str, list[int]]]:
        """(group, prompt, its seeds), each prompt once."""
        own = {"subject": self.subject_seeds or self.seeds}
        return [(group, p, own.get(group, self.seeds)) for group, p in self.prompts.jobs()]

    def __post_init__(self):
        if self.chains == 1:
            raise UserError(ONE_CHAIN)


def evaluate_model(
    model: Model,
    plan: Plan,
    evaluators: Evaluators,
    folder: str | Path,
    base: Model | None = None,
    base_folder: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Draw (or find) the pictures of every prompt and seed, score them, measure drift.

    Nothing but pictures is written. base: the base as a model of its own; not needed where adapters
    can be switched off; without any base there is no drift. base_folder: where the base's pictures
    are kept (default: folder/base); runs of one base may share it, then they are drawn once.
    Raises UserError for pictures that cannot be read, or folders made differently.
    """
    folder, prompts, seeds, sampling = Path(folder), plan.prompts, plan.seeds, plan.sampling
    subject = scan(plan.reference, captions=False)
    trained_on = plan.training or subject
    files = ([r.path for r in s.require()] for s in (subject, trained_on))
    references = look_at(*files, evaluators)
    jobs = [(prompt, seed) for _, prompt, own in plan.jobs() for seed in own]
    of_base = {}
    if base or has_its_base(model):
        kept = Path(base_folder or folder / "base")
        of_base = pictures(base or model, jobs, kept, sampling, base is None, say)
    tuned = pictures(model, jobs, folder / "tuned", sampling, say=say)
    scores = score(plan.jobs(), prompts.plain, tuned, of_base, evaluators, references)
    paths = path_kl(model, base, plan) if of_base and plan.chains else {}
    summary = summarise(scores.rows, references.real_images(), scores.dino, paths)
    for group, kl in (ode_kl(model, base, plan) if of_base and plan.ode_points else {}).items():
        summary["drift"].setdefault(group, {})["ode_kl"] = kl
    if plan.held_out and of_base:
        summary["learning"] = gain_of(model, base, plan.held_out)
    undecided = undefined(model, prompts, len(subject.records), len(seeds), bool(of_base))
    about = {
        "model": public_name(model.source),
        "weights": weights_hash(model),
        "base": (base or model).hash() if of_base else None,
        "reference": _named(subject),
        "training": _named(trained_on),
        **asdict(prompts),
        "prompt_convention": CONVENTION,
        "seeds": seeds,
        "subject_seeds": plan.subject_seeds or seeds,
        "sampling": asdict(sampling),
        "intervals": INTERVALS,
        "evaluators": evaluators.describe(),
        "left_out": evaluators.left_out + undecided,
        "environment": environment(("torch", "diffusers", "transformers", "scipy")),
    }
    return Evaluation(scores.rows, prompt_rows(scores.rows), summary, about)


def _named(pictures: Scan) -> dict:
    """Which pictures, without where they lie."""
    names = [r.path.name for r in pictures.records]
    return {"folder": pictures.folder.name, "pictures": names, "hash": pictures.hash()}


def has_its_base(model: Model) -> bool:
    """Can the base be had by switching adapters off?"""
    if model.trained == "nothing":
        return False
    try:
        with model.base():
            return True
    except RuntimeError:
        return False


def undefined(
    model: Model, prompts: PromptSet, references: int, seeds: int, base: bool
) -> list[str]:
    """What these pictures and prompts cannot give, one sentence each."""
    out = []
    if references == 1:
        out.append("one reference picture: how alike the references are is undefined")
    if seeds == 1:
        out.append("one picture a prompt: diversity and intervals are undefined; raise --images")
    if seeds == 2:
        out.append("two pictures a prompt are one pair: diversity has no interval; raise --images")
    if not base:
        out.append("no base model: nothing is said about drift; name one with --base")
    if cut := [p for _, p in prompts.jobs() if model.lost_text(p)]:
        out.append(
            f"{len(cut)} prompts are longer than the text encoder reads, e.g. {cut[:1]}: "
            "their ends have no effect"
        )
    return out


def predictors(model: Model, base: Model | None) -> tuple[Predict, Predict]:
    """(x_t, t, texts) -> prediction, of the model and of its base."""
    return predictor(model), predictor(base or model, is_base=base is None)


def chain_sampling(model: Model, plan: Plan, chains: int, nodes: int) -> ChainSampling:
    """Chains of the old prompts among the evaluation's own."""
    wanted = ("class", "contexts", "unrelated")
    groups = {g: plan.prompts.groups[g] for g in wanted if plan.prompts.groups.get(g)}
    shape = model.latent_shape(plan.sampling.resolution or model.default_resolution)
    return ChainSampling(groups, shape, chains, nodes, batch_size=plan.sampling.batch_size)


def path_kl(
    model: Model, base: Model | None, plan: Plan, nodes: int = 10
) -> dict[str, tuple[float, float, int]]:
    """group -> (mean, standard error, number of chains) over the evaluation's own prompts.

    Measured as `personalize train` measures it.
    """
    predict, predict_base = predictors(model, base)
    with torch.no_grad(), model.evaluating():
        sampling = chain_sampling(model, plan, plan.chains, nodes)
        made = make_chains(predict_base, model.schedule, sampling)
        return measure.path_drift(predict, made, sampling.batch_size)


def ode_kl(model: Model, base: Model | None, plan: Plan) -> dict[str, dict[str, float]]:
    """group -> KL(base || tuned) of the deterministic samplers' laws: mean, error, ode_error, n."""
    with model.evaluating():
        sampling = chain_sampling(model, plan, plan.ode_points, plan.ode_nodes)
        found = ode_kl_of_groups(*predictors(model, base), model.schedule, sampling)
    return {group: kl._asdict() for group, kl in found.items()}
