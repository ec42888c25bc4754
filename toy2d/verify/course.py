"""A finished run folder, opened: networks, world, chains and records for the theorems."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from toy2d.config import NEWER, ToyConfig
from toy2d.core.drift import Params
from toy2d.core.schedule import Schedule
from toy2d.data import World, world_pool
from toy2d.experiment import load_bases
from toy2d.model import members
from toy2d.prepare import Setting, probe_of
from toy2d.runs.files import UserError
from toy2d.runs.folder import load_tensors
from toy2d.theorems.pair import Pair
from toy2d.theorems.paper_theorem_2 import Drift
from toy2d.theorems.path_bound import BaseLaw, base_law

SHOWN = ("standard", "prior:1", "l2:0.03", "output:1", "fisher:1", "replay_all:1")


def _as_it_is(schedule: Schedule) -> Schedule:
    return schedule


@dataclass
class Course:
    """The run folder `path`, for some of its seeds.

    `spoil` replaces the schedule that the theorems see: `toy2d verify --power` spoils the weights
    w_t with it. `memory` keeps what does not depend on them (`once`).
    """

    path: Path
    seeds: tuple[int, ...]
    spoil: Callable[[Schedule], Schedule] = _as_it_is
    memory: dict[tuple, Any] = field(default_factory=dict)

    def __post_init__(self):
        saved = json.loads((self.path / "config.json").read_text())
        known = {f.name for f in fields(ToyConfig)}
        if differing := (set(saved) ^ known) - set(NEWER):
            differs = ", ".join(sorted(differing))
            raise UserError(
                f"{self.path}/config.json is of another version (differs in {differs}); "
                "run it anew under another name"
            )
        lists = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        self.config = replace(ToyConfig(**lists), device="cpu")
        missing = set(self.seeds) - set(self.config.seeds)
        if missing:
            raise UserError(
                f"--seeds {sorted(missing)}: {self.path} holds seeds {self.config.seeds}"
            )
        self.metrics = json.loads((self.path / "metrics.json").read_text())
        setting = Setting(self.config)
        self.net = setting.net
        self.theta_star = load_bases(setting, self.path).theta
        self.probe = self.once(("probe",), lambda: probe_of(setting, self.theta_star))
        self.tuned = load_tensors(self.path / "finetuned.safetensors")
        if len(self.tuned["bias0"]) != len(self.metrics["runs"]):
            raise UserError(
                f"{self.path}: finetuned.safetensors and metrics.json disagree; "
                "run it anew under another name"
            )

    @cached_property
    def world(self) -> World:
        world = self.config.make_world()
        return replace(world, schedule=self.spoil(world.schedule))

    @property
    def schedule(self) -> Schedule:
        return self.world.schedule

    @property
    def cond(self) -> Tensor:
        """(N,): the prompts of `chain`."""
        return self.probe.chain_cond

    def chain(self, seed: int) -> Tensor:
        """(T, N, 2): the base's cached ancestral chains under every old prompt."""
        return self.probe.chain[:, self.config.seeds.index(seed)]

    def base(self, seed: int) -> Params:
        return members(self.theta_star, self.config.seeds.index(seed))

    def run(self, i: int) -> Params:
        return members(self.tuned, i)

    def pair(self, i: int) -> Pair:
        """Run i of the stack with its base."""
        record = self.metrics["runs"][i]
        seed = record["seed"]
        return Pair(self.world, self.net, self.base(seed), self.run(i), record["run"], seed)

    def shots(self, seed: int) -> Tensor:
        """The instance points that seed was fine-tuned on."""
        new = (self.world.new,)
        return world_pool(self.world, new, self.config.shots, (seed,), "instance").x0[0]

    def which(self, *specs: str) -> list[tuple[int, str, int]]:
        """(place in the stack, run, seed) of these runs (default: all) that did not diverge."""
        return [
            (i, r["run"], r["seed"])
            for i, r in enumerate(self.metrics["runs"])
            if (r["run"] in specs or not specs) and r["seed"] in self.seeds and not r["stopped"]
        ]

    def once(self, key: tuple, make: Callable[[], Any]) -> Any:
        """make(), the first time; what it returned, after that."""
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]

    def base_law(self, pair: Pair, cond: int, density: float = 0.8) -> BaseLaw:
        """The ancestral law of the pair's base, made once for all its runs."""
        key = ("base law", pair.seed, cond, density)
        return self.once(key, lambda: base_law(pair, cond, density=density))

    @cached_property
    def shown(self) -> tuple[str, ...]:
        there = [r["run"] for r in self.metrics["runs"]]
        return tuple(s for s in SHOWN if s in there) or tuple(dict.fromkeys(there))[:6]

    @cached_property
    def drifts(self) -> list[Drift]:
        """Every run's distance and KL(base || tuned), mean over the old prompts, as measured.

        The error is the mean error: prompts share points.
        """
        found = []
        for i, _, _ in self.which():
            r = self.metrics["runs"][i]
            kls = [v for name, v in r["kl_base"].items() if name != "mixture"]
            mean = [sum(v[j] for v in kls) / len(kls) for j in (0, 1)]
            told = (r["run"], r["objective"], r["weight"], r["seed"], r["delta_theta"])
            found.append(Drift(*told, *mean))
        return found
