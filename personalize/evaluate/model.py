"""Pictures of a model, their scores, and how far the model moved from its base. What `Evaluation.write` leaves in a folder:

    evaluation.json   headline, drift by group, means with intervals over seeds, evaluators, preprocessing, convention
    pictures.csv      one row a picture            prompts.csv   one row a prompt            tuned/ base/   the pictures, kept

`evaluate_model` takes models in memory; the command line around it is evaluate_run.py, and `compare` calls it too.
Evaluating again draws only the pictures that are missing.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from personalize.config.train_config import TrainConfig
from personalize.data.latents import Prompts
from personalize.data.photos import Scan, scan
from personalize.data.prompts import PromptSet
from personalize.drift import measure
from personalize.evaluate.judges import Evaluators
from personalize.evaluate.rows import look_at, score
from personalize.evaluate.summary import INTERVALS, METRICS, prompt_rows, summarise
from personalize.export.model_card import public_name
from personalize.pipeline.model import Model
from personalize.sample.gallery import USUAL, Sampling, pictures, weights_hash
from toy2d.runs.files import UserError, write_csv, write_json
from toy2d.runs.folder import environment

ONE_CHAIN = "chains must be 0 (no path KL) or at least 2: a single one has no standard error"
CONVENTION = "CLIP-T compares with the prompt without its identifier: 'a dog in the snow' for 'a sks dog in the snow'"  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """rows: one a picture (pictures.csv); prompts: one a prompt (prompts.csv); summary: `summary.summarise`; about: how it was made."""

    rows: list[dict]
    prompts: list[dict]
    summary: dict
    about: dict

    @property
    def headline(self) -> dict:
        """dino, clip_i, subject_max, clip_t, pres, div, ...: each {"mean", "low", "high", "n"} or None."""
        return self.summary["headline"]

    @property
    def drift(self) -> dict:
        """group -> moved_dino, moved_clip, moved_perceptual, clip_t_change (intervals), mmd2_dino, path_kl; {} without a base."""
        return self.summary["drift"]

    def write(self, folder: Path) -> None:
        write_csv(folder / "pictures.csv", self.rows)
        write_csv(folder / "prompts.csv", self.prompts)
        write_json(folder / "evaluation.json", {**self.summary, **self.about, "definitions": METRICS})  # fmt: skip


def evaluate_model(
    model: Model,
    reference: str | Path,
    prompts: PromptSet,
    evaluators: Evaluators,
    seeds: list[int],
    folder: str | Path,
    base: Model | None = None,
    base_folder: str | Path | None = None,
    training: Scan | None = None,
    sampling: Sampling = USUAL,
    chains: int = 4,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Draw (or find) the pictures of every prompt and seed, score them, measure drift; nothing but pictures is written.

    reference: folder of the subject's pictures; training: those it was trained on (default: the same).
    base: the base as a model of its own; needless where adapters can be switched off; without any base there is no drift.
    base_folder: where the base's pictures are kept (default: folder/base); runs of one base may share it, then they are drawn once.
    chains: base chains for each prompt of path KL, at least 2; 0: no path KL (a run's metrics.json has it already).
    Raises UserError for a single chain, pictures that cannot be read, or folders made differently.
    """
    if chains == 1:
        raise UserError(ONE_CHAIN)
    folder = Path(folder)
    subject = scan(reference, captions=False)
    trained_on = training or subject
    references = look_at(*([r.path for r in s.require()] for s in (subject, trained_on)), evaluators)  # fmt: skip
    jobs = [(prompt, seed) for _, prompt in prompts.jobs() for seed in seeds]
    theirs = {}
    if base or has_its_base(model):
        kept = Path(base_folder or folder / "base")
        theirs = pictures(base or model, jobs, kept, sampling, base is None, say)
    mine = pictures(model, jobs, folder / "tuned", sampling, say=say)
    scores = score(prompts, seeds, mine, theirs, evaluators, references)
    paths = path_kl(model, base, prompts, sampling, chains) if theirs and chains else {}
    summary = summarise(scores.rows, references.real_images(), scores.dino, paths)
    about = {
        "model": public_name(model.source),
        "weights": weights_hash(model),
        "base": (base or model).hash() if theirs else None,
        "reference": _named(subject),
        "training": _named(trained_on),
        **asdict(prompts),
        "prompt_convention": CONVENTION,
        "seeds": seeds,
        "sampling": asdict(sampling),
        "intervals": INTERVALS,
        "evaluators": evaluators.describe(),
        "left_out": evaluators.left_out + undefined(model, prompts, len(subject.records), len(seeds), bool(theirs)),
        "environment": environment(("torch", "diffusers", "transformers", "scipy")),
    }  # fmt: skip
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


def undefined(model: Model, prompts: PromptSet, references: int, seeds: int, base: bool) -> list[str]:  # fmt: skip
    """What these pictures and prompts cannot give, one sentence each."""
    cut = [p for _, p in prompts.jobs() if model.lost_text(p)]
    reasons = {
        "one reference picture: how alike the references are among themselves is undefined": references == 1,
        "one picture a prompt: diversity and intervals are undefined; raise --images": seeds == 1,
        "two pictures a prompt are one pair: diversity has no interval; raise --images": seeds == 2,
        "no base model: nothing is said about drift; name one with --base": not base,
        f"{len(cut)} prompts are longer than the text encoder reads, e.g. {cut[:1]}: their ends have no effect": bool(cut),
    }  # fmt: skip
    return [reason for reason, so in reasons.items() if so]


def path_kl(
    model: Model, base: Model | None, prompts: PromptSet, sampling: Sampling, chains: int, nodes: int = 10
) -> dict:  # fmt: skip
    """group -> (mean, standard error, number of chains), as `personalize train` measures it, over the evaluation's own prompts."""
    ask, answer = Prompts(base or model), Prompts(model)

    def predict_base(x_t, t, texts):
        if base:
            return base.predict(x_t, t, ask(texts))
        with model.base():
            return model.predict(x_t, t, ask(texts))

    def predict(x_t, t, texts):
        return model.predict(x_t, t, answer(texts))

    groups = prompts.groups
    config = TrainConfig(
        "", "", measure_chains=chains, measure_nodes=nodes, sample_batch_size=sampling.batch_size,
        class_prompt=groups["class"][0] if "class" in groups else None,
        context_prompts=groups.get("contexts", ()), unrelated_prompts=groups.get("unrelated", ()),
    )  # fmt: skip
    shape = model.latent_shape(sampling.resolution or model.default_resolution)
    with torch.no_grad(), model.evaluating():
        made = measure.make_chains(predict_base, config, model.schedule, shape)
        return measure.path_drift(predict, made, sampling.batch_size)
