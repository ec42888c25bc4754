"""Which measure agrees with pictures: rank correlation within subjects, with an interval that
covers.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from personalize.compare.frontier import picture_trajectories
from personalize.compare.validation import agreement, axis, correlation, validate, within_ranks
from personalize.config.commands import Validate
from toy2d.runs.files import UserError
from toy2d.runs.frontier import contrasts


def runs(n: int = 12, subjects=("rex", "tom"), noise: float = 0.1, seed: int = 0) -> list[dict]:
    """gain decides what pictures show, binding is noise, and tom is ten times as easy as rex."""
    rng, out = np.random.default_rng(seed), []
    for k, subject in enumerate(subjects):
        for i in range(n):
            gain = rng.uniform(0, 100) * 10**k
            dino = 0.1 * k + gain / (100 * 10**k) + noise * rng.normal()
            curve = [{"step": 0, "gain": 0.0}, {"step": 9, "gain": gain, "binding": rng.normal()}]
            out.append(
                {
                    "run": f"l2:{i}",
                    "subject": subject,
                    "curve": curve,
                    "dino": dino,
                    "stopped": None,
                }
            )
    return out


def test_one_subject_is_scipys_spearman():
    pairs = np.random.default_rng(0).normal(size=(20, 2)).round(1)  # with ties
    assert within_ranks([pairs]) == pytest.approx(float(spearmanr(pairs).statistic))


def test_only_the_order_within_a_subject_counts():
    """Any increasing map of a subject's values, another one for each subject, changes nothing."""
    a, b = (np.random.default_rng(s).normal(size=(15, 2)) for s in (0, 1))
    assert within_ranks([a, b]) == pytest.approx(within_ranks([np.exp(3 * a), 100 + 5 * b]))
    apart = [np.array([[0, 1], [1, 0]]), np.array([[10, 11], [11, 10]])]
    assert within_ranks(apart) == -1  # pooled without subjects it would look positive
    assert math.isnan(within_ranks([np.array([[1.0, 1.0], [1.0, 2.0]])]))


def test_what_decides_is_found_and_noise_is_not():
    found = agreement(runs())
    by = {r["candidate"]: r for r in found}
    assert by["gain"]["rho"] > 0.8
    assert by["gain"]["low"] > 0.6
    assert by["gain"]["n"] == 24
    assert by["binding"]["low"] < 0 < by["binding"]["high"]
    assert axis(found) == "gain"
    assert axis([r for r in found if r["candidate"] == "binding"]) is None


def test_a_judge_that_knows_the_subjects_is_the_witness_that_counts():
    """DINO agrees with gain, the judge sees the subject where binding is high: binding it is."""
    some = runs()
    for r in some:
        r["subject_seen"] = r["curve"][-1]["binding"]
    found = agreement(some)
    assert axis(found) == "binding"
    assert axis([r for r in found if r["witness"] == "dino"]) == "gain"


def test_the_interval_covers():
    """Uncorrelated values: 95 % intervals hold 0 in about 38 of 40 repetitions (33 is 4 standard
    errors below).
    """
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(40):
        _, low, high = correlation([rng.normal(size=(15, 2)), rng.normal(size=(15, 2))], 100)
        inside += low <= 0 <= high
    assert inside >= 33


def test_a_diverged_run_and_a_small_subject_do_not_count():
    some = runs(6, ("rex",)) + runs(3, ("tom",))
    some[0]["stopped"] = "diverged"
    assert agreement(some)[0]["n"] == 5


def written(folder: Path, some: list[dict], base: str = "abc") -> str:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps({"runs": some, "base_hash": base}))
    return str(folder)


def test_the_command(tmp_path, capsys):
    with pytest.raises(UserError, match="pass the folder of"):
        validate(Validate((str(tmp_path),)))
    few = written(tmp_path / "few", runs(2))
    with pytest.raises(UserError, match="held-out pictures"):
        validate(Validate((few,)))
    enough = written(tmp_path / "enough", runs())
    validate(Validate((enough,)))
    assert "agrees best: gain" in capsys.readouterr().out
    assert json.loads((tmp_path / "enough" / "validation.json").read_text())["axis"] == "gain"


def test_runs_of_several_comparisons_are_ranked_together(tmp_path):
    """Two halves, each too small for a subject, count as the whole does."""
    some = runs(8)
    halves = [written(tmp_path / name, some[i::2]) for i, name in enumerate("ab")]
    together, whole = (
        json.loads(validate(Validate(tuple(folders))).read_text())["agreement"]
        for folders in (halves, [written(tmp_path / "whole", some)])
    )
    for a, b in zip(together, whole, strict=True):
        assert (a["candidate"], a["n"]) == (b["candidate"], b["n"])
        assert a["rho"] == pytest.approx(b["rho"])
    other = written(tmp_path / "other", some, base="another")
    with pytest.raises(UserError, match="different base models"):
        validate(Validate((halves[0], other)))


def test_budgets_are_points_of_a_curve(tmp_path, capsys):
    """Twice the drift at every level of what pictures show is read as a ratio of 2, whatever the
    base's own score; a run without the score is left out.
    """

    def part(steps: int) -> dict:
        kept = {"stopped": None, "seed": 0, "base": {"subject_seen": 0.1}, "dino": 0.5}
        kept |= {"curve": [{"step": steps, "gain": float(steps)}], "objective": "standard"}
        runs = []
        for i, subject in enumerate(("rex", "tom", "kit")):
            seen, drift = 0.1 + steps / 200 * (1 + 0.1 * i), [steps * (1 + i), 0.1, 1]
            one = kept | {"subject": subject, "subject_seen": seen}
            runs.append(one | {"run": "standard", "path_kl": drift})
            double = [2 * drift[0], 0.1, 1]
            runs.append(one | {"run": "l2:1", "objective": "l2", "path_kl": double})
        return {"runs": [*runs, runs[0] | {"subject_seen": None}], "steps": steps}

    curves = picture_trajectories([part(100), part(20)])
    assert [t.step for t in curves] == [[0, 20, 100]] * 6
    assert curves[0].learnt == pytest.approx([0, 0.1, 0.5])
    at = contrasts(curves)["l2"][0.75]
    assert math.exp(at.ratio.log.mean) == pytest.approx(2)
    assert at.verdict == "more"
    folders = [tmp_path / "20", tmp_path / "100"]
    for folder in folders:
        folder.mkdir()
        both = part(int(folder.name))
        both["runs"] *= 3  # enough of a subject
        (folder / "metrics.json").write_text(json.dumps(both | {"base_hash": "abc"}))
    validate(Validate(tuple(map(str, folders))))
    assert "l2: more drift than standard" in " ".join(capsys.readouterr().out.split())
