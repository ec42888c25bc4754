"""Evaluating a model in memory: its base, its references, and what cannot be said."""

import math

import pytest
import torch
from evaluating import run
from photographs import photo
from small import config, trained, workshop

from personalize.data.prompts import PromptSet
from personalize.evaluate.judges import Evaluators
from personalize.evaluate.model import has_its_base
from personalize.export.write import load_run
from personalize.pipeline.load import load
from toy2d.runs.files import UserError

torch.set_num_threads(1)


def test_runs_of_one_base_share_its_pictures(still, moved, evaluators, tmp_path):
    """With adapters off both are the base: the second evaluation draws only its own pictures."""
    run(still, tmp_path / "a", evaluators, base_folder=tmp_path / "base")
    said = []
    run(moved, tmp_path / "b", evaluators, base_folder=tmp_path / "base", say=said.append)
    assert len(said) == 1
    assert "tuned" in said[0]


def test_a_base_of_its_own_draws_what_switched_off_adapters_draw(moved, evaluators, tmp_path):
    one = run(moved, tmp_path / "a", evaluators)
    other = run(moved, tmp_path / "b", evaluators, base=load(str(workshop() / "sd")))
    assert other.about["base"] == one.about["base"]
    for x, y in zip(one.rows, other.rows, strict=True):
        assert x["clip_t"] == pytest.approx(y["clip_t"], abs=1e-5)


def test_without_a_base_there_is_no_drift(evaluators, tmp_path):
    plain = load(str(workshop() / "sd"))
    assert not has_its_base(plain)
    found = run(plain, tmp_path, evaluators, chains=2)
    assert found.drift == {}
    assert any("--base" in note for note in found.about["left_out"])
    assert found.headline["dino"]


def test_one_reference_and_one_seed(moved, evaluators, tmp_path):
    """Pairs do not exist: undefined, said, and no crash."""
    (tmp_path / "one").mkdir()
    photo().save(tmp_path / "one" / "a.png")
    found = run(moved, tmp_path / "out", evaluators, reference=tmp_path / "one", seeds=[11])
    assert found.headline["real_images"] == {"clip_i": None, "dino": None}
    assert found.headline["div"] is None
    assert found.headline["dino"]["low"] is None
    assert found.drift["class"]["mmd2_dino"] is None
    text = " ".join(found.about["left_out"])
    assert "one reference picture" in text
    assert "one picture a prompt" in text
    found.write(tmp_path / "out")
    assert not any(math.isnan(v) for r in found.rows for v in r.values() if isinstance(v, float))


def test_the_subject_can_have_more_pictures_than_the_others(still, evaluators, tmp_path):
    """--subject_images: its prompts are drawn from their own seeds, all others from the usual."""
    found = run(still, tmp_path, evaluators, seeds=[1, 2], subject_seeds=[1, 2, 3])
    counts = {r["prompt"]: r["pictures"] for r in found.prompts if r["model"] == "tuned"}
    groups = {r["prompt"]: r["group"] for r in found.prompts}
    assert {groups[p]: n for p, n in counts.items()}["subject"] == 3
    assert all(n == 2 for p, n in counts.items() if groups[p] != "subject")
    assert found.summary["means"]["tuned"]["subject"]["dino"]["n"] == 3


def test_the_odes_law_is_measured_beside_path_kl(still, moved, evaluators, tmp_path):
    """--ode_points: 0 to the bit for adapters that have not moved; nats with errors for others."""
    asked = {"ode_points": 2, "ode_nodes": 8, "seeds": [1]}
    unmoved = run(still, tmp_path / "a", evaluators, **asked).drift
    found = run(moved, tmp_path / "b", evaluators, **asked).drift
    for group in ("class", "unrelated"):
        assert unmoved[group]["ode_kl"] == {"mean": 0, "error": 0, "ode_error": 0, "n": 2}
        assert found[group]["ode_kl"]["n"] == 2
        assert found[group]["ode_kl"]["error"] > 0
    assert "ode_kl" not in run(still, tmp_path / "a", evaluators, seeds=[1]).drift["class"]


def test_a_prompt_that_is_cut_is_said(still, evaluators, tmp_path):
    long = PromptSet("sks", "dog", {"subject": ("a sks dog" + " and a cat" * 40,)})
    found = run(still, tmp_path, evaluators, long, seeds=[1, 2])
    assert any("longer than the text encoder" in note for note in found.about["left_out"])


def test_corrupt_pictures_are_named(moved, evaluators, tmp_path):
    (tmp_path / "photos").mkdir()
    photo().save(tmp_path / "photos" / "good.png")
    (tmp_path / "photos" / "torn.jpg").write_bytes(
        (workshop() / "photos" / "0.jpg").read_bytes()[:300]
    )
    (tmp_path / "photos" / "empty.png").write_bytes(b"")
    with pytest.raises(UserError) as e:
        run(moved, tmp_path / "out", evaluators, reference=tmp_path / "photos")
    assert "torn.jpg" in str(e.value)
    assert "empty.png" in str(e.value)
    assert not (tmp_path / "out").exists()  # before anything is drawn


def test_one_chain_is_refused_before_anything_is_drawn(still, tmp_path):
    with pytest.raises(UserError, match="at least 2"):
        run(still, tmp_path / "out", Evaluators(), chains=1)
    assert not (tmp_path / "out").exists()


def test_a_finished_run_is_loaded_with_its_weights(tmp_path, evaluators):
    """What is evaluated is what was trained: the run's pictures differ from its base's."""
    trained(config(tmp_path / "run"))
    found = run(load_run(tmp_path / "run"), tmp_path / "out", evaluators)
    assert found.drift["subject"]["moved_perceptual"]["mean"] > 1e-4
