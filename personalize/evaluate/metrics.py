"""Scores of pictures, as pure functions of their features. No model, no file, no random numbers
but the bootstrap's own.

Shapes: N, M pictures; D features of a picture; P positions (patches) of a layer, C its channels; S
seeds.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import bootstrap, mannwhitneyu, t
from torch import Tensor
from torch.nn import functional as F

RESAMPLES = 1000


# ---- similarity
def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) of cosines between the rows of a (N, D) and b (M, D)."""
    return F.normalize(a.double(), dim=-1) @ F.normalize(b.double(), dim=-1).T


def paired_cosine(a: Tensor, b: Tensor) -> Tensor:
    """(N,): row i of a with row i of b."""
    return F.cosine_similarity(a.double(), b.double(), dim=-1)


def mean_to_others(pairwise: Tensor) -> Tensor:
    """(N,): mean of each row of a symmetric (N, N) without its diagonal; nan for one picture,
    whose pairs do not exist.
    """
    n = len(pairwise)
    if n < 2:
        return torch.full((n,), math.nan, dtype=pairwise.dtype)
    return (pairwise.sum(1) - pairwise.diagonal()) / (n - 1)


# ---- perceptual distance
def perceptual_distance(a: Sequence[Tensor], b: Sequence[Tensor], channel: int = -1) -> Tensor:
    """(N,): mean over layers and positions of |u - v|^2, u and v the unit vectors along `channel`
    of the layers' features.

    LPIPS (Zhang et al. 2018, eq. 1) with weight 1 for every channel and a mean over layers, so for
    any encoder: each layer is (N, *positions, C), or (N, C, H, W) with channel=1. 0: the same
    directions everywhere; 2: orthogonal; 4: opposite.
    """
    layers = []
    for x, y in zip(a, b, strict=True):
        u, v = F.normalize(x.double(), dim=channel), F.normalize(y.double(), dim=channel)
        squares = (u - v).square().sum(channel)
        layers.append(squares.reshape(len(squares), -1).mean(1))
    return torch.stack(layers).mean(0)


def pairwise_perceptual(features: Sequence[Tensor], channel: int = -1) -> Tensor:
    """(N, N), symmetric, 0 on the diagonal. One row of pairs at a time: all at once would be N
    (N - 1) pictures' layers in memory.
    """
    n = len(features[0])
    out = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n - 1):
        rest = [f[i + 1 :] for f in features]
        one = [f[i].expand_as(r) for f, r in zip(features, rest, strict=True)]
        out[i, i + 1 :] = out[i + 1 :, i] = perceptual_distance(one, rest, channel).cpu()
    return out


# ---- two sets of pictures
def mmd2(a: Tensor, b: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of unit features, kernel (cos + 1)^3 (KID's,
    Binkowski et al. 2018, on cosines).

    Its mean is 0 when a and b have one law, so single values may be negative. nan with fewer than
    two pictures on a side.
    """
    if min(len(a), len(b)) < 2:
        return math.nan
    aa, bb, ab = ((cosine(x, y) + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    return float(mean_to_others(aa).mean() + mean_to_others(bb).mean() - 2 * ab.mean())


def auc(scores: Sequence[float], right: Sequence[bool]) -> float:
    """P(score of a right picture > score of a wrong one), ties half: 0.5 says that the score
    knows nothing. nan if all are alike.
    """
    scores, right = np.asarray(scores, float), np.asarray(right, bool)
    if right.all() or not right.any():
        return math.nan
    return float(
        mannwhitneyu(scores[right], scores[~right]).statistic / (right.sum() * (~right).sum())
    )


# ---- summaries
def interval(values: Sequence[float], confidence: float = 0.95) -> dict | None:
    """{"mean", "low", "high", "n"}: percentile bootstrap of the mean; None without values, no
    bounds for a single one.

    Values that are nan (undefined there) are left out. A handful of values gives an interval that
    is too narrow: n says so.
    """
    x = np.asarray([v for v in values if not math.isnan(v)], float)
    if len(x) == 0:
        return None
    out = {"mean": float(x.mean()), "low": None, "high": None, "n": len(x)}
    if len(x) > 1:
        found = bootstrap(
            (x,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        out |= {"low": float(found.low), "high": float(found.high)}
    return out


def pairs_interval(values: Sequence[float], confidence: float = 0.95) -> dict | None:
    """As `interval`, for n rows of `mean_to_others`: each pair counts in two rows, so rows are not
    independent and a bootstrap is too narrow.

    The jackknife over pictures, with Student's t at n - 1 degrees: leaving picture i out moves the
    mean by 2 (mean - row_i) / (n - 2), so the standard error is that of independent rows times 2
    (n - 1) / (n - 2). No bounds for fewer than three pictures.
    """
    x = np.asarray([v for v in values if not math.isnan(v)], float)
    n = len(x)
    if n == 0:
        return None
    out = {"mean": float(x.mean()), "low": None, "high": None, "n": n}
    if n > 2:
        error = 2 * (n - 1) / (n - 2) * x.std(ddof=1) / n**0.5
        half = float(t.ppf((1 + confidence) / 2, n - 1) * error)
        out |= {"low": out["mean"] - half, "high": out["mean"] + half}
    return out


def over_seeds(values: Sequence[float], seeds: Sequence[int]) -> dict | None:
    """`interval` of the means of each seed: prompts are fixed, seeds are what would differ next
    time.
    """
    return interval(_of_each(values, seeds))


def pairs_over_seeds(values: Sequence[float], seeds: Sequence[int]) -> dict | None:
    """`over_seeds` for a column of `mean_to_others`: a mean over prompts of pairwise matrices is
    one of the seeds.
    """
    return pairs_interval(_of_each(values, seeds))


def _of_each(values: Sequence[float], seeds: Sequence[int]) -> list[float]:
    groups: dict[int, list[float]] = {}
    for v, s in zip(values, seeds, strict=True):
        if not math.isnan(v):
            groups.setdefault(s, []).append(v)
    return [float(np.mean(g)) for g in groups.values()]


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over all pictures (the reports' "stability"); None for fewer than two."""
    x = [v for v in values if not math.isnan(v)]
    return float(np.std(x, ddof=1)) if len(x) > 1 else None
