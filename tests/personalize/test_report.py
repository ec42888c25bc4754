"""The page stands alone, and says what the numbers say: made-up numbers with a known order must give that order."""

import json
import re
from pathlib import Path

import pytest
from folders import STRENGTH, comparison, toy

from personalize import drawings, readings, report, table
from personalize.report import write
from toy2d.report import number
from toy2d.runfolder import UserError

FLIPPED = STRENGTH | {"l2": 0.7, "prior": 0.05}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("report")
    return toy(folder / "toy"), comparison(folder / "full")


@pytest.fixture(scope="module")
def html(runs) -> str:
    return write(*runs).read_text()


@pytest.fixture
def undrawn(monkeypatch):
    """Curves take seconds to draw; what a page says does not depend on them."""
    blank = {"light": "data:,", "dark": "data:,", "caption": "", "width": 1, "height": 1}
    monkeypatch.setattr(report, "figure", lambda draw, alt, **more: blank | {"alt": alt})


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def claims(toy_folder: Path, full_folder: Path) -> dict[str, dict]:
    small, full = metrics(toy_folder), metrics(full_folder)
    large = readings.full_scale(full, "full")
    return {c["text"]: c for c in readings.claims(readings.toy_scale(small), large, full)}


# ---- the page
def test_nothing_comes_from_elsewhere_and_nothing_runs(html):
    assert not re.search(r"https?://(?!www\.w3\.org)|<script|<link|@import|url\((?!#)", html)
    assert set(re.findall(r'(?:src|srcset)="([a-z]+:)', html)) == {"data:"}
    assert "default-src 'none'" in html


def test_every_picture_says_what_it_shows(html):
    images = re.findall(r"<img[^>]*>", html)
    assert len(images) > 30
    assert all(len(re.search(r'alt="([^"]*)"', i)[1]) > 10 for i in images)


def test_curves_are_there_in_light_and_dark_and_differ(html):
    both = re.findall(r'dark\)" srcset="([^"]+)">\s*<img alt="[^"]*" src="([^"]+)"', html)
    assert len(both) == 6 + 2 + 6 + 4 + 2  # clouds, conditions, chain, sweep, trade-off
    assert all(dark != light for dark, light in both)


def test_what_others_wrote_is_escaped(runs, tmp_path, undrawn):
    evil = '<script>alert("{{7*7}}")</script>'
    full = comparison(tmp_path / "full", left_out=[evil])
    page = write(runs[0], full).read_text()
    assert evil not in page
    assert "&lt;script&gt;" in page
    assert "{{7*7}}" in page  # shown, not computed


def test_nobodys_photos_are_on_a_page_that_is_shared(html, runs, tmp_path, undrawn):
    assert "What was shown" not in html
    own = comparison(tmp_path / "mini", mini=True)
    config = {"subjects": [{"name": "rex", "class_word": "dog", "folder": str(runs[1] / "base")}]}
    (own / "config.json").write_text(json.dumps(config))
    assert "What was shown" in write(runs[0], own).read_text()


def test_the_same_numbers_give_the_same_figure_and_themes_differ_in_colour_only():
    one, two = (drawings.figure(lambda ax: ax.plot([1, 2], [1, 3]), "a line") for _ in range(2))
    assert one == two
    assert len(one["light"]) == len(one["dark"])
    assert one["light"] != one["dark"]


# ---- what it says
def test_claims_follow_the_numbers(runs):
    found = claims(*runs)
    less = found["L2 drifts less than prior preservation at equal adaptation"]
    assert less["toy"][0] == "supported"
    spared = found["Prior preservation protects what it replays more than the rest"]
    assert spared["toy"][0] == spared["full"][0] == "supported"
    assert found["L2 costs less time than prior preservation"]["full"][0] == "supported"


def test_claims_flip_when_the_numbers_flip(tmp_path, undrawn):
    found = claims(toy(tmp_path / "t", FLIPPED), comparison(tmp_path / "f", FLIPPED, seeds=range(6)))  # fmt: skip
    less = found["L2 drifts less than prior preservation at equal adaptation"]
    assert less["toy"][0] == less["full"][0] == "contradicted"
    page = write(tmp_path / "t", tmp_path / "f").read_text()
    assert "Contradicted: \u201cL2 drifts less than prior preservation" in page
    assert claims(tmp_path / "t", tmp_path / "f") == found


def test_one_run_decides_nothing(runs, tmp_path):
    found = claims(runs[0], comparison(tmp_path / "f", seeds=(0,)))
    verdicts = {c["full"][0] for c in found.values()}
    assert verdicts == {"undecided"}
    assert "one run" in next(iter(found.values()))["full"][1]


def test_the_fitted_slope_is_that_of_the_numbers(runs):
    """path KL = 0.4 delta_eps^2 in the made-up comparison."""
    found = readings.slope_sentence(readings.full_scale(metrics(runs[1]), "full"))
    assert "to the power 2.00" in found
    assert "as theory says" in found


def test_distance_in_theta_is_contradicted_by_a_run_that_moved_further_and_drifted_less(runs):
    found = readings.distance_sentence(readings.full_scale(metrics(runs[1]), "full"))
    assert "does not rank drift: 3 of 12" in found  # output's three weights


def test_a_diverged_run_is_left_out_and_named(runs, tmp_path, undrawn):
    full = comparison(tmp_path / "f")
    m = metrics(full)
    gone = next(r for r in m["runs"] if r["run"] == "fisher:100")
    gone |= dict.fromkeys(("dino", "moved", "unlearnt", "delta_theta", "total_seconds", "seconds")) | {"stopped": "rex, fisher:100: step 2"}  # fmt: skip
    (full / "metrics.json").write_text(json.dumps(m))
    assert "Diverged and left out: rex, fisher:100: step 2." in write(runs[0], full).read_text()


def test_without_an_evaluator_the_rest_is_still_shown(runs, tmp_path, undrawn):
    full = comparison(tmp_path / "f")
    m = metrics(full)
    for r in m["runs"]:
        r |= dict.fromkeys(("dino", "unlearnt", "moved", "pres")) | {"moved_group": dict.fromkeys(r["moved_group"]), "base": {"unlearnt": None}}  # fmt: skip
    (full / "metrics.json").write_text(json.dumps(m))
    page = write(runs[0], full).read_text()
    assert "no weight of l2 learnt" in page
    assert "path KL" in page


# ---- what it refuses
def test_what_is_no_finished_run_is_named_with_its_remedy(runs, tmp_path):
    with pytest.raises(UserError, match=r"no finished run.*toy2d course"):
        write(tmp_path, runs[1])
    with pytest.raises(UserError, match=r"no finished run.*personalize compare"):
        write(runs[0], tmp_path)
    with pytest.raises(UserError, match="is no comparison"):
        write(runs[0], runs[0])


def test_pictures_that_are_gone_are_named(runs, tmp_path, undrawn):
    full = comparison(tmp_path / "f")
    (full / "base" / "manifest.json").unlink()
    with pytest.raises(UserError, match="whole folder"):
        write(runs[0], full)


# ---- the tables behind it
def test_an_interval_is_students():
    """t(0.975, 1) = 12.706, and the standard error of (0, 2) is 1."""
    mean, half, n = table.estimate([0.0, 2.0])
    assert (mean, n) == (1.0, 2)
    assert half == pytest.approx(12.706, abs=1e-3)


def test_a_paired_difference_drops_what_subjects_have_in_common():
    def same(shift):
        return [{"subject": s, "seed": k, "v": 100.0 * k + shift} for s in "ab" for k in range(3)]

    found = table.paired(same(3.0), same(1.0), lambda r: r["v"])
    assert (found.mean, found.half, found.n) == (2.0, 0.0, 6)


def test_equal_fidelity_is_a_share_of_what_standard_gained(runs):
    m = metrics(runs[1])
    gained = table.of([r for r in m["runs"] if r["run"] == "standard"], "unlearnt").mean
    assert table.limit(m) == pytest.approx(0.6 - 0.9 * (0.6 - gained))
    strict = m | {"equal_fidelity": 1.0}
    assert {same[0]["run"] for same in table.best(strict).values()} == {"standard", "prior:0.3", "l2:0.01", "output:1", "fisher:1"}  # fmt: skip


def test_costs_are_in_multiples_of_standard(runs):
    found = {c["objective"]: c for c in table.costs(metrics(runs[1]))}
    assert list(found) == ["standard", "prior", "l2", "output", "fisher"]
    assert found["standard"]["times"] == 1
    assert found["prior"]["times"] == pytest.approx(32 / 12)


def test_the_terminals_table_has_a_row_for_every_run(runs):
    shown = table.terminal(metrics(runs[1]), "rex")
    assert shown.row_count == 13
    assert number(0.785) in "".join(str(c) for c in shown.columns[2].cells)
