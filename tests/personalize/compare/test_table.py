"""Tables: intervals, paired differences, equal fidelity, costs."""

import pytest
from folders import comparison, metrics

from personalize.compare import table
from toy2d.runs.statistics import number, paired


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return comparison(tmp_path_factory.mktemp("table") / "full")


def test_an_interval_is_students():
    """t(0.975, 1) = 12.706, and the standard error of (0, 2) is 1."""
    mean, half, n = table.estimate([0.0, 2.0])
    assert (mean, n) == (1.0, 2)
    assert half == pytest.approx(12.706, abs=1e-3)


def test_a_paired_difference_drops_what_subjects_have_in_common():
    def same(shift):
        return [{"subject": s, "seed": k, "v": 100.0 * k + shift} for s in "ab" for k in range(3)]

    found = paired(same(3.0), same(1.0), lambda r: r["v"])
    assert (found.mean, found.half, found.n) == (2.0, 0.0, 6)


def test_equal_fidelity_is_a_share_of_what_standard_gained(full):
    m = metrics(full)
    gained = table.of([r for r in m["runs"] if r["run"] == "standard"], "unlearnt").mean
    assert table.limit(m) == pytest.approx(0.6 - 0.9 * (0.6 - gained))
    strict = m | {"equal_fidelity": 1.0}
    assert {same[0]["run"] for same in table.best(strict).values()} == {
        "standard",
        "prior:0.3",
        "l2:0.01",
        "output:1",
        "fisher:1",
    }


def test_costs_are_in_multiples_of_standard(full):
    found = {c["objective"]: c for c in table.costs(metrics(full))}
    assert list(found) == ["standard", "prior", "l2", "output", "fisher"]
    assert found["standard"]["times"] == 1
    assert found["prior"]["times"] == pytest.approx(32 / 12)


def test_the_terminals_table_has_a_row_for_every_run(full):
    shown = table.terminal(metrics(full), "rex")
    assert shown.row_count == 13
    assert number(0.785) in "".join(str(c) for c in shown.columns[2].cells)
