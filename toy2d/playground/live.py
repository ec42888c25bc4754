"""Fine-tune a base on points of one's own, and look at it along the way.

The loop, the losses and the measurements are the package's: this module only chooses what to
observe. Several objectives train at once on the same examples, steps and noise.
Shapes: P prompts, the new one last; N samples of each.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from toy2d.config import course
from toy2d.core.drift import Params
from toy2d.core.likelihood import flow_sample, log_prob
from toy2d.core.rng import generator
from toy2d.data import ExamplePool
from toy2d.experiment import pretrain
from toy2d.measure import measure
from toy2d.model import members
from toy2d.prepare import Setting, make_groups, make_pools, snapshot_probe, used_pools
from toy2d.runs.files import UserError
from toy2d.runs.folder import RunFolder
from toy2d.train import Group, Streams, Watch, fit

SAMPLES = 80  # of each prompt
MOST_POINTS = 50


@dataclass(frozen=True)
class Frame:
    """One objective at one step. All numbers in nats, of the ODE's law unless said."""

    spec: str
    step: int
    samples: Tensor  # P N 2, from the same noise at every step
    kl: dict[str, tuple[float, float]]  # old class -> KL(base || now) and its error
    path_kl: tuple[float, float]  # of the ancestral sampler
    learnt: float  # by how much the log density of the points has grown under the new prompt, mean


@dataclass
class Sandbox:
    """A base model and what is needed to fine-tune and measure it."""

    setting: Setting
    theta_star: Params

    def __post_init__(self):
        self.probe = snapshot_probe(self.setting, self.theta_star)
        self.prompts = (*self.setting.world.old, self.setting.world.new)
        rng = generator(0, "playground")
        self._noise = torch.randn(1, len(self.prompts) * SAMPLES, 2, generator=rng)
        self.base = self._samples(self.theta_star)

    @classmethod
    def open(cls, out: Path | str = "runs", seed: int = 0, **changes) -> "Sandbox":
        """The course's base of `seed` under `out`, pretrained now if it is not there (seconds)."""
        config = replace(course(), name=f"playground-{seed}", seeds=(seed,), **changes)
        setting, folder = Setting(config), Path(out) / "toy2d" / config.name
        run_folder = RunFolder(folder, config.as_dict())
        with run_folder.open():
            return cls(setting, pretrain(setting, run_folder).theta)

    @property
    def names(self) -> list[str]:
        return [self.setting.world.names[c] for c in self.prompts]

    def default_points(self) -> Tensor:
        """The six points that the course shows this seed: (6, 2)."""
        return make_pools(self.setting, self.theta_star)["instance"].x0[0]

    def train(
        self,
        points: Tensor,
        specs: tuple[str, ...],
        watch: Callable[[list[Frame]], None] = lambda frames: None,
        steps: int = 600,
        every: int = 50,
    ) -> dict[str, list[Frame]]:
        """Fine-tune on `points` (n, 2) with each of `specs` at once; frames of each spec.

        watch(frames, one a spec) is called every `every` steps while it trains. Raises UserError
        for an objective that does not exist or is named twice, and for no points or too many.
        """
        points = torch.as_tensor(points, dtype=torch.float32).reshape(-1, 2)
        if not 1 <= len(points) <= MOST_POINTS:
            raise UserError(f"place 1 to {MOST_POINTS} points, not {len(points)}")
        config = replace(self.setting.config, runs=tuple(specs), steps=steps)
        setting = Setting(config)
        groups = make_groups(setting, self.theta_star, self.probe)
        pools = make_pools(setting, self.theta_star)
        new = torch.full((1, len(points)), setting.world.new)
        pools["instance"] = ExamplePool(points[None], new)
        found = {spec: [] for spec in config.runs}
        before = self._log_density(self.theta_star, points)

        def observe(step, terms):
            frames = [f for g in groups for f in self._frames(g, step, points, before)]
            for frame in frames:
                found[frame.spec].append(frame)
            watch([found[spec][-1] for spec in config.runs])

        streams = Streams(used_pools(pools, groups), config.seeds, config.batch_size, "finetune")
        stops = (*range(0, steps, every), steps)
        fit(groups, streams, setting.schedule, steps, Watch(observe, stops))
        return found

    def _frames(self, group: Group, step: int, points: Tensor, before: float) -> list[Frame]:
        frames = []
        for m, record in enumerate(measure(self.setting.world, group, self.probe)):
            theta = members({k: p.detach() for k, p in group.theta.items()}, m)
            kl = {k: (v[0], v[1]) for k, v in record["kl_base"].items()}
            learnt = self._log_density(theta, points) - before
            path = record["path_kl"][0], record["path_kl"][1]
            spec = group.runs[m].spec.spec
            frames.append(Frame(spec, step, self._samples(theta), kl, path, learnt))
        return frames

    def _samples(self, theta: Params) -> Tensor:
        cond = torch.tensor(self.prompts).repeat_interleave(SAMPLES)
        x = flow_sample(self.setting.net.bind(theta), self.probe.ode, self._noise, cond, runs=1)
        return x.reshape(len(self.prompts), SAMPLES, 2)

    def _log_density(self, theta: Params, points: Tensor) -> float:
        """Mean over the points under the new prompt."""
        new = torch.tensor(self.setting.world.new)
        x = points[None]
        return float(log_prob(self.setting.net.bind(theta), self.probe.ode, x, new, runs=1).mean())
