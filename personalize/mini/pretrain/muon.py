"""Muon: a weight matrix moves by its momentum, made orthogonal (Jordan et al. 2024).

All directions of the matrix then move equally far, also those with small gradients. The update has
the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so the learning rates are comparable. On
the mini's VAE 250 steps of it do what takes AdamW 1,000. Vectors and small matrices use Adam.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

SMALLEST = 17  # rows and columns of a matrix that is made orthogonal
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # brings singular values to about 0.7-1.2 in five rounds
SIZE = 0.2  # root mean square of an AdamW update, in units of the learning rate


def orthogonal(matrices: Tensor, rounds: int = 5) -> Tensor:
    """U V^T of each matrix U S V^T in (N, rows, columns), up to 30 %; computed in bfloat16.

    The Newton-Schulz iteration X <- a X + b (X X^T) X + c (X X^T)^2 X moves every singular value
    towards 1 and leaves the singular vectors alone.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16().contiguous()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Muon for matrices, Adam without decay for the rest. A convolution's rows are its outputs."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
    ):
        by_shape: dict[tuple[int, ...], list[Tensor]] = {}
        for p in params:
            shape = p.flatten(1).shape if p.ndim > 1 else (1,)
            key = tuple(shape) if min(shape) >= SMALLEST else ()
            by_shape.setdefault(key, []).append(p)
        groups = [{"params": found, "matrices": key != ()} for key, found in by_shape.items()]
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(groups, defaults | {"weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            (self._move_matrices if group["matrices"] else self._move_rest)(group)

    def _move_matrices(self, group: dict) -> None:
        """All matrices of one shape at once: many small products cost more than a few large."""
        lookahead = [self._momentum(p, group["momentum"]).flatten(1) for p in group["params"]]
        updates = orthogonal(torch.stack(lookahead)) * SIZE * max(lookahead[0].shape) ** 0.5
        for p, update in zip(group["params"], updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(update.view_as(p), alpha=-group["lr"])

    def _momentum(self, p: Tensor, share: float) -> Tensor:
        """Nesterov's: the average of the gradients, one step ahead."""
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        return p.grad.lerp(state["momentum"].lerp_(p.grad, 1 - share), share)

    def _move_rest(self, group: dict) -> None:
        """Adam (Kingma & Ba 2015)."""
        b1, b2 = group["betas"]
        for p in group["params"]:
            state = self.state[p]
            if not state:
                state |= {"m": torch.zeros_like(p), "v": torch.zeros_like(p), "steps": 0}
            state["steps"] += 1
            m = state["m"].lerp_(p.grad, 1 - b1) / (1 - b1 ** state["steps"])
            v = state["v"].lerp_(p.grad.square(), 1 - b2) / (1 - b2 ** state["steps"])
            p.addcdiv_(m, v.sqrt_().add_(group["eps"]), value=-group["lr"])
