"""The toy's sentences follow its numbers: made-up records whose order is known."""

import pytest

from toy2d.sentences import readings


def record(run: str, seed: int, old: float, theta: float, truth: float | None = None) -> dict:
    """One run: drift `old`, distance `theta`, KL of the old classes from the world `truth`."""
    objective, _, weight = run.partition(":")
    kl = [truth or old, 0.0, 9]
    return {
        "run": run,
        "objective": objective,
        "weight": float(weight) if weight else None,
        "seed": seed,
        "kl_base": {"class 0": [old, 0.0, 9], "class 1": [old, 0.0, 9]},
        "kl_truth": {"class 0": kl, "class 1": kl},
        "kl_new": [0.5, 0.0, 9],
        "delta_theta": theta,
        "path_kl": [old, 0.0, 9],
        "stopped": None,
    }


def said(*runs: tuple, seeds=(0, 1, 2)) -> str:
    """All sentences about these (run, drift, distance[, KL from the world])s."""
    records = [record(name, s, *numbers) for name, *numbers in runs for s in seeds]
    base = [record("base", s, 0.0, 0.0, 0.01) for s in seeds]
    metrics = {"runs": records, "base": base, "replayed_class": "class 0", "groups": None}
    return " ".join(readings(metrics))


def test_only_who_moved_further_and_drifted_less_contradicts_distance():
    """l2 drifted less and moved less, prior moved further and drifted more: neither is named."""
    found = said(
        ("standard", 2.0, 1.0), ("l2:1", 0.5, 0.3), ("output:1", 0.1, 1.5), ("prior:1", 3, 9)
    )
    assert "does not rank drift: output:1 moved theta further than standard (1.5 against 1" in found
    assert "and drifted less (0.1 against 2 nats)" in found


def test_without_such_a_run_distance_is_not_contradicted():
    found = said(("standard", 2.0, 1.0), ("l2:1", 0.5, 0.3))
    assert "every run that drifted less than standard also moved theta less" in found


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ((0.9, 0.5, 0.2), "falls at every step up in lambda of l2"),
        ((0.9, 0.2, 0.6), "it rises from 0.1 to 1."),
        ((0.2, 0.5, 0.3), "it rises from 0.01 to 0.1."),
        ((0.2, 0.5, 0.9), "it rises from 0.01 to 0.1, 0.1 to 1."),
    ],
)
def test_where_kl_rises_with_lambda_is_named(levels, words):
    runs = [(f"l2:{w}", 0.5, 0.3, kl) for w, kl in zip((0.01, 0.1, 1), levels, strict=True)]
    assert words in said(("standard", 2.0, 1.0, 2.0), *runs)
