"""KL of the ODE's law for groups of prompts: its closed form where the predictors are Gaussian."""

import math

import pytest
import torch

from personalize.drift.chains import ChainSampling
from personalize.drift.ode_law import ode_kl_of_groups
from toy2d.core.schedule import Schedule

SCHEDULE = Schedule.linear(1000)
SPREAD = {"a dog": 1.0, "a red car": 0.5}  # standard deviation of each prompt's law


def gaussian(factor: float):
    """The exact predictor of N(0, s^2 I), s that of the prompt times `factor`."""

    def predict(x_t, t, prompts):
        ab = SCHEDULE.alpha_bar[t].reshape(-1, 1, 1, 1)
        s = torch.tensor([SPREAD[p] * factor for p in prompts]).reshape(-1, 1, 1, 1)
        return ((1 - ab).sqrt() / (ab * s**2 + 1 - ab)).to(x_t) * x_t

    return predict


def exact(spread: float, factor: float, d: int) -> float:
    """KL(N(0, V1 I) || N(0, V2 I)) at t = 0's noise level."""
    ab = float(SCHEDULE.alpha_bar[0])
    v1, v2 = (ab * (spread * f) ** 2 + 1 - ab for f in (1.0, factor))
    return d / 2 * (v1 / v2 - 1 - math.log(v1 / v2))


def test_each_group_has_its_closed_form():
    """And a model that has not moved is at 0 to the bit; the same call gives the same numbers."""
    groups = {"class": ("a dog",), "unrelated": ("a red car",)}
    sampling = ChainSampling(groups, (4, 4, 4), chains=40, nodes=60, batch_size=16)
    star, tuned = gaussian(1.0), gaussian(1.2)
    found, again = (ode_kl_of_groups(tuned, star, SCHEDULE, sampling) for _ in range(2))
    assert found == again
    for name, (prompt,) in groups.items():
        kl, wanted = found[name], exact(SPREAD[prompt], 1.2, 64)
        assert kl.n == 40
        assert abs(kl.mean - wanted) < 4 * kl.error + kl.ode_error + 0.02
        assert kl.mean > 4 * kl.error  # else 0 would pass
    still = ode_kl_of_groups(star, star, SCHEDULE, sampling)
    assert all(kl.mean == 0 == kl.error for kl in still.values())


def test_groups_do_not_depend_on_each_other():
    one = ChainSampling({"class": ("a dog",)}, (4, 4, 4), chains=4, nodes=20)
    both = ChainSampling({"x": ("a red car",), "class": ("a dog",)}, (4, 4, 4), chains=4, nodes=20)
    alone, beside = (
        ode_kl_of_groups(gaussian(1.2), gaussian(1.0), SCHEDULE, s)["class"] for s in (one, both)
    )
    assert alone == pytest.approx(beside)
