"""Drift at full scale, in the toy's words: delta theta, delta eps, and path KL for each group of prompts.

The base's ancestral chains are sampled once, with the base's answers at every node, and kept in the run folder. Afterwards a measurement
asks only the live model: no second network, for full training as for adapters. Every number comes from toy2d.core.drift.
Measuring never trains, and draws nothing but the chains.

The sampler that path KL is about: ancestral, variance beta, `measure_nodes` of the schedule's timesteps, no guidance.
Shapes: N chains of a group, T nodes, D data.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from personalize.adapters.anchors import effective_delta_theta
from personalize.config.train_config import TrainConfig
from personalize.pipeline.model import Model
from toy2d.core.drift import Params, Predict, delta_eps, path_kl
from toy2d.core.rng import generator
from toy2d.core.sample import ancestral
from toy2d.core.schedule import Schedule
from toy2d.runs.folder import load_tensors, save_tensors


def prompt_groups(config: TrainConfig) -> dict[str, tuple[str, ...]]:
    """Whom drift may hurt: the class without the identifier, the class elsewhere, and what has nothing to do with it."""
    groups = {
        "class": config.class_prompts,
        "contexts": config.context_prompts,
        "unrelated": config.unrelated_prompts,
    }
    return {name: prompts for name, prompts in groups.items() if prompts}


def in_chunks(predict: Predict, size: int) -> Predict:
    """The same predictor, `size` samples at a time."""

    def chunked(x_t, t, prompts):
        parts = range(0, len(x_t), size)
        return torch.cat([predict(x_t[i : i + size], t[i : i + size], prompts[i : i + size]) for i in parts])  # fmt: skip

    return chunked


def base_chain(
    predict: Predict, schedule: Schedule, prompts: list[str], shape: tuple[int, ...], rng: torch.Generator
) -> Tensor:  # fmt: skip
    """(T, N, D): one ancestral chain for each of N prompts, entry t at node t of `schedule`."""
    x_T = torch.randn(len(prompts), *shape, generator=rng).to(schedule.alpha_bar.device)
    return torch.stack(ancestral(predict, schedule, x_T, prompts, rng, chain=True))


@dataclass(frozen=True)
class Chains:
    """One group's chains, and what the base answered along them."""

    schedule: Schedule
    prompts: list[str]  # N
    x: Tensor  # T N D
    answers: Tensor  # T N D; entry 0 is not asked

    def base(self, x_t: Tensor, t: Tensor, prompts) -> Tensor:
        """The base as a Predict, where it was asked: sample i of the batch must be chain i."""
        node = torch.searchsorted(self.schedule.timesteps, t)
        return self.answers[node, torch.arange(len(t), device=t.device)]

    def probe(self) -> tuple[Tensor, Tensor, list[str]]:
        """Fixed (x_t, t, prompts): chain i at one node, all nodes about equally often. 37 keeps neighbours far apart in t."""
        i = torch.arange(len(self.prompts), device=self.x.device)
        t = 1 + (i * 37) % (len(self.schedule) - 1)
        return self.x[t, i], t, self.prompts


def make_chains(
    predict: Predict, config: TrainConfig, schedule: Schedule, shape: tuple[int, ...]
) -> dict[str, Chains]:
    """Sample and ask the base; call it before anything trains."""
    short, groups = schedule.strided(config.measure_nodes), {}
    predict = in_chunks(predict, config.sample_batch_size)
    for name, prompts in prompt_groups(config).items():
        each = [p for p in prompts for _ in range(config.measure_chains)]
        asked = []

        def noting(x_t, t, cond, asked=asked):
            asked.append(predict(x_t, t, cond))
            return asked[-1]

        x = base_chain(noting, short, each, shape, generator(config.seed, f"probe/{name}"))
        answers = torch.stack([torch.zeros_like(x[0]), *reversed(asked)])  # the chain runs T-1 .. 1
        groups[name] = Chains(short, each, x, answers)
    return groups


def kept_chains(
    file: Path, predict: Predict, config: TrainConfig, schedule: Schedule, shape: tuple[int, ...]
) -> dict[str, Chains]:
    """`make_chains`, kept in `file` so that a resumed run is measured against the very same chains."""
    if not file.exists():
        made = make_chains(predict, config, schedule, shape)
        tensors = {f"{part}/{n}": getattr(c, part) for n, c in made.items() for part in ("x", "answers")}  # fmt: skip
        save_tensors(file, tensors)
    kept = load_tensors(file)
    device, short = schedule.alpha_bar.device, schedule.strided(config.measure_nodes)
    return {
        name: Chains(
            short,
            [p for p in prompts for _ in range(config.measure_chains)],
            kept[f"x/{name}"].to(device),
            kept[f"answers/{name}"].to(device),
        )
        for name, prompts in prompt_groups(config).items()
    }


def eps_drift(predict: Predict, groups: dict[str, Chains], chunk: int) -> float:
    """delta eps over the probes of all groups: root mean square over N of a norm over D."""
    predict = in_chunks(predict, chunk)
    squares = [
        (delta_eps(predict, c.base, c.schedule, *c.probe()) ** 2, len(c.prompts)) for c in groups.values()
    ]  # fmt: skip
    return (sum(float(d) * n for d, n in squares) / sum(n for _, n in squares)) ** 0.5


def path_drift(
    predict: Predict, groups: dict[str, Chains], chunk: int
) -> dict[str, tuple[float, float, int]]:
    """(mean, standard error, number of chains) of path KL for each group, in nats."""
    predict, out = in_chunks(predict, chunk), {}
    for name, c in groups.items():
        mean, error = path_kl(predict, c.base, c.schedule, c.x, c.prompts)
        out[name] = (float(mean), float(error), len(c.prompts))
    return out


def path_columns(paths: dict[str, tuple[float, float, int]]) -> dict[str, float]:
    """Columns of a row, named as the toy's: path_kl over all chains, path_kl/GROUP, and their standard errors."""
    total = sum(n for _, _, n in paths.values())
    row = {
        "path_kl": sum(mean * n for mean, _, n in paths.values()) / total,
        "path_kl_error": sum((error * n) ** 2 for _, error, n in paths.values()) ** 0.5 / total,
    }
    for name, (mean, error, _) in paths.items():
        row |= {f"path_kl/{name}": mean, f"path_kl_error/{name}": error}
    return row


@dataclass
class Drift:
    """How far the live model is from its base, in the three senses, whenever asked. `theta_star`: the base of what trains itself."""

    model: Model
    theta: Params
    theta_star: Params
    predict: Predict
    chains: dict[str, Chains]
    chunk: int  # samples at once

    def delta_theta(self) -> dict[str, float]:
        """ "total" and each block, effective weights."""
        return effective_delta_theta(self.model, self.theta, self.theta_star)

    def delta_eps(self) -> float:
        return eps_drift(self.predict, self.chains, self.chunk)

    def path_kl(self) -> dict[str, tuple[float, float, int]]:
        return path_drift(self.predict, self.chains, self.chunk)
