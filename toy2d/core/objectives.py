"""The objectives: one loss, four weights.

    loss = instance                                          denoise the subject's examples
         + prior  * denoise the base's own class samples     DreamBooth (Ruiz et al. 2023)
         + l2     * ||theta - theta_star||^2                 Lipschitz L2 (Kim et al. 2026)
         + output * mean ||eps_theta - eps_star||^2          base-output preservation: on samples
                                                             of the frozen base, under its prompts
         + fisher * sum_i F_i (theta_i - theta_star_i)^2     EWC (Kirkpatrick et al. 2017)

    STANDARD   PRIOR(w)   L2(lam)   OUTPUT(w)   FISHER(lam)   and sums: PRIOR(1.0) + L2(1e-3)

Every denoising term is a mean over batch and coordinates, as in diffusers. The data decide x0, t,
eps and cond of every role, so two objectives that are given the same batch see the same noise and a
difference is an effect.
Shapes: R stack of runs (nothing at full scale), B batch, D data. Weights are floats, or tensors of
shape R.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Parameter

from toy2d.core.drift import Params, Predict, Reduction, squared_distance
from toy2d.core.schedule import Schedule

Weight = float | Tensor
Weights = Float[Tensor, " T"]  # what each node's error counts, e.g. schedule.min_snr_weights(5.0)
TERMS = ("prior", "l2", "output", "fisher")  # beside "instance"


class Example(NamedTuple):
    """One role's minibatch: what is noised, how much, with which noise, under which prompt."""

    x0: Tensor  # R B D
    t: Tensor  # R B
    eps: Tensor  # R B D
    cond: Any  # handed to predict unread


def denoising_loss(
    predict: Predict, schedule: Schedule, example: Example, weights: Weights | None = None
) -> Float[Tensor, " *R"]:
    """mean over B and D of (network(x_t, t, cond) - target)^2, weighted by node."""
    x0, t, eps, cond = example
    output = predict(schedule.add_noise(x0, t, eps), schedule.timesteps[t], cond)
    return per_run_mean(output, schedule.target(x0, t, eps), t, weights)


def output_loss(
    predict: Predict,
    predict_star: Predict,
    schedule: Schedule,
    example: Example,
    weights: Weights | None = None,
) -> Float[Tensor, " *R"]:
    """mean over B and D of (network(x_t, t, cond) - base network(x_t, t, cond))^2.

    The base's output takes the place of the denoising target.
    """
    x0, t, eps, cond = example
    x_t, steps = schedule.add_noise(x0, t, eps), schedule.timesteps[t]
    with torch.no_grad():
        star = predict_star(x_t, steps, cond)
    return per_run_mean(predict(x_t, steps, cond), star, t, weights)


def per_run_mean(
    output: Float[Tensor, " *R_B_D"],
    target: Float[Tensor, " *R_B_D"],
    t: Int[Tensor, " *R_B"],
    weights: Weights | None,
) -> Float[Tensor, " *R"]:
    error = ((output.float() - target.float()) ** 2).flatten(t.ndim).mean(-1)
    if weights is not None:
        error = error * weights[t]
    return error.mean(-1)


@runtime_checkable
class Distance(Protocol):
    """The three methods of a distance term.

    `Anchor` has them; adapters bring their own class (personalize/adapters/anchors.py).
    """

    def squared_distance(self) -> Tensor: ...

    def add_gradient_(self, weight: Weight) -> None: ...

    def pull_(self, strength: Weight) -> None: ...


class Anchor:
    """theta_star, and the distance from it: its value, its gradient in place, its proximal step.

    The gradient of weight * squared_distance is 2 weight F (theta - theta_star) (/ numel for
    "tensor_mean"): no graph is needed and nothing is stored but the anchor, which may live in any
    dtype and on any device. Adapters bring their own class with the same three methods
    (personalize/adapters/anchors.py), because their distance is that of the *effective* weights.
    """

    def __init__(
        self,
        theta: Params,
        theta_star: Params,
        importance: Params | None = None,
        reduction: Reduction = "sum",
        runs: int = 0,
    ):
        self.theta, self.theta_star, self.importance = theta, theta_star, importance
        self.reduction, self.runs = reduction, runs

    def of(self, ids: Collection[int]) -> "Anchor":
        """The anchor of some parameters (by id), e.g. of a group with its own learning rate."""
        own = {n: p for n, p in self.theta.items() if id(p) in ids}
        return Anchor(own, self.theta_star, self.importance, self.reduction, self.runs)

    def squared_distance(self) -> Float[Tensor, " *R"]:
        return squared_distance(
            self.theta, self.theta_star, self.importance, self.reduction, self.runs
        )

    @torch.no_grad()
    def add_gradient_(self, weight: Weight) -> None:
        """grad += d(weight * squared_distance) / d theta.

        Call it after unscaling and before clipping.
        """
        for p, star, factor in self._factors(2 * weight):
            if isinstance(factor, float):
                for grad, now, then in blocks(p.grad, p, star):
                    grad.add_(now - then, alpha=factor)  # one pass over memory less
            else:
                p.grad.add_((p - star) * factor)

    @torch.no_grad()
    def pull_(self, strength: Weight) -> None:
        """Proximal step: theta <- theta_star + (theta - theta_star) / (1 + 2 strength F).

        It is decoupled from Adam's scaling.

        With strength = learning rate * weight it is the implicit form of AdamW's decay, toward
        theta_star instead of 0.
        """
        for p, star, factor in self._factors(2 * strength):
            p.lerp_(star, factor / (1 + factor))  # strength 0 leaves p to the bit

    def _factors(self, scale: Weight):
        """Yield (parameter, its anchor, scale * F / numel), the scale shaped to multiply a stack.

        A plain number stays one: no copy to a GPU.
        """
        for name, p in self.theta.items():
            per_run = p[(0,) * self.runs].numel() if self.reduction == "tensor_mean" else 1
            factor = scale / per_run
            if isinstance(scale, Tensor):
                factor = factor.to(p.device, p.dtype)
                if self.runs:
                    factor = factor.reshape(factor.shape + (1,) * (p.ndim - factor.ndim))
            if self.importance is not None:
                factor = self.importance[name].to(p.device, p.dtype) * factor
            yield p, self.theta_star[name].to(p.device, p.dtype, non_blocking=True), factor


BLOCK = 2**20  # numbers: their difference stays in a processor's cache


def blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Views of tensors of one shape, piece by piece on a CPU.

    Memory for a difference as large as the weights would be fetched from the system, and given
    back, at every step. Tensors in another layout, or divided among processes, stay whole.
    """
    plain = all(type(t) in (Tensor, Parameter) and t.is_contiguous() for t in tensors)
    if not plain or tensors[0].is_cuda:
        return [tensors]
    return zip(*(t.view(-1).split(BLOCK) for t in tensors), strict=True)


@dataclass(frozen=True)
class Objective:
    """The weights of the four terms beside the instance loss; zero means absent.

    Immutable; add two to get their sum.

    `decoupled` turns the two distance terms from gradients into proximal steps after the
    optimizer's (see `Anchor.pull_`). Raises ValueError for a negative, NaN or infinite weight.
    """

    prior: Weight = 0.0
    l2: Weight = 0.0
    output: Weight = 0.0
    fisher: Weight = 0.0
    reduction: Reduction = "sum"
    decoupled: bool = False

    def __post_init__(self):
        for name in TERMS:
            for w in torch.as_tensor(getattr(self, name)).flatten().tolist():
                if not (math.isfinite(w) and w >= 0):
                    raise ValueError(f"the {name} weight must be a finite number >= 0, not {w}")
        if self.reduction not in ("sum", "tensor_mean"):
            raise ValueError(f"reduction must be sum or tensor_mean, not {self.reduction!r}")

    def __add__(self, other: "Objective") -> "Objective":
        mine, theirs = ((o.reduction, o.decoupled) for o in (self, other))
        if self.uses("l2", "fisher") and other.uses("l2", "fisher") and mine != theirs:
            raise ValueError("a sum of two distance terms needs one reduction and one coupling")
        distance = other if other.uses("l2", "fisher") else self
        added = {name: getattr(self, name) + getattr(other, name) for name in TERMS}
        return replace(distance, **added)

    def uses(self, *names: str) -> bool:
        """Is any of these weights nonzero (in any run of a stack)?"""
        return any(n in self.active for n in names)

    @cached_property
    def active(self) -> tuple[str, ...]:
        """The names of the terms in use, besides "instance"."""
        return tuple(n for n in TERMS if bool(torch.as_tensor(getattr(self, n)).any()))

    @staticmethod
    def stack(objectives: "list[Objective]") -> "Objective":
        """One objective whose weights are tensors over the runs of a stack."""
        first = objectives[0]
        if any(
            (o.reduction, o.decoupled) != (first.reduction, first.decoupled) for o in objectives
        ):
            raise ValueError("runs of one stack must share reduction and decoupled")
        weights = {n: torch.tensor([float(getattr(o, n)) for o in objectives]) for n in TERMS}
        return replace(first, **weights)

    def terms(
        self,
        predict: Predict,
        schedule: Schedule,
        batch: Mapping[str, Example],
        predict_star: Predict | None = None,
        weights: Weights | None = None,
    ) -> dict[str, Float[Tensor, " *R"]]:
        """The weighted denoising terms, by name; their sum is what is differentiated.

        `weights`: of the nodes t, for every role alike.

        `batch` has a role "instance", and "prior" / "output" where those weights are not zero. The
        distance terms are added to the gradient by `add_anchor_gradients_` and to the log by
        `anchor_terms`: they need no graph. Raises ValueError for a role or a base that is missing.
        """
        for role in ("prior", "output"):
            if self.uses(role) and role not in batch:
                raise ValueError(
                    f"the {role} weight is not zero, but the batch has no {role!r} examples"
                )
        if self.uses("output") and predict_star is None:
            raise ValueError(
                "the output weight is not zero, but there is no base to imitate: pass predict_star"
            )
        terms = {"instance": denoising_loss(predict, schedule, batch["instance"], weights)}
        if self.uses("prior"):
            terms["prior"] = self.prior * denoising_loss(predict, schedule, batch["prior"], weights)
        if self.uses("output"):
            kept = output_loss(predict, predict_star, schedule, batch["output"], weights)
            terms["output"] = self.output * kept
        return terms

    def anchor_terms(self, anchors: Mapping[str, Distance]) -> dict[str, Float[Tensor, " *R"]]:
        """weight * squared distance for "l2" and "fisher" where in use (differentiable)."""
        return {n: getattr(self, n) * a.squared_distance() for n, a in self._used(anchors)}

    def add_anchor_gradients_(self, anchors: Mapping[str, Distance]) -> None:
        """After backward: add the distance terms' gradients in place, unless decoupled."""
        if not self.decoupled:
            for name, anchor in self._used(anchors):
                anchor.add_gradient_(getattr(self, name))

    def pull_to_anchors_(self, anchors: Mapping[str, Distance], learning_rate: Weight) -> None:
        """After the optimizer's step: the proximal steps, if decoupled."""
        if self.decoupled:
            for name, anchor in self._used(anchors):
                anchor.pull_(learning_rate * getattr(self, name))

    def _used(self, anchors: Mapping[str, Distance]):
        for name in ("l2", "fisher"):
            if self.uses(name):
                if name not in anchors:
                    raise ValueError(
                        f"the {name} weight is not zero, but no {name!r} anchor was given"
                    )
                yield name, anchors[name]


STANDARD = Objective()


def PRIOR(weight: Weight = 1.0) -> Objective:
    """Prior preservation: + weight * denoising loss on the frozen base's samples of the class."""
    return Objective(prior=weight)


def L2(lam: Weight, reduction: Reduction = "sum", decoupled: bool = False) -> Objective:
    """Lipschitz L2: + lam * ||theta - theta_star||^2.

    Unit of lam: loss per squared parameter distance (per mean square for tensor_mean).
    """
    return Objective(l2=lam, reduction=reduction, decoupled=decoupled)


def OUTPUT(weight: Weight = 1.0) -> Objective:
    """Base-output preservation: + weight * mean (eps_theta - eps_star)^2 on the base's prompts.

    It minimises the third link of the chain of lecture 6b directly.
    """
    return Objective(output=weight)


def FISHER(lam: Weight, decoupled: bool = False) -> Objective:
    """EWC: + lam * sum_i F_i (theta_i - theta_star_i)^2, F by `drift.fisher_diagonal`."""
    return Objective(fisher=lam, decoupled=decoupled)
