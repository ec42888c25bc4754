"""The mini-project's leaderboard: an entry is trained and judged as the course's own runs are."""

import pytest
import torch

from toy2d.leaderboard import Penalty, keep, leaderboard, read, show_table, train_entry
from toy2d.runs.files import UserError


def squared(theta, theta_star):
    return sum(((p - theta_star[k]) ** 2).flatten(1).sum(1) for k, p in theta.items())


@pytest.fixture(scope="module")
def entries(course):
    return train_entry(course, "mine", squared, (0.1,))


def test_l2_entered_as_a_penalty_is_the_courses_own_l2(course, entries):
    """The same base, points, noise, loop and measurement: the numbers agree up to rounding."""
    (record,) = entries
    own = course.metrics["runs"][course.which("l2:0.1")[0][0]]
    for key in ("delta_theta", "path_kl", "delta_eps"):
        mine, theirs = (r[key] if key == "delta_theta" else r[key][0] for r in (record, own))
        assert mine == pytest.approx(theirs, rel=2e-3), key
    assert record["run"] == "mine:0.1"


def test_rows_are_ordered_by_drift_and_hold_the_entry(course, entries):
    rows = leaderboard(course, entries)
    assert [r["rank"] for r in rows] == list(range(1, len(rows) + 1))
    drifts = [float(r["old classes"].split()[0]) for r in rows]
    assert drifts == sorted(drifts)
    mine, l2 = (next(r for r in rows if r["objective"] == o) for o in ("mine", "l2"))
    assert float(mine["old classes"].split()[0]) >= 0.99 * float(l2["old classes"].split()[0])
    assert show_table(rows).count("\n") == len(rows)


def test_an_entry_that_does_not_learn_is_left_out(course):
    frozen = train_entry(course, "frozen", lambda p, s: 1e4 * squared(p, s), (1.0,))
    assert "frozen" not in {r["objective"] for r in leaderboard(course, frozen)}


def test_a_penalty_of_another_shape_is_explained(course):
    with pytest.raises(UserError, match="one number a run"):
        train_entry(course, "mine", lambda p, s: squared(p, s).sum(), (0.1,))


def test_a_name_of_the_course_is_refused(course):
    with pytest.raises(UserError, match="already"):
        train_entry(course, "l2", squared, (0.1,))


def test_parameters_that_the_penalty_leaves_out_get_no_gradient():
    theta = {k: torch.ones(1, 2, requires_grad=True) for k in "ab"}
    for p in theta.values():
        p.grad = torch.zeros_like(p)
    star = {k: torch.zeros(1, 2) for k in "ab"}
    Penalty(lambda p, s: ((p["a"] - s["a"]) ** 2).sum(1), theta, star).add_gradient_(0.5)
    assert theta["a"].grad.tolist() == [[1.0, 1.0]]
    assert theta["b"].grad.tolist() == [[0.0, 0.0]]


def test_the_table_can_be_handed_in(course, entries, tmp_path):
    rows = leaderboard(course, entries)
    keep(rows, tmp_path / "board.csv")
    assert [r["objective"] for r in read(tmp_path / "board.csv")] == [r["objective"] for r in rows]
