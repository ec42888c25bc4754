"""Verdicts flip when the numbers flip, and one seed decides nothing."""

import pytest

from personalize.config.recipes.studies import STUDIES
from personalize.study.conclusions import (
    BASE,
    CONCLUSIONS,
    NOT_ARMS,
    Contrast,
    falling,
    judged,
    measure,
    sentence,
    together,
    verdicts,
)
from personalize.study.page import page, rows
from personalize.study.scores import SCORES


def record(arm: str, seed: int, subject: str = "rex", of_base=None, **scores) -> dict:
    known = dict.fromkeys(SCORES, 0.5) | scores
    where = {"arm": arm, "seed": seed, "subject": subject, "stopped": None, "folder": "gone"}
    return where | known | {"of_base": of_base or {}, "curve": []}


def study(*runs: dict, name: str = "regimes") -> dict:
    subjects = {r["subject"]: {"class_word": "dog", "memorization_of_new": 0.7} for r in runs}
    return {"study": name, "runs": list(runs), "subjects": subjects}


def regime_runs(identity: dict[str, float]) -> list[dict]:
    """Seeds differ by far more than arms do, and alike in all arms."""
    return [
        record(arm, seed, clip_i=level + 5 * seed + 0.001 * (seed % 2))
        for arm, level in identity.items()
        for seed in range(4)
    ]


def first(metrics: dict) -> dict:
    return verdicts(metrics)[0]


def test_verdicts_follow_the_numbers():
    """The first conclusion: identity falls from overfit over balanced to underfit."""
    up = study(*regime_runs({"overfit": 0.9, "balanced": 0.8, "underfit": 0.7}))
    assert first(up)["verdict"] == "supported"
    assert "overfit \u2212 balanced = 0.1" in first(up)["words"]
    down = study(*regime_runs({"overfit": 0.9, "balanced": 0.6, "underfit": 0.7}))
    assert first(down)["verdict"] == "contradicted"
    noisy = study(*up["runs"])
    noisy["runs"][0]["clip_i"] += 3
    assert first(noisy)["verdict"] == "undecided"


def test_one_seed_decides_nothing_and_a_diverged_run_is_left_out():
    runs = regime_runs({"overfit": 0.9, "balanced": 0.8, "underfit": 0.7})
    one = study(*[r for r in runs if r["seed"] == 0])
    assert first(one)["verdict"] == "undecided"
    assert "(n = 1)" in first(one)["words"]
    for r in one["runs"]:
        r["stopped"] = "rex: step 2"
    assert first(one)["verdict"] == "unknown"
    assert "was not measured" in first(one)["words"]


def test_arms_on_other_subjects_are_compared_seed_by_seed():
    runs = [record("face-1200", s, "bear", clip_i=0.7 + s) for s in range(3)]
    runs += [record("toy", s, "cat", clip_i=0.6 + s) for s in range(3)]
    (contrast,) = falling("clip_i", "face-1200", "toy")
    found = measure(contrast, study(*runs, name="face_and_toy"))
    assert found.n == 3
    assert found.mean == pytest.approx(0.1)


def test_near_the_base_is_ninety_per_cent_of_it():
    runs = [record("a", s, clip_t=0.85 + 0.001 * s, of_base={"clip_t": 0.9}) for s in range(3)]
    contrast = Contrast("clip_t", {"a": 1.0, BASE: -0.9})
    found = measure(contrast, study(*runs))
    assert found.mean == pytest.approx(0.851 - 0.81)
    assert judged(found) == "supported"
    assert "a \u2212 0.9 \u00d7 the base" in sentence(contrast, found)


def test_a_conclusion_of_several_needs_all():
    assert together(["supported", "supported"]) == "supported"
    assert together(["supported", "undecided"]) == "undecided"
    assert together(["undecided", "unknown", "contradicted"]) == "contradicted"


@pytest.mark.parametrize("name", STUDIES)
def test_conclusions_are_about_arms_and_scores_that_there_are(name):
    arms = {a.name for a in STUDIES[name]()} | set(NOT_ARMS)
    for c in CONCLUSIONS[name]:
        for contrast in c.contrasts:
            assert contrast.weights.keys() <= arms, c.text
            assert contrast.score in SCORES


def test_the_page_has_every_number_and_escapes_what_it_quotes(tmp_path):
    evil = "<script>alert(1)</script>"
    m = study(*regime_runs({"overfit": 0.9, "balanced": 0.8, "underfit": 0.7}))
    arm = {
        "steps": 1,
        "learning_rate": 1e-4,
        "schedule": "constant",
        "run": "standard",
        "class_images": 0,
        "text_encoder": False,
        "after": None,
    }
    m |= {"arms": {"overfit": arm}, "model": evil, "scales": [20, 100], "evaluators": {}}
    m |= {"left_out": [evil], "conclusions": verdicts(m), "mini": False}
    for r in m["runs"]:
        r["stopped"] = r["stopped"] or (r["seed"] == 3 and evil) or None
    table = rows(m)
    assert [row[0] for row in table] == ["the base on rex", "overfit"]
    assert table[1][1] == "3"  # one of four diverged
    for r in m["runs"]:
        r["stopped"] = r["stopped"] or "no pictures here"
    html = page(tmp_path, m)
    assert evil not in html
    assert "&lt;script&gt;" in html
    assert "does not hold here" in html or "holds here" in html
