"""How adapters change a weight, and how far: delta W and its squared Frobenius norm.

A `Law` gives delta W, and ||delta W||_F^2 without forming delta W where algebra allows:

    kind   delta W                    its squared norm                          largest matrix
    LoRA   s B A                      s^2 <B'B, A A'>                           r x r          (1)
    LoHa   s (B1 A1) * (B2 A2)        (1) of s P Q, P = B1 & B2, Q = A1 & A2    r^2 x r^2      (2)
    LoKr   s (W1 kron W2)             s^2 ||W1||^2 ||W2||^2                     r x r at most  (3)
    OFT    W R' - W                   sum of squares                            the weight
    BOFT   diag(s) W R' - W           sum of squares                            the weight
    SVDiff U diag(d) V'               ||d||^2                                   d (spectral.py)

& pairs columns of the same row (the face-splitting product), so P is O x r^2 and Q is r^2 x I.
Where r^2 reaches O or I, the weight is smaller than that, and delta W is formed. Rotations are
measured layer by layer.

||A||^2 + ||B||^2, which some scripts penalise instead, is weight decay on the factors: it depends
on how the same delta W is split between them, and it pulls the random A to zero.

Shapes: n layers of one shape, stacked; r rank, O outputs, I inputs (including a convolution's
kernel).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from peft.tuners.boft.layer import BOFTLayer
from peft.tuners.loha.layer import LoHaLayer
from peft.tuners.lokr.layer import LoKrLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.oft.layer import OFTLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from personalize.adapters.spectral import PLACE, SpectralShift

Factors = dict[str, Tensor]
ADAPTER = "default"  # the only one that `choose` adds


@dataclass(frozen=True)
class Law:
    """One kind of adapter, as PEFT implements it.

    `layer`: PEFT's class. `factors`: its trained attributes. `delta(change)`: delta W / s as a
    matrix (O I). `square(changes of one shape)`: n squared norms of delta W / s; None: sum the
    squares of delta W. `linear`: delta W is linear in the first of these factors that the layer
    has, so shrinking that one shrinks delta W; empty: there is no such factor. `prepare`: called
    before that, where delta W is linear in a part of the factor's values only.
    """

    layer: type[BaseTunerLayer]
    factors: tuple[str, ...]
    delta: Callable[["Change"], Tensor]
    square: Callable[[list["Change"]], Tensor] | None = None
    linear: tuple[str, ...] = ()
    prepare: Callable[["Change"], None] | None = None


@dataclass(frozen=True, eq=False)
class Change:
    """One adapted weight, such as "unet.mid_block.resnets.0.conv1"; factors by PEFT's names."""

    name: str
    law: Law
    factors: Factors
    scale: float = 1.0
    weight: Tensor | None = None  # of the base: what rotations turn
    layer: BaseTunerLayer | None = None

    def delta_weight(self) -> Tensor:
        """delta W as a matrix (O I), differentiable; for rotations and the Fisher distance."""
        return self.scale * self.law.delta(self)


def stacked(group: list[Change]) -> Factors:
    return {f: torch.stack([c.factors[f] for c in group]) for f in group[0].factors}


def square_of_product(B: Tensor, A: Tensor) -> Tensor:
    """||B A||_F^2 of each layer   (1). B (n O r), A (n r I)."""
    return ((B.mT @ B) * (A @ A.mT)).sum((-2, -1))


# ---- the laws
def _lora_delta(c: Change) -> Tensor:
    return c.factors["lora_B"].flatten(1) @ c.factors["lora_A"].flatten(1)


def _lora_square(group: list[Change]) -> Tensor:
    f = stacked(group)
    return square_of_product(f["lora_B"].flatten(2), f["lora_A"].flatten(2))


def _loha_delta(c: Change) -> Tensor:
    f = c.factors
    return (f["hada_w1_a"] @ f["hada_w1_b"]) * (f["hada_w2_a"] @ f["hada_w2_b"])


def _loha_square(group: list[Change]) -> Tensor:
    """(2), or dense where that is smaller."""
    f = stacked(group)
    rank, inputs = f["hada_w1_b"].shape[-2:]
    if rank**2 >= min(f["hada_w1_a"].shape[-2], inputs):
        dense = (f["hada_w1_a"] @ f["hada_w1_b"]) * (f["hada_w2_a"] @ f["hada_w2_b"])
        return dense.square().sum((-2, -1))
    P = (f["hada_w1_a"][..., :, None] * f["hada_w2_a"][..., None, :]).flatten(-2)
    Q = (f["hada_w1_b"][..., :, None, :] * f["hada_w2_b"][..., None, :, :]).flatten(-3, -2)
    return square_of_product(P, Q)


def _lokr_delta(c: Change) -> Tensor:
    W1, W2 = (_multiplied(c.factors, w) for w in ("lokr_w1", "lokr_w2"))
    full = torch.kron(W1.reshape(*W1.shape, *[1] * (W2.ndim - 2)), W2)
    return full.flatten(1)


def _lokr_square(group: list[Change]) -> Tensor:
    """(3)"""
    f, squares = stacked(group), []
    for w in ("lokr_w1", "lokr_w2"):
        if w in f:
            squares.append(f[w].square().flatten(1).sum(1))
        else:
            squares.append(square_of_product(f[f"{w}_a"], f[f"{w}_b"]))
    return squares[0] * squares[1]


def _multiplied(f: Factors, w: str) -> Tensor:
    """W1 or W2 of LoKr, which are stored as they are or as a product of rank r."""
    return f[w] if w in f else f[f"{w}_a"] @ f[f"{w}_b"]


def _rotation_delta(c: Change) -> Tensor:
    """PEFT's rotation R (and BOFT's scale s), applied to the base's weight as its merge does."""
    turned = c.layer.get_delta_weight(ADAPTER)
    R, s = turned if isinstance(turned, tuple) else (turned, 1.0)
    W = c.weight.detach().flatten(1).to(R.dtype)
    return (W @ R.mT) * s - W


LORA = Law(LoraLayer, ("lora_A", "lora_B"), _lora_delta, _lora_square, ("lora_B",))
LOHA = Law(
    LoHaLayer,
    ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    _loha_delta,
    _loha_square,
    ("hada_w2_b",),
)
LOKR = Law(
    LoKrLayer,
    ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    _lokr_delta,
    _lokr_square,
    ("lokr_w1", "lokr_w1_b"),
)
OFT = Law(OFTLayer, ("oft_R",), _rotation_delta)
BOFT = Law(BOFTLayer, ("boft_R", "boft_s"), _rotation_delta)
SVDIFF = Law(
    SpectralShift,
    ("spectral_shift",),
    lambda c: c.layer.delta_weight(),
    lambda group: torch.stack([c.layer.moved() for c in group]).square().sum(-1),
    ("spectral_shift",),
    lambda c: c.layer.clamp_(),
)
LAWS = (LORA, LOHA, LOKR, OFT, BOFT, SVDIFF)
FACTORS = tuple(f".{name}." for law in LAWS for name in law.factors)


# ---- reading them off a network
def changes(parts: dict[str, nn.Module]) -> list[Change]:
    """Every adapted weight of the networks.

    Raises NotImplementedError for adapters whose delta W follows none of the laws.
    """
    return [c for part, network in parts.items() for c in _of_network(part, network)]


def _of_network(part: str, network: nn.Module) -> Iterator[Change]:
    for name, layer in network.named_modules():
        law = next((law for law in LAWS if isinstance(layer, law.layer)), None)
        if law is not None:
            yield _change(f"{part}.{name}".removesuffix(PLACE), law, layer)


def _change(name: str, law: Law, layer: BaseTunerLayer) -> Change:
    factors = {}
    for attribute in law.factors:
        held = getattr(layer, attribute)
        if ADAPTER in held:  # a parameter, or a small module around one
            factors[attribute] = getattr(held[ADAPTER], "weight", held[ADAPTER])
    base = layer.get_base_layer()
    if unusual := _unusual(layer, factors, base):
        raise NotImplementedError(f"{name}: the distance of {unusual} is not known here")
    # rotations have no scale of their own
    scale = float(layer.scaling[ADAPTER]) if law.square else 1.0
    return Change(name, law, factors, scale, base.weight, layer)


def _unusual(layer, factors, base) -> str | None:
    if any(getattr(layer, "use_dora", {}).values()):
        return "DoRA"
    if not factors:  # PEFT keeps those of an embedding apart
        return "adapters of embeddings"
    if getattr(base, "groups", 1) != 1:
        return "adapters of grouped convolutions"
    if {"hada_t1", "lokr_t2"} & factors.keys():
        return "factors with a core tensor"
    if base.weight.ndim > 2 and {"oft_R", "boft_R"} & factors.keys():
        return "rotated convolutions"
    return None
