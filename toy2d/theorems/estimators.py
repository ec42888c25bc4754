"""KL of two Bernoulli laws, exactly (`binary_kl`) or from counted samples (`counted_kl`)."""

import math
from dataclasses import dataclass

from torch import Tensor


def binary_kl(a: float, b: float) -> float:
    """kl(a || b) = a ln(a / b) + (1 - a) ln((1 - a) / (1 - b)) in nats.

    Infinite where b excludes what a allows. Raises ValueError for a mass outside [0, 1].
    """
    if not (0 <= a <= 1 and 0 <= b <= 1):
        raise ValueError(f"binary_kl: masses must be in [0, 1], not {a} and {b}")

    def part(x, y):
        return 0.0 if x == 0 else math.inf if y == 0 else x * math.log(x / y)

    return part(a, b) + part(1 - a, 1 - b)


@dataclass(frozen=True)
class Mass:
    """Probability of a set: exact (n = None), or counted.

    `hits` of n independent samples are shrunk to (hits + 1/2) / (n + 1) (Jeffreys).
    """

    value: float
    n: int | None = None

    @classmethod
    def count(cls, inside: Tensor) -> "Mass":
        """From booleans, one per sample.

        Raises ValueError for fewer than 100: the error would mean nothing.
        """
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
