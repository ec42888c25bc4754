"""Minibatches for training: which picture, which noise and which timestep each sample gets.

Every draw is a function of (seed, role, number of the sample). Nothing that is logged, validated,
measured or resumed can shift the noise of another step or of another objective.

Shapes: B batch, D data (4, 64, 64 latents for SD-1.5 at 512 px).
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from personalize.config.train_config import TrainConfig
from personalize.train.timesteps import timestep_law
from toy2d.core.drift import Predict
from toy2d.core.objectives import Example
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.runs.progress import progress


class Pool(Protocol):
    """Pictures with prompts (`PictureSet` of personalize/data/latents.py)."""

    def __len__(self) -> int: ...

    def draw(self, indices: list[int], rng: torch.Generator) -> tuple[Tensor, list[str]]:
        """(x0 (B, D) scaled latents, B prompts): each picture beside its own prompt."""


class Streams:
    """Minibatches by role and tick (a tick is one minibatch of every role).

    Each pool is walked in an endless sequence of permutations, so every picture is seen equally
    often. Sample i of a role has a generator of its own: how samples are cut into batches, or
    divided among `world` processes (this one is `rank`), changes none of them.
    """

    def __init__(
        self,
        pools: Mapping[str, Pool],
        config: TrainConfig,
        num_timesteps: int,
        scheme: str = "none",  # how t is drawn (timesteps.py)
        rank: int = 0,
        world: int = 1,
    ):
        self.rank, self.world = rank, world
        self.pools, self.draw_t = pools, timestep_law(config, scheme, num_timesteps)
        self.seed, self.batch_size = config.seed, config.train_batch_size
        self.offset = 0.1 if config.offset_noise else 0.0

    def batch(self, tick: int) -> dict[str, Example]:
        return {role: self.example(role, tick) for role in self.pools}

    def example(self, role: str, tick: int) -> Example:
        return self.collate(role, self.numbers(tick))

    def numbers(self, tick: int) -> range:
        """This process's samples: the minibatches of one tick lie side by side, by process."""
        first = (tick * self.world + self.rank) * self.batch_size
        return range(first, first + self.batch_size)

    def collate(self, role: str, numbers: Iterable[int]) -> Example:
        x0, t, eps, prompts = zip(*(self.sample(role, i) for i in numbers), strict=True)
        x0 = torch.cat(x0)
        t, eps = (torch.cat(v).to(x0.device, non_blocking=True) for v in (t, eps))
        return Example(x0, t, eps, list(prompts))

    def sample(self, role: str, i: int) -> tuple[Tensor, Tensor, Tensor, str]:
        """(x0 (1 D), t (1), eps (1 D), prompt) of the role's i-th sample."""
        rng, n = generator(self.seed, f"{role}/{i}"), len(self.pools[role])
        picture = permutation(self.seed, role, n, i // n)[i % n]
        x0, (prompt,) = self.pools[role].draw([picture], rng)
        t = self.draw_t(rng)
        eps = torch.randn(x0.shape, generator=rng)
        if self.offset:  # https://www.crosslabs.org/blog/diffusion-with-offset-noise
            eps += self.offset * torch.randn(1, eps.shape[1], 1, 1, generator=rng)
        return x0, t, eps, prompt


@lru_cache(maxsize=64)
def permutation(seed: int, role: str, n: int, epoch: int) -> tuple[int, ...]:
    return tuple(torch.randperm(n, generator=generator(seed, f"{role}/order/{epoch}")).tolist())


class StoredAnswers:
    """The base's outputs for the first n samples of the "output" role, made before training.

    No second network is kept. Samples are functions of the seed, so with n >= all samples this is
    exactly what calling the base at each step would give; with fewer, sample i repeats sample
    i mod n. Latents of SD-1.5 take 64 KiB each.
    """

    def __init__(self, streams: Streams, answers: Tensor):
        self.streams, self.answers = streams, answers  # n D, on the host

    @classmethod
    @torch.no_grad()
    def compute(
        cls, predict: Predict, streams: Streams, schedule: Schedule, n: int
    ) -> "StoredAnswers":
        """The base's outputs for n samples; the same ones under any number of processes."""
        answers, size = [], streams.batch_size
        for first in progress(range(0, n, size), "base answers"):
            x0, t, eps, cond = streams.collate("output", range(first, min(first + size, n)))
            x_t = schedule.add_noise(x0, t, eps)
            answers.append(predict(x_t, schedule.timesteps[t], cond).cpu())
        return cls(streams, torch.cat(answers))

    def example(self, tick: int) -> Example:
        return self.streams.collate("output", self._numbers(tick))

    def at(self, tick: int) -> Predict:
        """The base as a predictor, for the samples of this tick only."""
        answer = self.answers[self._numbers(tick)]
        return lambda x_t, t, cond: answer.to(x_t.device)

    def _numbers(self, tick: int) -> list[int]:
        return [i % len(self.answers) for i in self.streams.numbers(tick)]
