"""A comparison: same noise for every objective, everything of the base made once, nothing lost when something stops."""

import functools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import folders
import pytest
import torch
from judges import judges
from small import photos, workshop

from personalize.compare import run as comparison
from personalize.compare import table
from personalize.compare.jobs import flags_of, plan, thinned, train_config
from personalize.compare.run import run
from personalize.config.compare_config import (
    CompareConfig,
    completed,
    each_run,
    mini_compare,
    quickened,
    widened,
)
from personalize.config.train_config import TrainConfig
from personalize.report import write as report
from personalize.train.loop import Diverged, Stopped
from toy2d.runs.files import RunFailure, UserError, read_csv

PROMPTS = "a {0} {1} in the snow\na {1} on the beach\na red car\n"
RUNS = ("standard", "prior:1")


@functools.cache
def shop() -> Path:
    """The tests' workshop with evaluators and a list of prompts."""
    judges(workshop())
    (workshop() / "prompts.txt").write_text(PROMPTS)
    return workshop()


def config(out: Path, runs=RUNS, seeds=(0, 1), each=None, **more) -> CompareConfig:
    few = {
        "pretrained_model_name_or_path": str(shop() / "sd"), "instance_data_dir": "", "train": "lora", "learning_rate": 1e-2,
        "max_train_steps": 2, "train_batch_size": 2, "center_crop": True, "log_every": 1, "probe_steps": 2, "measure_nodes": 3,
        "measure_chains": 2, "output_dir": str(out),
    }  # fmt: skip
    if any("prior" in r for r in runs):
        few |= {"num_class_images": 2, "class_steps": 2}
    chosen = {
        "subjects": (f"{shop() / 'photos'}:dog",), "prompts": str(shop() / "prompts.txt"), "images": 2, "inference_steps": 2,
        "clip": str(shop() / "clip"), "dino": str(shop() / "dino"), "workers": 1,
    }  # fmt: skip
    return CompareConfig(TrainConfig(**(few | (each or {}))), runs=runs, seeds=seeds, **(chosen | more))  # fmt: skip


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
    toys = {"step", "objective", "weight", "seed", "loss_instance", "delta_theta", "delta_eps", "path_kl"}  # fmt: skip
    assert toys <= {k for row in history(done) for k in row}


def test_all_objectives_see_the_same_noise(done):
    """The first minibatch, before anything moved: the instance loss is one number to the bit, another one for another seed."""
    first = {(r["run"], r["seed"]): r["loss_instance"] for r in history(done) if r["step"] == 1}
    for seed in (0, 1):
        assert len({first[r, seed] for r in RUNS}) == 1
    assert first["standard", 0] != first["standard", 1]


def test_what_belongs_to_the_base_is_made_once(done):
    assert sorted(p.name for p in (done / "class").iterdir() if p.is_dir()) == ["dog-seed0", "dog-seed1"]  # fmt: skip
    assert len(list((done / "base").glob("*.png"))) == 4 * 2  # prompts x images, for four runs
    assert len(list((done / "chains").iterdir())) == 2


def test_class_images_are_part_of_the_price_of_those_who_replay_them(done):
    records = json.loads((done / "metrics.json").read_text())["runs"]
    for r in records:
        assert (r["seconds"]["class images"] > 0) == (r["objective"] == "prior")
        assert r["total_seconds"] == pytest.approx(sum(r["seconds"].values()), abs=0.05)


def test_the_report_and_the_tables_read_what_a_comparison_writes(done, tmp_path, monkeypatch):
    blank = {"light": "data:,", "dark": "data:,", "caption": "", "width": 1, "height": 1}
    monkeypatch.setattr(report, "figure", lambda draw, alt, **more: blank | {"alt": alt})
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
    """Stopped between training and evaluation of the second run, then by a full disk; the others do not suffer."""
    evaluated, seen = comparison.evaluated, []

    def interrupted(job, path):
        seen.append(job)
        if len(seen) == 2:
            raise KeyboardInterrupt
        if len(seen) == 3:
            raise RunFailure("cannot write pictures.csv: No space left on device")
        return evaluated(job, path)

    monkeypatch.setattr(comparison, "evaluated", interrupted)
    c = config(tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        run(c)
    with pytest.raises(RunFailure, match=r"standard, seed 1: cannot write.*the same command goes on"):  # fmt: skip
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

    monkeypatch.setattr(comparison.experiment, "run", signalled)
    with pytest.raises(Stopped):
        run(config(tmp_path / "c", runs=("standard", "l2:1"), seeds=(0,)))
    assert len(begun) == 1


def test_what_nobody_foresaw_costs_its_own_run_only(tmp_path, monkeypatch):
    """Memory, while training; a full disk, while the record is written: the runs after them are made."""
    trained, write = comparison.experiment.run, comparison.write_json

    def short_of_memory(c, *args):
        if c.objective == "l2":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return trained(c, *args)

    def full_disk(path, value):
        if path.name == "record.json" and value["objective"] == "standard":
            raise RunFailure("cannot write record.json: No space left on device")
        write(path, value)

    monkeypatch.setattr(comparison.experiment, "run", short_of_memory)
    monkeypatch.setattr(comparison, "write_json", full_disk)
    c = config(tmp_path / "c", runs=("standard", "l2:1", "output:1"), seeds=(0,), each={"num_class_images": 2, "class_steps": 2})  # fmt: skip
    with pytest.raises(RunFailure, match=r"standard, seed 0: cannot write record.*and 1 more"):
        run(c)
    assert [p.parent.parent.name for p in (tmp_path / "c").glob("runs/*/*/*/record.json")] == ["output_1"]  # fmt: skip
    log = tmp_path / "c" / "logs" / "photos_l2_1_seed_0.txt"
    assert "in short_of_memory" in log.read_text()
    monkeypatch.setattr(comparison, "write_json", write)
    with pytest.raises(RunFailure, match=r"l2:1, seed 0: OutOfMemoryError: CUDA out of memory \(traceback: "):  # fmt: skip
        run(c)


def test_a_diverged_run_is_a_result(tmp_path, monkeypatch):
    trained = comparison.experiment.run

    def diverging(c, *args):
        folder = trained(c, *args)
        if c.objective == "l2":
            raise Diverged("the loss is no longer finite at step 2")
        return folder

    monkeypatch.setattr(comparison.experiment, "run", diverging)
    records = numbers(run(config(tmp_path / "c", runs=("standard", "l2:1"), seeds=(0,))))
    assert records[1]["stopped"] == "photos, l2:1, seed 0: the loss is no longer finite at step 2"
    assert records[1]["dino"] is None
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
    assert comparison.make_classes(job) == ("dog-seed0", pytest.approx(before))
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

    monkeypatch.setattr(comparison, "evaluated", lambda job, path: None)
    monkeypatch.setattr(comparison, "judged", lambda found: {})
    monkeypatch.setattr(comparison.experiment, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        comparison.work(jobs[0], 0.0)
    monkeypatch.setattr(comparison.experiment, "run", ends)
    record = comparison.work(jobs[0], 0.0)
    assert record["seconds"] == {"class images": 0.0, "preparing": None, "training": 4.0}
    assert record["total_seconds"] is None
    shutil.rmtree(jobs[0].folder)
    train.mkdir(parents=True)
    assert comparison.work(jobs[0], 0.0)["total_seconds"] == 1.0 + 2.0 - 0.5 + 4.0


def two_classes(tmp_path: Path, out: str, **more) -> CompareConfig:
    for name in ("rex", "tom"):
        (tmp_path / name).exists() or photos(tmp_path / name, 2)
    subjects = (f"{tmp_path / 'rex'}:dog", f"{tmp_path / 'tom'}:cat")
    return config(tmp_path / out, runs=("standard",), seeds=(0,), subjects=subjects, **more)


def test_a_prompt_that_classes_share_is_drawn_in_one_order(tmp_path, monkeypatch):
    """By one task: pictures differ by a level with the batch that they are drawn in."""
    asked = []
    monkeypatch.setattr(comparison, "base_of", lambda c: None)
    monkeypatch.setattr(comparison, "pictures", lambda model, wanted, *args, **more: asked.append(wanted))  # fmt: skip
    _, _, jobs = plan(two_classes(tmp_path, "c", images=1))
    for task in comparison.preparations(jobs):
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
    c = config(tmp_path / "c", runs=("standard",), seeds=(0,), subjects=(f"{tmp_path / 'one'}:dog",))  # fmt: skip
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


# ---- before anything trains
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"runs": ("l2:1",)}, "--runs needs standard"),
        ({"runs": ("standard", "l2")}, "l2 needs a number"),
        ({"runs": ("standard", "ewc:1")}, "unknown objective 'ewc'"),
        ({"runs": ("standard", "replay_all:1")}, "the toy's only"),
        ({"runs": ("standard", "prior:1+prior:2")}, "twice"),
        ({"seeds": ()}, "--seeds"),
        ({"images": 0}, "--images 0"),
        ({"equal_fidelity": 2.0}, "--equal_fidelity"),
        ({"subjects": ("photos:",)}, "no such folder"),
        ({"subjects": ()}, "--subjects are missing"),
        ({"each": {"objective": "l2"}}, "--objective is decided by --runs"),
        ({"each": {"seed": 3}}, "--seed is decided by --seeds"),
        ({"each": {"fisher_samples": 8}}, "--fisher_samples has no effect on any run"),
        ({"workers": 0}, "--workers 0"),
    ],
)
def test_what_cannot_be_is_refused_in_the_users_words(tmp_path, change, complaint):
    with pytest.raises(UserError, match=complaint):
        run(config(tmp_path / "c", **change))
    assert not (tmp_path / "c" / "metrics.json").exists()


def test_a_subject_needs_its_class(tmp_path):
    with pytest.raises(UserError, match="say what it is"):
        plan(config(tmp_path, subjects=(str(shop() / "photos"),)))


def test_runs_in_the_toys_words_become_the_trainers_flags():
    assert flags_of("standard") == {"objective": "standard"}
    assert flags_of("l2_tensor_mean:500") == {"objective": "l2", "l2_reg_weight": 500.0, "reg_reduction": "tensor_mean"}  # fmt: skip
    assert flags_of("prior:1+l2:0.01") == {"objective": "prior+l2", "prior_loss_weight": 1.0, "l2_reg_weight": 0.01}  # fmt: skip


def test_another_base_is_not_trained_with_the_minis_settings(tmp_path):
    c = config(tmp_path)
    with pytest.raises(UserError, match="say --learning_rate --max_train_steps --runs "):
        completed(c, {"pretrained_model_name_or_path"})
    preset = completed(replace(c, each=replace(c.each, preset="paper_sd15_lora")), {"runs", "rank"})
    assert preset.each.lora_alpha == 27.0
    assert preset.each.rank == c.each.rank
    assert preset.each.objective == "standard"  # --runs decides


def test_an_objectives_first_weight_gets_every_seed_and_the_others_few(tmp_path):
    c = config(tmp_path, runs=("standard", "l2:1", "l2:2", "prior:1"), seeds=(0, 1, 2))
    assert dict(each_run(c)) == {"standard": (0, 1, 2), "l2:1": (0, 1, 2), "l2:2": (0,), "prior:1": (0, 1, 2)}  # fmt: skip
    assert dict(each_run(replace(c, sweep_seeds=3)))["l2:2"] == (0, 1, 2)


def test_runs_differ_in_their_objective_only(tmp_path):
    _, _, jobs = plan(config(tmp_path, seeds=(0,)))
    standard, prior = (vars(train_config(j)) for j in jobs)
    differing = {k for k in standard if standard[k] != prior[k]}
    assert differing <= {"objective", "output_dir", "class_data_dir", "num_class_images", "class_steps"}  # fmt: skip


def test_quick_is_the_same_comparison_made_smaller():
    c = mini_compare()
    q = quickened(c)
    assert q.runs == c.runs
    assert len(q.seeds) == 1
    assert q.each.max_train_steps <= c.each.max_train_steps
    assert q.each.num_class_images < c.each.num_class_images
    assert q.prompts_each < c.prompts_each
    assert q.each.output_dir == f"{c.each.output_dir}-quick"


def test_tuning_spans_three_decades_around_each_first_weight_on_one_seed(tmp_path):
    t = widened(config(tmp_path, runs=("standard", "l2:0.1", "l2:1", "prior:1")))
    assert t.seeds == (0,)
    assert t.runs[:3] == ("standard", "l2:0.003", "l2:0.01")
    assert t.runs[-1] == "prior:30"
    assert len(t.runs) == 1 + 2 * 7


def test_prompts_are_thinned_evenly():
    assert thinned(tuple("abcdefgh"), 4) == tuple("aceg")
    assert thinned(tuple("abc"), 0) == tuple("abc")
    assert thinned(tuple("abc"), 5) == tuple("abc")
