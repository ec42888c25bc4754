"""Which nodes of each chain are evaluated: a few, drawn by importance, so that sums stay unbiased.

    sum_t f_t   is estimated by   sum over the drawn t of f_t / pi_t       (Horvitz & Thompson 1952)

pi_t, the probability that node t is drawn, is half w_t alpha_bar_t and half an equal share: the
first is what nodes contribute to path KL where training moves fine detail most, the second bounds
1 / pi_t where it is not (base-output preservation; random networks). Draws are systematic: the
chains of a group start evenly spaced, so a group's draws are spread over the nodes as evenly as
they can be.
Shapes: T nodes, N chains of
a group, K nodes drawn of each.
"""

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from toy2d.core.schedule import Schedule

EQUAL = 0.5  # of the probability that is shared out equally


def inclusion(schedule: Schedule, each: int) -> Float64[Tensor, " T"]:
    """pi_t: they sum to min(each, T - 1), none is above 1; node 0 has no weight and is never
    drawn.
    """
    law = schedule.path_weights() * schedule.alpha_bar
    share = (1 - EQUAL) * law / law.sum()
    share[1:] += EQUAL / (len(schedule) - 1)
    pi = torch.zeros_like(share)
    left, free = min(each, len(schedule) - 1), share > 0
    while left and free.any():
        wanted = share * free / (share * free).sum() * left
        certain = free & (wanted >= 1 - 1e-9)
        if not certain.any():
            pi[free] = wanted[free]
            break
        pi[certain] = 1.0
        left, free = left - int(certain.sum()), free & ~certain
    return pi


def systematic(pi: Float64[Tensor, " T"], starts: Float64[Tensor, " N"]) -> Int[Tensor, " N K"]:
    """For each start in [0, 1) the K = sum(pi) nodes where cumsum(pi) passes start, start + 1, ...

    A start that is uniform draws node t with probability pi_t, and no node twice.
    """
    points = starts[:, None] + torch.arange(round(float(pi.sum())), dtype=pi.dtype)
    nodes = torch.searchsorted(pi.cumsum(0), points.to(pi.device), right=True)
    return nodes.clamp(max=int(pi.nonzero()[-1]))  # cumsum may end a rounding below K


def even_starts(n: int, rng: torch.Generator) -> Float64[Tensor, " N"]:
    """n starts in [0, 1), evenly spaced from one random point, in random order: each is uniform."""
    order = torch.randperm(n, generator=rng)
    shift = torch.rand((), generator=rng, dtype=torch.float64)
    return (order + shift) / n


def standard_error(values: Float64[Tensor, " N"], starts: Float64[Tensor, " N"]) -> float:
    """Of the mean of a systematic sample: from differences of neighbours in the order of starts.

    Neighbours share most of what their node decides, which an even sample has already averaged out,
    so only what differs between chains counts (Wolter 2007, section 8.2). Where every node is drawn
    it is the usual standard error, in the mean.
    """
    ordered = values[starts.argsort().to(values.device)]
    return float((ordered.diff() ** 2).mean() / (2 * len(values))) ** 0.5


def in_proportion(sizes: Float64[Tensor, " E"], n: int, rng: torch.Generator) -> Int[Tensor, " n"]:
    """n indices, each drawn with probability in proportion to its size; systematic, one start."""
    start = torch.rand((), generator=rng, dtype=torch.float64)
    points = (torch.arange(n, dtype=torch.float64) + start) / n
    ends = (sizes.double() / sizes.double().sum()).cumsum(0).cpu()
    return torch.searchsorted(ends, points, right=True).clamp(max=len(sizes) - 1)
