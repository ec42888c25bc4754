"""Pictures are drawn once: kept, completed, and refused where they were made differently."""

from unittest import mock

import numpy as np
import pytest
import torch
from evaluating import QUICK, SEEDS, silent
from PIL import Image

from personalize.sample import gallery
from personalize.sample.gallery import pictures
from personalize.sample.sampler import Sampling
from toy2d.runs.files import UserError

torch.set_num_threads(1)


def levels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_pictures_that_are_there_are_kept(moved, tmp_path):
    """Again: nothing. One damaged, one gone: those two, to a level, because a batch of two rounds
    otherwise than one of three. One prompt more: only its pictures.
    """
    jobs = [("a cat", s) for s in SEEDS]
    said = []
    paths = pictures(moved, jobs, tmp_path, QUICK, say=said.append)
    assert "3 drawn" in said[0]
    assert "images/s" in said[0]
    before = {p: (p.read_bytes(), levels(p)) for p in paths.values()}
    with mock.patch.object(gallery, "draw_pictures", side_effect=AssertionError("drawn again")):
        assert pictures(moved, jobs, tmp_path, QUICK, say=said.append) == paths
    assert len(said) == 1
    first, second, kept = paths.values()
    first.unlink()
    second.write_bytes(before[second][0][:-1])
    pictures(moved, jobs, tmp_path, QUICK, say=said.append)
    assert "2 drawn" in said[1]
    assert kept.read_bytes() == before[kept][0]
    for path in (first, second):
        assert abs(levels(path) - before[path][1]).max() <= 1
    pictures(moved, [*jobs, ("a dog", 11)], tmp_path, QUICK, say=said.append)
    assert "1 drawn" in said[2]
    assert "3 were there" in said[2]


def test_a_killed_evaluation_goes_on(moved, tmp_path):
    """Stopped after the first batch: that batch stays, the rest is drawn, and the files equal
    those of a run never stopped.
    """
    jobs, real, calls = [("a cat", s) for s in range(6)], gallery.draw_pictures, []

    def fails_second_time(*args, **more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    with (
        mock.patch.object(gallery, "draw_pictures", fails_second_time),
        pytest.raises(KeyboardInterrupt),
    ):
        pictures(moved, jobs, tmp_path / "killed", QUICK, say=silent)
    assert len(list((tmp_path / "killed").glob("*.png"))) == 4
    said = []
    again = pictures(moved, jobs, tmp_path / "killed", QUICK, say=said.append)
    assert "2 drawn" in said[0]
    whole = pictures(moved, jobs, tmp_path / "whole", QUICK, say=silent)
    assert [p.read_bytes() for p in again.values()] == [p.read_bytes() for p in whole.values()]


def test_another_sampler_or_other_weights_are_refused(moved, still, tmp_path):
    pictures(moved, [("a cat", 1)], tmp_path, QUICK, say=silent)
    with pytest.raises(UserError, match="steps: 2 there, 3 now"):
        pictures(moved, [("a cat", 1)], tmp_path, Sampling(steps=3), say=silent)
    with pytest.raises(UserError, match="weights"):
        pictures(still, [("a cat", 1)], tmp_path, QUICK, say=silent)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "mine.txt").write_text("")
    with pytest.raises(UserError, match=r"mine\.txt"):
        pictures(moved, [("a cat", 1)], tmp_path / "strange", QUICK, say=silent)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        pictures(moved, [("a cat", 1)], tmp_path, QUICK, say=silent)
