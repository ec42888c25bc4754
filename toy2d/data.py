"""The worlds: mixtures of Gaussians under prompts, with every answer exact.

A world has the network's own interface, so that truth and model swap places:

    sample(cond, n, rng)      n points under prompt `cond`
    log_prob(x, cond, t)      log density, clean (t = None) or noised to the schedule's step t     nats
    eps(x_t, t, cond)         E[eps | x_t]: the exact noise prediction

A Gaussian N(m, S) noised to alpha_bar = ab is N(sqrt(ab) m, ab S + (1 - ab) I), so a noised mixture is a mixture.
Shapes: P prompts, C components, N points of any rank, the plane is the last dimension (2).
"""

import hashlib
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from toy2d.objectives import Example
from toy2d.schedule import Schedule


def generator(seed: int, role: str) -> torch.Generator:
    """An independent stream for (seed, role): "data", "init", "instance", "prior", "output", "probe", "sample"."""
    digest = hashlib.sha256(f"{seed}/{role}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


@dataclass(frozen=True, eq=False)
class World:
    """Prompts that are Gaussian mixtures. `tokens[p]` are the words of prompt p: shared words are how drift travels."""

    means: Tensor  # P C 2
    covs: Tensor  # P C 2 2
    schedule: Schedule
    names: tuple[str, ...]  # one per prompt
    tokens: tuple[tuple[int, ...], ...]  # one tuple per prompt, all of one length
    old: tuple[int, ...]  # prompts of pretraining
    new: int  # the prompt to personalize
    class_prompt: int  # the one prompt that prior preservation replays

    @property
    def num_components(self) -> int:
        return self.means.shape[1]

    def sample(self, cond: int, n: int, rng: torch.Generator, t: int | None = None) -> Tensor:
        """n points (n, 2), float32, of prompt `cond`; noised to step t if given."""
        which = torch.randint(self.num_components, (n,), generator=rng)
        root = torch.linalg.cholesky(self.covs[cond])[which]
        noise = torch.randn(n, 2, generator=rng, dtype=torch.float64)
        x = self.means[cond][which] + (root @ noise[..., None])[..., 0]
        if t is not None:
            eps = torch.randn(n, 2, generator=rng, dtype=torch.float64)
            x = self.schedule.add_noise(x, torch.tensor(t), eps)
        return x.float()

    def log_prob(self, x: Tensor, cond: Tensor | int, t: Tensor | int | None = None) -> Tensor:
        """log density in nats, float64, of shape x.shape[:-1]; `cond` and `t` broadcast against it."""
        diff, inverse, logdet = self._noised(x, cond, t)
        quad = (diff[..., None, :] @ inverse @ diff[..., None])[..., 0, 0]
        log_n = -0.5 * quad - 0.5 * logdet - math.log(2 * math.pi)
        return torch.logsumexp(log_n, -1) - math.log(self.num_components)

    def eps(self, x_t: Tensor, t: Tensor | int, cond: Tensor | int) -> Tensor:
        """E[eps | x_t] = -sqrt(1 - ab_t) grad log p_t(x_t), exact, in the dtype of x_t."""
        diff, inverse, logdet = self._noised(x_t, cond, t)
        pull = (inverse @ diff[..., None])[..., 0]
        log_n = -0.5 * (diff * pull).sum(-1) - 0.5 * logdet
        mean_pull = (torch.softmax(log_n, -1)[..., None] * pull).sum(-2)
        b = (1 - self.schedule.alpha_bar[torch.as_tensor(t)]).sqrt()
        return (b.reshape(*b.shape, 1) * mean_pull).to(x_t.dtype)

    def _noised(self, x, cond, t):
        """x - mean, inverse covariance, log det covariance of every component, noised to t   (... C 2, ... C 2 2, ... C)."""
        cond = torch.as_tensor(cond)
        ab = torch.ones((), dtype=torch.float64)
        if t is not None:
            ab = self.schedule.alpha_bar[torch.as_tensor(t)]
        ab = ab.reshape(*ab.shape, 1, 1)
        cov = ab[..., None] * self.covs[cond] + (1 - ab[..., None]) * torch.eye(
            2, dtype=torch.float64
        )
        a, b, d = cov[..., 0, 0], cov[..., 0, 1], cov[..., 1, 1]
        det = a * d - b * b
        inverse = torch.stack([torch.stack([d, -b], -1), torch.stack([-b, a], -1)], -2)
        inverse = inverse / det[..., None, None]
        return x.double()[..., None, :] - ab.sqrt() * self.means[cond], inverse, det.log()


def Pentagon(
    schedule: Schedule | None = None, std: float = 0.5, radius: float = 3.0, classes: int = 5
) -> World:
    """The paper's world: Gaussian classes on a regular polygon and a new class at the origin, one word per class."""
    angle = 2 * math.pi * torch.arange(classes, dtype=torch.float64) / classes
    means = torch.cat(
        [radius * torch.stack([angle.cos(), angle.sin()], -1), torch.zeros(1, 2).double()]
    )
    return World(
        means=means[:, None],
        covs=(std**2 * torch.eye(2, dtype=torch.float64)).expand(classes + 1, 1, 2, 2),
        schedule=schedule or Schedule.log_snr(100),
        names=(*(f"class {i}" for i in range(classes)), "new class"),
        tokens=tuple((i,) for i in range(classes + 1)),
        old=tuple(range(classes)),
        new=classes,
        class_prompt=0,
    )


class Pool(NamedTuple):
    """The examples of one role, for every seed: S seeds, N examples each."""

    x0: Tensor  # S N 2
    cond: Tensor  # S N


def world_pool(
    world: World, conds: tuple[int, ...], per_cond: int, seeds: tuple[int, ...], role: str
) -> Pool:
    """`per_cond` true samples of each prompt, drawn anew for every seed."""
    x0 = [
        torch.cat([world.sample(c, per_cond, rng) for c in conds])
        for rng in (generator(s, role) for s in seeds)
    ]
    cond = torch.tensor(conds).repeat_interleave(per_cond)
    return Pool(torch.stack(x0), cond.expand(len(seeds), -1))


def draw(pool: Pool, rngs: list[torch.Generator], batch_size: int, num_timesteps: int) -> Example:
    """One minibatch per seed, from that seed's generator: S B 2. Examples with replacement, t uniform on 0..T-1."""
    parts = []
    for s, rng in enumerate(rngs):
        i = torch.randint(pool.x0.shape[1], (batch_size,), generator=rng)
        t = torch.randint(num_timesteps, (batch_size,), generator=rng)
        eps = torch.randn(batch_size, 2, generator=rng)
        parts.append((pool.x0[s, i], t, eps, pool.cond[s, i]))
    return Example(*(torch.stack(p) for p in zip(*parts, strict=True)))
