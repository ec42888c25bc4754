"""The leaderboard of the course's mini-project: a sixth objective against the five, on the plane.

An entry is a penalty f(theta, theta_star) -> (M,), one number a run of the stack, differentiable in
theta. It is trained in L2's place, on the course's bases, points and noise, and judged by the
course's rule: among its weights that learn the new class as well as standard fine-tuning does, the
one that drifts least.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from toy2d.core.drift import Params
from toy2d.measure import measure
from toy2d.prepare import Setting, make_groups, make_pools, used_pools
from toy2d.runs.files import UserError, read_csv, write_csv
from toy2d.runs.statistics import best_at_equal_adaptation, geometric, number, ratio, value
from toy2d.train import Streams, fit
from toy2d.verify.course import Course

PenaltyFunction = Callable[[Params, Params], Tensor]


@dataclass(frozen=True)
class Penalty:
    """A function as a distance term (`toy2d.core.objectives.Distance`), by autograd."""

    f: PenaltyFunction
    theta: Params  # M ...
    theta_star: Params

    def squared_distance(self) -> Tensor:
        """(M,): the value. Raises UserError for another shape."""
        found, stack = self.f(self.theta, self.theta_star), len(next(iter(self.theta.values())))
        if found.shape != (stack,):
            raise UserError(
                f"the penalty returned shape {tuple(found.shape)}; it must give one number a run, "
                f"({stack},): sum over all dimensions but the first"
            )
        return found

    def add_gradient_(self, weight: Tensor) -> None:
        names = list(self.theta)
        with torch.enable_grad():
            total = (torch.as_tensor(weight) * self.squared_distance()).sum()
            parameters = [self.theta[k] for k in names]
            found = torch.autograd.grad(total, parameters, allow_unused=True)
        for p, g in zip(parameters, found, strict=True):
            if g is not None:
                p.grad += g

    def pull_(self, strength: Tensor) -> None:
        raise UserError("a penalty function has no proximal step: enter it with its gradient")


def train_entry(
    course: Course, name: str, penalty: PenaltyFunction, weights: tuple[float, ...]
) -> list[dict]:
    """Records of `penalty` at every weight and seed of the course, measured as its own runs are.

    Raises UserError for a name that the course has, or a penalty of the wrong shape.
    """
    if name in {r["objective"] for r in course.metrics["runs"]}:
        raise UserError(f"{name!r} is an objective of the course already; give yours another name")
    config = replace(
        course.config, seeds=course.seeds, runs=tuple(f"l2:{w:g}" for w in weights), snapshots=()
    )
    setting = Setting(config)
    star = _stack([course.base(s) for s in course.seeds])
    groups = make_groups(setting, star, course.probe)
    for group in groups:
        group.anchors["l2"] = Penalty(penalty, group.theta, group.theta_star)
    pools = used_pools(make_pools(setting, star), groups)
    streams = Streams(pools, config.seeds, config.batch_size, "finetune")
    fit(groups, streams, setting.schedule, config.steps, label=name)
    records = []
    places = torch.tensor([course.config.seeds.index(s) for s in course.seeds])
    for group in groups:
        group.seed_index = places[group.seed_index]  # the probe holds all seeds of the run
        for run, record in zip(
            group.runs, measure(setting.world, group, course.probe), strict=True
        ):
            what = {"run": f"{name}:{run.spec.weight:g}", "objective": name}
            records.append(record | what | {"weight": run.spec.weight, "seed": run.seed})
    return records


def _stack(parts: list[Mapping[str, Tensor]]) -> Params:
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


COLUMNS = ("rank", "objective", "run", "old classes", "new class", "against standard")


def leaderboard(course: Course, entries: list[dict] = ()) -> list[dict]:
    """One row an objective, the least drift first, among those that learn as well as standard.

    "old classes" is KL(base || tuned) and "new class" KL(world || tuned), in nats: geometric means
    over the course's seeds with one-standard-error limits. "against standard" is the ratio of
    drifts within seeds with its 95 % interval. An entry that never learns well enough is left out.
    """
    own = [r for r in course.metrics["runs"] if r["seed"] in course.seeds and not r["stopped"]]
    best = best_at_equal_adaptation([*own, *entries])
    drift = {o: geometric([value(r, "old_base") for r in runs]) for o, runs in best.items()}
    rows = []
    for rank, objective in enumerate(sorted(drift, key=lambda o: drift[o][0]), 1):
        runs = best[objective]
        told = [geometric([value(r, key) for r in runs]) for key in ("old_base", "kl_new")]
        old, new = (f"{number(m)} ({number(low)} to {number(high)})" for m, low, high in told)
        against = ratio(runs, best["standard"], lambda r: value(r, "old_base"))
        cells = rank, objective, runs[0]["run"], old, new, str(against)
        rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def show_table(rows: list[dict]) -> str:
    """The leaderboard as text in columns."""
    lines = [COLUMNS, *([str(row[c]) for c in COLUMNS] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def keep(rows: list[dict], file: Path | str) -> None:
    """Write the leaderboard as CSV, to hand in."""
    write_csv(Path(file), rows)


def read(file: Path | str) -> list[dict]:
    """What `keep` wrote."""
    return read_csv(Path(file))
