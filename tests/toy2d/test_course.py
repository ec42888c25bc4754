"""The graded tasks: a right solution passes, an open one hints, a plausible wrong one is
refused.
"""

import pytest
import torch
from scipy import stats

from toy2d.course import TASKS, check


def add_noise(x0, t, eps, alpha_bar):
    ab = alpha_bar[t][:, None]
    return ab.sqrt() * x0 + (1 - ab).sqrt() * eps


def ddim_step(x_t, eps, ab, ab_before):
    x0 = (x_t - (1 - ab).sqrt() * eps) / ab.sqrt()
    return ab_before.sqrt() * x0 + (1 - ab_before).sqrt() * eps


def l2_gradient(theta, theta_star, weight):
    return 2 * weight * (theta - theta_star)


def path_kl(eps, eps_star, weights):
    squares = ((eps - eps_star) ** 2).sum(-1)
    return (weights[:, None] * squares).sum(0).mean()


def interval(values):
    x = torch.tensor(values, dtype=torch.float64)
    half = stats.t.ppf(0.975, len(x) - 1) * float(x.std()) / len(x) ** 0.5
    return float(x.mean()) - half, float(x.mean()) + half


RIGHT = {f.__name__: f for f in (add_noise, ddim_step, l2_gradient, path_kl, interval)}
WRONG = {
    "noise level not square-rooted": (
        "add_noise",
        lambda x0, t, eps, ab: ab[t][:, None] * x0 + (1 - ab[t][:, None]) * eps,
    ),
    "the other node's level": (
        "ddim_step",
        lambda x_t, eps, ab, before: ddim_step(x_t, eps, before, ab),
    ),
    "the square's 2 is missing": ("l2_gradient", lambda p, star, w: w * (p - star)),
    "pulls away from the base": ("l2_gradient", lambda p, star, w: 2 * w * (star - p)),
    "mean over T": ("path_kl", lambda e, s, w: (w[:, None] * ((e - s) ** 2).sum(-1)).mean()),
    "norm, not its square": (
        "path_kl",
        lambda e, s, w: (w[:, None] * (e - s).norm(dim=-1)).sum(0).mean(),
    ),
    "normal instead of Student": (
        "interval",
        lambda v: tuple(
            sum(v) / len(v) + z * 1.96 * float(torch.tensor(v).std()) / len(v) ** 0.5
            for z in (-1, 1)
        ),
    ),
    "wrong shape": ("interval", lambda v: sum(v) / len(v)),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_right_solution_passes(name, capsys):
    check(name, RIGHT[name])
    assert capsys.readouterr().out == f"{name}: right\n"


@pytest.mark.parametrize("name", TASKS)
def test_an_open_task_prints_its_hint(name, capsys):
    check(name, lambda *inputs: ...)
    assert TASKS[name].hint in capsys.readouterr().out


@pytest.mark.parametrize("why", WRONG)
def test_a_wrong_solution_is_refused_with_the_hint(why):
    name, answer = WRONG[why]
    with pytest.raises(AssertionError) as refused:
        check(name, answer)
    assert TASKS[name].hint in str(refused.value)


def test_a_task_that_does_not_exist():
    with pytest.raises(KeyError):
        check("no such task", None)
