"""A finished run with the lectures' words: what notebooks call instead of stacks and indices.

`open_lab(seeds)` makes or finds the course's run. `lab.models("standard", "l2:0.1")` are its models
with their bases; each theorem is a method of that name, and returns its rows.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from toy2d.config import course
from toy2d.core.drift import Params, delta_theta, gain, path_kl, squared_error
from toy2d.core.rng import generator
from toy2d.experiment import run
from toy2d.figures.density import on_grid
from toy2d.kl import Points, compare, truth_points
from toy2d.model import Bound, members
from toy2d.quadrature import gauss_hermite
from toy2d.runs.statistics import old_kl
from toy2d.theorems import lower_bound as bound
from toy2d.theorems.counterexamples import train_new_row
from toy2d.theorems.estimators import Mass, counted_kl
from toy2d.theorems.row import Row
from toy2d.verify.course import Course


def open_lab(seeds: tuple[int, ...] = (0, 1, 2), out: str = "../runs") -> "Lab":
    """The course's run under `out`, made now if it is not there (two minutes, once)."""
    return Lab(run(course(), out), seeds)


class Lab(Course):
    """A run folder, for some of its seeds; runs are asked for by name."""

    def models(self, *specs: str) -> "Models":
        """These runs (default: all) of the lab's seeds that did not diverge."""
        return Models(self, self.which(*specs))

    def model(self, spec: str, seed: int) -> "Model":
        """One run of one seed. Raises ValueError if there is none."""
        found = [i for i, _, s in self.which(spec) if s == seed]
        if not found:
            raise ValueError(f"{self.path} holds no run {spec!r} of seed {seed}")
        return Model(self, found[0], seed)

    def drift(self, spec: str) -> dict[int, float]:
        """Seed -> KL(base || tuned) in nats, mean over the old classes (Definition 1.1)."""
        records = [self.metrics["runs"][i] for i, *_ in self.which(spec)]
        return {r["seed"]: old_kl(r, "kl_base") for r in records}

    @property
    def prompts(self) -> tuple[int, ...]:
        """The old prompts, then the new one."""
        return (*self.world.old, self.world.new)

    def path_kl_of(self, theta: Params, seed: int) -> tuple[float, float]:
        """(path KL, standard error) of these parameters against the base of `seed`, in nats."""
        ask = self.net.bind(theta), self.net.bind(self.base(seed))
        mean, error = path_kl(*ask, self.schedule, self.chain(seed)[:, None], self.cond, runs=1)
        return float(mean), float(error)

    def path_kl_terms(self, theta: Params, seed: int) -> Tensor:
        """(T,): w_t E ||eps_star - eps_theta||^2 at every node of the base's chains; 0 at t = 0."""
        ask = self.net.bind(theta), self.net.bind(self.base(seed)), self.schedule
        rows = [torch.zeros(())]
        for n, x_t in enumerate(self.chain(seed)[1:], 1):
            t = torch.full((1, len(x_t)), n)
            rows.append(squared_error(*ask, x_t[None], t, self.cond).mean())
        return self.schedule.path_weights() * torch.stack(rows)

    def gain_of(self, theta: Params, seed: int, points: Tensor) -> tuple[float, float]:
        """(gain, standard error) in nats on points (n, 2) of the new class (Proposition 6.11)."""
        rng, x0 = generator(seed, "lab/gain"), points[None].float()
        noise = [torch.randn(x0.shape, generator=rng) for _ in range(len(self.schedule))]
        ask = self.net.bind(theta), self.net.bind(self.base(seed)), self.schedule
        rows = gain(*ask, x0, noise, torch.tensor(self.world.new), runs=1).sum(0)[0]
        return float(rows.mean()), float(rows.std() / len(rows) ** 0.5)

    def new_class_kl(self, theta: Params) -> float:
        """KL(world || model) of the new class, in nats."""
        first = torch.zeros(1, dtype=torch.long)
        (kl,) = compare(self.net.bind(theta), self.probe.ode, self.probe.new, first, self.world)
        return kl[self.world.names[self.world.new]][0]

    def distance(self, theta: Params, seed: int) -> float:
        """||theta - theta_star||, not squared."""
        return float(delta_theta(theta, self.base(seed)))

    def train_new_row(self, seed: int) -> Params:
        """The base with only the new word's embedding trained, on the six points (Prop. 7.1)."""
        return train_new_row(self.world, self.net, self.base(seed), self.shots(seed), seed)

    def density(self, theta: Params, n: int = 40) -> Tensor:
        """p(x | prompt) of the ODE's law at the points of a grid: (M, prompts, n, n)."""
        return on_grid(self.net.bind(theta), self.probe.ode, self.prompts, n=n)

    @cached_property
    def truth(self) -> Points:
        """The world's points and densities on which laws are compared."""
        return truth_points(self.world, self.world.old, gauss_hermite(6), mixture=True)

    @cached_property
    def base_laws(self) -> bound.SampledLaws:
        """Densities and samples of every seed's base, in the order of `seeds`."""
        stack = [self.base(s) for s in self.seeds]
        theta = {k: torch.cat([p[k] for p in stack]) for k in stack[0]}
        return bound.laws_of(self.world, self.net.bind(theta), self.probe.ode, self.truth)


@dataclass(frozen=True)
class Model:
    """One fine-tuned model of a lab."""

    lab: Lab
    place: int  # in the run's stack
    seed: int

    @property
    def record(self) -> dict:
        """Its record in metrics.json."""
        return self.lab.metrics["runs"][self.place]

    @property
    def theta(self) -> Params:
        return self.lab.run(self.place)

    @property
    def theta_star(self) -> Params:
        return self.lab.base(self.seed)

    @property
    def predict(self) -> Bound:
        return self.lab.net.bind(self.theta)

    @property
    def path_kl(self) -> tuple[float, float]:
        """(path KL, standard error) in nats, measured here on the base's stored chains."""
        return self.lab.path_kl_of(self.theta, self.seed)

    def towards(self, share: float) -> Params:
        """theta_star + share * (theta - theta_star)."""
        star = self.theta_star
        return {k: star[k] + share * (p - star[k]) for k, p in self.theta.items()}


@dataclass(frozen=True)
class Models:
    """Models of a lab with their laws; `which` is (place in the stack, run, seed) of each."""

    lab: Lab
    which: list[tuple[int, str, int]]

    @property
    def names(self) -> list[str]:
        return [name for _, name, _ in self.which]

    @property
    def seeds(self) -> list[int]:
        return [seed for *_, seed in self.which]

    @property
    def records(self) -> list[dict]:
        return [self.lab.metrics["runs"][i] for i, *_ in self.which]

    @property
    def theta(self) -> Params:
        """All of them as one stack."""
        return members(self.lab.tuned, [i for i, *_ in self.which])

    @cached_property
    def laws(self) -> bound.SampledLaws:
        lab = self.lab
        return bound.laws_of(lab.world, lab.net.bind(self.theta), lab.probe.ode, lab.truth)

    @cached_property
    def balls(self) -> list[bound.Ball]:
        """For each the smallest ball that holds its six points."""
        return [bound.Ball.around(self.lab.shots(seed)) for seed in self.seeds]

    def lower_bound(self) -> list[Row]:
        """Theorem 4.3 for every model, prompt and two sets."""
        return bound.lower_bound(self.lab.world, self.laws, self.balls, self.names, self.seeds)

    def theorem_1(self) -> list[Row]:
        """Theorem 4.4: the paper's claim, and the theorem where its condition is met."""
        places = [self.lab.seeds.index(seed) for seed in self.seeds]
        laws, names = (self.laws, self.lab.base_laws, places), (self.names, self.seeds)
        return bound.theorem_1(self.lab.world, *laws, self.balls, *names)

    def coverage(self) -> list[Row]:
        """Corollary 5.1: E is what neither the subject nor the replayed samples cover."""
        world = self.lab.world
        of = {"prior": (world.class_prompt,), "replay_all": world.old}
        replayed = [of.get(name.split(":")[0], ()) for name in self.names]
        named = replayed, self.names, self.seeds
        return bound.coverage(world, self.laws, self.balls, *named)

    def half_plane(self, spec: str, seed: int, prompt: int) -> "HalfPlaneCase":
        """The half-plane that tells this model from the world under `prompt`, and its counts."""
        m = list(zip(self.names, self.seeds, strict=True)).index((spec, seed))
        true, tuned = self.laws.truth[prompt], self.laws.samples[m, prompt]
        side = bound.HalfPlane.telling_apart(true[::2], tuned[::2])
        counts = Mass.count(side(true[1::2])), Mass.count(side(tuned[1::2]))
        kl = self.laws.kl[m][self.lab.world.names[prompt]][0]
        return HalfPlaneCase(side, *counts, kl, true, tuned)


@dataclass(frozen=True)
class HalfPlaneCase:
    """Theorem 4.3 in one picture: a set, its two counted masses, the KL that they bound."""

    side: bound.HalfPlane
    p: Mass
    q: Mass
    kl: float  # KL(world || model), exact up to quadrature
    true: Tensor  # N 2: samples of the world
    tuned: Tensor  # N' 2: samples of the model

    @property
    def bound(self) -> float:
        """kl(p || q) in nats."""
        return counted_kl(self.p, self.q)[0]
