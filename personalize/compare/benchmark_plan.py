"""Plan a benchmark: one comparison for each method, IP-Adapter's jobs, and what all will cost.

Whatever a run would refuse is refused here, before anything trains.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from personalize.compare.jobs import Job, evaluation_plan, plan, train_config
from personalize.config.compare_config import CompareConfig, mini_compare, quickened
from personalize.config.kinds import TRAINING_KINDS
from personalize.config.recipes.benchmark import (
    IP_ADAPTER,
    NEW_WORD,
    TRAINED,
    Benchmark,
    Recipe,
    mini_recipe,
    published_recipe,
)
from personalize.config.train_config import TrainConfig
from personalize.evaluate.image_prompt import find
from personalize.mini.shipped import is_mini
from personalize.sample.sampler import Sampling
from toy2d.runs.files import UserError

QUICK_STEPS = 40
# what the benchmark itself decides; and how learning and drift are measured, for every base
DECIDED_HERE = (
    *("objective", "prior_loss_weight", "l2_reg_weight", "reg_reduction", "seed"),
    *("output_weight", "fisher_weight", "output_dir"),
)
MEASURING = ("center_crop", "gain_samples", "measure_chains", "nodes_per_chain")


class Planned(NamedTuple):
    """Everything that is to be done, before anything is."""

    path: Path
    trained: dict[str, list[Job]]  # method -> its jobs
    prompted: list[Job]  # of IP-Adapter
    adapter: str | None
    notes: list[str]


def planned(b: Benchmark) -> Planned:
    """Raises UserError for whatever a run would refuse, and for a method with no objective left."""
    path = Path(f"{b.output_dir}-quick" if b.quick else b.output_dir)
    adapter, notes = adapter_of(b)
    trained = {}
    for method in [m for m in b.methods or TRAINED if m != IP_ADAPTER]:
        config, left_out = comparison(b, method, path)
        trained[method] = plan(config)[2]
        notes += left_out
    prompted = []
    if adapter:
        config, _ = comparison(replace(b, objectives=("standard",)), "full", path)
        config = replace(config, each=replace(config.each, output_dir=str(path / IP_ADAPTER)))
        prompted = [job._replace(run=IP_ADAPTER) for job in plan(config)[2]]
    return Planned(path, trained, prompted, adapter, notes)


def adapter_of(b: Benchmark) -> tuple[str | None, list[str]]:
    """(the IP-Adapter if there is to be one, what to say if not)."""
    if b.methods and IP_ADAPTER not in b.methods:
        return None, []
    if b.ip_adapter or b.methods:
        adapter = b.ip_adapter or "mini"
        find(adapter)
        return adapter, []
    if not is_mini(b.pretrained_model_name_or_path):
        return None, ["ip_adapter is left out: name one with --ip_adapter"]
    try:
        find("mini")
    except UserError as e:
        return None, [f"ip_adapter is left out: {e}"]
    return "mini", []


def comparison(b: Benchmark, method: str, path: Path) -> tuple[CompareConfig, list[str]]:
    """The method's part as a comparison, and which objectives have no effect on it."""
    mini = is_mini(b.pretrained_model_name_or_path)
    recipe = mini_recipe(method) if mini else published_recipe(b.backbone, method)
    usual, kind = usual_of(b.pretrained_model_name_or_path), TRAINING_KINDS[method]
    able = [
        o
        for o in b.objectives
        if o.partition(":")[0].partition("_")[0] in ("standard", *kind.objectives)
    ]
    left_out = [f"{method}: {o} has no effect on it" for o in b.objectives if o not in able]
    settings = {k: v for k, v in recipe.settings.items() if k not in DECIDED_HERE}
    each = replace(usual.each, **settings, output_dir=str(path / method))
    own = {"max_train_steps": b.max_train_steps, "resolution": b.resolution}
    each = replace(each, **{k: v for k, v in own.items() if v})
    c = CompareConfig(
        each=each,
        subjects=b.subjects,
        runs=tuple(with_weight(o, recipe, method) for o in able),
        seeds=b.seeds,
        identifier=NEW_WORD if each.placeholder_token else "sks",
        prompts_each=b.prompts_each,
        images=b.images,
        inference_steps=usual.inference_steps,
        guidance=usual.guidance,
        clip=b.clip,
        dino=b.dino,
        engine=b.engine,
        workers=b.workers,
        shared=str(path / "shared"),
    )
    return (quick(c) if b.quick else c), left_out


def usual_of(base: str) -> CompareConfig:
    """How a base is sampled and measured before any recipe: every base is measured as the mini is,
    and one other than the mini drawn by 25 steps at guidance 7.5.
    """
    usual = mini_compare()
    if is_mini(base):
        return usual
    measured = {k: getattr(usual.each, k) for k in MEASURING}
    return replace(usual, each=TrainConfig(base, "", **measured), inference_steps=25, guidance=7.5)


def quick(c: CompareConfig) -> CompareConfig:
    """One subject, one seed, at most QUICK_STEPS steps, fewer pictures."""
    steps = min(QUICK_STEPS, c.each.max_train_steps or QUICK_STEPS)
    few = quickened(replace(c, subjects=c.subjects[:1] or ("polar_bear",)))
    return replace(few, each=replace(few.each, max_train_steps=steps, output_dir=c.each.output_dir))


def with_weight(objective: str, recipe: Recipe, method: str) -> str:
    """ "l2" -> the recipe's "l2:0.1"; "l2:1" stays. Raises UserError where there is none."""
    if ":" in objective or objective in recipe.runs:
        return recipe.runs.get(objective, objective)
    raise UserError(f"--objectives {objective}: {method} has no usual weight; write {objective}:W")


# ---- counting
def counted(todo: Planned) -> list[str]:
    """Runs, steps and passes of the network: samples through the denoiser, backward counted as
    two forward passes.
    """
    lines, passes = [*(f"note: {n}" for n in todo.notes)], 0
    for method, jobs in todo.trained.items():
        configs = [train_config(job) for job in jobs]
        steps = sum(steps_of(c) for c in configs)
        samples = sum(
            steps_of(c)
            * c.gradient_accumulation_steps
            * c.train_batch_size
            * (2 if c.uses("prior") or c.uses("output") else 1)
            for c in configs
        )
        drawn, one = drawing(jobs)
        passes += 3 * samples + one * drawn
        what = f"{steps} steps, {samples} samples trained, {drawn} pictures"
        lines.append(f"{method}: {len(jobs)} runs, {what}")
    if todo.prompted:
        drawn, one = drawing(todo.prompted)
        passes += one * drawn
        lines.append(f"{IP_ADAPTER}: {len(todo.prompted)} runs, {drawn} pictures, nothing trained")
    first = next(iter(todo.trained.values()), todo.prompted)
    sets: dict[str, TrainConfig] = {}  # folder -> the run that uses most of its class images
    for job in [job for jobs in todo.trained.values() for job in jobs]:
        if (c := train_config(job)).needs_class_images:
            largest = sets.get(c.class_data_dir, c)
            sets[c.class_data_dir] = max(largest, c, key=lambda c: c.num_class_images)
    made = sum(c.num_class_images for c in sets.values())
    drawn = sum(
        c.num_class_images * passes_of(Sampling(c.class_steps, c.class_guidance))
        for c in sets.values()
    )
    base, one = drawing(first[:1])
    base *= len({job.subject.class_word for job in first})
    passes += drawn + one * base
    lines.append(f"the base: {made} class images, {base} pictures, shared by all runs")
    return [*lines, f"in all {passes} passes of one sample through the denoiser"]


def steps_of(c: TrainConfig) -> int:
    """Steps that are left to train: a run may go on from another one's checkpoint, step-N."""
    begun = Path(c.resume_from_checkpoint or "").name.removeprefix("step-")
    return c.max_train_steps - int(begun or 0)


def drawing(jobs: list[Job]) -> tuple[int, int]:
    """(pictures that these runs draw, passes of each picture)."""
    plans = [evaluation_plan(job.compare, job.subject) for job in jobs if job.draws]
    drawn = sum(len(seeds) for p in plans for _, _, seeds in p.jobs())
    return drawn, passes_of(plans[0].sampling) if plans else 0


def passes_of(sampling: Sampling) -> int:
    return sampling.steps * (2 if sampling.guidance > 1 else 1)
