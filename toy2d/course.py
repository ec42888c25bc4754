"""Check code that a student wrote: `check("add_noise", add_noise)` compares it with the package.

A task left open (a function that returns None or ...) prints its hint and raises nothing, so that a
notebook runs from top to bottom as it is handed out. A wrong answer raises AssertionError, which
says by how much it differs and repeats the hint. So does code that fails: the message has the error
and what the function was called with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor

from toy2d import answers


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
        given = _answered(name, task, answer, call)
        if given is None or given is ...:
            print(f"{name}: not written yet. It asks for {task.asks}. Hint: {task.hint}")
            return
        _compare(name, task, given, task.wanted(*call))
    print(f"{name}: right")


def _answered(name: str, task: Task, answer: Callable, call: tuple):
    try:
        return answer(*(_copied(v) for v in call))
    except Exception as error:  # whatever a student's code may raise
        names = signature(task.wanted).parameters
        given = ", ".join(f"{n} = {_described(v)}" for n, v in zip(names, call, strict=True))
        raise AssertionError(
            f"{name}: your code raised {type(error).__name__}: {error}. "
            f"It was called with {given}. Hint: {task.hint}"
        ) from error


def _compare(name: str, task: Task, given, wanted) -> None:
    try:
        given = torch.as_tensor(given, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AssertionError(
            f"{name}: your answer is {_described(given)}, not numbers. It asks for {task.asks}. "
            f"Hint: {task.hint}"
        ) from error
    wanted = torch.as_tensor(wanted, dtype=torch.float64)
    assert given.shape == wanted.shape, (
        f"{name}: your answer has shape {tuple(given.shape)}, the right one {tuple(wanted.shape)}. "
        f"It asks for {task.asks}. Hint: {task.hint}"
    )
    gap, size = (given - wanted).abs().max(), wanted.abs().max()
    assert gap <= task.tolerance * size, (
        f"{name}: your answer differs by up to {float(gap):.3g} (right values are of size "
        f"{float(size):.3g}). Hint: {task.hint}"
    )


def _described(value) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _copied(value):
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return value.clone() if isinstance(value, Tensor) else value


TASKS = {
    "add_noise": Task(
        "x_t (n, 2) from x_0 (n, 2), the step t (n,) of each sample, noise and the table alpha_bar",
        "x_t = sqrt(ab) x_0 + sqrt(1 - ab) eps, where ab = alpha_bar[t] has one value a sample: "
        "give it a last dimension before you multiply, alpha_bar[t][:, None]",
        answers.add_noise,
        answers.noising,
    ),
    "ddim_step": Task(
        "x at the node before, from x_t, the predicted noise and the two values of alpha_bar",
        "solve x_t = sqrt(ab) x_0 + sqrt(1 - ab) eps for x_0, then noise it to ab_before with the "
        "same eps",
        answers.ddim_step,
        answers.two_nodes,
    ),
    "l2_gradient": Task(
        "the gradient of weight * ||theta - theta_star||^2 with respect to theta",
        "differentiate a square: the 2 does not go away",
        answers.l2_gradient,
        answers.two_sets_of_weights,
    ),
    "path_kl": Task(
        "path KL from the two predictions along the base's chains (T, N, D) and the weights w_t",
        "square the difference, add over D, weigh by w_t, add over T, take the mean over N",
        answers.path_kl,
        answers.predictions,
    ),
    "interval": Task(
        "Student's 95 % interval (low, high) of a mean over a few seeds",
        "mean +- t * s / sqrt(n), with the sample standard deviation (n - 1) and Student's t for "
        "n - 1 degrees of freedom: scipy.stats.t.ppf(0.975, n - 1)",
        answers.interval,
        lambda: [([3.1, 0.6, 1.7],), ([0.2, 0.25, 0.1, 0.31, 0.22],)],
    ),
    "kl_estimate": Task(
        "(mean, standard error) of KL(base || tuned) from log densities at n samples of the base",
        "two numbers: the mean of log_base - log_tuned (base first), and the sample standard "
        "deviation of this difference (divide by n - 1, as torch does) over sqrt(n)",
        answers.kl_estimate,
        answers.log_densities,
    ),
    "noised_log_density": Task(
        "the log density at x (n, 2) of N(mean, std^2 I) noised to the level ab",
        "sqrt(ab) x_0 + sqrt(1 - ab) eps is Gaussian: its mean is sqrt(ab) mean, its variance "
        "ab std^2 + 1 - ab; in the plane ln N = -|x - m|^2 / (2 v) - ln(2 pi v)",
        answers.noised_log_density,
        answers.noised_class,
    ),
    "counted_bound": Task(
        "kl(p || q) in nats from two lists of booleans: is each sample in D?",
        "p from the world's samples, q from the model's: each is (k + 1/2) / (n + 1) for k of n "
        "inside; then p ln(p/q) + (1 - p) ln((1 - p)/(1 - q))",
        answers.counted_bound,
        answers.counted,
    ),
    "prior_loss": Task(
        "DreamBooth's loss from the predictions and the noises of both roles",
        "the mean over all entries of (prediction - noise)^2, for the new examples, plus weight "
        "times the same for the replayed ones; predictions go with the noise of their own role",
        answers.prior_loss,
        answers.replayed,
    ),
    "gain": Task(
        "the gain in nats from the noise and both models' answers (T, N, D) and the weights w_t",
        "the base's squared error minus the tuned model's: learning is positive; add over D, weigh "
        "by w_t, add over T, take the mean over N",
        answers.gain,
        answers.three_answers,
    ),
    "lora_distance": Task(
        "||scale B A||^2 (squared Frobenius norm) of a LoRA update",
        "scale^2 tr((B'B)(A A')): two small matrices; not ||B||^2 + ||A||^2",
        answers.lora_distance,
        answers.factors,
        1e-4,
    ),
    "eps_from_flow": Task(
        "the noise from x_t = (1 - s) x_0 + s eps and the velocity u = eps - x_0, s one a sample",
        "put x_0 = eps - u into x_t and solve for eps (Proposition 2.2); s has one value a sample: "
        "give it a last dimension before you multiply, s[:, None]",
        answers.eps_from_flow,
        answers.flow,
    ),
    "choose": Task(
        "the place of the run with the least `lost` among those with `learnt` at most `limit`",
        "first leave out what has not learnt (learnt is a KL: smaller is better), then take the "
        "smallest loss of the rest, and return its place in the lists",
        answers.choose,
        answers.weights_tried,
    ),
    "paired_ratio": Task(
        "(low, high) of the geometric mean of ours / theirs; both are {seed: value}",
        "take ln(ours[s] / theirs[s]) for each seed s, Student's 95 % interval of their mean, and "
        "exp of both ends",
        answers.paired_ratio,
        answers.two_methods,
    ),
    "l2_penalty": Task(
        "sum of all squared differences, one number for each run of the stack (M,)",
        "square p - theta_star[k], flatten(1) keeps the runs apart, sum over the rest, add up over "
        "the tensors",
        answers.l2_penalty,
        answers.two_stacks,
    ),
}
