"""Check code that a student wrote: `check("add_noise", add_noise)` compares it with the package.

A task left open (a function that returns None or ...) prints its hint and raises nothing, so that a
notebook runs from top to bottom as it is handed out. A wrong answer raises AssertionError, which
says
on which input it differs and repeats the hint.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from toy2d.core.drift import path_kl
from toy2d.core.objectives import Anchor
from toy2d.core.rng import generator
from toy2d.core.sample import ddim
from toy2d.core.schedule import Schedule
from toy2d.runs.statistics import estimate

SCHEDULE = Schedule.log_snr(100, 5.0, -15.0)


@dataclass(frozen=True)
class Task:
    """`wanted` is the right function; `inputs` makes the calls on which an answer is compared."""

    asks: str
    hint: str
    wanted: Callable
    inputs: Callable[[], list[tuple]]
    tolerance: float = 1e-5  # of the largest difference, relative to the largest right value


def check(name: str, answer: Callable) -> None:
    """Grade a student's function; prints "right", or the hint of a task that is still open.

    Raises AssertionError for a wrong answer and KeyError for a task that does not exist.
    """
    task = TASKS[name]
    for call in task.inputs():
        given, wanted = answer(*(_copied(v) for v in call)), task.wanted(*call)
        if given is None or given is ...:
            print(f"{name}: not written yet. Hint: {task.hint}")
            return
        _compare(name, task, given, wanted)
    print(f"{name}: right")


def _compare(name: str, task: Task, given, wanted) -> None:
    given = torch.as_tensor(given, dtype=torch.float64)
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    assert given.shape == wanted.shape, (
        f"{name}: your answer has shape {tuple(given.shape)}, the right one {tuple(wanted.shape)}. "
        f"Hint: {task.hint}"
    )
    gap, size = (given - wanted).abs().max(), wanted.abs().max()
    assert gap <= task.tolerance * size, (
        f"{name}: your answer differs by up to {float(gap):.3g}. Hint: {task.hint}"
    )


def _copied(value):
    return value.clone() if isinstance(value, Tensor) else value


def _normal(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0, f"course/{name}"))


# ---- the right answers, by the package's own functions
def _add_noise(x0: Tensor, t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    return SCHEDULE.add_noise(x0, t, eps)


def _ddim_step(x_t: Tensor, eps: Tensor, ab: Tensor, ab_before: Tensor) -> Tensor:
    """`core.sample.ddim` on the two nodes."""
    two = Schedule(torch.stack([ab_before, ab]))
    return ddim(lambda x, t, cond: eps, two, x_t, None)


def _l2_gradient(theta: Tensor, theta_star: Tensor, weight: float) -> Tensor:
    moved = theta.clone().requires_grad_()
    moved.grad = torch.zeros_like(moved)
    Anchor({"p": moved}, {"p": theta_star}).add_gradient_(weight)
    return moved.grad


def _path_kl(eps: Tensor, eps_star: Tensor, weights: Tensor) -> Tensor:
    """`core.drift.path_kl` on a chain whose states carry their own two predictions."""
    chain = torch.stack([eps, eps_star], -1).transpose(-1, -2).flatten(-2)  # T N (2 D)
    half = eps.shape[-1]
    mean, _ = path_kl(
        lambda x, t, cond: x[..., :half],
        lambda x, t, cond: x[..., half:],
        SCHEDULE,
        chain,
        torch.zeros(eps.shape[1], dtype=torch.long),
    )
    return mean


def _interval(values: list[float]) -> tuple[float, float]:
    found = estimate(values)
    return found.mean - found.half, found.mean + found.half


def _noising() -> list[tuple]:
    t = torch.tensor([0, 7, 40, 99])
    return [(_normal("x0", 4, 2), t, _normal("eps", 4, 2), SCHEDULE.alpha_bar)]


def _two_nodes() -> list[tuple]:
    ab = SCHEDULE.alpha_bar
    return [(_normal("x_t", 5, 2), _normal("eps", 5, 2), ab[n], ab[n - 1]) for n in (1, 30, 99)]


def _two_sets_of_weights() -> list[tuple]:
    return [(_normal("theta", 6), _normal("star", 6), weight) for weight in (0.1, 3.0)]


def _predictions() -> list[tuple]:
    shape = (len(SCHEDULE), 8, 2)
    return [(_normal("new", *shape), _normal("old", *shape), SCHEDULE.path_weights())]


TASKS = {
    "add_noise": Task(
        "x_t from x_0, the step t of each sample, noise and the table alpha_bar",
        "x_t = sqrt(ab) x_0 + sqrt(1 - ab) eps, where ab = alpha_bar[t] has one value a sample: "
        "give it a last dimension before you multiply",
        _add_noise,
        _noising,
    ),
    "ddim_step": Task(
        "x at the node before, from x_t, the predicted noise and the two values of alpha_bar",
        "solve x_t = sqrt(ab) x_0 + sqrt(1 - ab) eps for x_0, then noise it to ab_before with the "
        "same eps",
        _ddim_step,
        _two_nodes,
    ),
    "l2_gradient": Task(
        "the gradient of weight * ||theta - theta_star||^2 with respect to theta",
        "differentiate a square: the 2 does not go away",
        _l2_gradient,
        _two_sets_of_weights,
    ),
    "path_kl": Task(
        "path KL from the two predictions along the base's chains (T, N, D) and the weights w_t",
        "square the difference, add over D, weigh by w_t, add over T, take the mean over N",
        _path_kl,
        _predictions,
    ),
    "interval": Task(
        "Student's 95 % interval (low, high) of a mean over a few seeds",
        "mean +- t * s / sqrt(n), with the sample standard deviation (n - 1) and Student's t for "
        "n - 1 degrees of freedom: scipy.stats.t.ppf(0.975, n - 1)",
        _interval,
        lambda: [([3.1, 0.6, 1.7],), ([0.2, 0.25, 0.1, 0.31, 0.22],)],
    ),
}
