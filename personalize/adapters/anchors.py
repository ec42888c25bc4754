"""Distance of the trained model from its base, measured on the effective weights W + delta W.

For products (LoRA, LoHa, LoKr) nothing of the weight's size is formed, neither for the value nor
for its gradient. The exception is LoHa with r^2 above the weight's outputs or inputs, where nothing
larger than the weight is formed. The formulas are in deltas.py.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from personalize.adapters.deltas import FACTORS, Change, changes
from personalize.parallel.sharding import sharded, whole
from personalize.pipeline.model import Model
from toy2d.core.drift import Params, Reduction
from toy2d.core.objectives import Anchor, Weight


class AdapterAnchor:
    """`toy2d.core.objectives.Anchor` for adapters: the same methods, of the effective weights.

    Nothing is stored: the base is delta W = 0, where `choose` starts. Products of one shape are
    stacked, so that the cost is a few dozen small kernels. "tensor_mean" divides each layer's
    square by its number of weights, as for full training. `layers` gives each change's square a
    weight, by its name (default: 1).
    """

    def __init__(
        self,
        changed: list[Change],
        reduction: Reduction = "sum",
        layers: Mapping[str, float] | None = None,
    ):
        self.groups = _by_shape(changed)
        self.reduction, self.layers = reduction, layers
        self._s2 = {}  # per group, on the factors' device: no copy from the host in a step

    def of(self, ids: Collection[int]) -> "AdapterAnchor":
        """The anchor of only those changes whose factors have these ids."""
        own = [c for g in self.groups for c in among(g, ids)]
        return AdapterAnchor(own, self.reduction, self.layers)

    def squared_distance(self) -> Float[Tensor, ""]:
        """sum over layers of ||delta W||^2, weighted by `layers`; differentiable."""
        return torch.stack([self._square(g) for g in self.groups]).sum()

    def add_gradient_(self, weight: Weight) -> None:
        """grad += d(weight * squared_distance) / d factors; after unscaling, before clipping."""
        for group in self.groups:
            factors = [f for c in group for f in c.factors.values()]
            with torch.enable_grad():
                grads = torch.autograd.grad(weight * self._square(group), factors)
            torch._foreach_add_([f.grad for f in factors], grads)

    @torch.no_grad()
    def pull_(self, strength: Weight) -> None:
        """delta W <- delta W / (1 + 2 strength): the proximal step of the effective weights, the
        strength times a layer's weight.

        One factor is divided. delta W is linear in it, so this is the proximal step exactly,
        however delta W is split, and the subspace that the other factors span stays. Raises
        NotImplementedError for rotations: dividing a rotation gives no rotation.
        """
        for change in (c for group in self.groups for c in group):
            factor = next(
                (change.factors[f] for f in change.law.linear if f in change.factors), None
            )
            if factor is None:
                raise NotImplementedError(
                    f"{change.name}: a rotation cannot be shrunk toward the base"
                )
            if change.law.prepare is not None:
                change.law.prepare(change)
            factor.div_(1 + 2 * strength * self._weight(change) / self._count(change))

    def _square(self, group: list[Change]) -> Float[Tensor, ""]:
        return (self._squared_scales(group) * squares_of(group)).sum()

    def _squared_scales(self, group):
        like = next(iter(group[0].factors.values()))
        key = (id(group), like.device, like.dtype)
        if key not in self._s2:
            s2 = [c.scale**2 * self._weight(c) / self._count(c) for c in group]
            self._s2[key] = torch.tensor(s2, dtype=like.dtype, device=like.device)
        return self._s2[key]

    def _weight(self, change: Change) -> float:
        return 1.0 if self.layers is None else self.layers[change.name]

    def _count(self, change: Change) -> int:
        return 1 if self.reduction == "sum" else change.weight.numel()


def among(changed: list[Change], ids: Collection[int]) -> list[Change]:
    return [c for c in changed if any(id(f) in ids for f in c.factors.values())]


def squares_of(group: list[Change]) -> Float[Tensor, " n"]:
    """||delta W||^2 / s^2 of changes that share their law and shapes."""
    law = group[0].law
    if law.square is None:
        return torch.stack([law.delta(c).square().sum() for c in group])
    return law.square(group)


def _by_shape(changed: list[Change]) -> list[list[Change]]:
    """Rotations stay alone: their delta W is formed, and one at a time is enough."""
    groups = defaultdict(list)
    for c in changed:
        shapes = tuple((name, f.shape, f.device) for name, f in c.factors.items())
        groups[shapes if c.law.square else c.name].append(c)
    return list(groups.values())


@dataclass(frozen=True)
class AnchorSum:
    """The sum of the distances of disjoint parameters."""

    parts: tuple[AdapterAnchor | Anchor, ...]

    def of(self, ids: Collection[int]) -> "AnchorSum":
        return AnchorSum(tuple(p.of(ids) for p in self.parts))

    def squared_distance(self) -> Float[Tensor, ""]:
        return torch.stack([p.squared_distance() for p in self.parts]).sum()

    def add_gradient_(self, weight: Weight) -> None:
        for part in self.parts:
            part.add_gradient_(weight)

    def pull_(self, strength: Weight) -> None:
        for part in self.parts:
            part.pull_(strength)


# ---- what the loop and the measures call
def anchors_for(
    model: Model,
    theta: Params,
    reduction: Reduction = "sum",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    layers: Mapping[str, float] | None = None,
) -> dict[str, AdapterAnchor | Anchor | AnchorSum]:
    """{"l2": distance of theta from where it is now}. Call it right after `choose`.

    `layers`: the weight of each name of `effective_names` in the squared distance (default: 1).

    Adapters store nothing. For other parameters a copy in `dtype` on `device` (default: where they
    are) is kept. A bfloat16 copy is off by up to 2^-9 of each weight, so the distance starts above
    zero: fine for training, too coarse for reporting delta theta.
    """
    parts = []
    if changed := changes(model.parts):
        parts.append(AdapterAnchor(changed, reduction, layers))
    if plain := plain_parameters(theta):
        importance = None if layers is None else _as_tensors(layers, plain)
        parts.append(Anchor(plain, copy_of(plain, dtype, device), importance, reduction))
    return {"l2": parts[0] if len(parts) == 1 else AnchorSum(tuple(parts))}


def _as_tensors(layers: Mapping[str, float], theta: Params) -> Params:
    """The importance of each parameter as one number, where the parameter is."""
    return {n: torch.tensor(layers[n], device=p.device) for n, p in theta.items()}


def effective_names(model: Model, theta: Params) -> list[str]:
    """Names of what the distance is measured on: adapted weights, and parameters that train."""
    return [c.name for c in changes(model.parts)] + list(plain_parameters(theta))


def plain_parameters(theta: Params) -> dict[str, Tensor]:
    """The parameters that are weights themselves, not factors of one."""
    return {n: p for n, p in theta.items() if not any(f in n for f in FACTORS)}


def copy_of(
    theta: Params,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """theta_star: a detached copy.

    On the host it is pinned when theta is on a GPU, so that it can be fetched asynchronously.
    """
    copies = {}
    for name, p in theta.items():
        home = p.device if sharded(p) else device or p.device  # a share is small
        c = p.detach().to(device=home, dtype=dtype or p.dtype, copy=True)
        copies[name] = c.pin_memory() if p.is_cuda and not c.is_cuda else c
    return copies


def block_of(name: str) -> str:
    """The block of a parameter.

    "unet.down_blocks.1.attentions.0.to_q.weight" -> "unet.down_blocks.1";
    "text_encoder.encoder.layers.3.mlp.fc1.bias" -> "text_encoder.layers.3".
    """
    words = [w for w in name.split(".") if w not in ("encoder", "text_model")]
    return ".".join(words[:3] if len(words) > 2 and words[2].isdigit() else words[:2])


@torch.no_grad()
def effective_delta_theta(
    model: Model,
    theta: Params,
    theta_star: Mapping[str, Tensor] | None = None,
    part_of: Callable[[str], str] = block_of,
) -> dict[str, float]:
    """||delta theta||_2 of the effective weights: "total", and of each part, by default each block.

    Blocks are named "unet.down_blocks.0", ..., "text_encoder.layers.1"; their squares add up to the
    square of the total. `part_of` names the part of a parameter's name. `theta_star` holds the base
    of the plain parameters (`copy_of(plain_parameters(theta))`, on any device); adapters need none.
    One host sync.
    """
    squares = defaultdict(list)
    for c in changes(model.parts):
        squares[part_of(c.name)].append(c.scale**2 * squares_of([c]).sum())
    for name, p in plain_parameters(theta).items():
        star = theta_star[name].to(p.device, p.dtype, non_blocking=True)
        squares[part_of(name)].append(((p - star) ** 2).sum())
    names = list(squares)
    per_block = torch.stack([torch.stack(squares[n]).double().sum() for n in names])
    per_block = whole(per_block).cpu()
    total = {"total": float(per_block.sum().clamp(min=0).sqrt())}
    return total | {n: float(v.clamp(min=0).sqrt()) for n, v in zip(names, per_block, strict=True)}
