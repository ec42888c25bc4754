"""Check the notebooks' short exercises: `check("4.1", answer)` says right, or wrong with a hint.

Right answers are computed, not stored. An exercise left open (`answer = ...`) shows its hint and
raises nothing, so that a notebook runs from top to bottom as it is handed out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from toy2d.core.schedule import Schedule
from toy2d.theorems.estimators import binary_kl


@dataclass(frozen=True)
class Exercise:
    right: Callable[[], float | str]
    hint: str
    tolerance: float = 0.02  # relative


def _ddpm_heaviest_weight() -> float:
    return float(Schedule.linear(1000).path_weights()[1:].max())


def _forward_passes(images: int, steps: int, guided: bool, training_steps: int) -> float:
    """Denoiser forwards of making a class set, over those of training on it.

    A training sample counts 3: a forward pass, and a backward pass worth two.
    """
    return images * steps * (2 if guided else 1) / (training_steps * 2 * 3)


EXERCISES = {
    "1.1": Exercise(
        lambda: "b",
        "Which prompts are in the loss of `standard`? Which parameters do prompts share?",
    ),
    "1.2": Exercise(lambda: 1 / math.log(2), "A bit is ln 2 nats.", 1e-3),
    "2.1": Exercise(lambda: 0.5, "a^2 + b^2 = 1, and log-SNR 0 says a = b; then b^2 = ...", 1e-6),
    "2.2": Exercise(
        lambda: 2 / (1 + 4), "eps* = r (z - m) / (s^2 + r^2): put s = 1, r = 2, z - m = 1.", 1e-6
    ),
    "3.1": Exercise(
        lambda: 500 / 1e6, "tensor_mean divides by the number of entries of the tensor.", 1e-6
    ),
    "3.2": Exercise(
        lambda: 18 * 4, "|dW|^2 = s^2 tr(B'B AA') with B'B = 2, AA' = 9 and s = 2.", 1e-6
    ),
    "4.1": Exercise(lambda: binary_kl(0.1, 0.9), "0.1 ln(0.1/0.9) + 0.9 ln(0.9/0.1)"),
    "4.2": Exercise(
        lambda: binary_kl(0.8, 0.01), "E = the other four classes: p*(E) = 0.8, q(E) = 0.01."
    ),
    "5.1": Exercise(lambda: math.log(1 + 5 / 200), "ln 1/(1 - w) with w = M / (M + N)."),
    "6.1": Exercise(
        _ddpm_heaviest_weight,
        "Schedule.linear(1000).path_weights() has all of them; leave out t = 0.",
    ),
    "6.2": Exercise(lambda: 0.25, "The bound is a constant times the squared distance.", 1e-6),
    "7.1": Exercise(lambda: "c", "Which rows do the old prompts read?"),
    "8.1": Exercise(
        lambda: _forward_passes(200, 51, True, 800),
        "Making: 200 x 51 x 2 forwards; training: 800 steps x 2 samples x 3 forwards.",
    ),
    "8.2": Exercise(lambda: _forward_passes(200, 20, True, 800), "As 8.1, with 20 evaluations."),
    "9.1": Exercise(
        lambda: 1.96 * 0.1 / math.sqrt(30),
        "A mean over n independent subjects has standard error s / sqrt(n).",
        0.03,
    ),
    "9.2": Exercise(lambda: 4, "Halving an error takes how many times the samples?", 1e-6),
    "10.1": Exercise(
        lambda: 860e6 * 16 / 2**30, "fp32: 4 bytes each of weight, gradient and two moments."
    ),
    "10.2": Exercise(
        lambda: "b", "Close to the photos, far from the prompt, little variety: which regime?"
    ),
}


def check(number: str, answer: float | str) -> None:
    """Print the verdict.

    Raises AssertionError with the hint for a wrong answer, KeyError for an exercise that does not
    exist.
    """
    exercise = EXERCISES[number]
    if answer is ...:
        print(f"exercise {number}: not answered yet. Hint: {exercise.hint}")
        return
    assert _agrees(answer, exercise), f"exercise {number}: not {answer}. Hint: {exercise.hint}"
    print(f"exercise {number}: right")


def _agrees(answer, exercise: Exercise) -> bool:
    right = exercise.right()
    if isinstance(right, str) or isinstance(answer, str):
        return str(answer).strip().lower() == str(right)
    return math.isclose(answer, right, rel_tol=exercise.tolerance)
