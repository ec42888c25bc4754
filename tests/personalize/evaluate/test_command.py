"""`personalize evaluate`: runs, pipelines, the benchmark, the mini, and faults of the user."""

import json
import shutil
import sys
import types
from pathlib import Path
from unittest import mock

import pytest
import torch
from evaluating import said
from small import config, trained, workshop

from personalize.__main__ import main
from personalize.evaluate import command as evaluate_run
from personalize.evaluate.judges import evaluators_of
from toy2d.runs.files import UserError

torch.set_num_threads(1)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_run_from_the_command_line(tmp_path, capsys, words, kind):
    """Its own words, prompts and base; the JSON says all that the numbers depend on, and nothing
    of the home folder.
    """
    trained(
        config(
            tmp_path / "run",
            kind=kind,
            max_train_steps=2,
            class_prompt="a photo of a dog",
            context_prompts=("a dog in the snow",),
            center_crop=True,
        )
    )
    (tmp_path / "prompts.txt").write_text("a {0} {1} in the snow\n")
    command = [
        "evaluate",
        "--model",
        str(tmp_path / "run"),
        "--reference",
        str(workshop() / "photos"),
        "--prompts",
        str(tmp_path / "prompts.txt"),
        *words,
    ]
    assert main(command) == 0
    text = said(capsys)
    assert "images/s" in text
    assert "LPIPS" in text
    report = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())
    assert (report["model"], report["base_model"]) == ("run", "sd")
    assert report["identifier"] == "sks"
    assert report["class_word"] == "dog"
    assert list(report["groups"]) == ["subject", "class", "contexts", "unrelated"]
    assert set(report["drift"]) == set(report["groups"])
    assert report["drift"]["class"]["path_kl"]["n"] == 2
    assert report["evaluators"]["clip"]["preprocessing"]["crop_size"] == {"height": 32, "width": 32}
    assert len(report["evaluators"]["dino"]["weights"]) == 16
    assert "without its identifier" in report["prompt_convention"]
    assert report["training"]["folder"] == "photos"
    written = (tmp_path / "run" / "evaluation" / "evaluation.json").read_text()
    assert str(tmp_path) not in written
    assert str(workshop()) not in written
    assert main(command) == 0
    assert "images/s" not in said(capsys)  # everything was there
    assert main([*command, "--json"]) == 0
    file = tmp_path / "run" / "evaluation" / "evaluation.json"
    assert json.loads(capsys.readouterr().out) == json.loads(file.read_text())


def test_the_benchmark_as_published(tmp_path, capsys, words):
    """Folders of subjects beside prompts_and_classes.txt, and runs named as subjects: each is
    evaluated, the rest is listed.

    Judges are loaded once, runs of one base share its pictures, and a subject that fails is named
    and stops no other.
    """
    from data.test_benchmark import published

    root = tmp_path / "dreambooth"
    for subject in ("dog", "monster_toy", "vase"):
        shutil.copytree(workshop() / "photos", root / subject)
    published(root)
    trained(
        config(
            tmp_path / "runs" / "monster_toy",
            max_train_steps=1,
            instance_prompt="a photo of sks toy",
        )
    )
    for subject in ("vase", "dog"):
        shutil.copytree(tmp_path / "runs" / "monster_toy", tmp_path / "runs" / subject)
    (root / "dog" / "torn.jpg").write_bytes(b"")
    command = [
        "evaluate",
        "--model",
        str(tmp_path / "runs"),
        "--reference",
        str(root),
        "--chains",
        "0",
        *words[:4],
        *words[6:],
        "--images",
        "1",
    ]
    with mock.patch.object(evaluate_run, "evaluators_of", wraps=evaluators_of) as loaded:
        assert main(command) == 1
    assert loaded.call_count == 1
    assert "1 of 3 subjects failed (dog" in said(capsys)
    evaluation = tmp_path / "runs" / "evaluation"
    (shared,) = (evaluation / "base").iterdir()
    drawn = len(list(shared.glob("*.png")))
    assert drawn < sum(
        len(list((evaluation / s / "tuned").glob("*.png"))) for s in ("vase", "monster_toy")
    )
    report = json.loads((evaluation / "benchmark.json").read_text())
    assert "torn.jpg" in report["failed"]["dog"]
    assert set(report["subjects"]) == {"monster_toy", "vase"}
    assert len(report["without_run"]) == 27
    assert report["means"]["dino"]["n"] == 2
    one = json.loads((tmp_path / "runs/evaluation/vase/evaluation.json").read_text())
    assert one["class_word"] == "vase"
    assert len(one["groups"]["subject"]) == 25
    assert "a sks vase on top of a mirror" in one["groups"]["subject"]


def test_faults_of_the_user(tmp_path, capsys, words):
    trained(config(tmp_path / "run", max_train_steps=1))
    start = [
        "evaluate",
        "--model",
        str(tmp_path / "run"),
        "--reference",
        str(workshop() / "photos"),
        *words,
    ]
    for more, why in (
        (["--images", "0"], "--images 0"),
        (["--chains", "1"], "--chains 1: one chain has no standard error"),
        (["--chains", "-2", "--steps", "0"], "--steps 0"),
        (["--guidance", "0.5"], "--guidance 0.5"),
        (["--sample_batch_size", "0"], "--sample_batch_size 0"),
        (["--prompts", "nonsense"], "neither dreambooth"),
        (["--identifier", "zwx"], "'zwx' is not in the run's prompt"),
        (["--reference", str(tmp_path / "none")], "is not a folder"),
        (["--model", str(tmp_path)], "model_index.json"),
        (["--sampler", "magic"], "no sampler 'magic'"),
    ):
        assert main([*start, *more]) == 2, more
        assert why in said(capsys)
    plain = [
        "evaluate",
        "--model",
        str(workshop() / "sd"),
        "--reference",
        str(workshop() / "photos"),
        *words,
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(plain) == 2
    assert "--class_word" in said(capsys)


def test_a_pipeline_against_a_base_of_ones_choice(tmp_path, capsys, words):
    """The tiny pipeline against itself: no drift at all."""
    sd = str(workshop() / "sd")
    (tmp_path / "p.txt").write_text("a {0} {1}\n")
    command = [
        "evaluate",
        "--model",
        sd,
        "--base",
        sd,
        "--class_word",
        "dog",
        "--reference",
        str(workshop() / "photos"),
        "--prompts",
        str(tmp_path / "p.txt"),
        "--out",
        str(tmp_path / "out"),
        *words,
    ]
    assert main(command) == 0
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["drift"]["class"]["moved_clip"]["mean"] == pytest.approx(0, abs=1e-6)
    assert report["drift"]["class"]["path_kl"]["mean"] == pytest.approx(0, abs=1e-9)


@pytest.fixture
def mini(folders, monkeypatch, tmp_path):
    """A mini world in small, with the names of `personalize.mini.shipped`; its pipeline is the
    tiny one.
    """
    (tmp_path / "weights").mkdir()
    judge = Path(folders["dino"]).with_name("subject_judge")
    shutil.copytree(folders["truth"], judge, dirs_exist_ok=True)
    about = json.loads((judge / "config.json").read_text())
    labels = {"0": "rex", "1": "tom", "2": "kit", "3": "other"}
    about |= {"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}
    (judge / "config.json").write_text(json.dumps(about))
    (tmp_path / "weights" / "model").symlink_to(workshop() / "sd")
    world = types.SimpleNamespace(
        CLASSES=("dog", "cat", "owl"),
        SCENES=("in the snow", "on the beach"),
        WEIGHTS=tmp_path / "weights",
        clip_folder=lambda: Path(folders["clip"]),
        dino_folder=lambda: Path(folders["dino"]),
        classifier_folder=lambda: Path(folders["truth"]),
        subject_judge_folder=lambda: judge,
    )
    monkeypatch.setattr("personalize.mini.shipped.WEIGHTS", world.WEIGHTS)  # what is_mini reads
    monkeypatch.setitem(sys.modules, "personalize.mini.shipped", world)
    monkeypatch.setattr("personalize.mini.shipped", world)
    return world


def test_the_mini_is_judged_by_its_own_networks_in_its_own_world(mini, tmp_path):
    """Without a flag: prompts are its scenes and classes, evaluators its own, DIV its perceptual
    distance, truth its classifier.
    """
    trained(
        config(
            tmp_path / "run",
            max_train_steps=1,
            class_prompt="a photo of a dog",
            context_prompts=("a dog in the snow",),
        )
    )
    command = [
        "evaluate",
        "--model",
        str(tmp_path / "run"),
        "--reference",
        str(workshop() / "photos"),
        "--images",
        "2",
        "--steps",
        "1",
        "--chains",
        "0",
    ]
    assert main(command) == 0
    report = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())
    assert report["groups"] == {
        "subject": ["a photo of sks dog in the snow", "a photo of sks dog on the beach"],
        "class": ["a photo of a dog"],
        "contexts": ["a photo of a dog in the snow", "a photo of a dog on the beach"],
        "unrelated": ["a photo of a cat in the snow", "a photo of an owl on the beach"],
    }
    assert set(report["evaluators"]) == {"clip", "dino", "truth", "subjects"}
    assert report["headline"]["div_distance"] == "perceptual"
    assert len(report["left_out"]) == 1
    assert "one pair" in report["left_out"][0]  # of two pictures
    assert report["headline"]["div"]["low"] is None
    assert report["means"]["base"]["contexts"]["scene_right"]["n"] == 2
    assert report["check"]["n"] == 2 * 2 * (
        2 + 2 + 1
    )  # all but the class prompt, without a scene, and the owl


def test_an_unfinished_mini_is_said(mini, folders):
    def unfinished():
        raise UserError("no weights yet; run personalize pretrain")

    mini.dino_folder = unfinished
    found = evaluators_of(True)
    assert found.clip
    assert found.truth
    assert len(found.left_out) == 1
    assert "personalize pretrain" in found.left_out[0]
