"""The playground trains with the package's own loop, on points that anyone may place."""

import pytest
import torch

from toy2d.playground.live import MOST_POINTS, Sandbox
from toy2d.runs.files import UserError

SMALL = {"pretrain_steps": 120, "pretrain_samples": 200, "width": 16, "chains": 4, "ode_nodes": 9}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    return Sandbox.open(tmp_path_factory.mktemp("runs"), **SMALL)


@pytest.fixture(scope="module")
def frames(sandbox):
    specs = ("standard", "output:10")
    return sandbox.train(sandbox.default_points(), specs, steps=60, every=30)


def test_at_step_zero_nothing_has_moved(sandbox, frames):
    for first, *_ in frames.values():
        assert torch.equal(first.samples, sandbox.base)
        assert first.path_kl[0] == first.learnt == 0
        assert all(abs(kl) <= error for kl, error in first.kl.values())


def test_there_is_a_frame_at_every_stop_and_both_learn(frames):
    for spec, seen in frames.items():
        assert [f.step for f in seen] == [0, 30, 60]
        assert {f.spec for f in seen} == {spec}
        assert seen[-1].learnt > 0


def test_output_preservation_drifts_less(frames):
    assert frames["output:10"][-1].path_kl[0] < 0.5 * frames["standard"][-1].path_kl[0]


def test_a_run_does_not_depend_on_the_run_beside_it(sandbox, frames):
    alone = sandbox.train(sandbox.default_points(), ("standard",), steps=60, every=60)
    gap = (alone["standard"][-1].samples - frames["standard"][-1].samples).abs().max()
    assert gap < 1e-4  # another stack may round differently


def test_other_points_make_another_model_and_watch_sees_every_stop(sandbox, frames):
    seen = []
    points = torch.full((3, 2), 4.0)
    moved = sandbox.train(points, ("standard",), seen.append, steps=60, every=30)
    assert [f.step for (f,) in seen] == [0, 30, 60]
    new = moved["standard"][-1].samples[-1].mean(0)
    assert (new - 4).norm() < (frames["standard"][-1].samples[-1].mean(0) - 4).norm()


@pytest.mark.parametrize("n", [0, MOST_POINTS + 1])
def test_the_number_of_points_is_bounded(sandbox, n):
    with pytest.raises(UserError, match=f"not {n}"):
        sandbox.train(torch.zeros(n, 2), ("standard",))


def test_the_base_is_found_again(sandbox, tmp_path):
    one, two = (Sandbox.open(tmp_path, **SMALL).theta_star for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)
