"""Run one experiment into a folder: pretrain, fine-tune every objective as one stack, measure.

A killed run goes on from its newest checkpoint, bit for bit: the parameters are stored, and
everything else (prepare.py) is a function of the base and the seeds, made anew.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from toy2d import report
from toy2d.config import ToyConfig
from toy2d.core.drift import Params
from toy2d.core.objectives import STANDARD, Objective
from toy2d.core.rng import generator
from toy2d.data import world_pool
from toy2d.figures import all as figures
from toy2d.measure import Probe, drift_on_chains, measure
from toy2d.prepare import (
    Setting,
    make_groups,
    make_pools,
    probe_of,
    snapshot_probe,
    target_probe,
    used_pools,
)
from toy2d.records import (
    all_parameters,
    history_rows,
    measure_finely,
    metrics_of,
    run_records,
    samples_of,
)
from toy2d.runs.files import UserError, read_record, write_atomic, write_csv, write_json
from toy2d.runs.folder import RunFolder, environment, load_tensors, save_tensors
from toy2d.train import MOMENTS, Group, Saving, Streams, Watch, fit


def run(
    config: ToyConfig,
    out: Path | str = "runs",
    say: Callable[[str], None] = print,
    base: Path | None = None,
) -> Path:
    """Make, continue or find the run `config`; returns its folder.

    `base`: the base.safetensors of a run with the same pretraining settings, to save making it
    again. Raises UserError or RunFailure as `RunFolder.open` does.
    """
    folder = RunFolder(Path(out) / "toy2d" / config.name, config.as_dict())
    with folder.open():
        if folder.status == "done":
            say(f"{folder.path} is done already")
            return folder.path
        start = time.perf_counter()
        _same_threads(folder)
        setting = Setting(config)
        bases = pretrain(setting, folder, base)
        probe = probe_of(setting, bases.theta)
        say(f"base models pretrained ({time.perf_counter() - start:.0f} s so far)")
        tuned = finetune(setting, folder, bases, probe)
        count = len(config.runs) * len(config.seeds)
        say(f"{count} runs fine-tuned ({time.perf_counter() - start:.0f} s so far)")
        write_results(setting, folder.path, bases, probe, tuned)
        folder.drop_checkpoints()
        say(f"measured and drawn in {folder.path} ({time.perf_counter() - start:.0f} s)")
    return folder.path


def _same_threads(folder: RunFolder) -> None:
    """Another thread count may round differently: a continued run uses the one it began with."""
    record = folder.path / "env.json"
    if record.exists():
        torch.set_num_threads(read_record(record)["threads"])
    else:
        write_json(record, environment(("torch", "numpy", "scipy")))


@dataclass(frozen=True)
class Bases:
    """The base models, one a seed as one stack, and Adam's moments at their end."""

    theta: Params
    moments: Params  # "exp_avg/weight0" -> ...


def pretrain(setting: Setting, folder: RunFolder, base: Path | None = None) -> Bases:
    """Train the base models, or read them from the folder's base.safetensors."""
    file = folder.path / "base.safetensors"
    if base is not None and not file.exists():
        write_atomic(file, base.read_bytes())
    if not file.exists():
        save_tensors(file, _train_bases(setting, folder))
    return load_bases(setting, folder.path)


def load_bases(setting: Setting, path: Path) -> Bases:
    """Read the base models of a run folder."""
    saved, device = load_tensors(path / "base.safetensors"), setting.config.device
    theta = {k: p.to(device) for k, p in saved.items() if k.startswith("theta/")}
    theta = {k.removeprefix("theta/"): p for k, p in theta.items()}
    return Bases(theta, {k: p for k, p in saved.items() if not k.startswith("theta/")})


def _train_bases(setting: Setting, folder: RunFolder) -> dict[str, Tensor]:
    """Pretrain one base a seed; returns what base.safetensors holds.

    Raises UserError if a base diverges.
    """
    c, world, seeds = setting.config, setting.world, setting.seeds
    theta = setting.net.init([generator(s, "init") for s in seeds])
    theta = {k: p.to(c.device) for k, p in theta.items()}
    group = Group(
        setting.net,
        theta,
        theta,
        Objective.stack([STANDARD] * len(seeds)),
        torch.arange(len(seeds)),
        [f"base, seed {s}" for s in seeds],
        {"instance": "old classes"},
        c.pretrain_learning_rate,
    )
    pool = world_pool(world, world.old, c.pretrain_samples, seeds, "data")
    checkpoints = Checkpoints(folder, "pretrain")
    optimizer = fit(
        [group],
        Streams({"old classes": pool}, seeds, c.pretrain_batch_size, "pretrain"),
        setting.schedule,
        c.pretrain_steps,
        saving=checkpoints.saving(c.pretrain_steps),
        decay=c.pretrain_decay,
        label="pretrain",
    )
    if group.stopped:
        raise UserError(
            f"pretraining diverged ({group.stopped[0]}); lower --pretrain_learning_rate"
        )
    saved = {f"theta/{k}": p.detach() for k, p in group.theta.items()}
    for name, p in group.theta.items():
        saved |= {f"{m}/{name}": optimizer.state[p][m] for m in MOMENTS}
    return saved


class Checkpoints:
    """Checkpoints of one phase in a run folder: `found` to resume from, and `saving` for `fit`.

    A checkpoint also holds the `rows` measured so far and the seconds spent.
    """

    def __init__(self, folder: RunFolder, phase: str):
        newest = folder.newest_checkpoint()
        self.folder, self.phase = folder, phase
        self.found = newest if newest and newest[1]["phase"] == phase else None
        self.rows: list[dict] = self.found[1]["rows"] if self.found else []
        self._before = self.found[1]["seconds"] if self.found else 0.0
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Spent in this phase, earlier attempts included up to their last checkpoint."""
        return self._before + time.perf_counter() - self._started

    def saving(self, steps: int) -> Saving:
        """About eight checkpoints in `steps` steps."""
        return Saving(self.save, max(1, steps // 8), self.found)

    def save(self, tensors: dict[str, Tensor], scalars: dict) -> None:
        more = {"phase": self.phase, "rows": self.rows, "seconds": self.seconds}
        self.folder.save_checkpoint(scalars["step"], tensors, scalars | more)


@dataclass(frozen=True)
class Tuned:
    """The fine-tuned runs, the rows measured on the way, and the seconds that it took."""

    groups: list[Group]
    rows: list[dict]
    seconds: float


def finetune(setting: Setting, folder: RunFolder, bases: Bases, probe: Probe) -> Tuned:
    """Fine-tune every run of the configuration, measuring at its snapshots."""
    c, world = setting.config, setting.world
    groups = make_groups(setting, bases.theta, probe)
    pools = used_pools(make_pools(setting, bases.theta), groups)
    coarse = snapshot_probe(setting, bases.theta)
    checkpoints = Checkpoints(folder, "finetune")

    few = target_probe(coarse)
    every = range(c.path_kl_steps, c.steps, c.path_kl_steps) if c.max_path_kl else ()

    def observe(step: int, terms: list[dict[str, Tensor]]) -> None:
        if step in c.snapshots:
            seconds = checkpoints.seconds
            for group, t in zip(groups, terms, strict=True):
                measured = measure(world, group, coarse, chunk=c.chunk)
                checkpoints.rows += history_rows(group, step, t, measured, seconds)
        if step in every:
            adapt_weights(groups, few)

    fit(
        groups,
        Streams(pools, c.seeds, c.batch_size, "finetune"),
        setting.schedule,
        c.steps,
        Watch(observe, tuple({s for s in c.snapshots if s < c.steps} | set(every))),
        checkpoints.saving(c.steps),
        moments=_moments_of(bases, groups) if c.carry_moments else None,
        label="fine-tune",
    )
    return Tuned(groups, checkpoints.rows, checkpoints.seconds)


def adapt_weights(groups: list[Group], probe: Probe) -> None:
    """Measure path KL of every group that has a target, and give its runs their next weights."""
    for group in groups:
        if group.adapted:
            paths = [r["path_kl"][0] for r in drift_on_chains(group, probe)]
            group.adapt(torch.tensor([math.nan if p is None else p for p in paths]))


def _moments_of(bases: Bases, groups: list[Group]) -> list[dict[str, Tensor]]:
    """Pretraining's Adam moments for every run of every group."""

    def of(group, m, name):
        value = bases.moments[f"{m}/{name}"]
        return value if m == "step" else value[group.seed_index].to(bases.theta[name].device)

    return [{f"{m}/{n}": of(g, m, n) for m in MOMENTS for n in g.theta} for g in groups]


def write_results(setting: Setting, path: Path, bases: Bases, probe: Probe, tuned: Tuned) -> None:
    """Measure the finished runs; write parameters, samples, history, metrics, figures, report."""
    groups, steps = tuned.groups, setting.config.steps
    measured = measure_finely(setting, bases.theta, probe, groups)
    rows = list(tuned.rows)
    for group, records in zip(groups, measured, strict=True):
        terms = {"instance": group.last_loss}
        rows += history_rows(group, steps, terms, records, tuned.seconds)
    runs = run_records(groups, measured, probe, tuned.seconds)
    save_tensors(path / "finetuned.safetensors", all_parameters(groups))
    save_tensors(path / "samples.safetensors", samples_of(setting, bases.theta, groups))
    write_csv(path / "history.csv", rows)
    write_json(path / "metrics.json", metrics_of(setting, bases.theta, probe, runs, rows))
    figures.draw_all(path)
    report.write(path)
