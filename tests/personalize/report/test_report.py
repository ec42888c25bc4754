"""The page stands alone, escapes what it quotes, and is written whatever diverged."""

import json
import re
from pathlib import Path

import pytest
from folders import STRENGTH, claims_of, comparison, metrics, toy, with_curves
from matplotlib.figure import Figure

from personalize.compare import table
from personalize.compare.record import NOTHING
from personalize.report import curves, samples
from personalize.report import figures as drawings
from personalize.report.sentences import claims, full_scale
from personalize.report.write import write
from toy2d.runs.files import UserError
from toy2d.runs.sentences import distance_sentence, sweep_sentence, toy_scale

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
    for module in (curves, samples):
        monkeypatch.setattr(module, "figure", lambda draw, alt, **more: blank | {"alt": alt})


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


def test_claims_flip_when_the_numbers_flip(tmp_path, undrawn):
    found = claims_of(
        toy(tmp_path / "t", FLIPPED), comparison(tmp_path / "f", FLIPPED, seeds=range(6))
    )
    less = found["L2 drifts less than prior preservation at equal adaptation"]
    assert less["toy"][0] == less["full"][0] == "contradicted"
    page = write(tmp_path / "t", tmp_path / "f").read_text()
    assert "Contradicted: \u201cL2 drifts less than prior preservation" in page
    assert claims_of(tmp_path / "t", tmp_path / "f") == found


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
def test_a_page_and_tables_come_of_a_comparison_whose_runs_diverged(
    runs, tmp_path, undrawn, which, words
):
    full = comparison(tmp_path / "f")
    m = diverge(metrics(full), *which)
    (full / "metrics.json").write_text(json.dumps(m))
    assert words in write(runs[0], full).read_text()
    assert table.terminal(m, "f").row_count == 13
    assert table.time_table(m).row_count == len(
        {r["objective"] for r in m["runs"] if not r["stopped"]}
    )


@pytest.mark.parametrize(
    "which", [[("standard", 0), ("l2", 1)], [(o, s) for o in STRENGTH for s in (0, 1)]]
)
def test_curves_are_drawn_of_what_did_not_diverge(tmp_path, monkeypatch, which):
    """No (subject, seed) is left that every run has, or none at all: empty panels, no error."""
    monkeypatch.setattr(curves, "figure", lambda draw, alt: draw(Figure().subplots()))
    m = diverge(metrics(comparison(tmp_path / "f")), *which)
    small = toy_scale(metrics(toy(tmp_path / "t")))
    assert len(curves.curves(small, full_scale(m, "full"))["tradeoff"]) == 2


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
    gone |= dict.fromkeys(
        ("dino", "moved", "unlearnt", "delta_theta", "total_seconds", "seconds")
    ) | {"stopped": "rex, fisher:100: step 2"}
    (full / "metrics.json").write_text(json.dumps(m))
    assert "Diverged and left out: rex, fisher:100: step 2." in write(runs[0], full).read_text()


def test_without_an_evaluator_the_rest_is_still_shown(runs, tmp_path, undrawn):
    full = comparison(tmp_path / "f")
    m = metrics(full)
    for r in m["runs"]:
        r |= dict.fromkeys(("dino", "unlearnt", "moved", "pres")) | {
            "moved_group": dict.fromkeys(r["moved_group"]),
            "base": {"unlearnt": None},
        }
    (full / "metrics.json").write_text(json.dumps(m))
    page = write(runs[0], full).read_text()
    assert "Fidelity was not measured." in page
    assert "no weight of l2 learnt" not in page
    large = full_scale(m, "full")
    assert {c["full"][1] for c in claims(toy_scale(metrics(runs[0])), large, m)[:2]} == {
        "fidelity was not measured"
    }
    assert distance_sentence(large) == "Drift was not measured."
    assert sweep_sentence(large) == "Drift was not measured."
    assert "path KL" in page


def test_the_page_counts_the_toys_prompts(html):
    assert "One world in two dimensions with 2 prompts" in html


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


def test_one_subject_is_said_to_decide_nothing(runs, tmp_path, undrawn):
    full = comparison(tmp_path / "f")
    assert "One subject decides nothing" in write(runs[0], full).read_text()
    with_curves(full, subjects=4)
    assert "One subject decides nothing" not in write(runs[0], full).read_text()
