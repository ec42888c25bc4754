"""The toy's sentences follow its numbers: made-up records whose order is known."""

import pytest

from toy2d.sentences import readings


def record(run: str, seed: int, old: float, theta: float) -> dict:
    """One run: drift `old` from the base (and the world), distance `theta`."""
    objective, _, weight = run.partition(":")
    kl = [old, 0.0, 9]
    return {
        "run": run,
        "objective": objective,
        "weight": float(weight) if weight else None,
        "seed": seed,
        "kl_base": {"class 0": kl, "class 1": kl},
        "kl_truth": {"class 0": kl, "class 1": kl},
        "kl_new": [0.5, 0.0, 9],
        "delta_theta": theta,
        "path_kl": [old, 0.0, 9],
        "stopped": None,
    }


def said(*runs: tuple, seeds=(0, 1, 2)) -> str:
    """All sentences about these (run, drift, distance)s."""
    records = [record(name, s, *numbers) for name, *numbers in runs for s in seeds]
    base = [record("base", s, 0.01, 0.0) for s in seeds]
    metrics = {"runs": records, "base": base, "replayed_class": "class 0", "groups": None}
    return " ".join(readings(metrics))


def test_only_who_moved_further_and_drifted_less_contradicts_distance():
    """l2 drifted less and moved less, prior moved further and drifted more: neither is named."""
    found = said(
        ("standard", 2.0, 1.0), ("l2:1", 0.5, 0.3), ("output:1", 0.1, 1.5), ("prior:1", 3, 9)
    )
    assert "does not rank drift: 1 of 3 settings moved theta further" in found
    assert "farthest output:1 (means: 1.5 against 1; drift 0.1 against 2 nats)" in found


def test_without_such_a_run_distance_is_not_contradicted():
    """The same runs, output's distance below standard's: the sentence flips."""
    found = said(("standard", 2.0, 1.0), ("l2:1", 0.5, 0.3), ("output:1", 0.1, 0.9))
    assert "Of 2 settings that drifted less than standard none moved theta further." in found


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ((0.9, 0.5, 0.2), "l2 falls at every step."),
        ((0.9, 0.2, 0.6), "l2 falls 1 and rises 1 of 2 times."),
        ((0.2, 0.5, 0.9), "l2 rises at every step."),
    ],
)
def test_a_sweep_says_how_drift_goes_with_the_weight(levels, words):
    runs = [(f"l2:{w}", kl, 0.3) for w, kl in zip((0.01, 0.1, 1), levels, strict=True)]
    assert f"Drift along growing weights: {words}" in said(("standard", 2.0, 1.0), *runs)


def test_a_run_that_diverged_is_named_and_enters_no_sentence():
    """Without the stop, output:1 would contradict distance."""
    runs = [record(o, 0, d, t) for o, d, t in (("standard", 2.0, 1.0), ("output:1", 0.1, 1.5))]
    runs[1]["stopped"] = "output:1 at step 3"
    metrics = {"runs": runs, "base": runs[:1], "replayed_class": "class 0", "groups": None}
    found = " ".join(readings(metrics))
    assert "does not rank" not in found
    assert "1 runs diverged and were stopped: output:1 at step 3." in found
