"""The density of the ancestral sampler's own law in the plane, step by step on a grid.

Given x_n, one step of the sampler is N(mu_n(x_n), s_n^2 I) (lecture 6, Definition 6.1), so

    p_{n-1}(y) = integral p_n(x) N(y; mu_n(x), s_n^2 I) dx.

The integral is a sum over an even grid (the trapezoid rule). Its integrand is smooth on the scale
s_n, so on a grid of spacing s_n / density the error of a step is about 4 exp(-2 pi^2 density^2):
5e-7 for density = 0.9. What the sums lose or add shows as |1 - total mass|: the stated error.
Shapes: N points of a cloud, n1 x n2 grid.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from toy2d.core.drift import Predict, squared_error
from toy2d.core.schedule import Schedule

REACH = 8.5  # a Gaussian is summed up to this many of its standard deviations
TILE = 16  # grid cells: means are treated together in squares of this side


@dataclass(frozen=True)
class Cloud:
    """The law at node n as points with masses: x (N, 2), mass (N,), float64."""

    n: int
    x: Tensor
    mass: Tensor


@dataclass(frozen=True)
class GridLaw:
    """A normalized density on an even grid; `defect` = |1 - mass before normalizing|."""

    axes: tuple[Tensor, Tensor]
    density: Tensor  # n1 n2
    defect: float

    @property
    def cell(self) -> float:
        return math.prod(float(a[1] - a[0]) for a in self.axes)


@dataclass(frozen=True)
class Ancestral:
    """The ancestral sampler of one predictor under one prompt, as a map of densities.

    Raises ValueError for a flow schedule (use its variance-preserving twin, Proposition 6.10).
    """

    predict: Predict  # in float64
    schedule: Schedule
    cond: int
    density: float = 0.9  # grid points per s_n
    cut: float = 1e-25  # points with less than this share of the largest mass are dropped

    def __post_init__(self):
        if self.schedule.prediction == "flow":
            raise ValueError("Ancestral: the grid is that of the variance-preserving chain")

    def start(self) -> Cloud:
        """N(0, I) at the last node."""
        n = len(self.schedule) - 1
        reach = math.sqrt(-2 * math.log(self.cut))
        axis = _axis(-reach, reach, self._spacing(n))
        x = torch.cartesian_prod(axis, axis)
        mass = torch.exp(-0.5 * (x**2).sum(-1)) / (2 * math.pi) * float(axis[1] - axis[0]) ** 2
        return Cloud(n, x, mass)

    def run(
        self, start: Cloud, axes: tuple[Tensor, Tensor] | None = None, end: int = 0
    ) -> tuple[GridLaw, list[Cloud]]:
        """(law of x_end, the clouds at nodes start.n, ..., end + 1) of the chain from `start`.

        `axes`: the grid of the answer; without it, one that holds the law.
        """
        cloud, clouds = start, []
        while True:
            kept = cloud.mass > self.cut * cloud.mass.max()
            cloud = Cloud(cloud.n, cloud.x[kept], cloud.mass[kept])
            clouds.append(cloud)
            mean, s = self.step(cloud)
            last = cloud.n == end + 1
            if last and axes is not None:
                grid = axes
            else:
                h, room = self._spacing(max(cloud.n - 1, 1)), REACH * s
                low, high = mean.amin(0) - room, mean.amax(0) + room
                grid = tuple(_axis(float(a), float(b), h) for a, b in zip(low, high, strict=True))
            density = _spread(mean, cloud.mass, s, grid)
            area = math.prod(float(a[1] - a[0]) for a in grid)
            if last:
                total = float(density.sum()) * area
                return GridLaw(grid, density / total, abs(1 - total)), clouds
            cloud = Cloud(cloud.n - 1, torch.cartesian_prod(*grid), density.flatten() * area)

    @torch.no_grad()
    def step(self, cloud: Cloud) -> tuple[Tensor, float]:
        """(mu_n(x) of every point, s_n)."""
        n, schedule = cloud.n, self.schedule
        beta, alpha, s2 = schedule.reverse_chain()
        x, t, cond = _stack_of_one(cloud, self.cond)
        eps = schedule.eps_from(self.predict(x, schedule.timesteps[t], cond), x, t)[0]
        pull = float(beta[n] / (1 - schedule.alpha_bar[n]).sqrt())
        return (cloud.x - pull * eps) / float(alpha[n]) ** 0.5, float(s2[n]) ** 0.5

    def _spacing(self, n: int) -> float:
        return float(self.schedule.reverse_chain()[2][n]) ** 0.5 / self.density


def _seen(p: GridLaw) -> Tensor:
    """Where p has mass that counts: elsewhere p ln(p / q) adds less than 1e-12."""
    return p.density > 1e-14 * p.density.max()


def covers(q: GridLaw, p: GridLaw) -> bool:
    """Does q, cut off far out, still have mass wherever p has?"""
    return bool((q.density[_seen(p)] > 0).all())


def kl_of_grids(p: GridLaw, q: GridLaw) -> tuple[float, float]:
    """(KL(p || q) in nats, its error) of two laws on the same grid.

    Raises ValueError where p has mass and q was cut off: use a smaller `cut`.
    """
    if not covers(q, p):
        raise ValueError("kl_of_grids: the second law is cut off where the first has mass")
    a, b = p.density[_seen(p)], q.density[_seen(p)]
    value = float((a * (a / b).log()).sum()) * p.cell
    return value, (p.defect + q.defect) * (1 + abs(value))


def path_kl_of_clouds(
    predict: Predict, predict_star: Predict, schedule: Schedule, clouds: list[Cloud], cond: int
) -> float:
    """sum_t w_t E ||eps_theta - eps_star||^2 in nats, the expectation over the clouds of star.

    The same sum as `toy2d.core.drift.path_kl`, without its sampling error.
    """
    weights = schedule.path_weights()
    total = 0.0
    with torch.no_grad():
        for cloud in clouds:
            seen = cloud.mass > 1e-14 * cloud.mass.max()
            few = Cloud(cloud.n, cloud.x[seen], cloud.mass[seen])
            x, t, cond_ = _stack_of_one(few, cond)
            square = squared_error(predict, predict_star, schedule, x, t, cond_)[0]
            mean = float((few.mass * square).sum() / few.mass.sum())
            total += float(weights[few.n]) * mean
    return total


def point(x: Tensor, n: int) -> Cloud:
    """All mass on one point x (2,) at node n."""
    return Cloud(n, x.double().reshape(1, 2), torch.ones(1, dtype=torch.float64))


def _stack_of_one(cloud: Cloud, cond: int) -> tuple[Tensor, Tensor, Tensor]:
    """(x, t, cond) of a cloud in the network's shapes: 1 N 2, 1 N, 1 N."""
    t = torch.full((1, len(cloud.x)), cloud.n)
    return cloud.x[None], t, torch.full_like(t, cond)


def _axis(low: float, high: float, spacing: float) -> Tensor:
    return low + spacing * torch.arange(math.ceil((high - low) / spacing) + 1, dtype=torch.float64)


def _spread(mean: Tensor, mass: Tensor, s: float, axes: tuple[Tensor, Tensor]) -> Tensor:
    """sum_i mass_i N(.; mean_i, s^2 I) on the grid: each tile of means reaches a small window."""
    gx, gy = axes
    h = torch.stack([gx[1] - gx[0], gy[1] - gy[0]])
    origin = torch.stack([gx[0], gy[0]])
    tile = ((mean - origin) / (TILE * h)).floor().long()
    first, size = tile.amin(0), int(tile[:, 1].max() - tile[:, 1].min()) + 1
    key = (tile[:, 0] - first[0]) * size + tile[:, 1] - first[1]
    number, count = key.unique(return_counts=True)
    parts = key.argsort().split(count.tolist())
    reach = [math.ceil(REACH * s / float(d)) for d in h]
    out = torch.zeros(len(gx), len(gy), dtype=torch.float64)
    for k, part in zip(number.tolist(), parts, strict=True):
        i, j = k // size + int(first[0]), k % size + int(first[1])
        rows = slice(max(0, i * TILE - reach[0]), max(0, (i + 1) * TILE + reach[0] + 1))
        columns = slice(max(0, j * TILE - reach[1]), max(0, (j + 1) * TILE + reach[1] + 1))
        m = mean[part]
        left = torch.exp((gx[rows, None] - m[:, 0]) ** 2 / (-2 * s * s)) * mass[part]
        right = torch.exp((m[:, 1:] - gy[columns]) ** 2 / (-2 * s * s))
        out[rows, columns] += left @ right
    return out / (2 * math.pi * s * s)
