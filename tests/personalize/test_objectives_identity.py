"""The file whose theorems are verified in two dimensions is the file that trains here."""

import ast
from pathlib import Path

import pytest

import personalize.drift.fisher
import personalize.drift.measure
import personalize.train.loop
import toy2d.core.drift
import toy2d.core.objectives
from personalize.config.train_config import TrainConfig
from personalize.train.loop import objective_of
from toy2d.core.objectives import FISHER, L2, OUTPUT, PRIOR, STANDARD

SOURCES = sorted(Path(personalize.train.loop.__file__).parent.glob("*.py"))


@pytest.mark.parametrize(
    "name", ["Objective", "Example", "STANDARD", "PRIOR", "L2", "OUTPUT", "FISHER"]
)
def test_the_objectives_are_the_toys(name):
    assert getattr(personalize.train.loop, name) is getattr(toy2d.core.objectives, name)


def test_the_drift_measures_are_the_toys():
    for name in ("squared_error", "path_kl"):
        assert getattr(personalize.drift.measure, name) is getattr(toy2d.core.drift, name)
    assert personalize.drift.fisher.fisher_diagonal is toy2d.core.drift.fisher_diagonal


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.name)
def test_no_loss_is_defined_here(source):
    """No function or class named a loss, and no call of a library's loss."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert "loss" not in node.name.lower(), f"{source.name}:{node.lineno} {node.name}"
        if isinstance(node, ast.Attribute):
            assert not node.attr.endswith("_loss"), f"{source.name}:{node.lineno} {node.attr}"


def test_sums_are_sums():
    c = TrainConfig("m", "d", objective="prior+l2", prior_loss_weight=2.0, l2_reg_weight=0.5)
    assert objective_of(c) == PRIOR(2.0) + L2(0.5)
    c = TrainConfig("m", "d", objective="output+fisher", output_weight=3.0, fisher_weight=0.1)
    assert objective_of(c) == OUTPUT(3.0) + FISHER(0.1)
    assert objective_of(TrainConfig("m", "d")) == STANDARD
    assert objective_of(TrainConfig("m", "d", with_prior_preservation=True)) == PRIOR(1.0)
