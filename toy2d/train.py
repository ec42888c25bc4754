"""One training loop for a stack of runs: pretraining, and every objective, weight and seed at once.

Runs that use the same terms, network and learning rate form a `Group`: one dict of stacked
parameters. The loop draws one minibatch per seed and role, hands every group its seeds' part (so
the instance noise is bit-identical across objectives), sums the losses, and makes one Adam step.
Adam is elementwise, so each run moves as if it were alone.
Shapes: M runs of a group, S seeds, B batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from toy2d.core.objectives import Anchor, Example, Objective
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.data import ExamplePool, draw
from toy2d.model import EpsMLP, members
from toy2d.runs.progress import progress
from toy2d.runs.spec import SeededRun
from toy2d.runs.target import DriftTarget

Params = dict[str, Tensor]


@dataclass
class Group:
    """Runs that differ by weight and seed only. `objective` holds weights of shape (M,)."""

    net: EpsMLP
    theta: Params  # M ...
    theta_star: Params  # M ...: where each run started
    objective: Objective
    seed_index: Tensor  # M: which of the S seeds
    runs: list[SeededRun] | list[str]  # M: what each is; str(run) names it in messages
    pools: Mapping[str, str]  # role -> name of the pool that its examples come from
    learning_rate: float = 1e-3
    fisher: Params | None = None  # M ...
    layers: Mapping[str, float] | None = None  # what each parameter counts in the l2 distance
    adapted: str | None = None  # the term whose weight follows a target (`adapt`)
    max_path_kl: float | None = None  # that target, nats
    stopped: dict[int, str] = field(default_factory=dict)  # member -> why it stopped

    def __post_init__(self):
        self.theta = {k: v.detach().clone().requires_grad_() for k, v in self.theta.items()}
        held = self.layers and {
            k: torch.tensor(self.layers[k], device=p.device) for k, p in self.theta.items()
        }
        self.anchors = {
            "l2": Anchor(self.theta, self.theta_star, held, self.objective.reduction, runs=1)
        }
        if self.fisher is not None:
            self.anchors["fisher"] = Anchor(self.theta, self.theta_star, self.fisher, runs=1)
        self.target = self.adapted and DriftTarget(self.max_path_kl, self.weight.double())
        self.last_loss = torch.full(
            (len(self.runs),), float("nan"), device=self.theta["bias0"].device
        )

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def weight(self) -> Tensor:
        """(M,): the adapted term's weight now."""
        return getattr(self.objective, self.adapted)

    def set_weight(self, weight: Tensor) -> None:
        self.objective = replace(self.objective, **{self.adapted: weight.to(self.weight)})

    def adapt(self, path_kl: Tensor) -> None:
        """The next weights from measured path KLs (M,), by the rule of runs/target.py."""
        self.set_weight(self.target.next_weight(self.weight, path_kl))

    def only(self, which: list[int]) -> "Group":
        """A group of these runs alone, to measure; it shares no state with this one."""
        return Group(
            self.net,
            members({k: p.detach() for k, p in self.theta.items()}, which),
            members(self.theta_star, which),
            self.objective,
            self.seed_index[which],
            [self.runs[m] for m in which],
            self.pools,
        )

    @property
    def roles(self) -> list[str]:
        return [
            r for r in ("instance", "prior", "output") if r == "instance" or self.objective.uses(r)
        ]

    def terms(self, schedule: Schedule, batch: Mapping[str, Example]) -> dict[str, Tensor]:
        """The denoising terms of every run, (M,) each, differentiable; `batch` is keyed by pool."""
        device = self.theta["bias0"].device
        mine = {
            role: Example(*(part[self.seed_index].to(device) for part in batch[self.pools[role]]))
            for role in self.roles
        }
        star = self.net.bind(self.theta_star)
        return self.objective.terms(self.net.bind(self.theta), schedule, mine, star)

    def all_terms(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """`terms` and the distance terms, detached: what is logged, and what must stay finite."""
        with torch.no_grad():
            return {
                k: v.detach()
                for k, v in (terms | self.objective.anchor_terms(self.anchors)).items()
            }

    def stop_diverged(self, loss: Tensor, step: int) -> None:
        """Note the runs whose loss is no longer finite; `fit` moves them no more."""
        for m in (~torch.isfinite(loss)).nonzero().flatten().tolist():
            if m not in self.stopped:
                self.stopped[m] = (
                    f"{self.runs[m]}: loss {loss[m]:.3g} at step {step}, "
                    f"last finite loss {self.last_loss[m]:.4g}"
                )
        self.last_loss = torch.where(torch.isfinite(loss), loss, self.last_loss)

    def stopped_parameters(self) -> Params:
        """Copies of the parameters of the runs that were stopped."""
        which = list(self.stopped)
        return {k: p.detach()[which].clone() for k, p in self.theta.items()} if which else {}


class Streams:
    """The minibatches, by one generator per (pool, seed): no run's data depend on other runs."""

    def __init__(
        self, pools: Mapping[str, ExamplePool], seeds: tuple[int, ...], batch_size: int, phase: str
    ):
        self.pools, self.batch_size = pools, batch_size
        self.rngs = {name: [generator(s, f"{phase}/{name}") for s in seeds] for name in pools}

    def next(self, num_timesteps: int) -> dict[str, Example]:
        return {
            name: draw(pool, self.rngs[name], self.batch_size, num_timesteps)
            for name, pool in self.pools.items()
        }


class Watch(NamedTuple):
    """observe(step, terms of each group) is called before the steps in `at`, and after the last one
    if it is among them. It never draws from the training's generators.
    """

    observe: Callable[[int, list[dict[str, Tensor]]], None]
    at: tuple[int, ...]


class Saving(NamedTuple):
    """save(tensors, scalars) gets the exact state every `every` steps; `resume` takes it back."""

    save: Callable[[dict[str, Tensor], dict], None] | None = None
    every: int = 0  # 0: never
    resume: tuple[dict[str, Tensor], dict] | None = None


def fit(
    groups: list[Group],
    streams: Streams,
    schedule: Schedule,
    steps: int,
    watch: Watch | None = None,
    saving: Saving | None = None,
    *,
    moments: list[dict[str, Tensor]] | None = None,
    decay: bool = False,
    label: str = "train",
) -> torch.optim.Adam:
    """Train every run of every group for `steps` Adam steps; returns the optimizer.

    `moments` start Adam (see `carry_moments`). `decay`: the learning rate falls linearly to 0.
    """
    observe, at = watch or (None, ())
    save, every, resume = saving or (None, 0, None)
    optimizer = torch.optim.Adam(
        [{"params": list(g.theta.values()), "lr": g.learning_rate} for g in groups], fused=True
    )
    if moments is not None:
        carry_moments(optimizer, groups, moments)
    start = restore(groups, optimizer, streams, *resume) if resume is not None else 0
    for step in progress(range(start, steps), label, steps, start):
        batch = streams.next(len(schedule))
        terms = [g.terms(schedule, batch) for g in groups]
        if step in at:
            observe(step, [g.all_terms(t) for g, t in zip(groups, terms, strict=True)])
        for setting, g in zip(optimizer.param_groups, groups, strict=True):
            setting["lr"] = g.learning_rate * (1 - step / steps if decay else 1.0)
        adam_step(groups, optimizer, terms, step)
        if every and (step + 1) % every == 0 and step + 1 < steps:
            save(*state(groups, optimizer, streams, step + 1))
    if steps in at:
        terms = [g.terms(schedule, streams.next(len(schedule))) for g in groups]
        observe(steps, [g.all_terms(t) for g, t in zip(groups, terms, strict=True)])
    return optimizer


def adam_step(
    groups: list[Group], optimizer: torch.optim.Adam, terms: list[dict[str, Tensor]], step: int
) -> None:
    """One step on the sum of all runs' losses.

    A run whose loss stops being finite stays as it was before this step, with a reason in
    `Group.stopped`; the others go on.
    """
    optimizer.zero_grad()
    torch.cat([sum(t.values()) for t in terms]).sum().backward()
    for g, t in zip(groups, terms, strict=True):
        g.stop_diverged(sum(g.all_terms(t).values()), step)
        g.objective.add_anchor_gradients_(g.anchors)
    before = [g.stopped_parameters() for g in groups]
    optimizer.step()
    for g in groups:
        g.objective.pull_to_anchors_(g.anchors, g.learning_rate)
    for g, kept in zip(groups, before, strict=True):
        for name, value in kept.items():
            g.theta[name].detach()[list(g.stopped)] = value


MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def state(
    groups: list[Group], optimizer: torch.optim.Adam, streams: Streams, step: int
) -> tuple[dict[str, Tensor], dict]:
    """Everything that an exact continuation needs: flat tensors, and scalars for JSON."""
    tensors = {}
    for i, g in enumerate(groups):
        tensors[f"{i}/last_loss"] = g.last_loss
        if g.adapted:
            tensors[f"{i}/weight"] = g.weight
        for name, p in g.theta.items():
            tensors[f"{i}/theta/{name}"] = p.detach()
            for m in MOMENTS:
                tensors[f"{i}/{m}/{name}"] = optimizer.state[p][m]
    for pool, rngs in streams.rngs.items():
        for s, rng in enumerate(rngs):
            tensors[f"rng/{pool}/{s}"] = rng.get_state()
    return tensors, {
        "step": step,
        "stopped": [{str(k): v for k, v in g.stopped.items()} for g in groups],
    }


def restore(
    groups: list[Group],
    optimizer: torch.optim.Adam,
    streams: Streams,
    tensors: dict[str, Tensor],
    scalars: dict,
) -> int:
    """The inverse of `state`; returns the step to go on from."""
    for i, g in enumerate(groups):
        g.last_loss = tensors[f"{i}/last_loss"].to(g.last_loss.device)
        if g.adapted:
            g.set_weight(tensors[f"{i}/weight"])
        g.stopped = {int(k): v for k, v in scalars["stopped"][i].items()}
        for name, p in g.theta.items():
            with torch.no_grad():
                p.copy_(tensors[f"{i}/theta/{name}"])
            optimizer.state[p] = {
                m: tensors[f"{i}/{m}/{name}"].clone().to(p.device) for m in MOMENTS
            }
    for pool, rngs in streams.rngs.items():
        for s, rng in enumerate(rngs):
            rng.set_state(tensors[f"rng/{pool}/{s}"])
    return scalars["step"]


def carry_moments(
    optimizer: torch.optim.Adam, groups: list[Group], moments: list[dict[str, Tensor]]
) -> None:
    """Begin with Adam's moments of another run, as the paper's toy does.

    `moments[i]`: "exp_avg/name" -> (M, ...), "step/name".
    """
    for g, of in zip(groups, moments, strict=True):
        for name, p in g.theta.items():
            optimizer.state[p] = {m: of[f"{m}/{name}"].clone() for m in MOMENTS}
