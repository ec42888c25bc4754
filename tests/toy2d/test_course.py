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


def kl_estimate(log_base, log_tuned):
    ratio = log_base - log_tuned
    return ratio.mean(), ratio.std() / len(ratio) ** 0.5


def noised_log_density(x, mean, std, ab):
    v = ab * std**2 + 1 - ab
    return -((x - ab.sqrt() * mean) ** 2).sum(-1) / (2 * v) - torch.log(2 * torch.pi * v)


def counted_bound(inside_true, inside_tuned):
    p, q = ((x.sum() + 0.5) / (len(x) + 1) for x in (inside_true, inside_tuned))
    return p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))


def prior_loss(new_hat, new_eps, old_hat, old_eps, weight):
    return ((new_hat - new_eps) ** 2).mean() + weight * ((old_hat - old_eps) ** 2).mean()


def gain(eps, eps_star, eps_tuned, weights):
    less = ((eps - eps_star) ** 2 - (eps - eps_tuned) ** 2).sum(-1)
    return (weights[:, None] * less).sum(0).mean()


def lora_distance(B, A, scale):
    return scale**2 * ((B.mT @ B) * (A @ A.mT)).sum()


def eps_from_flow(x_t, u, s):
    return x_t + (1 - s)[:, None] * u


def choose(learnt, lost, limit):
    fit = [i for i, a in enumerate(learnt) if a <= limit]
    return min(fit, key=lambda i: lost[i])


def paired_ratio(ours, theirs):
    logs = torch.tensor([ours[s] / theirs[s] for s in ours], dtype=torch.float64).log().tolist()
    return torch.tensor(interval(logs)).exp()


def l2_penalty(theta, theta_star):
    return sum(((p - theta_star[k]) ** 2).flatten(1).sum(1) for k, p in theta.items())


SOLUTIONS = (add_noise, ddim_step, l2_gradient, path_kl, interval, kl_estimate)
SOLUTIONS += (noised_log_density, counted_bound, prior_loss, gain, lora_distance, eps_from_flow)
SOLUTIONS += (choose, paired_ratio, l2_penalty)
RIGHT = {f.__name__: f for f in SOLUTIONS}


def unpaired_ratio(ours, theirs):
    pairs = zip(ours.values(), theirs.values(), strict=True)  # in the order in which they stand
    logs = torch.tensor([a / b for a, b in pairs], dtype=torch.float64).log().tolist()
    return torch.tensor(interval(logs)).exp()


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
    "the other direction": ("kl_estimate", lambda p, q: kl_estimate(q, p)),
    "deviation, not error": ("kl_estimate", lambda p, q: ((p - q).mean(), (p - q).std())),
    "the mean is not scaled": (
        "noised_log_density",
        lambda x, m, s, ab: noised_log_density(x, m / ab.sqrt(), s, ab),
    ),
    "a density on the line": (
        "noised_log_density",
        lambda x, m, s, ab: (
            noised_log_density(x, m, s, ab) + torch.log(2 * torch.pi * (ab * s**2 + 1 - ab)) / 2
        ),
    ),
    "the counts are swapped": ("counted_bound", lambda p, q: counted_bound(q, p)),
    "one outcome of two": ("counted_bound", lambda p, q: p.float().mean() - q.float().mean()),
    "the pairing is crossed": (
        "prior_loss",
        lambda a, b, c, d, w: prior_loss(a, d[: len(a)], c[: len(b)], b, w),
    ),
    "the weight on both": (
        "prior_loss",
        lambda a, b, c, d, w: w * prior_loss(a, b, c, d, 1.0),
    ),
    "learning is negative": ("gain", lambda e, s, n, w: -gain(e, s, n, w)),
    "distance of the answers": ("gain", lambda e, s, n, w: path_kl(s, n, w)),
    "the factors' penalty": ("lora_distance", lambda B, A, s: (B**2).sum() + (A**2).sum()),
    "the scale is not squared": ("lora_distance", lambda B, A, s: lora_distance(B, A, s**0.5)),
    "the other share": ("eps_from_flow", lambda x, u, s: x + s[:, None] * u),
    "the least loss of all": ("choose", lambda a, b, limit: b.index(min(b))),
    "the best learner": ("choose", lambda a, b, limit: a.index(min(a))),
    "all runs in one sum": ("l2_penalty", lambda p, s: l2_penalty(p, s).sum()),
    "mean of each tensor": (
        "l2_penalty",
        lambda p, s: sum(((v - s[k]) ** 2).flatten(1).mean(1) for k, v in p.items()),
    ),
    "not paired by seed": ("paired_ratio", unpaired_ratio),
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


@pytest.mark.parametrize("name", TASKS)
def test_code_that_fails_is_told_its_inputs_and_the_hint(name):
    def fails(*inputs):
        raise RuntimeError("sizes differ")

    with pytest.raises(AssertionError, match=r"RuntimeError: sizes differ\. It was called") as told:
        check(name, fails)
    assert TASKS[name].hint in str(told.value)


def test_a_shape_that_does_not_fit_is_shown():
    with pytest.raises(AssertionError, match=r"t = a tensor of shape \(4,\)"):
        check("add_noise", lambda x0, t, eps, alpha_bar: alpha_bar[t] * x0)


def test_an_answer_that_is_no_number_is_refused_with_what_is_asked():
    with pytest.raises(AssertionError, match=r"a str, not numbers\. It asks for"):
        check("kl_estimate", lambda log_base, log_tuned: "2.8")


def test_every_task_has_a_wrong_solution():
    assert {name for name, _ in WRONG.values()} == set(TASKS)


def test_a_task_that_does_not_exist():
    with pytest.raises(KeyError):
        check("no such task", None)
