"""The toy's sentences follow its numbers: made-up records whose order is known."""

import pytest

from toy2d.runs.frontier import Trajectory
from toy2d.runs.sentences import drift_sentence, sentence, toy_scale
from toy2d.sentences import median, readings


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


def test_two_weights_are_a_sweep_and_one_is_none():
    two = said(("standard", 2.0, 1.0), ("l2:0.1", 0.9, 0.3), ("l2:1", 0.5, 0.3))
    assert "Drift along growing weights: l2 falls" in two
    assert "growing weights" not in said(("standard", 2.0, 1.0), ("l2:1", 0.5, 0.3))


def test_a_run_that_diverged_is_named_and_enters_no_sentence():
    """Without the stop, output:1 would contradict distance."""
    runs = [record(o, 0, d, t) for o, d, t in (("standard", 2.0, 1.0), ("output:1", 0.1, 1.5))]
    runs[1]["stopped"] = "output:1 at step 3"
    metrics = {"runs": runs, "base": runs[:1], "replayed_class": "class 0", "groups": None}
    found = " ".join(readings(metrics))
    assert "does not rank" not in found
    assert "1 runs diverged and were stopped: output:1 at step 3." in found


# ---- prior preservation, and what it replays
def kept(replayed: float, *others: float) -> str:
    """The sentence about a prior run with these KLs of the class it replays and of the others."""
    classes = {f"class {i}": [v, 0.0, 9] for i, v in enumerate((replayed, *others))}
    prior = [record("prior:1", s, 1.0, 1.0) | {"kl_base": classes} for s in (0, 1, 2)]
    metrics = {"runs": prior, "base": prior, "replayed_class": "class 0", "groups": None}
    return " ".join(readings(metrics))


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ((3.1, 0.2), "keeps the class it replays and loses others: 1 nats on class 0, 0.2 to 3.1"),
        ((3.0, 0.2), "keeps the other classes about as well as the one it replays"),
        ((1.1, 0.2), "keeps the other classes about as well as the one it replays"),
        ((1.0, 0.2), "keeps the others even better than the class it replays"),
    ],
)
def test_what_prior_preservation_keeps_is_read_from_the_worst_other_class(others, words):
    assert words in kept(1.0, *others)


def test_the_mixture_is_no_class_that_is_lost():
    classes = {"class 0": [1.0, 0, 9], "class 1": [0.5, 0, 9], "mixture": [50.0, 0, 9]}
    prior = [record("prior:1", 0, 1.0, 1.0) | {"kl_base": classes}]
    metrics = {"runs": prior, "base": prior, "replayed_class": "class 0", "groups": None}
    assert "even better" in " ".join(readings(metrics))


def test_a_sentence_begins_large_and_ends_with_a_stop():
    assert sentence("no run is there") == "No run is there."


def test_conditions_are_the_replayed_class_first_and_no_mixture():
    classes = {name: [1.0, 0, 9] for name in ("class 1", "class 0", "mixture", "class 2")}
    runs = [record("standard", 0, 1.0, 1.0) | {"kl_base": classes}]
    scale = toy_scale({"runs": runs, "replayed_class": "class 0"})
    assert scale.conditions == ["class 0", "class 1", "class 2"]
    assert scale.at(runs[0], "class 2") == 1.0


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_drift_is_a_multiple_of_standards_also_on_one_seed(seeds):
    """Two settings are a comparison, one is none."""
    runs = [record(n, s, d, 1.0) for n, d in (("standard", 2.0), ("l2:1", 0.5)) for s in seeds]
    found = drift_sentence(toy_scale({"runs": runs, "replayed_class": "class 0"}))
    assert "l2:1: \u00d7 0.25" in found
    alone = drift_sentence(toy_scale({"runs": runs[: len(seeds)], "replayed_class": "class 0"}))
    assert alone == "No run but standard's: nothing to compare."


def grouped(run: str, own, contexts, composed=0.5, modes=0.9, seeds=(0, 1, 2)) -> list[dict]:
    """Runs on a world with contexts: drift of the class alone and in its contexts, seed by seed."""
    return [
        record(run, s, 1.0, 1.0)
        | {
            "kl_base_group": {"class": [a, 0.0, 9], "contexts": [b, 0.0, 9]},
            "kl_composed": {"snow": [composed, 0.0, 9], "beach": [composed + 0.2, 0.0, 9]},
            "coverage": {"dog": modes},
        }
        for s, a, b in zip(seeds, own, contexts, strict=True)
    ]


def of_contexts(own, contexts, *more: list[dict], **prior) -> str:
    """What is said of a prior run whose drifts are these shares of standard's 2 and 4 nats."""
    a, b = [2 * v for v in own], [4 * v for v in contexts]
    standard = grouped("standard", (2, 2, 2), (4, 4, 4), composed=3.0, modes=0.3)
    records = [*standard, *grouped("prior:1", a, b, **prior)]
    for runs in more:
        records += runs
    metrics = {"runs": records, "base": standard, "replayed_class": "dog"}
    return " ".join(readings(metrics | {"groups": {"class": [], "contexts": []}}))


@pytest.mark.parametrize(
    ("own", "contexts", "verdict"),
    [
        ((0.1, 0.1, 0.1), (1.2, 1.1, 1.3), "keeps the class and loses its contexts"),
        ((0.1, 0.1, 0.1), (0.9, 1.3, 0.8), "keeps the class but hardly protects its contexts"),
        ((0.1, 0.1, 0.1), (1.0, 1.0, 1.0), "keeps the class but hardly protects"),
        ((0.1, 0.1, 0.1), (0.51, 0.51, 0.51), "keeps the class but hardly protects"),
        ((0.1, 0.1, 0.1), (0.49, 0.49, 0.49), "protects the contexts less than the class"),
        ((0.1, 0.3, 0.2), (0.1, 0.4, 0.2), "It does not lose the contexts to keep the class"),
    ],
)
def test_contexts_are_lost_only_where_a_standard_error_of_the_share_says_so(own, contexts, verdict):
    """Whose lower limit lies above 1 is lost; above the class's upper limit, less protected."""
    assert verdict in of_contexts(own, contexts)


def test_shares_and_composition_are_those_of_the_numbers():
    found = of_contexts((0.1, 0.1, 0.1), (0.4, 0.4, 0.4))
    assert "class 0.2 nats, 10% (10%\u201310%) of standard's" in found
    assert "contexts 1.6 nats, 40% (40%\u201340%) of standard's" in found
    assert "40% of standard's drift is left on its contexts, 10% on the class alone" in found
    assert "seen with the new word it is 0.6 nats from the world (standard 3.1)" in found
    assert "composition holds. The class keeps 90% of its modes (standard 30%)" in found
    edge = of_contexts((0.1, 0.1, 0.1), (0.4, 0.4, 0.4), composed=0.9)
    assert "it is 1 nats from the world" in edge
    assert "composition holds" in edge
    far = of_contexts((0.1, 0.1, 0.1), (0.4, 0.4, 0.4), composed=0.95)
    assert "composition is far from learnt" in far


def test_weight_1_of_prior_preservation_is_read_where_it_was_run():
    """Its neighbour at 0.1 protects nothing, and comes first."""
    weak = grouped("prior:0.1", (2, 2, 2), (8, 8, 8))
    found = of_contexts((0.1, 0.1, 0.1), (0.4, 0.4, 0.4), weak)
    assert "prior:1, which replays 'dog' only" in found


# ---- learning along training
def trajectory(objective: str, seed: int, learnt, drift, run: str = "") -> Trajectory:
    steps = range(len(learnt))
    return Trajectory(run or objective, objective, str(seed), seed, steps, learnt, drift)


def along(peaks=(1.0, 0.8), seeds=(0, 1), **objectives) -> list[str]:
    """Sentences where standard peaks in the middle, and others drift these multiples of it."""
    drift = (0.0, 1.0, 4.0, 9.0)
    found = [trajectory("standard", s, (0.0, 0.5, *peaks), drift) for s in seeds]
    for name, times in objectives.items():
        top = [times * d for d in drift]
        found += [trajectory(name, s, (0.0, 0.5, *peaks), top, f"{name}:1") for s in seeds]
    standard = [record("standard", s, 2.0, 1.0) for s in seeds]
    metrics = {"runs": standard, "base": standard, "replayed_class": "class 0", "groups": None}
    return readings(metrics, found)


def test_where_standard_learns_best_is_counted_over_seeds():
    assert "In 2 of 2 seeds (34%\u2013100%)" in " ".join(along())
    assert "best before the last step (at step 2 over all seeds). Objectives" in " ".join(along())
    assert "In 0 of 2 seeds" in " ".join(along(peaks=(0.8, 1.0)))


def test_three_measured_steps_show_a_peak_and_two_do_not():
    def of(learnt):
        runs = [record("standard", s, 2.0, 1.0) for s in (0, 1)]
        metrics = {"runs": runs, "base": runs, "replayed_class": "class 0", "groups": None}
        drift = range(len(learnt))
        found = [trajectory("standard", s, learnt, drift) for s in (0, 1)]
        return " ".join(readings(metrics, found))

    assert "In 2 of 2 seeds" in of((0.0, 1.0, 0.5))
    assert "it overfits" not in of((0.0, 1.0))


def test_objectives_are_ordered_by_their_drift_at_equal_learning():
    found = next(s for s in along(prior=2.0, l2=0.5) if s.startswith("Where 75%"))
    assert found.index("l2 (l2:1): less drift than standard: \u00d7 0.5") < found.index(
        "prior (prior:1): more drift than standard: \u00d7 2"
    )
    levels = next(s for s in along(l2=0.5) if s.startswith("The same ratio"))
    assert "at 25%, 50%, 75%, 90% of standard's best: l2 0.5, 0.5, 0.5, 0.5." in levels


def test_a_level_that_an_objective_never_learns_is_said_and_comes_last():
    weak = [trajectory("output", s, (0.0, 0.3, 0.3, 0.3), (0, 1, 1, 1), "output:1") for s in (0, 1)]
    standard = [record("standard", s, 2.0, 1.0) for s in (0, 1)]
    metrics = {"runs": standard, "base": standard, "replayed_class": "class 0", "groups": None}
    strong = [trajectory("standard", s, (0.0, 0.5, 1.0), (0, 1, 4)) for s in (0, 1)]
    l2 = [trajectory("l2", s, (0.0, 0.5, 1.0), (0, 9, 9), "l2:1") for s in (0, 1)]
    found = " ".join(readings(metrics, [*strong, *weak, *l2]))
    assert "not reached, not reached, not reached" in found
    assert found.index("l2 (l2:1)") < found.index("output (")


def test_a_run_is_read_as_its_median_over_seeds():
    runs = [record("l2:1", s, 1.0, theta) for s, theta in enumerate((5.0, 1.0, 2.0))]
    assert median(runs, "delta_theta") == 2.0
