"""Drift at equal learning: interpolation, pairing, intervals over units, power, verdicts."""

import math

import numpy as np
import pytest

from toy2d.runs.frontier import Contrast, Trajectory, agreement, contrasts, kendall, power
from toy2d.runs.statistics import estimate


def run(objective, weight, unit, seed, factor, most=1.0, steps=20) -> Trajectory:
    """Learns to `most` and forgets again; drift = factor * learnt^2 on the way up."""
    learnt = most * np.sin(np.linspace(0, np.pi, steps + 1))
    drift = factor * np.maximum.accumulate(learnt) ** 2
    name = objective if weight is None else f"{objective}:{weight:g}"
    return Trajectory(name, objective, unit, seed, range(steps + 1), learnt, drift)


def design(factors: dict[str, float], units=4, seeds=2, noise=0.1, **more) -> list[Trajectory]:
    """Every unit has a difficulty of its own, which pairing must remove."""
    rng, out = np.random.default_rng(0), []
    for u in range(units):
        for s in range(seeds):
            hard = math.exp(u + 0.3 * s)
            out.append(run("standard", None, f"u{u}", s, hard))
            for o, f in factors.items():
                out.append(
                    run(o, 1.0, f"u{u}", s, hard * f * math.exp(noise * rng.normal()), **more)
                )
    return out


def test_drift_is_read_where_a_level_is_first_reached():
    t = Trajectory("l2:1", "l2", "a", 0, (0, 1, 2, 3), (0.0, 2.0, 4.0, 1.0), (0.0, 1.0, 9.0, 16.0))
    assert t.drift_at(2.0) == 1.0
    assert t.drift_at(3.0) == pytest.approx(4.0)  # sqrt: half-way between 1 and 3
    assert t.drift_at(1.0) == pytest.approx(0.25)  # from 0: quadratic
    assert math.isnan(t.drift_at(4.1))
    assert t.peak == 4.0


def test_interpolation_is_exact_for_drift_quadratic_in_what_is_learnt():
    coarse, fine = (run("l2", 1.0, "a", 0, 5.0, steps=n) for n in (4, 400))
    for level in (0.1, 0.4, 0.8):
        assert coarse.drift_at(level) == pytest.approx(5 * level**2)
        assert fine.drift_at(level) == pytest.approx(5 * level**2)


def test_pairing_removes_what_units_differ_in():
    found = contrasts(design({"l2": 0.5}, noise=0.0))["l2"][0.75]
    assert math.exp(found.ratio.log.mean) == pytest.approx(0.5)
    assert found.ratio.log.half < 1e-6
    assert found.verdict == "less"
    assert (found.reached, found.runs) == (8, 8)


def test_seeds_are_averaged_before_units_are_counted():
    """More seeds of the same units do not shrink the interval as more units do."""
    found = contrasts(design({"l2": 0.5}, units=4, seeds=10))["l2"][0.75]
    assert found.ratio.log.n == 4


def test_levels_are_shares_of_standards_peak_on_the_same_unit_and_seed():
    """Who learns half of what standard learns reaches 25 % and 50 %, and no more."""
    found = contrasts(design({"l2": 0.5}, most=0.5))["l2"]
    assert [found[s].reached for s in (0.25, 0.5, 0.75, 0.9)] == [8, 8, 0, 0]
    assert found[0.75].verdict == "unknown"
    assert found[0.75].words() == "never learnt 75% of what standard learns"


@pytest.mark.parametrize(
    ("factor", "noise", "verdict", "words"),
    [
        (0.5, 0.05, "less", "less drift than standard"),
        (2.0, 0.05, "more", "more drift than standard"),
        (1.0, 0.02, "same", "no difference larger than"),
        (0.9, 1.0, "undecided", "would decide it"),
    ],
)
def test_verdicts_follow_the_interval(factor, noise, verdict, words):
    found = contrasts(design({"l2": factor}, units=6, noise=noise))["l2"][0.75]
    assert found.verdict == verdict
    assert words in found.words()


def test_an_interval_that_contains_1_is_never_less_or_more():
    """Log ratios -0.3 +- 0.4 over three units."""
    values = {"a": -0.3, "b": -0.3 - 0.161, "c": -0.3 + 0.161}
    found = Contrast("l2", 0.75, values, 3, 3, ("l2:1",))
    assert found.ratio.log.half == pytest.approx(0.4, rel=0.01)
    assert found.verdict == "undecided"
    assert found.at_most == pytest.approx(math.exp(0.7) - 1, rel=0.01)


def test_one_unit_decides_nothing():
    found = contrasts(design({"l2": 0.01}, units=1, seeds=5))["l2"][0.75]
    assert found.verdict == "undecided"
    assert "one subject" in found.words()


def test_a_weight_is_not_chosen_on_the_unit_that_judges_it():
    """l2:2 is best on u0 only: u0 is judged at l2:1, the others, which saw u0, at either."""
    out = []
    for u in range(4):
        out.append(run("standard", None, f"u{u}", 0, 1.0))
        out.append(run("l2", 1.0, f"u{u}", 0, 0.5))
        out.append(run("l2", 2.0, f"u{u}", 0, 0.01 if u == 0 else 0.9))
    found = contrasts(out)["l2"][0.75]
    assert found.by_unit["u0"] == pytest.approx(math.log(0.5))


def test_a_weight_that_does_not_learn_is_not_chosen():
    out = []
    for u in range(3):
        out.append(run("standard", None, f"u{u}", 0, 1.0))
        out.append(run("l2", 1.0, f"u{u}", 0, 0.5))
        out.append(run("l2", 100.0, f"u{u}", 0, 0.001, most=0.3))
    assert contrasts(out)["l2"][0.75].weights == ("l2:1",)
    assert contrasts(out)["l2"][0.25].weights == ("l2:100",)


def test_a_diverged_run_counts_up_to_where_it_ended():
    whole = run("l2", 1.0, "a", 0, 0.5)
    half = whole._replace(
        step=range(5), learnt=whole.learnt[:5], drift=whole.drift[:5], stopped="step 5"
    )
    found = contrasts([run("standard", None, "a", 0, 1.0), half])["l2"]
    assert found[0.25].reached == 1
    assert found[0.9].reached == 0


def test_power_is_that_of_students_test():
    """Against simulation, and 5 % where there is no effect."""
    assert power(8, 0.0) == pytest.approx(0.05)
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 1.0, (20_000, 6))
    found = [abs(m) > h for m, h, _ in map(estimate, x[:4000])]
    assert power(6, 1.0) == pytest.approx(np.mean(found), abs=3 * (0.25 / 4000) ** 0.5)


def test_the_design_says_what_it_can_find_and_what_it_would_take():
    values = dict(enumerate(np.random.default_rng(1).normal(-0.4, 0.5, 6)))
    found = Contrast("l2", 0.75, values, 6, 6, ("l2:1",))
    effect = -math.log(1 - found.detectable) / found.spread
    assert power(6, effect) == pytest.approx(0.8, abs=1e-3)
    n = found.units_needed
    seen = abs(found.ratio.log.mean) / found.spread
    assert power(n, seen) >= 0.8 > power(n - 1, seen)


def test_agreement_of_two_orders():
    toy = {o: {str(s): v for s in range(3)} for o, v in (("l2", -1.0), ("prior", -0.5))}
    assert agreement(toy, toy, 50)[:3] == (1.0, 1.0, 1.0)
    other = {o: {str(s): v for s in range(3)} for o, v in (("l2", 0.5), ("prior", 0.3))}
    assert agreement(toy, other, 50)[0] == -1.0
    assert kendall([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
