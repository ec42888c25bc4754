"""The headline of the page: curves of both scales, verdicts at equal learning, the toy's
prediction.
"""

import math
import re

import pytest
from folders import STRENGTH, claims_of, comparison, metrics, toy, with_curves

from personalize.compare import frontier
from personalize.compare.run import show
from personalize.report import frontier as headline
from personalize.report.sentences import claims, full_scale
from personalize.report.write import write
from toy2d.runs.files import write_csv
from toy2d.runs.frontier import HEADLINE, Trajectory, contrasts
from toy2d.runs.sentences import toy_scale


def with_history(folder, strength=STRENGTH):
    """Rows of history.csv on the toy's way: drift = strength x learnt^2, as in the made-up
    curves.
    """
    rows = []
    for r in metrics(folder)["runs"]:
        for step, learnt in ((10, 2.0), (20, 4.0), (40, 6.0)):
            drift = strength[r["objective"]] * learnt**2
            row = {"step": step, "objective": r["objective"], "seed": r["seed"]}
            row |= {"kl_new": 7.0 - learnt, "kl_base/class 0": drift, "kl_base/mixture": 99.0}
            rows.append(row | ({} if r["weight"] is None else {"weight": r["weight"]}))
    write_csv(folder / "history.csv", rows)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frontier")
    small, large = toy(folder / "toy"), comparison(folder / "full")
    with_history(small)
    with_curves(large)
    return small, large


@pytest.fixture(scope="module")
def page(runs) -> str:
    return re.sub(r"\s+", " ", re.sub(r'"data:[^"]*"', '""', write(*runs).read_text()))


def test_ratios_at_equal_learning_are_those_of_the_numbers(runs):
    """Drift is strength x learnt^2 on every subject, so at any level the ratio is the strength."""
    found = contrasts(frontier.trajectories(metrics(runs[1])))
    for objective in ("prior", "l2", "output", "fisher"):
        at = found[objective][HEADLINE]
        assert at.by_unit["rex"] == pytest.approx(math.log(STRENGTH[objective]), abs=0.2)
        assert at.verdict == "less"
        assert at.ratio.log.n == 4
    assert found["l2"][0.9].weights == ("l2:0.01",)  # further weights never learn that much


def test_the_page_shows_figure_table_and_verdicts(page):
    assert "Learning against drift" in page
    assert page.count("along the training of every run") == 2
    assert "l2: less drift than standard" in page
    assert "What is paid for what, l2 at its own best step: l2:0.01 learns 100%" in page
    assert "a weak and a strong weight side by side" in page


def test_the_toy_predicts_the_order_only_if_the_numbers_agree(runs, tmp_path):
    there = contrasts(frontier.trajectories(metrics(runs[1])))
    tau = headline.prediction(there, there, "full")
    assert "is 1.00" in tau
    assert "the toy predicts the order" in tau
    swapped = there | {"prior": there["fisher"], "fisher": there["prior"]}  # tau 0.4
    assert "agrees weakly" in headline.prediction(swapped, there, "full")
    reversed_ = {
        o: {s: c._replace(by_unit={u: -v for u, v in c.by_unit.items()}) for s, c in at.items()}
        for o, at in there.items()
    }
    assert "reversed" in headline.prediction(reversed_, there, "full")


def test_one_subject_gives_the_order_no_interval(runs):
    there = contrasts(frontier.trajectories(metrics(runs[1])))
    first = next(iter(there["l2"][HEADLINE].by_unit))
    one = {
        o: {s: c._replace(by_unit={first: c.by_unit[first]}) for s, c in at.items()}
        for o, at in there.items()
    }
    said = headline.prediction(there, one, "full")
    assert "is 1.00. One subject" in said
    assert "predicts" not in said


def test_the_toys_claims_are_made_at_equal_learning_too(runs):
    """Where its curve is known: here l2 drifts more than standard on its way, and less at the
    end.
    """
    small, full = metrics(runs[0]), metrics(runs[1])
    scales = toy_scale(small), full_scale(full, "full")
    text = "L2 drifts less than standard fine-tuning at equal adaptation"
    at_the_end = {c["text"]: c["toy"] for c in claims(*scales, full)}
    assert at_the_end[text][0] == "supported"
    along = [
        Trajectory(run, run.split(":")[0], unit, int(unit), (0, 1, 2), (0.0, 1.0, 1.1), drift, None)
        for unit in "0123"
        for run, drift in (("standard", (0.0, 1.0, 9.0)), ("l2:0.1", (0.0, 2.0 + int(unit), 3.0)))
    ]
    verdict, words = {c["text"]: c["toy"] for c in claims(*scales, full, along)}[text]
    assert verdict == "contradicted"
    assert "4 seeds" in words


def test_claims_at_full_scale_are_made_at_equal_learning(runs):
    found = claims_of(*runs)
    against = found["L2 drifts less than standard fine-tuning at equal adaptation"]["full"]
    assert against[0] == "supported"
    assert "4 subjects" in against[1]
    worse = found["Fisher weighting drifts less than plain L2 at equal adaptation"]["full"]
    assert worse[0] == "supported"  # 0.1 against 0.15


def test_without_held_out_pictures_the_page_and_the_terminal_say_so(tmp_path, capsys):
    full = comparison(tmp_path / "f")
    page = write(toy(tmp_path / "t"), full).read_text()
    assert "Learning against drift" not in page
    assert "judged by pictures alone" in page
    show(full)
    assert "judged by pictures alone" in capsys.readouterr().out


def test_the_terminal_shows_the_table_and_the_verdicts(runs, capsys):
    show(runs[1])
    out = capsys.readouterr().out
    assert "equal learning" in out
    assert "output: less drift than standard" in out


def test_a_diverged_run_ends_its_curve_where_it_diverged(runs, tmp_path):
    m = metrics(runs[1])
    gone = next(r for r in m["runs"] if r["run"] == "l2:0.01")
    gone |= {"stopped": "rex, l2:0.01, seed 0: step 3", "curve": gone["curve"][:3]}
    found = frontier.trajectories(m)
    short = next(t for t in found if t.stopped)
    assert list(short.step) == [0, 1, 2]
    assert len(found) == len(m["runs"])
