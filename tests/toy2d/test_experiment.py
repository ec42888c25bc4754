"""The whole run, on the smoke preset: files, records, exact resume after kill -9, plain words for
every fault.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from toy2d.__main__ import main
from toy2d.config import PRESETS, course, paper, smoke
from toy2d.experiment import finetune, pretrain, run
from toy2d.prepare import Setting, probe_of
from toy2d.records import measure_finely
from toy2d.runs.files import UserError, read_csv
from toy2d.runs.folder import RunFolder, load_tensors
from toy2d.runs.frontier import Trajectory
from toy2d.runs.spec import parse_run
from toy2d.runs.statistics import Median, best_at_equal_adaptation, geometric, proportion
from toy2d.sentences import readings

TINY = replace(smoke(), name="tiny", pretrain_steps=60, steps=24, snapshots=(8,), fisher_samples=20)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    return run(TINY, out, say=lambda s: None)


def test_the_folder_holds_what_is_promised(done):
    assert json.loads((done / "status.json").read_text())["status"] == "done"
    assert json.loads((done / "config.json").read_text())["runs"] == list(TINY.runs)
    assert {"commit", "versions", "threads"} <= set(json.loads((done / "env.json").read_text()))
    figures = {p.stem for p in (done / "figures").glob("*.png")}
    assert {
        "samples",
        "kl_per_class",
        "chain",
        "weights",
        "tradeoff",
        "training",
        "layers",
    } <= figures
    assert not (done / "checkpoints").exists()


def test_metrics_have_one_record_per_run(done):
    metrics = json.loads((done / "metrics.json").read_text())
    assert len(metrics["runs"]) == len(TINY.runs) * len(TINY.seeds)
    for record in metrics["runs"]:
        wanted = {
            "objective",
            "weight",
            "seed",
            "kl_truth",
            "kl_base",
            "kl_new",
            "delta_theta",
            "delta_eps",
            "path_kl",
            "seconds",
        }
        assert wanted <= set(record)
        for name, parts in record["error_parts"]["kl_base"].items():
            assert record["kl_base"][name][1] == pytest.approx(sum(parts))
        for triple in (*record["kl_truth"].values(), *record["kl_base"].values(), record["kl_new"]):
            mean, error, n = triple
            assert error >= 0
            assert n >= 16
            assert mean > -0.01
    assert {r["weight"] for r in metrics["runs"] if r["objective"] == "standard"} == {None}


def test_history_has_every_snapshot_of_every_run(done):
    rows = read_csv(done / "history.csv")
    assert {r["step"] for r in rows} == {8.0, 24.0}
    assert len(rows) == 2 * len(TINY.runs) * len(TINY.seeds)
    for r in rows:  # what a curve of learning against drift needs, with errors
        for key in ("kl_base/class 0", "kl_new", "path_kl", "delta_eps"):
            name, slash, prompt = key.partition("/")
            assert r[f"{name}_error{slash}{prompt}"] >= 0
        assert ("kl_base/mixture" in r) == (r["step"] == 24)
    l2 = [r for r in rows if r["objective"] == "l2" and r["step"] == 8]
    assert all(r["loss_l2"] > 0 for r in l2)


def test_the_report_stands_alone(done):
    page = (done / "report.html").read_text()
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("data:image/png;base64,") == 7
    assert page.count('alt="') == 7


def test_the_same_command_says_done(done):
    said = []
    before = (done / "metrics.json").stat().st_mtime_ns
    run(TINY, done.parents[1], say=said.append)
    assert "done already" in said[0]
    assert (done / "metrics.json").stat().st_mtime_ns == before


def test_killed_with_minus_nine_anywhere_it_ends_bit_identical(done, tmp_path):
    """Killed twice, at random moments of pretraining and fine-tuning; then finished by the same
    command.
    """
    command = [sys.executable, "-c", KILLABLE, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for wanted in (
        "step-00000007",
        "step-00000006",
    ):  # pretrain's first checkpoint, fine-tuning's second
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        deadline = time.time() + 120
        while time.time() < deadline and process.poll() is None:
            if (tmp_path / "toy2d" / "tiny" / "checkpoints" / wanted).exists():
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert RunFolder(tmp_path / "toy2d" / "tiny", TINY.as_dict()).status in ("running", "done")
    finished = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    again = tmp_path / "toy2d" / "tiny"
    for name in ("base.safetensors", "finetuned.safetensors", "samples.safetensors"):
        a, b = load_tensors(done / name), load_tensors(again / name)
        assert all(torch.equal(a[k], b[k]) for k in a), name
    for a, b in zip(read_csv(done / "history.csv"), read_csv(again / "history.csv"), strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {
            k: v for k, v in b.items() if k != "seconds"
        }


KILLABLE = """
import sys, torch
from dataclasses import replace
from toy2d.config import smoke
from toy2d.experiment import run
torch.set_num_threads(1)
tiny = dict(pretrain_steps=60, steps=24, snapshots=(8,), fisher_samples=20)
run(replace(smoke(), name="tiny", **tiny), sys.argv[1])
"""


def test_seeds_do_not_see_each_other(done, tmp_path):
    """Seed 1 alone gives seed 1's numbers (to float: the stack is another size)."""
    alone = run(
        replace(TINY, seeds=(1,), runs=("standard", "l2:0.1")), tmp_path, say=lambda s: None
    )
    both = json.loads((done / "metrics.json").read_text())["runs"]
    for record in json.loads((alone / "metrics.json").read_text())["runs"]:
        twin = next(r for r in both if (r["run"], r["seed"]) == (record["run"], 1))
        assert record["delta_theta"] == pytest.approx(twin["delta_theta"], rel=1e-3)
        assert record["kl_new"][0] == pytest.approx(twin["kl_new"][0], rel=1e-2)


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(p, id=name, marks=pytest.mark.slow if name in ("paper", "prompts") else ())
        for name, p in PRESETS.items()
    ],
)
def test_every_preset_builds_and_runs_two_steps(preset, tmp_path):
    """Every field as shipped but the counts that make it long."""
    c = preset()
    short = replace(
        c,
        seeds=c.seeds[:1],
        pretrain_steps=2,
        steps=2,
        snapshots=(),
        quadrature=4,
        chains=2,
        fisher_samples=4,
        ode_nodes=5,
        pretrain_samples=20,
        prior_samples=20,
    )
    folder = run(short, tmp_path, say=lambda s: None)
    assert len(json.loads((folder / "metrics.json").read_text())["runs"]) == len(c.runs)


def test_the_course_has_what_the_issue_asks():
    c = course()
    by_kind = {}
    for spec in c.runs:
        by_kind.setdefault(parse_run(spec).objective, set()).add(parse_run(spec).weight)
    assert {"standard", "prior", "l2", "output", "fisher"} <= set(by_kind)
    assert all(len(by_kind[k]) >= 5 for k in ("prior", "l2", "output", "fisher"))
    assert len(c.seeds) >= 3


def test_paper_is_the_published_setting():
    c = paper()
    assert (c.width, c.num_timesteps, c.schedule, c.learning_rate) == (96, 100, "cosine", 2e-3)
    assert (c.pretrain_steps, c.steps, c.batch_size, c.shots) == (10_000, 10_000, 512, 1000)
    assert {"prior:100", "l2_tensor_mean:50"} <= set(c.runs)
    assert c.carry_moments
    assert c.prior_from == "world"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["curse"], "Available subcommands: course"),
        (["run", "curse"], "Available subcommands: smoke"),
        (["run", "smoke", "--stepz", "3"], "Perhaps you meant: --steps"),
        (["run", "smoke", "--steps", "many"], "invalid literal"),
        (["run", "smoke", "--runs", "standard:1"], "has no weight"),
        (["run", "smoke", "--runs", "l2:-1"], "finite number >= 0"),
        (["run", "smoke", "--runs", "l2:nan"], "finite number >= 0"),
        (["run", "smoke", "--runs", "l2"], "needs a number"),
        (["run", "smoke", "--runs", "l3:1"], "choose from standard"),
        (["run", "smoke", "--name", "../../x"], "letters, digits"),
        (["run", "smoke", "--steps", "0"], "--steps must be at least 1"),
        (["run", "smoke", "--seeds", "1", "1"], "different numbers"),
        (["run", "smoke", "--device", "quantum"], "cannot be used here"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_2(args, says, capsys, tmp_path):
    assert main([*args, *(["--out", str(tmp_path)] if len(args) > 2 else [])]) == 2
    message = capsys.readouterr().err
    assert says in message
    assert message.count("\n") == 1
    assert not list(tmp_path.glob("toy2d/*/history.csv"))


def test_dry_run_writes_nothing(tmp_path, capsys):
    assert main(["run", "smoke", "--dry-run", "--out", str(tmp_path / "o")]) == 0
    assert "12 fine-tunings" in capsys.readouterr().out
    assert not (tmp_path / "o").exists()


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "toy2d run paper" in text
    assert "l2_tensor_mean" in text


def test_a_diverged_run_is_reported_and_the_page_is_written(tmp_path):
    config = replace(TINY, name="hot", runs=("standard", "l2:0.1"), learning_rate=1e12)
    folder = run(config, tmp_path, say=lambda s: None)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert all("last finite loss" in r["stopped"] for r in metrics["runs"])
    assert all(r["kl_new"] is None for r in metrics["runs"])
    assert any("diverged" in s for s in readings(metrics))
    assert "diverged" in (folder / "report.html").read_text()


def record(objective, weight, seed, new, old, theta=1.0):
    run = objective if weight is None else f"{objective}:{weight:g}"
    kl = {"class 0": [old, 0.0, 16], "class 1": [2 * old, 0.0, 16], "mixture": [old, 0.0, 16]}
    return {
        "run": run,
        "objective": objective,
        "weight": weight,
        "seed": seed,
        "kl_truth": kl,
        "kl_base": kl,
        "kl_new": [new, 0.0, 16],
        "delta_theta": theta,
        "delta_eps": [0.1, 0.0, 16],
        "path_kl": [old, 0.0, 16],
        "stopped": None,
    }


def fake_metrics(**olds):
    runs = [
        record(o, None if o == "standard" else 1.0, s, 0.5, old)
        for o, old in olds.items()
        for s in (0, 1)
    ]
    return {
        "runs": runs,
        "base": [record("base", None, 0, 1.0, 0.01)],
        "replayed_class": "class 0",
        "new_class": "new",
    }


def fake_trajectories(**olds):
    """All learn 1 nat by step 10, at these drifts; standard then overfits."""
    return [
        Trajectory(
            *(o if o == "standard" else f"{o}:1", o, str(seed), seed),
            *((0, 10, 20), (0.0, 1.0, 0.5), (0.0, old * (1 + 0.1 * seed), 2 * old)),
        )
        for o, old in olds.items()
        for seed in (0, 1, 2)
    ]


def test_if_an_ordering_flips_the_sentence_flips():
    def say(**olds):
        return " ".join(readings(fake_metrics(**olds), fake_trajectories(**olds)))

    one, other = say(standard=3.0, prior=1.0, l2=0.5), say(standard=3.0, prior=0.5, l2=1.0)
    assert one.index("l2 (l2:1)") < one.index("prior (prior:1)")
    assert other.index("prior (prior:1)") < other.index("l2 (l2:1)")
    assert "less drift than standard: \u00d7 0.167" in one


def test_overfitting_is_said_with_how_often_it_was_seen():
    olds = {"standard": 3.0, "l2": 1.0}
    say = " ".join(readings(fake_metrics(**olds), fake_trajectories(**olds)))
    assert "In 3 of 3 seeds (44%" in say
    assert "at step 10" in say


def test_median_interval_covers_what_it_says():
    """Order statistics of exponential draws: the interval holds log 2 as often as stated."""
    rng = np.random.default_rng(0)
    found = [Median.of(rng.exponential(size=8)) for _ in range(4000)]
    share = sum(m.low < math.log(2) < m.high for m in found) / 4000
    assert found[0].coverage == pytest.approx(1 - 2 / 2**8)
    assert abs(share - found[0].coverage) < 4 * (0.008 / 4000) ** 0.5
    assert Median.of([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0, 0.75)
    assert Median.of(range(20)).coverage >= 0.95


def test_wilsons_interval_is_the_set_that_a_score_test_keeps():
    low, high = proportion(3, 10)
    for p in (low, high):
        assert abs(0.3 - p) / (p * (1 - p) / 10) ** 0.5 == pytest.approx(1.96, abs=1e-3)


def test_equal_adaptation_leaves_out_what_did_not_learn():
    runs = [
        record("standard", None, 0, 0.5, 3.0),
        record("l2", 1.0, 0, 0.4, 1.0),
        record("l2", 9.0, 0, 0.9, 0.1),
    ]
    best = best_at_equal_adaptation(runs)
    assert best["l2"][0]["weight"] == 1.0


def test_geometric_mean_and_its_error():
    mean, low, high = geometric([1.0, 100.0])
    assert mean == pytest.approx(10)
    assert high / mean == pytest.approx(mean / low) == pytest.approx(10, rel=1e-6)


def test_every_kl_below_a_nat_is_known_to_a_hundredth(tmp_path):
    """The loose ones are repeated with a finer rule."""
    config = replace(
        TINY,
        name="loose",
        quadrature=4,
        steps=60,
        learning_rate=3e-3,
        runs=("standard", "output:0.1"),
    )
    folder = RunFolder(tmp_path / "x", config.as_dict())
    with folder.open():
        setting = Setting(config)
        bases = pretrain(setting, folder)
        probe = probe_of(setting, bases.theta)
        tuned = finetune(setting, folder, bases, probe)
    for records in measure_finely(setting, bases.theta, probe, tuned.groups):
        for r in records:
            for mean, error, _ in (*r["kl_truth"].values(), *r["kl_base"].values(), r["kl_new"]):
                assert mean >= 1 or error <= 0.01


def test_an_unknown_objective_in_a_sum():
    with pytest.raises(UserError, match="one term with two sample sets"):
        parse_run("prior:1+replay_all:1")
    both = parse_run("prior:1+l2:0.01")
    assert both.value.prior == 1.0
    assert both.value.l2 == 0.01
