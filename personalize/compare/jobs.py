"""Plan a comparison: its subjects, its jobs, and the TrainConfig of each job.

Whatever a run would refuse is refused here, before anything trains.
"""

import re
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from personalize.config.compare_config import (
    OBJECTIVE_FLAGS,
    CompareConfig,
    each_run,
    mini_compare,
    quickened,
    widened,
    without_idle_flags,
)
from personalize.config.effects import RULES
from personalize.config.presets import PRESETS as TRAIN_PRESETS
from personalize.config.rules import resolve
from personalize.config.train_config import TrainConfig
from personalize.data.prompts import PromptSet, prompt_set, with_article
from personalize.data.subjects import scan_subjects
from personalize.evaluate.model import Plan
from personalize.mini.shipped import is_mini
from personalize.sample.sampler import Sampling, image_seed
from toy2d.runs.files import UserError
from toy2d.runs.spec import parse_run

# of the mini's subjects: six, and another one to choose weights on
MINI_COMPARED = (
    "polar_bear",
    "white_rabbit",
    "little_monkey",
    "black_cat",
    "poodle",
    "spotted_cow",
)
MINI_TUNED_ON = ("striped_cat",)


class ComparedSubject(NamedTuple):
    name: str
    class_word: str
    folder: str
    held_out: str | None = None  # a folder of pictures that do not train


class Job(NamedTuple):
    """One run of the comparison: everything about it follows from these four values."""

    compare: CompareConfig
    subject: ComparedSubject
    run: str
    seed: int

    @property
    def folder(self) -> Path:
        runs = Path(self.compare.each.output_dir, "runs")
        return runs / self.subject.name / file_name(self.run) / f"seed{self.seed}"

    @property
    def shared(self) -> str:
        """The name of the files that all runs on this class and seed share."""
        return f"{file_name(self.subject.class_word)}-seed{self.seed}"

    @property
    def draws(self) -> bool:
        """Does this run draw and score pictures?"""
        c = self.compare
        return c.picture_seeds is None or self.seed in c.seeds[: c.picture_seeds]

    @property
    def title(self) -> str:
        return f"{self.subject.name}, {self.run}, seed {self.seed}"


def plan(c: CompareConfig) -> tuple[CompareConfig, list[ComparedSubject], list[Job]]:
    """The resolved configuration, subjects, jobs. Raises UserError for all a run would refuse."""
    each_run(c)  # refuses flags before the mini is looked for
    if not (c.subjects or is_mini(c.each.pretrained_model_name_or_path)):
        raise UserError("--subjects are missing: FOLDER:CLASS, e.g. photos/rex:dog")
    names = c.subjects or (MINI_TUNED_ON if c.tune else MINI_COMPARED)
    subjects = [subject_of(s, c) for s in names]
    if c.tune:
        c = widened(c)
    if c.quick:
        c, subjects = quickened(c), subjects[:1]
    if len({s.name for s in subjects}) != len(subjects):
        raise UserError("two subjects have one name; rename a folder")
    jobs = [Job(c, s, r, seed) for r, seeds in each_run(c) for s in subjects for seed in seeds]
    first = {job.subject.name: job for job in reversed(jobs)}
    for job in jobs:
        resolved = resolve(train_config(job))
        if job is first[job.subject.name]:
            scan_subjects(resolved).require()
    refuse_idle_flags(c, jobs)
    return c, subjects, jobs


def subject_of(text: str, c: CompareConfig) -> ComparedSubject:
    """ "photos/rex:dog", "photos/rex:dog:photos/rex-held-out", or a name of the mini's subjects."""
    for parts in (text.rsplit(":", 1), text.rsplit(":", 2)):
        folder, word, *held_out = *parts, ""
        if folder and word and is_folder(folder) and all(is_folder(h) for h in held_out if h):
            name = file_name(Path(folder).expanduser().resolve().name)
            return ComparedSubject(name, word, folder, held_out[0] or None)
    for s in mini_subjects() if is_mini(c.each.pretrained_model_name_or_path) else []:
        if s.name == text:
            return s
    if Path(text).expanduser().is_dir():
        raise UserError(f"--subjects {text}: say what it is, e.g. {text}:dog")
    raise UserError(
        f"--subjects {text}: no such folder; write FOLDER:CLASS, e.g. photos/rex:dog, "
        "or FOLDER:CLASS:HELD_OUT"
    )


def is_folder(name: str) -> bool:
    return Path(name).expanduser().is_dir()


def mini_subjects() -> list[ComparedSubject]:
    from personalize.mini import shipped

    return [
        ComparedSubject(name, s.class_word, str(s.folder), str(s.held_out))
        for name, s in shipped.subjects().items()
    ]


def file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text)


def evaluation_prompts(c: CompareConfig, subject: ComparedSubject) -> PromptSet:
    """The evaluation's prompts, evenly thinned to `prompts_each` of a group.

    Drift is measured on the same prompts.
    """
    default = "mini" if is_mini(c.each.pretrained_model_name_or_path) else "dreambooth"
    found = prompt_set(c.prompts or default, c.identifier, subject.class_word)
    groups = {g: thinned(p, c.prompts_each) for g, p in found.groups.items()}
    return PromptSet(found.identifier, found.class_word, groups)


def thinned(prompts: tuple[str, ...], n: int) -> tuple[str, ...]:
    if not 0 < n < len(prompts):
        return prompts
    return tuple(prompts[i * len(prompts) // n] for i in range(n))


def train_config(job: Job) -> TrainConfig:
    c, subject = job.compare, job.subject
    groups = evaluation_prompts(c, subject).groups
    given = {f.name: getattr(c.each, f.name) for f in fields(TrainConfig)}
    own = {
        "instance_data_dir": subject.folder,
        "instance_prompt": f"a photo of {c.identifier} {subject.class_word}",
        "class_prompt": f"a photo of {with_article(subject.class_word)}",
        "class_data_dir": str(Path(c.of_base, "class", job.shared)),
        "context_prompts": groups.get("contexts", ()),
        "unrelated_prompts": groups.get("unrelated", ()),
        "held_out_data_dir": None if c.each.held_out else subject.held_out,
        "seed": job.seed,
        "output_dir": str(job.folder / "train"),
    }
    if c.each.placeholder_token and not c.each.initializer_token:
        own["initializer_token"] = subject.class_word.split()[-1]
    return without_idle_flags(TrainConfig(**(given | own | flags_of(job.run))))


def refuse_idle_flags(c: CompareConfig, jobs: list[Job]) -> None:
    """Raise UserError for a flag that has no effect on any run, as `personalize train` does."""
    configs = [train_config(job) for job in jobs]
    idle = [
        f"--{r.field} has no effect on any run: {r.why}"
        for r in RULES
        if is_own(c, r.field) and not any(r.when(t) for t in configs)
    ]
    if idle:
        raise UserError("; ".join(idle))


def is_own(c: CompareConfig, name: str) -> bool:
    """Did the user set it: is it neither the default, nor the mini's value, nor the preset's?"""
    default = {f.name: f.default for f in fields(TrainConfig)}[name]
    preset = TRAIN_PRESETS[c.each.preset]() if c.each.preset else {}
    others = (default, getattr(mini_compare().each, name), preset.get(name, default))
    return getattr(c.each, name) not in others


def flags_of(run: str) -> dict:
    """ "prior:1+l2:0.01" -> flags of `personalize train`.

    Raises UserError naming the run, the fault and the remedy.
    """
    parse_run(run)  # refuses unknown words, and weights that are no numbers
    flags = {"objective": []}
    for term in run.split("+"):
        kind, _, weight = term.partition(":")
        if kind not in OBJECTIVE_FLAGS:
            known = ", ".join(OBJECTIVE_FLAGS)
            raise UserError(f"run {run!r}: {kind} is the toy's only; choose from {known}")
        objective, flag, more = OBJECTIVE_FLAGS[kind]
        if objective in flags["objective"]:
            raise UserError(f"run {run!r} has the term {objective} twice; write it once")
        flags["objective"].append(objective)
        flags |= {flag: float(weight), **more} if flag else {}
    return flags | {"objective": "+".join(flags["objective"])}


def image_seeds(c: CompareConfig) -> list[int]:
    return [image_seed(0, i) for i in range(c.images)]


def evaluation_plan(c: CompareConfig, subject: ComparedSubject) -> Plan:
    """What a run of this subject draws and is scored on. Path KL is in the run's own record."""
    own = [image_seed(0, i) for i in range(c.subject_images or c.images)]
    prompts, how = evaluation_prompts(c, subject), sampling(c)
    return Plan(subject.folder, prompts, image_seeds(c), sampling=how, chains=0, subject_seeds=own)


def sampling(c: CompareConfig) -> Sampling:
    e = c.each
    size = {"resolution": e.resolution, "batch_size": e.sample_batch_size}
    return Sampling(c.inference_steps, c.guidance, **size)
