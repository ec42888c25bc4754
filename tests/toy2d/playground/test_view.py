"""The playground's widget in this process: sides share points, frames reach marks and text."""

import pytest
import torch

from toy2d.playground.live import Sandbox
from toy2d.playground.view import Playground

SMALL = {"pretrain_steps": 60, "pretrain_samples": 100, "width": 16, "chains": 4, "ode_nodes": 9}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    return Sandbox.open(tmp_path_factory.mktemp("runs"), **SMALL)


@pytest.fixture
def board(sandbox):
    board = Playground(sandbox)
    board.steps.value = board.steps.min
    return board


def test_a_cross_that_is_dragged_on_one_side_moves_on_the_other(board):
    left, right = (side.points for side in board.sides)
    x = left.x.copy()
    x[0] = 4.0
    left.x = x
    assert right.x[0] == board.points[0, 0] == 4.0


def test_train_moves_clouds_bars_errors_and_text(board):
    before = [cloud.x.copy() for cloud in board.sides[0].clouds]
    board.button.click()
    for side in board.sides:
        assert side.frame.step == board.steps.value
        values = [kl for kl, _ in side.frame.kl.values()]
        assert side.bars.y.tolist() == pytest.approx(values)
        assert len(side.errors.y) == len(values)
        assert side.spec in side.text.value
    assert any((cloud.x != x).any() for cloud, x in zip(board.sides[0].clouds, before, strict=True))
    assert board.status.value.endswith("done")
    assert not board.button.disabled


def test_two_sides_with_one_objective_show_one_run(board):
    for side in board.sides:
        side.kind.value = "standard"
    board.train()
    one, two = (side.frame for side in board.sides)
    assert one is two


def test_no_points_is_said_in_words(board):
    board.place(torch.zeros(0, 2))
    board.train()
    assert "1 to 50 points" in board.status.value


def test_clicking_adds_only_while_the_toggle_is_on(board):
    board.clicks.value = True
    assert all(side.points.interactions == {"click": "add"} for side in board.sides)
    board.clicks.value = False
    assert all(side.points.enable_move for side in board.sides)


def test_the_page_without_a_kernel_has_a_picture(board):
    bundle = board._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "data:image/png;base64" in bundle["text/html"]
