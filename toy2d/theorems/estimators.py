"""Estimators that the theorems need, each with its error, each refusing what it is not valid for.

binary_kl          kl(a || b) of two Bernoulli laws, exactly or from counts
knn_kl             KL(p || q) from samples of both, by k-nearest neighbours
knn_control        its bias and spread on a Gaussian pair of the same KL, n and k
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor


def binary_kl(a: float, b: float) -> float:
    """kl(a || b) = a ln(a / b) + (1 - a) ln((1 - a) / (1 - b)) in nats; infinite where b excludes what a allows."""
    if not (0 <= a <= 1 and 0 <= b <= 1):
        raise ValueError(f"binary_kl: masses must be in [0, 1], not {a} and {b}")

    def part(x, y):
        return 0.0 if x == 0 else math.inf if y == 0 else x * math.log(x / y)

    return part(a, b) + part(1 - a, 1 - b)


@dataclass(frozen=True)
class Mass:
    """Probability of a set, counted: `hits` of n independent samples, shrunk to (hits + 1/2) / (n + 1) (Jeffreys), or exact (n = None)."""

    value: float
    n: int | None = None

    @classmethod
    def count(cls, inside: Tensor) -> "Mass":
        """From booleans, one per sample. Raises ValueError for fewer than 100: the error would mean nothing."""
        n = inside.numel()
        if n < 100:
            raise ValueError(f"Mass.count: {n} samples; a binomial error needs at least 100")
        return cls((float(inside.sum()) + 0.5) / (n + 1), n)

    @property
    def error(self) -> float:
        return 0.0 if self.n is None else math.sqrt(self.value * (1 - self.value) / self.n)


def counted_kl(a: Mass, b: Mass) -> tuple[float, float]:
    """(kl(a || b), its standard error by the delta method)."""
    p, q = a.value, b.value
    by_a = math.log(p / q) - math.log((1 - p) / (1 - q)) if a.error else 0.0
    by_b = (q - p) / (q * (1 - q)) if b.error else 0.0
    return binary_kl(p, q), math.hypot(by_a * a.error, by_b * b.error)


def knn_kl(x: Tensor, y: Tensor, k: int = 5) -> tuple[float, float]:
    """(KL(p || q), standard error) from x ~ p (n, d) and y ~ q (m, d), in nats.

        d/n sum_i ln(nu_k(i) / rho_k(i)) + ln(m / (n - 1))

    rho_k, nu_k: distance from x_i to its k-th neighbour in the rest of x, in y   (Wang, Kulkarni, Verdu 2009; Perez-Cruz 2008). Biased:
    the two densities are smoothed over those distances, and where q has no sample near p the KL is underestimated; always
    print `knn_control` beside it. The error treats the n terms as independent.
    Raises ValueError for too few samples, repeated points (distance zero) or values that are not finite.
    """
    x, y = (v.detach().double().cpu().numpy() for v in (x, y))
    (n, d), m = x.shape, len(y)
    if k < 1 or min(n, m) < 50 * k:
        raise ValueError(f"knn_kl: {n} and {m} samples; k = {k} needs at least {50 * max(k, 1)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("knn_kl: a sample is not finite")
    rho = cKDTree(x).query(x, k + 1)[0][:, -1]
    nu = cKDTree(y).query(x, k)[0].reshape(n, -1)[:, -1]
    if not (rho.min() > 0 and nu.min() > 0):
        raise ValueError("knn_kl: repeated points (distance 0); the law has atoms, not a density")
    terms = d * np.log(nu / rho)
    return float(terms.mean() + math.log(m / (n - 1))), float(terms.std(ddof=1) / math.sqrt(n))


def knn_control(kl: float, n: int, k: int = 5, repeats: int = 6, seed: int = 0) -> tuple[float, float]:  # fmt: skip
    """(bias, spread of one estimate) of `knn_kl` on N(0, I) against N(m, I), |m|^2 / 2 = kl, at the same n and k."""
    shift = torch.tensor([math.sqrt(2 * max(kl, 0.0)), 0.0])
    rng = torch.Generator().manual_seed(seed)
    found = [
        knn_kl(torch.randn(n, 2, generator=rng), torch.randn(n, 2, generator=rng) + shift, k)[0]
        for _ in range(repeats)
    ]
    return float(np.mean(found) - max(kl, 0.0)), float(np.std(found, ddof=1))


def knn_with_bias(x: Tensor, y: Tensor, k: int = 5, seed: int = 0) -> tuple[float, float, str]:
    """(estimate, error = standard error and control bias together, what to print): the bias is not subtracted, it is stated."""
    value, error = knn_kl(x, y, k)
    bias, spread = knn_control(value, min(len(x), len(y)), k, seed=seed)
    note = f"k-nearest neighbours, n = {len(x)}, k = {k}; Gaussian control at this KL: bias {bias:+.3f}, spread {spread:.3f}"
    return value, math.hypot(max(error, spread), bias), note
