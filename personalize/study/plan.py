"""Plan a study: every arm as a comparison of its own, and which arms wait for which.

Whatever a run would refuse is refused here, before anything trains.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from personalize.compare.benchmark_plan import usual_of
from personalize.compare.jobs import Job, file_name, subject_of, train_config
from personalize.config.compare_config import CompareConfig
from personalize.config.recipes.studies import MINI_SUBJECTS, STUDIES, Arm, Study, scaled
from personalize.config.rules import resolve
from personalize.data.subjects import scan_subjects
from toy2d.runs.files import UserError

MEASURED = 3  # times along an arm's steps


class Planned(NamedTuple):
    path: Path
    arms: tuple[Arm, ...]
    jobs: dict[str, list[Job]]  # arm -> one job for each of its subjects and seeds

    def lines(self) -> list[list[tuple[str, Job]]]:
        """(arm, job)s that wait for each other, in order: one list for each start."""
        after, found = {a.name: a.after for a in self.arms}, {}
        for arm in self.arms:
            for job in self.jobs[arm.name]:
                start = (after[arm.name] or arm.name, job.subject.name, job.seed)
                found.setdefault(start, []).append((arm.name, job))
        return list(found.values())


def planned(s: Study) -> Planned:
    """Raises UserError for whatever a run would refuse."""
    path, arms = Path(s.output_dir, s.name), STUDIES[s.name]()
    jobs: dict[str, list[Job]] = {}
    for arm in arms:
        c = comparison(s, arm, path)
        subjects = [subject_of(text, c) for text in c.subjects]
        if len({x.name for x in subjects}) != len(subjects):
            raise UserError("two subjects have one name; rename a folder")
        own = subjects if arm.role is None else [subjects[arm.role]]
        jobs[arm.name] = [Job(c, x, arm.run, seed) for x in own for seed in s.seeds]
        if arm.after:
            begun = {(j.subject.name, j.seed): j for j in jobs[arm.after]}
            jobs[arm.name] = [going_on(j, begun[j.subject.name, j.seed]) for j in jobs[arm.name]]
        for job in jobs[arm.name]:
            scan_subjects(resolve(train_config(job))).require()
    return Planned(path, arms, jobs)


def comparison(s: Study, arm: Arm, path: Path) -> CompareConfig:
    """The arm as a comparison of one run; its folder is the arm's."""
    usual = usual_of(s.pretrained_model_name_or_path)
    settings = scaled(arm.settings, *s.scales, s.mini)
    steps = settings["max_train_steps"]
    every = math.ceil(steps / MEASURED)
    along = {"log_every": every, "probe_steps": every, "path_kl_steps": every}
    each = replace(usual.each, **settings, **along, checkpointing_steps=max(1, steps // 2))
    if s.resolution:
        each = replace(each, resolution=s.resolution)
    return CompareConfig(
        each=replace(each, output_dir=str(path / file_name(arm.name))),
        subjects=s.subjects or MINI_SUBJECTS[s.name],
        runs=(arm.run,),
        seeds=s.seeds,
        prompts_each=s.prompts_each,
        images=1,  # of prompts without the subject
        subject_images=s.images,
        inference_steps=usual.inference_steps,
        guidance=usual.guidance,
        clip=s.clip,
        dino=s.dino,
        engine=s.engine,
        workers=s.workers,
        shared=str(path / "shared"),
    )


def going_on(job: Job, begun: Job) -> Job:
    """`job`, from the last checkpoint of `begun`; refused if that leaves no step to do."""
    steps = begun.compare.each.max_train_steps
    if steps >= job.compare.each.max_train_steps:
        raise UserError(f"--scale leaves no step between {begun.title} and its resumption")
    checkpoint = begun.folder / "train" / "checkpoints" / f"step-{steps:08d}"
    c = job.compare
    each = replace(c.each, resume_from_checkpoint=str(checkpoint))
    return job._replace(compare=replace(c, each=each))
