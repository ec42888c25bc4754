"""Expectations over N(0, I) in the plane by a rule of points and weights, each with an error.

    gauss_hermite(k)       k*k points; spectrally accurate for smooth integrands;
                           error = distance to the rule with k - 2, or what the highest Hermite
                           coefficients allow, if that is more
    sobol(n, scrambles)    randomized quasi-Monte Carlo, for laws with several modes;
                           error = standard error over scrambles

Shapes: N points of the rule, Q estimates of the rule, R coefficients.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm, qmc
from torch import Tensor

# A Gauss rule's error is at least this part of the highest coefficients of its integrand. On the
# 2024 KLs of the course the true error is then at most 0.90 of the stated one (lab log, 26
# November 2026).
TAIL = 0.01


@dataclass(frozen=True)
class Rule:
    """Points of N(0, I) in the plane and Q sets of weights, each an estimate of an expectation."""

    points: Tensor  # N 2
    weights: Tensor  # Q N
    nested: bool  # two quadratures, the better one first; else Q independent, equally good ones
    highest: Tensor | None = None  # R N: f @ highest.mT are coefficients that should be small

    def expect(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """(E f, its error) for values f (..., N) at the points."""
        estimates = f.double() @ self.weights.mT
        if self.nested:
            error = (estimates[..., 0] - estimates[..., 1]).abs()
            if self.highest is not None:
                error = error.maximum(TAIL * (f.double() @ self.highest.mT).norm(dim=-1))
            return estimates[..., 0], error
        return estimates.mean(-1), estimates.std(-1) / len(self.weights) ** 0.5

    def per_component(self, components: int) -> "Rule":
        """The rule for an equal mixture whose points are listed component by component."""

        def repeated(w: Tensor | None) -> Tensor | None:
            return None if w is None else w.repeat(1, components) / components

        return Rule(self.points, repeated(self.weights), self.nested, repeated(self.highest))


def hermite_grid(k: int) -> tuple[np.ndarray, np.ndarray]:
    """(points (k*k, 2), weights (k*k,)) of the Gauss-Hermite rule.

    sum_i w_i f(x_i) = E f(N(0, I)) exactly for polynomials up to degree 2k - 1.
    """
    x, w = np.polynomial.hermite_e.hermegauss(k)
    points = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    return points, np.outer(w, w).reshape(-1) / (2 * math.pi)


def highest_coefficients(k: int) -> np.ndarray:
    """(4k - 4, k*k): the rule's inner products with the orthonormal He_i(x) He_j(y) of which i or j
    is k - 1 or k - 2.

    They vanish for polynomials of lower degree in both axes: null rules (Laurie 1985). Two rules
    can agree by chance on a wrong value; then these coefficients still tell. Two degrees, because
    even functions have no odd ones.
    """
    points, weights = hermite_grid(k)
    he = [
        np.polynomial.hermite_e.hermeval(points, [0] * i + [math.factorial(i) ** -0.5])
        for i in range(k)
    ]
    high = [(i, j) for i in range(k) for j in range(k) if max(i, j) >= k - 2]
    return np.stack([he[i][:, 0] * he[j][:, 1] * weights for i, j in high])


def gauss_hermite(k: int = 8) -> Rule:
    """k*k points, and (k - 2)^2 more to know the error."""
    (x, w), (x2, w2) = hermite_grid(k), hermite_grid(k - 2)
    weights = np.zeros((2, len(w) + len(w2)))
    weights[0, : len(w)], weights[1, len(w) :] = w, w2
    highest = np.pad(highest_coefficients(k), ((0, 0), (0, len(w2))))
    parts = (np.concatenate([x, x2]), weights, highest)
    points, weights, highest = (torch.from_numpy(part) for part in parts)
    return Rule(points, weights, nested=True, highest=highest)


def sobol(n: int = 32, scrambles: int = 8, seed: int = 0) -> Rule:
    """`scrambles` independently scrambled Sobol sets of n (a power of 2) points: unbiased, error
    falling faster than 1/sqrt(n).
    """
    sets = [qmc.Sobol(2, rng=np.random.default_rng([seed, r])).random(n) for r in range(scrambles)]
    points = norm.ppf(np.clip(np.concatenate(sets), 1e-12, 1 - 1e-12))
    weights = torch.eye(scrambles, dtype=torch.float64).repeat_interleave(n, 1) / n
    return Rule(torch.from_numpy(points), weights, nested=False)
