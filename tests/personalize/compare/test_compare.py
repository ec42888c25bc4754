"""A comparison gives every objective the same noise, makes the base's parts once, and resumes."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import folders
import pytest
import torch
from comparisons import RUNS, config, shop
from small import photos

from personalize.compare import run as comparison
from personalize.compare import table, tasks
from personalize.compare.jobs import plan
from personalize.compare.run import run
from personalize.config.compare_config import CompareConfig
from personalize.report import curves, samples
from personalize.report import write as report
from personalize.train.guard import Diverged, Stopped
from toy2d.runs.cli import guard
from toy2d.runs.files import RunFailure, UserError, read_csv


def numbers(path: Path) -> list[dict]:
    """The records without what may differ between equal runs."""
    runs = json.loads((path / "metrics.json").read_text())["runs"]
    return [{k: v for k, v in r.items() if "seconds" not in k} for r in runs]


def history(path: Path) -> list[dict]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read_csv(path / "history.csv")]


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    return run(config(tmp_path_factory.mktemp("compare") / "c"), say=lambda text: None)


def test_every_run_has_a_record_and_rows_in_the_toys_columns(done):
    records = numbers(done)
    assert [(r["run"], r["seed"]) for r in records] == [(r, s) for r in RUNS for s in (0, 1)]
    for r in records:
        assert r["stopped"] is None
        assert r["delta_theta"] > 0
        assert r["path_kl"][0] > 0
        assert r["unlearnt"] == 1 - r["dino"]
        assert set(r["moved_group"]) == {"class", "contexts", "unrelated"}
    toys = {
        "step",
        "objective",
        "weight",
        "seed",
        "loss_instance",
        "delta_theta",
        "delta_eps",
        "path_kl",
    }
    assert toys <= {k for row in history(done) for k in row}


def test_all_objectives_see_the_same_noise(done):
    """The instance loss of the first minibatch is equal to the bit, and differs between seeds."""
    first = {(r["run"], r["seed"]): r["loss_instance"] for r in history(done) if r["step"] == 1}
    for seed in (0, 1):
        assert len({first[r, seed] for r in RUNS}) == 1
    assert first["standard", 0] != first["standard", 1]


def test_a_curve_begins_at_the_base_and_ends_where_the_run_does(done):
    for r in json.loads((done / "metrics.json").read_text())["runs"]:
        first, *_, last = r["curve"]
        assert (first["step"], first["path_kl"]) == (0, 0.0)
        assert (last["step"], last["path_kl"]) == (2, pytest.approx(r["path_kl"][0]))


def test_a_run_that_draws_no_pictures_has_its_curve_and_no_scores(tmp_path):
    c = config(tmp_path / "c", runs=("standard",), picture_seeds=1)
    drawn, other = numbers(run(c))
    assert drawn["dino"] is not None
    assert other["dino"] is None
    assert other["path_kl"][0] > 0
    assert len(other["curve"]) == 2
    assert not list((tmp_path / "c").glob("runs/*/*/seed1/evaluation"))
    shown = table.terminal(json.loads((tmp_path / "c" / "metrics.json").read_text()), "c")
    assert shown.row_count == 1


def test_numbers_as_json_are_all_that_stdout_holds(done, capsys):
    asked = config(done, json=True)
    assert guard(lambda: comparison.compare(asked), "personalize") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads((done / "metrics.json").read_text())
    assert "is done already" in err
    other = config(done, json=True, each={"max_train_steps": 3})
    assert guard(lambda: comparison.compare(other), "personalize") == 2
    out, err = capsys.readouterr()
    assert not out
    assert "max_train_steps" in err


def test_what_belongs_to_the_base_is_made_once(done):
    assert sorted(p.name for p in (done / "class").iterdir() if p.is_dir()) == [
        "dog-seed0",
        "dog-seed1",
    ]
    assert len(list((done / "base").glob("*.png"))) == 4 * 2  # prompts x images, for four runs
    assert len(list((done / "chains").iterdir())) == 2


def test_class_images_are_part_of_the_price_of_those_who_replay_them(done):
    records = json.loads((done / "metrics.json").read_text())["runs"]
    for r in records:
        assert (r["seconds"]["class images"] > 0) == (r["objective"] == "prior")
        assert r["total_seconds"] == pytest.approx(sum(r["seconds"].values()), abs=0.05)


def test_the_report_and_the_tables_read_what_a_comparison_writes(done, tmp_path, monkeypatch):
    blank = {"light": "data:,", "dark": "data:,", "caption": "", "width": 1, "height": 1}
    for module in (curves, samples):
        monkeypatch.setattr(module, "figure", lambda draw, alt, **more: blank | {"alt": alt})
    page = report.write(folders.toy(tmp_path / "toy"), done, tmp_path / "page.html").read_text()
    assert "prior:1" in page
    assert "class images (s)" in page
    assert (
        len(re.findall(r'src="data:image/png', page)) == 3 * 4
    )  # base, standard, prior: four kinds of prompts
    metrics = json.loads((done / "metrics.json").read_text())
    assert table.terminal(metrics, "c").row_count == len(RUNS)
    assert [c["objective"] for c in table.costs(metrics)] == ["standard", "prior"]


def test_a_finished_comparison_is_found_and_another_one_refused(done):
    said = []
    run(config(done), say=said.append)
    assert said == [f"{done} is done already"]
    with pytest.raises(UserError, match=r"another configuration.*images"):
        run(config(done, images=3))


def test_a_killed_comparison_goes_on_and_ends_equal(done, tmp_path, monkeypatch):
    """Stopped between training and evaluation of the second run, then by a full disk."""
    evaluated, seen = tasks.evaluated, []

    def interrupted(job, path):
        seen.append(job)
        if len(seen) == 2:
            raise KeyboardInterrupt
        if len(seen) == 3:
            raise RunFailure("cannot write pictures.csv: No space left on device")
        return evaluated(job, path)

    monkeypatch.setattr(tasks, "evaluated", interrupted)
    c = config(tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        run(c)
    with pytest.raises(
        RunFailure, match=r"standard, seed 1: cannot write.*the same command goes on"
    ):
        run(c)
    run(c)
    assert numbers(tmp_path / "c") == numbers(done)
    assert history(tmp_path / "c") == history(done)
    assert len(seen) == 1 + 1 + 3 + 1  # nothing that was evaluated is evaluated again


def test_a_signal_stops_the_comparison_not_only_a_run(tmp_path, monkeypatch):
    begun = []

    def signalled(c, *args):
        begun.append(c)
        raise Stopped("SIGTERM: stopped after step 1", 15)

    monkeypatch.setattr(tasks.experiment, "run", signalled)
    with pytest.raises(Stopped):
        run(config(tmp_path / "c", runs=("standard", "l2:1"), seeds=(0,)))
    assert len(begun) == 1


def test_what_nobody_foresaw_costs_its_own_run_only(tmp_path, monkeypatch):
    """Out of memory while training, disk full while the record is written: later runs are made."""
    trained, write = tasks.experiment.run, tasks.write_json

    def short_of_memory(c, *args):
        if c.objective == "l2":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return trained(c, *args)

    def full_disk(path, value):
        if path.name == "record.json" and value["objective"] == "standard":
            raise RunFailure("cannot write record.json: No space left on device")
        write(path, value)

    monkeypatch.setattr(tasks.experiment, "run", short_of_memory)
    monkeypatch.setattr(tasks, "write_json", full_disk)
    c = config(
        tmp_path / "c",
        runs=("standard", "l2:1", "output:1"),
        seeds=(0,),
        each={"num_class_images": 2, "class_steps": 2},
    )
    with pytest.raises(RunFailure, match=r"standard, seed 0: cannot write record.*and 1 more"):
        run(c)
    assert [p.parent.parent.name for p in (tmp_path / "c").glob("runs/*/*/*/record.json")] == [
        "output_1"
    ]
    log = tmp_path / "c" / "logs" / "photos_l2_1_seed_0.txt"
    assert "in short_of_memory" in log.read_text()
    monkeypatch.setattr(tasks, "write_json", write)
    with pytest.raises(
        RunFailure, match=r"l2:1, seed 0: OutOfMemoryError: CUDA out of memory \(traceback: "
    ):
        run(c)


def test_a_diverged_run_is_a_result(tmp_path, monkeypatch):
    trained = tasks.experiment.run

    def diverging(c, *args):
        folder = trained(c, *args)
        if c.objective == "l2":
            raise Diverged("the loss is no longer finite at step 2")
        return folder

    monkeypatch.setattr(tasks.experiment, "run", diverging)
    records = numbers(run(config(tmp_path / "c", runs=("standard", "l2:1"), seeds=(0,))))
    assert records[1]["stopped"] == "photos, l2:1, seed 0: the loss is no longer finite at step 2"
    assert records[1]["dino"] is None
    assert [p["step"] for p in records[1]["curve"]] == [0, 2]  # measured before it diverged
    assert records[0]["dino"] is not None


def test_another_judge_is_refused_in_mid_comparison(tmp_path, monkeypatch):
    """Records of two judges cannot be compared: DINO found only now, CLIP with other weights."""
    absent = config(tmp_path / "c", runs=("standard",), seeds=(0,), dino=str(tmp_path / "dino"))
    c, subjects, _ = plan(absent)
    comparison.check_identity(c, subjects, tmp_path)
    assert set(json.loads((tmp_path / "env.json").read_text())["evaluators"]) == {"clip"}
    comparison.check_identity(c, subjects, tmp_path)
    known = comparison.judges(c)
    monkeypatch.setattr(comparison, "judges", lambda c: replace(known, dino=known.clip))
    with pytest.raises(UserError, match=r"who judges the pictures \(dino\) changed"):
        comparison.check_identity(c, subjects, tmp_path)
    monkeypatch.setattr(comparison, "judges", lambda c: replace(known, clip=None))
    with pytest.raises(UserError, match=r"who judges the pictures \(clip\) changed"):
        comparison.check_identity(c, subjects, tmp_path)


def test_class_images_keep_their_price_when_only_the_note_of_it_is_lost(done, tmp_path):
    """Killed after the last picture, before CLASS-seedK.json."""
    shutil.copytree(done, tmp_path / "c")
    note = tmp_path / "c" / "class" / "dog-seed0.json"
    before = json.loads(note.read_text())["seconds"]
    note.unlink()
    _, _, jobs = plan(config(tmp_path / "c"))
    job = next(j for j in jobs if j.run == "prior:1" and j.seed == 0)
    assert tasks.make_classes(job) == ("dog-seed0", pytest.approx(before))
    assert before > 0.01


def test_a_price_that_a_killed_process_took_along_is_not_measured(tmp_path, monkeypatch):
    """Fisher was made by the first process; the second one's clock says nothing of it."""
    _, _, jobs = plan(config(tmp_path / "c", runs=("standard",), seeds=(0,)))
    train = jobs[0].folder / "train"

    def killed(*args):
        (train / "cache").mkdir(parents=True)
        (train / "cache" / "fisher.safetensors").touch()
        raise KeyboardInterrupt

    def ends(*args):
        seconds = {"pictures": 1.0, "base": 2.0, "chains": 0.5, "training": 4.0}
        m = {"path_kl_groups": {"class": [1, 0, 2]}, "delta_theta": 1, "delta_eps": 1, "path_kl": 1}
        (train / "metrics.json").write_text(json.dumps(m | {"seconds": seconds}))
        return train

    monkeypatch.setattr(tasks, "evaluated", lambda job, path: None)
    monkeypatch.setattr(tasks, "scores", lambda found: {})
    monkeypatch.setattr(tasks.experiment, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        tasks.work(jobs[0], 0.0)
    monkeypatch.setattr(tasks.experiment, "run", ends)
    record = tasks.work(jobs[0], 0.0)
    assert record["seconds"] == {"class images": 0.0, "preparing": None, "training": 4.0}
    assert record["total_seconds"] is None
    shutil.rmtree(jobs[0].folder)
    train.mkdir(parents=True)
    assert tasks.work(jobs[0], 0.0)["total_seconds"] == 1.0 + 2.0 - 0.5 + 4.0


def two_classes(tmp_path: Path, out: str, **more) -> CompareConfig:
    for name in ("rex", "tom"):
        (tmp_path / name).exists() or photos(tmp_path / name, 2)
    subjects = (f"{tmp_path / 'rex'}:dog", f"{tmp_path / 'tom'}:cat")
    return config(tmp_path / out, runs=("standard",), seeds=(0,), subjects=subjects, **more)


def test_a_prompt_that_classes_share_is_drawn_in_one_order(tmp_path, monkeypatch):
    """By one task: pictures differ by a level with the batch that they are drawn in."""
    asked = []
    monkeypatch.setattr(tasks, "open_base", lambda c: None)
    monkeypatch.setattr(
        tasks, "pictures", lambda model, wanted, *args, **more: asked.append(wanted)
    )
    _, _, jobs = plan(two_classes(tmp_path, "c", images=1))
    for task in tasks.preparations(jobs):
        task()
    prompts = [p for p, _ in asked[0]]
    assert len(asked) == 1
    assert len(prompts) == 7
    assert prompts.count("a red car") == 1
    assert [("dog" in p) for p in prompts] == sorted((("dog" in p) for p in prompts), reverse=True)


@pytest.mark.slow
def test_two_workers_leave_the_records_of_one(tmp_path):
    one, two = (run(two_classes(tmp_path, f"of{n}", workers=n)) for n in (1, 2))
    assert numbers(one) == numbers(two)
    assert history(one) == history(two)


def test_an_absent_evaluator_is_named_and_the_rest_goes_on(tmp_path):
    said = []
    c = config(tmp_path / "c", runs=("standard",), seeds=(0,), dino=str(tmp_path / "nowhere"))
    record = numbers(run(c, say=said.append))[0]
    assert any("DINO" in line and "left out" in line for line in said)
    assert record["dino"] is None
    assert record["clip_i"] is not None


def test_one_picture_is_enough_and_a_changed_one_is_refused(tmp_path):
    photos(tmp_path / "one", 1)
    c = config(
        tmp_path / "c", runs=("standard",), seeds=(0,), subjects=(f"{tmp_path / 'one'}:dog",)
    )
    record = numbers(run(c))[0]
    assert record["subject"] == "one"
    (tmp_path / "c" / "status.json").write_text('{"status": "failed"}')
    shutil.copy(shop() / "photos" / "2.jpg", tmp_path / "one" / "0.jpg")
    with pytest.raises(UserError, match="a subject's pictures changed"):
        run(c)


@pytest.mark.parametrize("keep", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_full_training_leaves_its_pipeline_only_if_asked(tmp_path, keep):
    whole = {"train": "full", "learning_rate": 1e-4}
    c = config(tmp_path / "c", runs=("standard",), seeds=(0,), each=whole, keep_weights=keep)
    folder = run(c) / "runs" / "photos" / "standard" / "seed0" / "train"
    assert (folder / "pipeline").exists() == keep
    assert numbers(tmp_path / "c")[0]["moved"] > 0
