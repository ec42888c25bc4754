"""Distance from the base when weights move through adapters: exact, and nothing of weight size is formed.

    delta W = s B A,  s = alpha / r,     ||delta W||_F^2 = s^2 tr(A' B' B A) = s^2 <B'B, AA'>                              (1)
    d/dB = 2 s^2 B (AA'),   d/dA = 2 s^2 (B'B) A                                                                           (2)

Both brackets are r x r. ||A||^2 + ||B||^2, which some scripts penalise instead, is weight decay on the factors: it depends on how the
same delta W is split between them and pulls the random A to zero.

Shapes: r rank, O outputs, I inputs (a convolution's kernel is part of I), n layers of one shape, stacked.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from personalize.backbone import Model
from toy2d.drift import Params, Reduction
from toy2d.objectives import Anchor, Weight


class LoraPair(NamedTuple):
    """One adapted weight: A (r I...), B (O r...), and the scale s."""

    name: str  # of the adapted weight, "unet.down_blocks.0....to_q"
    A: nn.Parameter
    B: nn.Parameter
    scale: float

    def delta_weight(self) -> Tensor:
        """s B A as a matrix (O I): for tests and merging; the distance never forms it."""
        return self.scale * self.B.flatten(1) @ self.A.flatten(1)


def lora_pairs(model: Model) -> list[LoraPair]:
    """Every LoRA pair of the model. Raises NotImplementedError for kinds whose delta W is not s B A."""
    pairs = []
    for part, network in model.parts.items():
        for name, layer in network.named_modules():
            if isinstance(layer, LoraLayer):
                pairs += [
                    LoraPair(f"{part}.{name}", layer.lora_A[k].weight, layer.lora_B[k].weight, s)
                    for k, s in _plain_scales(layer).items()
                ]
    return pairs


def _plain_scales(layer: LoraLayer) -> dict[str, float]:
    grouped = getattr(layer.get_base_layer(), "groups", 1) != 1
    if any(layer.use_dora.values()) or layer.lora_embedding_A or grouped:
        raise NotImplementedError(
            "the distance of DoRA, embedding and grouped-convolution LoRA is not s B A"
        )
    return {k: float(layer.scaling[k]) for k in layer.lora_A}


class LoraAnchor:
    """`toy2d.objectives.Anchor` for LoRA: the same three methods, of the effective weights. Nothing is stored.

    The base is delta W = 0, where `choose` starts. Layers of one shape are stacked, so that the cost is a few dozen small kernels.
    "tensor_mean" divides each layer's square by its number of weights, as for full training.
    """

    def __init__(self, pairs: list[LoraPair], reduction: Reduction = "sum"):
        self.groups = _by_shape(pairs)
        self.reduction = reduction
        self._s2 = {}  # per group, on the factors' device: no copy from the host in a step

    def squared_distance(self) -> Float[Tensor, ""]:
        """sum over layers of s^2 <B'B, AA'>   (1); differentiable."""
        parts = []
        for pairs in self.groups:
            A, B, s2 = self._stacked(pairs)
            parts.append((s2 * (B.mT @ B) * (A @ A.mT)).sum())
        return torch.stack(parts).sum()

    @torch.no_grad()
    def add_gradient_(self, weight: Weight) -> None:
        """grad += d(weight * squared_distance) / d(A, B)   (2). Call it after unscaling and before clipping."""
        for pairs in self.groups:
            A, B, s2 = self._stacked(pairs)
            factor = 2 * weight * s2
            dA = (factor * (B.mT @ B)) @ A
            dB = B @ (factor * (A @ A.mT))
            _add_to_grads_([p.A for p in pairs], dA)
            _add_to_grads_([p.B for p in pairs], dB)

    @torch.no_grad()
    def pull_(self, strength: Weight) -> None:
        """delta W <- delta W / (1 + 2 strength): the proximal step of the effective weights, taken by B alone.

        B <- B / (1 + 2 strength) is that step exactly, whatever the split between A and B, and leaves the subspace A has found.
        """
        for pairs in self.groups:
            for pair in pairs:
                pair.B.div_(1 + 2 * strength / self._count(pair))

    def _stacked(self, pairs):
        A = torch.stack([p.A.flatten(1) for p in pairs])
        B = torch.stack([p.B.flatten(1) for p in pairs])
        return A, B, self._squared_scales(pairs, A)

    def _squared_scales(self, pairs, like):
        key = (id(pairs), like.device, like.dtype)
        if key not in self._s2:
            s2 = [p.scale**2 / self._count(p) for p in pairs]
            self._s2[key] = torch.tensor(s2, dtype=like.dtype, device=like.device)[:, None, None]
        return self._s2[key]

    def _count(self, pair):
        if self.reduction == "sum":
            return 1
        return pair.B.shape[0] * pair.A[0].numel()


def _by_shape(pairs):
    groups = defaultdict(list)
    for pair in pairs:
        groups[pair.A.shape, pair.B.shape, pair.A.device].append(pair)
    return list(groups.values())


def _add_to_grads_(parameters, grads):
    pieces = [g.reshape(p.shape) for p, g in zip(parameters, grads, strict=True)]
    torch._foreach_add_([p.grad for p in parameters], pieces)


@dataclass(frozen=True)
class AnchorSum:
    """Anchors of disjoint parameters, as one."""

    parts: tuple[LoraAnchor | Anchor, ...]

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
) -> dict[str, LoraAnchor | Anchor | AnchorSum]:
    """{"anchor": distance of theta from where it is now}. Call it right after `choose`.

    Adapters store nothing. For other parameters a copy in `dtype` on `device` (default: where they are) is kept; a bfloat16 copy is
    off by up to 2^-9 of each weight, so the distance starts above zero: fine for training, too coarse for reporting delta theta.
    """
    parts = []
    if pairs := lora_pairs(model):
        parts.append(LoraAnchor(pairs, reduction))
    if plain := plain_parameters(theta):
        parts.append(Anchor(plain, copy_of(plain, dtype, device), reduction=reduction))
    return {"anchor": parts[0] if len(parts) == 1 else AnchorSum(tuple(parts))}


def plain_parameters(theta: Params) -> dict[str, Tensor]:
    """Those that are weights themselves, not factors of one."""
    return {n: p for n, p in theta.items() if ".lora_A." not in n and ".lora_B." not in n}


def copy_of(
    theta: Params,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Tensor]:
    """theta_star: a detached copy; on the host it is pinned when theta lives on a GPU, so that it can be fetched asynchronously."""
    copies = {}
    for name, p in theta.items():
        c = p.detach().to(device=device or p.device, dtype=dtype or p.dtype, copy=True)
        copies[name] = c.pin_memory() if p.is_cuda and not c.is_cuda else c
    return copies


@torch.no_grad()
def effective_delta_theta(
    model: Model, theta: Params, theta_star: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """||delta theta||_2 of the effective weights: "total", and per block ("unet.down_blocks.0", ..., "text_encoder.layers.1").

    `theta_star` holds the base of the plain parameters (`copy_of(plain_parameters(theta))`, any device); adapters need none.
    Squares of the blocks add up to the square of the total. One transfer to the host.
    """
    squares = defaultdict(list)
    for pair in lora_pairs(model):
        A, B = pair.A.flatten(1), pair.B.flatten(1)
        squares[block_of(pair.name)].append(pair.scale**2 * ((B.mT @ B) * (A @ A.mT)).sum())
    for name, p in plain_parameters(theta).items():
        star = theta_star[name].to(p.device, p.dtype, non_blocking=True)
        squares[block_of(name)].append(((p - star) ** 2).sum())
    names = list(squares)
    per_block = torch.stack([torch.stack(squares[n]).double().sum() for n in names]).cpu()
    total = {"total": float(per_block.sum().clamp(min=0).sqrt())}
    return total | {n: float(v.clamp(min=0).sqrt()) for n, v in zip(names, per_block, strict=True)}


def block_of(name: str) -> str:
    """ "unet.down_blocks.1.attentions.0...." -> "unet.down_blocks.1"; "text_encoder.encoder.layers.3...." -> "text_encoder.layers.3"."""
    words = [w for w in name.split(".") if w not in ("encoder", "text_model")]
    return ".".join(words[:3] if len(words) > 2 and words[2].isdigit() else words[:2])
