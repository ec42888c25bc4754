"""The noise predictor of the toy: a stack of small MLPs over (x_t, t, words).

Parameters are a dict of tensors with a leading stack dimension M, so that one batched matmul
advances every run of a sweep. A single network is a stack of one. Words are embedded and *summed*:
"V dog" shares "dog" with "dog".
Shapes: M members, B batch, 2 the plane.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from toy2d.core.schedule import interpolate_alpha_bar

ACTIVATIONS = {"silu": F.silu, "relu": F.relu}


def _silu_and_slope(a: Tensor) -> tuple[Tensor, Tensor]:
    one = torch.ones((), dtype=a.dtype, device=a.device).expand_as(a)
    return F.silu(a), torch.ops.aten.silu_backward(one, a)  # one pass each


SLOPES = {"silu": _silu_and_slope, "relu": lambda a: (a.relu(), (a > 0).to(a.dtype))}


def _layer(theta: Mapping[str, Tensor], i: int, h: Tensor) -> Tensor:
    return torch.baddbmm(theta[f"bias{i}"], h, theta[f"weight{i}"])


def _one_time(t: Tensor) -> Tensor:
    """One entry of t, shaped to broadcast, where all are equal, as they are along an ODE."""
    first = t[(slice(1),) * t.ndim]
    return first if t.numel() == 1 or bool((t == first).all()) else t


@dataclass(frozen=True)
class EpsMLP:
    """The architecture, without its parameters: `init` makes them, a call with them predicts.

    With `alpha_bar` (one number per step) the layers predict what a standard normal's answer lacks,
        eps_hat = sqrt(1 - ab) (x_t + sqrt(ab) layers(x_t, t, c)),
    exact at both ends (as EDM's preconditioning, Karras et al. 2022): the base is then 20 times
    closer to the world than without. `time` = "cosine": cos(pi k t / T), k = 1..time_dim, fixed and
    smooth; "table": a learned row per step, as in the paper's toy.
    """

    tokens: tuple[tuple[int, ...], ...]  # the words of every prompt
    num_timesteps: int
    width: int = 64
    depth: int = 3  # hidden layers
    token_dim: int = 8
    time_dim: int = 8
    activation: Literal["silu", "relu"] = "silu"
    time: Literal["cosine", "table"] = "cosine"
    alpha_bar: tuple[float, ...] | None = None

    def init(self, rngs: list[torch.Generator]) -> dict[str, Tensor]:
        """Initial parameters, one member per generator.

        PyTorch's defaults: embeddings N(0, 1), linear layers U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
        """

        def normal(*shape):
            return torch.stack([torch.randn(*shape, generator=r) for r in rngs])

        def uniform(fan_in, *shape):
            return torch.stack(
                [(torch.rand(*shape, generator=r) * 2 - 1) / fan_in**0.5 for r in rngs]
            )

        theta = {"token": normal(1 + max(max(p) for p in self.tokens), self.token_dim)}
        if self.time == "table":
            theta["time"] = normal(self.num_timesteps, self.time_dim)
        sizes = [2 + self.time_dim + self.token_dim, *[self.width] * self.depth, 2]
        for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            theta[f"weight{i}"] = uniform(n_in, n_in, n_out)
            theta[f"bias{i}"] = uniform(n_in, 1, n_out)
        return theta

    def __call__(self, theta: Mapping[str, Tensor], x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """eps_hat (M, B, 2) for x_t (M, B, 2) and t, cond (M, B) or broadcastable to it."""
        t = _one_time(t)
        h = self._features(theta, x_t, t, cond)
        for i in range(self.depth):
            h = ACTIVATIONS[self.activation](_layer(theta, i, h))
        skip, scale = self._preconditioning(x_t, t)
        return skip * x_t + scale * _layer(theta, self.depth, h)

    def with_divergence(
        self, theta: Mapping[str, Tensor], x_t: Tensor, t: Tensor, cond: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(eps_hat, tr(d eps_hat / dx_t)), exact."""
        t = _one_time(t)
        h, slopes = self._features(theta, x_t, t, cond), []
        for i in range(self.depth):
            h, slope = SLOPES[self.activation](_layer(theta, i, h))
            slopes.append(slope)
        trace = self._trace_of_layers(theta, slopes)
        skip, scale = self._preconditioning(x_t, t)
        value = skip * x_t + scale * _layer(theta, self.depth, h)
        return value, (2 * skip + scale * trace)[..., 0]

    def _trace_of_layers(self, theta: Mapping[str, Tensor], slopes: list[Tensor]) -> Tensor:
        """tr(d layers / dx), (M, B, 1), from the activations' slopes d_0, d_1, ... (M, B, W).

        For two hidden layers it is the bilinear form d_0' K d_1 with
        K_ab = weight1_ab sum_k weight0_ka weight2_bk: one product instead of two tangents.
        """
        rows = theta["weight0"][:, :2]  # M 2 W: d(first layer) / dx
        if self.depth == 2:
            K = theta["weight1"] * (rows.mT @ theta["weight2"].mT)
            return ((slopes[0] @ K) * slopes[1]).sum(-1, keepdim=True)
        tangent = rows[:, :, None].expand(-1, -1, slopes[0].shape[1], -1).flatten(1, 2)  # M 2B W
        for i, slope in enumerate(slopes):
            tangent = tangent * torch.cat([slope, slope], 1) @ theta[f"weight{i + 1}"]
        along_x, along_y = tangent.chunk(2, 1)
        return along_x[..., :1] + along_y[..., 1:]

    @property
    def layers(self) -> dict[str, str]:
        """Kinds of layers -> regular expression for their parameters' names (runs/layers.py)."""
        own = {f"layer{i}": rf"^(weight|bias){i}$" for i in range(self.depth + 1)}
        time = {"time": "^time$"} if self.time == "table" else {}
        return {"words": "^token$"} | time | own

    @property
    def smooth_in_time(self) -> bool:
        """May it be called with fractional t? A learned table has rows for the steps only."""
        return self.time == "cosine"

    def _preconditioning(self, x_t, t):
        """(skip, scale), shape (..., 1): b and a b of the step, or 0 and 1 without `alpha_bar`."""
        if self.alpha_bar is None:
            return 0.0, 1.0
        ab = interpolate_alpha_bar(self._alpha_bar.to(x_t.device), t)[..., None]
        b = (1 - ab).sqrt()
        return b.to(x_t.dtype), (ab.sqrt() * b).to(x_t.dtype)

    def bind(self, theta: Mapping[str, Tensor]) -> "Bound":
        """predict(x_t, t, cond) with these parameters."""
        return Bound(self, theta)

    def _features(self, theta, x_t, t, cond):
        """x_t, the time and the summed words, side by side."""
        stack, batch = x_t.shape[:2]
        cond = cond.expand(stack, batch)
        row = torch.arange(stack, device=x_t.device)[:, None]
        words = self._words.to(x_t.device)[cond]
        token = theta["token"][row[..., None], words].sum(-2)
        time = theta["time"][row, t] if self.time == "table" else self._cosines(t, x_t)
        return torch.cat([x_t, time.expand(stack, batch, -1), token], -1)

    def _cosines(self, t: Tensor, like: Tensor) -> Tensor:
        if not t.is_floating_point():
            return self.time_features(like)[t]
        k = torch.arange(1, self.time_dim + 1, dtype=torch.float64, device=t.device)
        return torch.cos(math.pi * t[..., None] / self.num_timesteps * k).to(like)

    def time_features(self, like: Tensor) -> Tensor:
        return self._all_cosines.to(like)

    # ---- constants of the architecture, made once
    @cached_property
    def _alpha_bar(self) -> Tensor:
        return torch.tensor(self.alpha_bar, dtype=torch.float64)

    @cached_property
    def _words(self) -> Tensor:
        return torch.tensor(self.tokens)

    @cached_property
    def _all_cosines(self) -> Tensor:
        u = torch.arange(self.num_timesteps, dtype=torch.float64) / self.num_timesteps
        k = torch.arange(1, self.time_dim + 1, dtype=torch.float64)
        return torch.cos(math.pi * u[:, None] * k)


@dataclass(frozen=True)
class Bound:
    """A network with its parameters: what the rest of driftlab calls `predict`."""

    net: EpsMLP
    theta: Mapping[str, Tensor]

    def __call__(self, x_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.net(self.theta, x_t, t, cond)

    def with_divergence(self, x_t: Tensor, t: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.with_divergence(self.theta, x_t, t, cond)


def members(theta: Mapping[str, Tensor], which) -> dict[str, Tensor]:
    """These members of a stack (an index, slice or list), as a stack."""
    index = [which] if isinstance(which, int) else which
    return {name: p[index] for name, p in theta.items()}
