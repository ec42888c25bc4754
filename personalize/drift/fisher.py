"""EWC at full scale: how much each weight of the base matters to the base's own pictures.

    squared distance = sum_ij F_ij delta W_ij^2
    F = diag sum_t 2 w_t E[J_t' J_t]                      (toy2d.core.drift.fisher_diagonal)

F belongs to the *effective* weights. For LoRA at B = 0 the Fisher of the factors themselves would
be useless: zero for A, and for B that of a random subspace. So F is taken of the adapted weights,
and delta W is formed one layer at a time. Shapes: O outputs, I inputs (a convolution's kernel is
part of I).
"""

from collections.abc import Collection
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from personalize.adapters.anchors import AnchorSum, among, copy_of, plain_parameters
from personalize.adapters.deltas import LORA, Change, changes
from personalize.config.train_config import TrainConfig
from personalize.drift.chains import base_chain, in_chunks, prompt_groups
from personalize.parallel.sharding import cut
from personalize.pipeline.model import Model
from toy2d.core.drift import Params, Predict, fisher_diagonal
from toy2d.core.objectives import Anchor, Weight
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.runs.folder import load_tensors, save_tensors


class FisherAdapterAnchor:
    """`toy2d.core.objectives.Anchor` for adapters with importance: sum F (delta W)^2. Stores F
    only, one number per adapted weight.
    """

    def __init__(self, changed: list[Change], importance: Params):
        self.changed, self.importance = changed, importance

    def of(self, ids: Collection[int]) -> "FisherAdapterAnchor":
        return FisherAdapterAnchor(among(self.changed, ids), self.importance)

    def squared_distance(self) -> Float[Tensor, ""]:
        return torch.stack([self._square(c) for c in self.changed]).sum()

    def add_gradient_(self, weight: Weight) -> None:
        """One layer at a time: delta W is formed, and freed."""
        for c in self.changed:
            factors = list(c.factors.values())
            with torch.enable_grad():
                grads = torch.autograd.grad(weight * self._square(c), factors)
            torch._foreach_add_([f.grad for f in factors], grads)

    @torch.no_grad()
    def pull_(self, strength: Weight) -> None:
        """delta W <- delta W / (1 + 2 strength F) as near as LoRA's B alone can follow (least
        squares, A fixed); strength 0 changes nothing.

        Raises NotImplementedError for other adapters.
        """
        for c in self.changed:
            if c.law is not LORA:
                raise NotImplementedError(
                    f"{c.name}: no proximal step for the Fisher distance of this adapter"
                )
            A, B = c.factors["lora_A"], c.factors["lora_B"]
            delta = c.delta_weight()
            lost = delta - delta / (1 + 2 * strength * self._F(c))
            B.sub_((lost @ torch.linalg.pinv(A.flatten(1)) / c.scale).reshape(B.shape))

    def _square(self, c: Change) -> Tensor:
        return (self._F(c) * c.delta_weight() ** 2).sum()

    def _F(self, c: Change) -> Tensor:
        like = next(iter(c.factors.values()))
        return self.importance[c.name].to(like.device, like.dtype).flatten(1)


def effective_weights(model: Model, theta: Params) -> dict[str, Tensor]:
    """What the adapters change, under those weights' names, and the parameters that train
    themselves.
    """
    return {c.name: c.weight for c in changes(model.parts)} | plain_parameters(theta)


def base_fisher(
    file: Path,
    predict: Predict,
    model: Model,
    theta: Params,
    config: TrainConfig,
    shape: tuple[int, ...],
) -> dict[str, Tensor]:
    """diag G of the base, from `fisher_samples` draws of its own chains under every measured
    prompt; kept in `file`. Call before training.
    """
    if not file.exists():
        weights = effective_weights(model, theta)
        frozen = [w for w in weights.values() if not w.requires_grad]
        short = model.schedule.strided(config.measure_nodes)
        for w in frozen:
            w.requires_grad_(True)
        samples = _own_samples(predict, config, short, shape)
        rng = generator(config.seed, "fisher/signs")
        save_tensors(file, fisher_diagonal(predict, weights, short, samples, rng))
        for w in frozen:
            w.requires_grad_(False)
    return load_tensors(file)


def _own_samples(predict, config: TrainConfig, short: Schedule, shape):
    """(x_t, t, prompts) one at a time, four nodes of each chain."""
    rng = generator(config.seed, "fisher")
    prompts = [p for group in prompt_groups(config).values() for p in group]
    each = [prompts[i % len(prompts)] for i in range(-(-config.fisher_samples // 4))]
    chain = base_chain(in_chunks(predict, config.sample_batch_size), short, each, shape, rng)
    for k in range(config.fisher_samples):
        i, t = k // 4, torch.randint(1, len(short), (1,), generator=rng)
        yield chain[int(t), i : i + 1], t.to(chain.device), each[i : i + 1]


def fisher_anchor(
    model: Model, theta: Params, importance: Params, theta_star: Params | None, dtype, device
) -> Anchor | FisherAdapterAnchor | AnchorSum:
    """The Fisher-weighted distance from where theta is now. `theta_star`: a copy of the plain
    parameters that exists already.

    theta_star and the diagonal wait on `device`; None: where the parameters are.
    """
    parts = []
    if changed := changes(model.parts):
        near = {c.name: importance[c.name].to(device or c.weight.device) for c in changed}
        parts.append(FisherAdapterAnchor(changed, near))
    if plain := plain_parameters(theta):
        star = theta_star or copy_of(plain, dtype, device)
        shares = {n: cut(importance[n].to(device or p.device), p) for n, p in plain.items()}
        parts.append(Anchor(plain, star, shares))
    return parts[0] if len(parts) == 1 else AnchorSum(tuple(parts))
