"""The worlds: mixtures of Gaussians under prompts, with every answer exact.

A world has the network's own interface, so that truth and model swap places:

    sample(cond, n, rng)      n points under prompt `cond`
    log_prob(x, cond, t)      log density in nats, clean (t = None) or noised to step t
    eps(x_t, t, cond)         E[eps | x_t]: the exact noise prediction

A Gaussian N(m, S) noised to alpha_bar = ab is N(sqrt(ab) m, ab S + (1 - ab) I), so a noised mixture
is a mixture.
Shapes: P prompts, C components, N points of any rank, the plane is the last dimension (2).
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from toy2d.core.objectives import Example
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule


@dataclass(frozen=True, eq=False)
class World:
    """Prompts that are Gaussian mixtures.

    `tokens[p]` are the words of prompt p; drift travels by the words that prompts share.
    """

    means: Tensor  # P C 2
    covs: Tensor  # P C 2 2
    schedule: Schedule
    names: tuple[str, ...]  # one per prompt
    tokens: tuple[tuple[int, ...], ...]  # one tuple per prompt, all of one length
    old: tuple[int, ...]  # prompts of pretraining
    new: int  # the prompt to personalize
    class_prompt: int  # the one prompt that prior preservation replays
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)  # old prompts read together
    composed: tuple[int, ...] = ()  # never trained on, measured against the world only

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
        """log density in nats, float64, shape x.shape[:-1]; `cond` and `t` broadcast against it."""
        log_n, _ = self._components(x, cond, t)
        return torch.logsumexp(log_n, -1) - math.log(self.num_components)

    def eps(self, x_t: Tensor, t: Tensor | int, cond: Tensor | int) -> Tensor:
        """E[eps | x_t] = -sqrt(1 - ab_t) grad log p_t(x_t), exact, in the dtype of x_t."""
        log_n, pull = self._components(x_t, cond, t)
        mean_pull = (torch.softmax(log_n, -1)[..., None] * pull).sum(-2)
        b = (1 - self.schedule.alpha_bar_at(torch.as_tensor(t))).sqrt()
        return (b.reshape(*b.shape, 1) * mean_pull).to(x_t.dtype)

    def _components(self, x, cond, t):
        """log density of every component noised to t (... C), and S^-1 (x - m) (... C 2)."""
        cond = torch.as_tensor(cond)
        ab = torch.ones((), dtype=torch.float64)
        if t is not None:
            ab = self.schedule.alpha_bar_at(torch.as_tensor(t))
        ab = ab[..., None]
        covs = self.covs[cond]
        a, b, d = (ab * covs[..., i, j] + (1 - ab) * (i == j) for i, j in ((0, 0), (0, 1), (1, 1)))
        det = a * d - b * b
        diff = x.double()[..., None, :] - ab[..., None].sqrt() * self.means[cond]
        dx, dy = diff.unbind(-1)
        pull = torch.stack([(d * dx - b * dy) / det, (a * dy - b * dx) / det], -1)
        log_n = -0.5 * (diff * pull).sum(-1) - 0.5 * det.log() - math.log(2 * math.pi)
        return log_n, pull


def Pentagon(
    schedule: Schedule | None = None, std: float = 0.5, radius: float = 3.0, classes: int = 5
) -> World:
    """The paper's world: Gaussian classes on a regular polygon, and a new class at the origin.

    Each class has one word.
    """
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


CLASSES = {  # centre, and the offsets of its modes
    "dog": ((2.4, 2.0), ((-1.0, -0.6), (1.0, -0.6), (0.0, 1.2))),
    "cat": ((-2.4, 2.0), ((-1.3, 0.0), (0.0, 0.0), (1.3, 0.0))),
    "bird": ((-2.4, -2.0), ((0.0, -1.3), (0.0, 0.0), (0.0, 1.3))),
    "fish": ((2.4, -2.0), ((-1.0, 0.6), (1.0, 0.6), (0.0, -1.2))),
}
CONTEXTS = {  # x -> A x + b: one moves, one turns, one squeezes
    "in the snow": (((1.0, 0.0), (0.0, 1.0)), (-1.0, 1.0)),
    "on the beach": (((0.77, -0.64), (0.64, 0.77)), (0.0, 0.0)),
    "at night": (((1.1, 0.0), (0.0, 0.7)), (0.0, -0.8)),
}


def Prompts(
    schedule: Schedule | None = None, std: float = 0.3, instance_std: float = 0.15
) -> World:
    """The world of class x context x identifier.

    4 classes of 3 modes, 3 contexts (affine maps of the plane), and "V dog", one spot of the class.

    A prompt's words are (class, context or "no context", "V" or "no V"). Old: every class alone and
    in every context (16 prompts). New: "V dog", a narrow Gaussian between the dog's modes.
    Composed: "V dog" in each context, the same affine map of it, never trained on. Drift
    is reported by group of prompts; prior preservation replays "dog".
    """
    eye = torch.eye(2, dtype=torch.float64)
    classes, contexts = list(CLASSES), [None, *CONTEXTS]
    shapes = {n: (torch.tensor(c) + torch.tensor(o), std) for n, (c, o) in CLASSES.items()}
    shapes["V dog"] = (torch.tensor(CLASSES["dog"][0]).expand(3, 2), instance_std)
    none_context, v, none_v = range(len(classes) + len(CONTEXTS), len(classes) + len(CONTEXTS) + 3)
    means, covs, names, tokens = [], [], [], []
    for name, (points, s) in shapes.items():
        for k, context in enumerate(contexts):
            A, b = (torch.tensor(m).double() for m in CONTEXTS[context]) if context else (eye, 0.0)
            means.append(points.double() @ A.mT + b)
            covs.append((s**2 * A @ A.mT).expand(3, 2, 2))
            names.append(f"{name} {context}" if context else name)
            word = classes.index(name.removeprefix("V "))
            place = len(classes) + k - 1 if context else none_context
            tokens.append((word, place, v if name == "V dog" else none_v))
    each = len(contexts)
    return World(
        means=torch.stack(means),
        covs=torch.stack(covs),
        schedule=schedule or Schedule.log_snr(100),
        names=tuple(names),
        tokens=tuple(tokens),
        old=tuple(range(16)),
        new=16,
        class_prompt=0,
        groups={
            "the class": (0,),
            "the class in contexts": tuple(range(1, each)),
            "other classes": tuple(range(each, 16, each)),
            "other classes in contexts": tuple(i for i in range(each, 16) if i % each),
        },
        composed=(17, 18, 19),
    )


WORLDS = {"pentagon": Pentagon, "prompts": Prompts}


class ExamplePool(NamedTuple):
    """The examples of one role, for every seed: S seeds, N examples each."""

    x0: Tensor  # S N 2
    cond: Tensor  # S N


def world_pool(
    world: World, conds: tuple[int, ...], per_cond: int, seeds: tuple[int, ...], role: str
) -> ExamplePool:
    """`per_cond` true samples of each prompt, drawn anew for every seed."""
    x0 = [
        torch.cat([world.sample(c, per_cond, rng) for c in conds])
        for rng in (generator(s, role) for s in seeds)
    ]
    cond = torch.tensor(conds).repeat_interleave(per_cond)
    return ExamplePool(torch.stack(x0), cond.expand(len(seeds), -1))


def draw(
    pool: ExamplePool, rngs: list[torch.Generator], batch_size: int, num_timesteps: int
) -> Example:
    """One minibatch per seed (S B 2), from that seed's generator.

    Examples are drawn with replacement, t uniformly on 0..T-1.
    """
    parts = []
    for s, rng in enumerate(rngs):
        i = torch.randint(pool.x0.shape[1], (batch_size,), generator=rng)
        t = torch.randint(num_timesteps, (batch_size,), generator=rng)
        eps = torch.randn(batch_size, 2, generator=rng)
        parts.append((pool.x0[s, i], t, eps, pool.cond[s, i]))
    return Example(*(torch.stack(p) for p in zip(*parts, strict=True)))
