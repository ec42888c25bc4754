"""Drift at full scale, in the toy's words: delta theta, delta eps, and path KL of each group of prompts.

The base's ancestral chains are sampled once, with the base's answers at every node, and kept.
Afterwards a measurement evaluates the live model only: no second network, for full training as for
adapters. Every number comes from toy2d.core.drift. Measuring never trains, and draws nothing but the
chains.

The sampler that path KL is about: ancestral, variance beta, `measure_nodes` of the schedule's
timesteps, no guidance.
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

Groups = dict[str, tuple[str, ...]]  # name -> prompts
Paths = dict[str, tuple[float, float, int]]  # group -> (mean, standard error, chains), in nats


def prompt_groups(config: TrainConfig) -> Groups:
    """Prompts that personalizing may hurt: the class, the class elsewhere, and unrelated ones."""
    groups = {
        "class": config.class_prompts,
        "contexts": config.context_prompts,
        "unrelated": config.unrelated_prompts,
    }
    return {name: prompts for name, prompts in groups.items() if prompts}


def in_chunks(predict: Predict, size: int) -> Predict:
    """The same predictor, `size` samples at a time."""

    def chunked(x_t, t, prompts):
        starts = range(0, len(x_t), size)
        cuts = [slice(i, i + size) for i in starts]
        return torch.cat([predict(x_t[cut], t[cut], prompts[cut]) for cut in cuts])

    return chunked


# ---- the base's chains
@dataclass(frozen=True)
class ChainSampling:
    """Which chains: so many for each prompt of each group, over so many nodes of the schedule."""

    groups: Groups
    shape: tuple[int, ...]  # of one latent
    chains: int = 4  # for each prompt
    nodes: int = 10
    seed: int = 0
    batch_size: int = 4

    def prompts(self, group: str) -> list[str]:
        """The prompt of each chain."""
        return [p for p in self.groups[group] for _ in range(self.chains)]


def chain_sampling(config: TrainConfig, shape: tuple[int, ...]) -> ChainSampling:
    return ChainSampling(
        prompt_groups(config),
        shape,
        config.measure_chains,
        config.measure_nodes,
        config.seed,
        config.sample_batch_size,
    )


def base_chain(
    predict: Predict,
    schedule: Schedule,
    prompts: list[str],
    shape: tuple[int, ...],
    rng: torch.Generator,
) -> Tensor:
    """(T, N, D): one ancestral chain for each of N prompts, entry t at node t of `schedule`."""
    x_T = torch.randn(len(prompts), *shape, generator=rng).to(schedule.alpha_bar.device)
    return torch.stack(ancestral(predict, schedule, x_T, prompts, rng, chain=True))


@dataclass(frozen=True)
class Chains:
    """One group's chains, and the base's answers along them."""

    schedule: Schedule
    prompts: list[str]  # N
    x: Tensor  # T N D
    answers: Tensor  # T N D; entry 0 is not used

    def base(self, x_t: Tensor, t: Tensor, prompts) -> Tensor:
        """The base as a Predict, on the chains alone: sample i of the batch must be chain i."""
        node = torch.searchsorted(self.schedule.timesteps, t)
        return self.answers[node, torch.arange(len(t), device=t.device)]

    def probe(self) -> tuple[Tensor, Tensor, list[str]]:
        """Fixed (x_t, t, prompts): chain i at one node, all nodes about equally often."""
        i = torch.arange(len(self.prompts), device=self.x.device)
        t = 1 + (i * 37) % (len(self.schedule) - 1)  # 37 keeps neighbours far apart in t
        return self.x[t, i], t, self.prompts


def make_chains(predict: Predict, schedule: Schedule, sampling: ChainSampling) -> dict[str, Chains]:
    """Sample the base's chains and note its answers; call it before anything trains."""
    short, groups = schedule.strided(sampling.nodes), {}
    predict = in_chunks(predict, sampling.batch_size)
    for name in sampling.groups:
        prompts, noted = sampling.prompts(name), []

        def noting(x_t, t, cond, noted=noted):
            noted.append(predict(x_t, t, cond))
            return noted[-1]

        rng = generator(sampling.seed, f"probe/{name}")
        x = base_chain(noting, short, prompts, sampling.shape, rng)
        answers = torch.stack([torch.zeros_like(x[0]), *reversed(noted)])  # noted from T-1 to 1
        groups[name] = Chains(short, prompts, x, answers)
    return groups


def kept_chains(
    file: Path, predict: Predict, schedule: Schedule, sampling: ChainSampling
) -> dict[str, Chains]:
    """`make_chains`, kept in `file`: a resumed run is measured on the very same chains."""
    if not file.exists():
        made = make_chains(predict, schedule, sampling)
        parts = [(part, name) for name in made for part in ("x", "answers")]
        save_tensors(file, {f"{part}/{name}": getattr(made[name], part) for part, name in parts})
    kept = load_tensors(file)
    device, short = schedule.alpha_bar.device, schedule.strided(sampling.nodes)
    return {
        name: Chains(
            short,
            sampling.prompts(name),
            kept[f"x/{name}"].to(device),
            kept[f"answers/{name}"].to(device),
        )
        for name in sampling.groups
    }


# ---- the three distances
def eps_drift(predict: Predict, groups: dict[str, Chains], chunk: int) -> float:
    """delta eps over the probes of all groups: root mean square over N of a norm over D."""
    predict = in_chunks(predict, chunk)
    squares = [
        (delta_eps(predict, c.base, c.schedule, *c.probe()) ** 2, len(c.prompts))
        for c in groups.values()
    ]
    return (sum(float(d) * n for d, n in squares) / sum(n for _, n in squares)) ** 0.5


def path_drift(predict: Predict, groups: dict[str, Chains], chunk: int) -> Paths:
    """Path KL of each group, in nats."""
    predict, out = in_chunks(predict, chunk), {}
    for name, c in groups.items():
        mean, error = path_kl(predict, c.base, c.schedule, c.x, c.prompts)
        out[name] = (float(mean), float(error), len(c.prompts))
    return out


def path_columns(paths: Paths) -> dict[str, float]:
    """Columns of a row, named as the toy's: path_kl over all chains, path_kl/GROUP, and errors."""
    total = sum(n for _, _, n in paths.values())
    row = {
        "path_kl": sum(mean * n for mean, _, n in paths.values()) / total,
        "path_kl_error": sum((error * n) ** 2 for _, error, n in paths.values()) ** 0.5 / total,
    }
    for name, (mean, error, _) in paths.items():
        row |= {f"path_kl/{name}": mean, f"path_kl_error/{name}": error}
    return row


@dataclass
class DriftMeter:
    """How far the live model is from its base, in the three senses, whenever it is called.

    theta_star: the base's values of the parameters that train themselves (not adapters).
    """

    model: Model
    theta: Params
    theta_star: Params
    predict: Predict
    chains: dict[str, Chains]
    chunk: int  # samples at once

    def delta_theta(self) -> dict[str, float]:
        """Of the effective weights: "total", and each block."""
        return effective_delta_theta(self.model, self.theta, self.theta_star)

    def delta_eps(self) -> float:
        return eps_drift(self.predict, self.chains, self.chunk)

    def path_kl(self) -> Paths:
        return path_drift(self.predict, self.chains, self.chunk)
