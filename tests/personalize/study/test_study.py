"""A study on the tiny Stable Diffusion: arms that go on from another's checkpoint, one page."""

import json
import shutil

import pytest
import torch
from comparisons import shop

from personalize.__main__ import main
from personalize.compare.benchmark_plan import Planned as Counted
from personalize.compare.benchmark_plan import counted
from personalize.compare.jobs import train_config
from personalize.config.recipes.regimes import balanced
from personalize.config.recipes.studies import RATE, SCALE, Study, face_and_toy, regimes, scaled
from personalize.study import run as running
from personalize.study.plan import planned
from personalize.train.guard import Diverged
from toy2d.runs.files import read_csv

torch.set_num_threads(1)


def asked(tmp_path, name="face_and_toy", **more) -> Study:
    """300 of the report's steps are one."""
    toy = tmp_path / "toy"
    if not toy.exists():
        shutil.copytree(shop() / "photos", toy)
    base = {
        "pretrained_model_name_or_path": str(shop() / "sd"),
        "subjects": (f"{shop() / 'photos'}:dog", f"{toy}:dog"),
        "seeds": (0,),
        "scale": 300,
        "rate": 1e4,
        "resolution": 64,
        "images": 2,
        "prompts_each": 1,
        "clip": str(shop() / "clip"),
        "dino": str(shop() / "dino"),
        "workers": 1,
        "output_dir": str(tmp_path / "s"),
    }
    return Study(name, **(base | more))


def silent(text: str) -> None: ...


def test_a_killed_study_goes_on_and_later_arms_go_on_from_the_first(tmp_path, monkeypatch):
    """Killed when all had trained; then the page, and no step trained twice."""
    s = asked(tmp_path)

    def killed(job, seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(running, "work", killed)
        with pytest.raises(KeyboardInterrupt):
            running.run(s, silent)
    weights = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("history.csv")}
    assert len(weights) == 2  # of the face: the toy's task had not begun
    path = running.run(s, silent)
    assert weights.items() <= {p: p.stat().st_mtime_ns for p in path.rglob("history.csv")}.items()
    metrics = json.loads((path / "metrics.json").read_text())
    runs = {r["arm"]: r for r in metrics["runs"]}
    assert list(runs) == [a.name for a in face_and_toy()]
    steps = {
        arm: [row["step"] for row in read_csv(path / arm / r["folder"] / "train" / "history.csv")]
        for arm, r in runs.items()
    }
    assert min(steps["face-300"]) == 0
    assert min(steps["face-1200"]) == 2  # went on from step 1
    assert steps["toy-1200-weight-0.5"] == steps["toy-1200-weight-1"] == [4]
    moved = {arm: r["delta_theta"] for arm, r in runs.items()}
    assert moved["toy-1200-weight-0.5"] != moved["toy-1200-weight-1"]
    for r in runs.values():
        assert None not in (r["clip_i"], r["clip_t"], r["div"], r["memorization"], r["spread_text"])
    assert {c["verdict"] for c in metrics["conclusions"]} == {"undecided", "unknown"}  # one seed
    html = (path / "report.html").read_text()
    assert html.count('<span class="verdict undecided">') > 5
    assert "<script" not in html
    said = []
    running.run(s, said.append)
    assert said == [f"{path} is done already"]


def test_what_goes_on_from_a_run_that_diverged_is_left_out_by_name(tmp_path, monkeypatch):
    todo = planned(asked(tmp_path))
    line = todo.lines()[0]
    assert [arm for arm, _ in line] == ["face-300", "face-1200"]

    def diverges(*_):
        raise Diverged("step 1")

    def record(job, seconds):
        return running.not_begun(job) | {"stopped": "step 1", "path_kl": None}

    monkeypatch.setattr(running.experiment, "run", diverges)
    monkeypatch.setattr(running, "work", record)
    first, second = running.line_of_runs(line)
    assert first["stopped"] == "step 1"
    assert "the run that it goes on from diverged" in second["stopped"]
    assert second["clip_i"] is None


# ---- the plan
def test_the_ablations_change_one_setting_of_balanced():
    arms = {a.name: a.settings for a in regimes()}
    for name, setting in (
        ("frozen-text", "train_text_encoder"),
        ("no-class-images", "objective"),
        ("fast", "learning_rate"),
    ):
        changed = {k for k, v in arms[name].items() if balanced().get(k) != v}
        assert changed == {setting}, name


def test_the_mini_takes_the_reports_settings_scaled():
    """By hand: 800 / 10 steps, 100 / 10 class images, 1e-6 x 30; the balanced regime."""
    found = scaled(balanced(), SCALE, RATE, mini=True)
    assert found["max_train_steps"] == 80
    assert found["num_class_images"] == 10
    assert found["learning_rate"] == pytest.approx(3e-5)
    assert "resolution" not in found
    assert scaled(balanced(), 1, 1, mini=False)["resolution"] == 512


def test_counting_leaves_out_the_steps_that_another_arm_has_trained(tmp_path):
    todo = planned(asked(tmp_path))
    lines = dict(
        line.split(": ", 1) for line in counted(Counted(todo.path, todo.jobs, [], None, []))[:-1]
    )
    assert lines["face-300"].startswith("1 runs, 1 steps, ")
    assert lines["face-1200"].startswith("1 runs, 3 steps, ")
    assert lines["toy-1200-weight-0.5"].startswith("1 runs, 2 steps, ")


def test_arms_share_the_largest_set_of_class_images(tmp_path):
    """underfit needs 200 of the report's, balanced 100: the set that is made is the larger."""
    todo = planned(asked(tmp_path, "regimes", scale=20))
    last = running.by_class_images([j for jobs in todo.jobs.values() for j in jobs])[-1]
    assert train_config(last).num_class_images == 10
    folders = {train_config(jobs[0]).class_data_dir for jobs in todo.jobs.values()}
    assert len(folders - {None}) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["regimes", "--scale", "0"], "--scale 0.0: above 0"),
        (["regimes", "--rate", "-1"], "--rate -1.0: above 0"),
        (["regimes", "--images", "1"], "--images 1: at least 2"),
        (["regimes", "--seeds", "1", "1"], "--seeds must be different"),
        (["regimes", "--pretrained_model_name_or_path", "x"], "--subjects are missing"),
        (["face_and_toy", "--subjects", "poodle"], "face_and_toy takes two, and 1 are given"),
        (["face_and_toy", "--subjects", "poodle", "nobody"], "--subjects nobody: no such folder"),
        (["face_and_toy", "--scale", "5000"], "--scale leaves no step between"),
        (["regimes", "--engine", "cloud"], "--engine cloud: use local"),
    ],
)
def test_refused_with_one_line(flags, message, tmp_path, capsys):
    assert main(["study", *flags, "--output_dir", str(tmp_path / "s")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert not (tmp_path / "s").exists()
