"""The ancestral law on a grid: closed form for Gaussians, honest errors for networks."""

import math

import pytest
import torch

from toy2d.core.rng import generator
from toy2d.core.sample import ancestral
from toy2d.core.schedule import Schedule
from toy2d.theorems.ancestral_law import Ancestral, kl_of_grids, path_kl_of_clouds, point
from toy2d.theorems.path_bound import gaussian_laws

SCHEDULE, STD, SHIFT = Schedule.log_snr(30, 5.0, -12.0), 0.5, 1.0


def gaussian(mean: float):
    """Exact eps of N((mean, 0), STD^2 I)."""

    def predict(x, t, cond):
        ab = SCHEDULE.alpha_bar[t][..., None]
        m = ab.sqrt() * torch.tensor([mean, 0.0]).double()
        return (1 - ab).sqrt() * (x - m) / (ab * STD**2 + 1 - ab)

    return predict


def laws(density=0.9):
    first, second = (Ancestral(gaussian(m), SCHEDULE, 0, density) for m in (0.0, SHIFT))
    p, clouds = first.run(first.start())
    q, _ = second.run(second.start(), p.axes)
    return p, q, clouds


def test_kl_and_path_kl_of_a_gaussian_pair_are_the_closed_form():
    """To the stated error, a few 1e-5 nats; path KL is above KL, as the closed form says."""
    p, q, clouds = laws()
    kl, path = gaussian_laws(SCHEDULE, STD, SHIFT)
    found, error = kl_of_grids(p, q)
    by_grid = path_kl_of_clouds(gaussian(SHIFT), gaussian(0.0), SCHEDULE, clouds, 0)
    assert error < 1e-4
    assert abs(found - kl) < error
    assert by_grid == pytest.approx(path, rel=1e-6)
    assert by_grid > found


def test_a_coarse_grid_says_so():
    """At 0.5 points per s_n the mass is visibly wrong, and the stated error covers the KL's."""
    kl, _ = gaussian_laws(SCHEDULE, STD, SHIFT)
    p, q, _ = laws(density=0.5)
    found, error = kl_of_grids(p, q)
    assert error > 1e-2
    assert abs(found - kl) < error


def test_a_networks_density_is_that_of_its_samples(course):
    """Mean and covariance of 4,000 ancestral samples: 4.5 standard errors."""
    star, cond = course.net.bind({k: p.double() for k, p in course.base(0).items()}), 1
    law, _ = (chain := Ancestral(star, course.schedule, cond)).run(chain.start())
    n = 4000
    x_T = torch.randn(1, n, 2, generator=generator(0, "test/law"), dtype=torch.float64)
    rng = generator(1, "test/law")
    x = ancestral(star, course.schedule, x_T, torch.tensor(cond), rng, runs=1)[0]
    gx, gy = torch.meshgrid(*law.axes, indexing="ij")
    points, mass = torch.stack([gx, gy], -1).reshape(-1, 2), law.density.flatten() * law.cell
    mean = mass @ points
    centred = points - mean
    covariance = (mass[:, None] * centred).mT @ centred
    assert float(mass.sum()) == pytest.approx(1, abs=1e-12)
    assert ((x.mean(0) - mean).abs() < 4.5 * (covariance.diagonal() / n).sqrt()).all()
    var = covariance.diagonal()
    spread = math.sqrt(2 / n) * var.outer(var).sqrt()
    assert ((x.mT.cov() - covariance).abs() < 4.5 * spread).all()


def test_a_chain_from_a_point_starts_as_one_gaussian(course):
    """One step from x: N(mu(x), s^2 I), its entropy known."""
    star = course.net.bind({k: p.double() for k, p in course.base(0).items()})
    chain = Ancestral(star, course.schedule, 0, density=1.2)
    law, (cloud,) = chain.run(point(torch.tensor([0.3, -0.2]), 5), end=4)
    s = float(course.schedule.reverse_chain()[2][5]) ** 0.5
    seen = law.density > 0
    entropy = -(law.density[seen] * law.density[seen].log()).sum() * law.cell
    assert len(cloud.x) == 1
    assert float(entropy) == pytest.approx(1 + math.log(2 * math.pi * s * s), abs=1e-9)


def test_refusals():
    with pytest.raises(ValueError, match="variance-preserving"):
        Ancestral(gaussian(0.0), Schedule.from_flow([0.1, 0.5, 0.9]), 0)
    p, _, _ = laws(0.6)
    cut = Ancestral(gaussian(9.0), SCHEDULE, 0, 0.6, cut=1e-6)
    q, _ = cut.run(cut.start(), p.axes)
    with pytest.raises(ValueError, match="cut off"):
        kl_of_grids(p, q)
