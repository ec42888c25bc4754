"""--max_path_kl at full scale: adapted where path KL is measured, resumed exactly."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import config, history, history_cells, killed_at_row, same, trained

from personalize.config.command_line import parse
from personalize.config.rules import resolve
from personalize.config.train_config import TrainConfig
from personalize.train.experiment import recorded
from personalize.train.target import target_of
from toy2d.runs.files import UserError

torch.set_num_threads(1)
TARGET = {"max_path_kl": 1e-3, "path_kl_steps": 1, "checkpointing_steps": 2}
SURE = {"measure_chains": 8, "nodes_per_chain": 2}  # a smaller error of path KL


def metrics(c: TrainConfig) -> dict:
    return json.loads((Path(c.output_dir) / "metrics.json").read_text())


@pytest.mark.parametrize(("objective", "kind"), [("l2", "full"), ("prior+l2", "lora")])
def test_resume_is_exact_and_every_weight_follows_from_the_row_before(tmp_path, objective, kind):
    whole = config(tmp_path / "whole", objective, kind, max_train_steps=6, **TARGET)
    cut = replace(whole, output_dir=str(tmp_path / "cut"))
    killed_at_row(cut, step=5)
    assert same(trained(whole), trained(cut))
    assert history_cells(whole) == history_cells(cut)
    rows, target = history(whole), target_of(whole)
    weights = [row["adapted_weight"] for row in rows]
    assert weights[:2] == [1.0, 1.0]  # step 0 measures nothing; step 1 is the first
    for row, after in zip(rows[1:-1], weights[2:], strict=True):
        expected = float(target.next_weight(row["adapted_weight"], row["path_kl"]))
        assert after == pytest.approx(expected, rel=1e-12)
    assert len(set(weights)) > 2
    said = metrics(whole)["target"]
    assert said["reached"] == metrics(whole)["path_kl"]
    assert said["weight"] == weights[-1]
    assert said["highest"] == max(row["path_kl"] for row in rows)


def test_the_weight_acts_and_what_cannot_be_reached_is_said(tmp_path):
    """A tiny target raises the weight and lowers the drift; six steps do not reach it."""
    free = config(tmp_path / "free", "l2", "full", max_train_steps=6, path_kl_steps=1, **SURE)
    held = replace(free, output_dir=str(tmp_path / "held"), max_path_kl=1e-9)
    trained(free)
    trained(held)
    assert metrics(held)["path_kl"] < metrics(free)["path_kl"]
    assert metrics(held)["target"]["verdict"] == "exceeded"
    assert "target" not in metrics(free)
    assert "max_path_kl" not in recorded(free)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"objective": "standard", "path_kl_steps": 1}, "--max_path_kl has no effect: standard"),
        ({"path_kl_steps": 0}, "--path_kl_steps 0 measures none before the end"),
        ({"path_kl_steps": 4}, "--path_kl_steps 4 measures none before the end"),
        ({"path_kl_steps": 1, "max_path_kl": 0.0}, "--max_path_kl 0.0 must be a number of nats"),
        ({"path_kl_steps": 1, "max_path_kl": -2.0}, "--max_path_kl -2.0 must be a number of nats"),
        ({"path_kl_steps": 1, "max_path_kl": float("nan")}, "--max_path_kl nan"),
        ({"path_kl_steps": 1, "l2_reg_weight": 0.0}, "the weight of l2, which is 0: begin above 0"),
    ],
)
def test_what_cannot_be_a_target_is_refused(tmp_path, chosen, said):
    chosen = {"objective": "l2", "max_path_kl": 1.0} | chosen
    objective = chosen.pop("objective")
    with pytest.raises(UserError, match=said):
        resolve(config(tmp_path / "run", objective, **chosen))


def test_help_says_what_is_adapted(capsys):
    with pytest.raises(SystemExit):
        parse({"train": TrainConfig}, ["train", "--help"])
    text = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert "drift that is allowed, in nats: the weight of the objective's last term" in text
    assert "where l2 holds, each with a weight" in text
