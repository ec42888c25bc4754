"""The page stands alone, and says what the numbers say: made-up numbers with a known order must give that order."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from folders import STRENGTH, comparison, named, toy
from matplotlib.figure import Figure

from personalize.compare import table
from personalize.compare.record import NOTHING
from personalize.report import figures as drawings
from personalize.report import sentences as readings
from personalize.report import write as report
from personalize.report.write import write
from toy2d.runs.files import UserError
from toy2d.runs.statistics import number

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
    assert "compatible with theory's 2" in found


@pytest.mark.parametrize(
    ("power", "spread", "words"),
    [
        (2, 0.1, ": compatible"),
        (1.5, 0.1, "more than two standard errors from"),
        (2, 3.0, "too uncertain"),
    ],
)
def test_a_slope_is_held_against_theory_by_its_error(power, spread, words):
    noise = np.random.default_rng(0).standard_normal(12) * spread
    eps = np.exp(np.linspace(0, 3, 12))
    kl = eps**power * np.exp(noise - noise.mean())
    records = [made("l2", 0.1, s, delta_eps=float(e), path_kl=[float(k)]) for s, (e, k) in enumerate(zip(eps, kl, strict=True))]  # fmt: skip
    assert words in readings.slope_sentence(scale_of(records))


def test_distance_in_theta_is_contradicted_by_a_run_that_moved_further_and_drifted_less(runs):
    found = readings.distance_sentence(readings.full_scale(metrics(runs[1]), "full"))
    assert "does not rank drift: 3 of 12" in found  # output's three weights


def made(objective: str, weight: float | None, seed: int, **numbers) -> dict:
    """A record of one number each."""
    few = {"moved": 0.4, "unlearnt": 0.2, "delta_theta": 1.0, "delta_eps": 1.0, "path_kl": [1.0], "moved_group": {}, "base": {"unlearnt": 0.6}}  # fmt: skip
    return named(objective, weight) | few | {"seed": seed, "subject": "rex", "stopped": None} | numbers  # fmt: skip


def scale_of(records: list[dict]) -> readings.Scale:
    return readings.full_scale({"runs": records, "equal_fidelity": 0.9}, "full")


@pytest.mark.parametrize(
    ("drifts", "words"),
    [
        ((0.3, 0.2, 0.1), "l2 falls at every step"),
        ((0.1, 0.2, 0.3), "l2 rises at every step"),
        ((0.3, 0.3, 0.1), "l2 falls 1 and stays equal 1 of 2 times"),
        ((0.3, 0.3, 0.3), "l2 stays equal at every step."),
        ((0.3, 0.2), "l2 falls (a line of two points)"),
        ((0.2, 0.3), "l2 rises (a line of two points)"),
        ((0.2,), "No objective was run at two weights: no sweep."),
        ((None, None, None), "Drift was not measured."),
    ],
)
def test_a_sweep_says_how_drift_goes_step_by_step(drifts, words):
    records = [made("standard", None, 0)] + [made("l2", 10.0**k, 0, moved=d) for k, d in enumerate(drifts)]  # fmt: skip
    assert words in readings.sweep_sentence(scale_of(records))


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([], "No run but standard's"),
        ([("l2", 0.5, 0.4)], "No setting drifted less than standard."),
        (
            [("l2", 0.5, 0.1), ("fisher", 2.0, 0.5)],
            "Of 1 settings that drifted less than standard none moved theta further.",
        ),
        ([("l2", 2.0, 0.1), ("fisher", 0.5, 0.1)], "1 of 2 settings moved theta further"),
        ([("l2", 2.0, None)], "No setting drifted less than standard."),
    ],
)
def test_distance_and_drift_are_compared_where_something_drifted_less(others, words):
    records = [made("standard", None, 0)] + [made(o, 1.0, 0, delta_theta=t, moved=d) for o, t, d in others]  # fmt: skip
    assert words in readings.distance_sentence(scale_of(records))


def test_a_run_is_compared_with_standard_on_its_own_subjects_and_seeds():
    """Seed 1 is harder: judged by all of standard's runs, l2:1 (seed 0 only) would have learnt well and drifted half as much."""

    def on(seed, gain, objective="standard", weight=None, moved=0.2):
        return made(objective, weight, seed, unlearnt=0.6 - gain, moved=moved * (1 + 3 * seed))

    standard = [on(0, 0.4), on(1, 0.1)]
    unlearnt = on(0, 0.3, "l2", 1.0, 0.1)  # less than 0.9 of 0.4, more than 0.9 of their mean
    m = {"runs": [*standard, unlearnt], "equal_fidelity": 0.9}
    assert table.limit(m) == pytest.approx(0.6 - 0.9 * 0.25)
    assert table.limit(m, [unlearnt]) == pytest.approx(0.6 - 0.9 * 0.4)
    assert set(table.best(m)) == {"standard"}
    one, both = on(0, 0.4, "l2", 1.0, 0.15), [on(s, 0.4, "l2", 2.0, 0.1) for s in (0, 1)]
    m = {"runs": [*standard, one, *both], "equal_fidelity": 0.9}
    assert (
        table.best(m)["l2"][0]["run"] == "l2:2"
    )  # half of standard's, though 0.25 in the mean against 0.15
    assert "l2:2: \u00d7 0.5" in readings.drift_sentence(readings.full_scale(m, "full"))
    assert {(r["run"], r["seed"]) for r in table.common(m["runs"])} == {(r, 0) for r in ("standard", "l2:1", "l2:2")}  # fmt: skip


# ---- runs that diverged
def diverge(m: dict, *which) -> dict:
    """`m` where the runs of these (objective, seed)s diverged, as a comparison records it."""
    for r in m["runs"]:
        if (r["objective"], r["seed"]) in which:
            r |= NOTHING | {"stopped": f"rex, {r['run']}: step 2"}
    return m


@pytest.mark.parametrize(
    ("which", "words"),
    [
        ([("standard", 0), ("standard", 1)], "No run of standard is there to compare with."),
        ([("standard", 0)], "Diverged and left out: rex, standard: step 2."),
        ([("fisher", 0), ("fisher", 1)], "no run of fisher is there"),
        (
            [(o, s) for o in STRENGTH for s in (0, 1)],
            "No run of standard is there to compare with.",
        ),
    ],
)
def test_a_page_and_tables_come_of_a_comparison_whose_runs_diverged(runs, tmp_path, undrawn, which, words):  # fmt: skip
    full = comparison(tmp_path / "f")
    m = diverge(metrics(full), *which)
    (full / "metrics.json").write_text(json.dumps(m))
    assert words in write(runs[0], full).read_text()
    assert table.terminal(m, "f").row_count == 13
    assert table.time_table(m).row_count == len({r["objective"] for r in m["runs"] if not r["stopped"]})  # fmt: skip


@pytest.mark.parametrize(
    "which", [[("standard", 0), ("l2", 1)], [(o, s) for o in STRENGTH for s in (0, 1)]]
)
def test_curves_are_drawn_of_what_did_not_diverge(tmp_path, monkeypatch, which):
    """No (subject, seed) is left that every run has, or none at all: empty panels, no error."""
    monkeypatch.setattr(report, "figure", lambda draw, alt: draw(Figure().subplots()))
    m = diverge(metrics(comparison(tmp_path / "f")), *which)
    small = readings.toy_scale(metrics(toy(tmp_path / "t")))
    assert len(report.curves(small, readings.full_scale(m, "full"))["tradeoff"]) == 2


def test_a_picture_row_that_is_not_there_is_left_out(runs, tmp_path, undrawn):
    """Fisher diverged on the first subject, whose pictures are shown."""
    full = comparison(tmp_path / "f")
    m = metrics(full)
    second = [r | {"subject": "tea"} for r in m["runs"]]
    m = diverge(m, ("fisher", 0), ("fisher", 1))
    m["runs"] += second
    m["subjects"]["tea"] = m["subjects"]["rex"]
    (full / "metrics.json").write_text(json.dumps(m))
    page = write(runs[0], full).read_text()
    assert "<h3>l2</h3>" in page
    assert "<h3>fisher</h3>" not in page


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
    assert "Fidelity was not measured." in page
    assert "no weight of l2 learnt" not in page
    large = readings.full_scale(m, "full")
    assert {c["full"][1] for c in readings.claims(readings.toy_scale(metrics(runs[0])), large, m)[:2]} == {"fidelity was not measured"}  # fmt: skip
    assert readings.distance_sentence(large) == "Drift was not measured."
    assert readings.sweep_sentence(large) == "Drift was not measured."
    assert "path KL" in page


def test_the_page_counts_the_toys_prompts(html):
    assert "One world in two dimensions with 2 prompts" in html


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
