"""Progress in a log file: rare lines, all items, what is left."""

import re

import pytest

from toy2d.runs import progress as module
from toy2d.runs.progress import Lines, progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told; TQDM_DISABLE, which the tests set, is put aside."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return now


@pytest.mark.parametrize(
    ("each", "lines"),
    [
        (0.001, 0),  # done before a line is due
        (1.0, 9),  # a line every tenth
        (0.2, 1),  # tenths pass faster than lines may come
        (100.0, 99),  # a line every item, because a minute has gone
    ],
)
def test_lines_are_rare_and_never_a_minute_late(clock, capsys, each, lines):
    taken = []
    for item in progress(range(100), "train"):
        taken.append(item)
        clock[0] += each
    assert taken == list(range(100))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines
    assert all(re.fullmatch(r"train: \d+ of 100, about \d+ s left", line) for line in said)


def test_what_is_left_counts_from_where_a_run_went_on(clock, capsys):
    """60 of 100 steps were done before; 2 s a step: after 10 more, 30 are left, 60 s."""
    bar = progress(range(60, 100), "train", 100, initial=60)
    for step in bar:
        clock[0] += 2
        if step == 60:
            bar.set_postfix({"loss": "0.5"})
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "train: 70 of 100, about 60 s left, loss 0.5"


def test_it_can_be_silenced(clock, capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    bar = progress(range(100), "train")
    assert not isinstance(bar, Lines)
    bar.set_postfix({"loss": "0.5"})
    assert len(list(bar)) == 100
    assert len(list(progress(range(100), "train", silent=True))) == 100
    assert capsys.readouterr().err == ""
