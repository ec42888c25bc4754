"""The explorer in a real browser: controls change what they should, a link restores the view.

Skipped only where Chromium or Playwright is missing: apt-get install chromium; pip install
playwright.
"""

import importlib.util
import json
import re
import shutil
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("build", ROOT / "lectures" / "explorer" / "build.py")
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("explorer") / "explore.html"
    build.main(file)
    return file


def test_it_is_one_small_file_that_refers_to_nothing_outside(page_file):
    text = page_file.read_text()
    assert len(text) < 15e6
    assert not re.search(r'<[^>]*(src|href)="(?!data:)', text)
    assert "://" not in build_source().replace("http://www.w3.org/2000/svg", "")


def build_source() -> str:
    folder = ROOT / "lectures" / "explorer"
    return "".join(
        (folder / name).read_text() for name in ("page.html", "explorer.js", "style.css")
    )


def test_every_run_has_its_samples_at_every_step():
    toy = json.loads((ROOT / "lectures" / "_data" / "explorer" / "toy.json").read_text())
    steps = [row["step"] for row in toy["runs"][0]["along"]]
    for run in toy["runs"]:
        assert [row["step"] for row in run["along"]] == steps
        for row in run["along"]:
            assert len(row["kl"]) == len(toy["classes"])
            assert len(row["points"]) == len(toy["base"][0]["points"])


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as p:
        opened = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, page_file):
    """The page, opened; fails afterwards if it logged an error or asked for anything."""
    opened = browser.new_page(viewport={"width": 390, "height": 844}, reduced_motion="reduce")
    faults, asked = [], []
    opened.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda r: asked.append(r.url) if not r.url.startswith("data:") else None)
    opened.goto(page_file.as_uri())
    yield opened
    assert not faults
    assert {url.partition("#")[0] for url in asked} == {page_file.as_uri()}
    opened.close()


EVIL = (
    "<!--<script></script><script>window.evil = 1</script>"
    "<img src=x onerror='window.evil = 1'>&quot;$(touch mark)@DATA@"
)


def test_words_of_a_prompt_are_shown_and_do_nothing(browser, tmp_path, monkeypatch):
    """In the data of the page and in the link that opens it."""
    mini, words = build.mini_data, dict.fromkeys(build.OBJECTIVES, EVIL)
    evil = {"prompts": [EVIL] * 5, "provenance": EVIL}
    monkeypatch.setattr(build, "mini_data", lambda folder: mini(folder) | evil)
    monkeypatch.setattr(build, "OBJECTIVES", words)
    build.main(tmp_path / "explore.html")
    opened, faults = browser.new_page(), []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(f"{(tmp_path / 'explore.html').as_uri()}#{EVIL}=1&a={EVIL}&seed={EVIL}")
    assert opened.locator("#provenance").inner_text().endswith(EVIL)
    assert opened.locator("#a-what").inner_text() == EVIL
    assert EVIL in opened.locator("#a-before").get_attribute("alt")
    assert opened.evaluate("window.evil") is None
    assert opened.locator("script").count() == 2
    assert not faults
    opened.close()


def number(page, run: str, row: int) -> float:
    return float(page.locator(f"#{run}-numbers td").nth(row).inner_text().split()[0])


def places(page) -> list[str]:
    """Where the samples are, rounded to a twentieth of the plane's unit."""
    return page.locator("#a-plane circle.point").evaluate_all(
        "all => all.map(one => one.getAttribute('cx'))"
    )


def test_controls_change_the_picture_the_bars_and_the_numbers(page):
    standard = number(page, "a", 0)
    assert 11 < standard < 12  # seed 1: nats
    page.select_option("#a-kind", "l2")
    page.locator("#a-weight").press("End")
    assert page.locator("#a-weight-value").inner_text() == "1"
    assert number(page, "a", 0) < standard / 10
    bars = page.locator("#a-bars").get_attribute("aria-label")
    here = places(page)
    page.select_option("#a-seed", "2")
    assert places(page) != here
    assert page.locator("#a-bars").get_attribute("aria-label") != bars


def test_step_zero_is_the_base_by_keyboard(page):
    page.locator("#a-step").press("Home")
    assert number(page, "a", 0) == 0
    points = page.locator("#a-plane circle.point").evaluate_all(
        "all => all.map(c => c.cx.baseVal.value)"
    )
    base = page.locator("#a-plane .base circle").evaluate_all(
        "all => all.map(c => c.cx.baseVal.value)"
    )
    assert points == base
    page.locator("#a-step").press("ArrowRight")
    assert number(page, "a", 0) > 0


def test_play_ends_at_the_last_step(page):
    page.locator("#a-step").press("Home")
    page.locator("#a-play").click()
    last = page.locator("#a-step").get_attribute("max")
    ends = time.monotonic() + 60
    while page.locator("#a-play").inner_text() != "Play":
        assert time.monotonic() < ends
        page.wait_for_timeout(200)
    assert page.input_value("#a-step") == last


def test_the_mini_shows_the_pictures_of_its_own_weight(page):
    page.select_option("#a-kind", "l2")
    first = page.locator("#a-after").get_attribute("src")
    page.locator("#a-mini").press("End")
    assert page.locator("#a-after").get_attribute("src") != first
    assert "l2:1" in page.locator("#a-after").get_attribute("alt")


def test_the_mini_moves_along_training_too(page):
    page.select_option("#a-kind", "output")
    lost = []
    for key in ("Home", "End"):
        page.locator("#a-step").press(key)
        lost.append(float(re.search(r"lost ([\d.]+) nats", page.inner_text("#a-mini-along"))[1]))
    assert lost[0] == 0 < lost[1]
    page.select_option("#a-kind", "standard")
    standard = re.search(r"lost ([\d.]+) nats", page.inner_text("#a-mini-along"))[1]
    assert float(standard) > lost[1]


def test_both_frontiers_draw_every_recorded_curve_and_mark_the_chosen_one(page):
    recorded = json.loads((ROOT / "lectures" / "_data" / "mini" / "frontier.json").read_text())
    for scale, key in (("toy", "toy"), ("mini", "full")):
        runs = {r["run"] for r in recorded[key]["runs"] if r["stopped"] is None}
        frontier = page.locator(f"#{scale}-frontier")
        assert frontier.locator(".curve").count() == len(runs)
        assert frontier.locator(".chosen").count() == 1


def test_a_curve_is_the_mean_over_units_of_its_runs():
    """Two seeds of one subject and one of another: subjects count alike, drift as its logarithm."""
    one = {"run": "l2:0.1", "objective": "l2", "step": [0, 5], "stopped": None}
    runs = [
        one | {"unit": unit, "learnt": [0, learnt], "drift": [0, drift]}
        for unit, learnt, drift in (("a", 1.0, 1.0), ("a", 3.0, 4.0), ("b", 6.0, 8.0))
    ]
    stopped = one | {"unit": "b", "learnt": [0], "drift": [0], "stopped": "loss nan at step 3"}
    made = build.curves({"commit": "x", "runs": [*runs, stopped]})
    (curve,) = made["curves"]
    assert (curve["weight"], curve["step"], curve["runs"]) == (0.1, [5], 3)
    assert curve["x"] == [4.0]
    assert curve["y"] == [4.0]  # the geometric mean of 2 and 8
    assert curve["x_low"] == [2.0]


def test_every_tick_lies_within_its_axis():
    for frontier in build.frontiers().values():
        for axis in frontier["axes"].values():
            assert len(axis["ticks"]) >= 3
            assert axis["low"] <= min(axis["ticks"]) <= max(axis["ticks"]) <= axis["high"]


def test_a_link_restores_two_runs(page, browser):
    page.check("#compare")
    page.select_option("#b-kind", "output")
    page.locator("#b-weight").press("End")
    page.locator("#b-step").press("ArrowLeft")
    there = number(page, "b", 0)
    again = browser.new_page()
    again.goto(page.url)
    assert again.is_checked("#compare")
    assert again.input_value("#b-kind") == "output"
    assert number(again, "b", 0) == there
    assert again.locator(".chosen").count() == page.locator(".chosen").count() >= 3
    again.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.check("#compare")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_picture_has_a_text_and_every_control_a_label(page):
    page.check("#compare")
    assert page.locator("img:not([alt])").count() == 0
    assert page.locator("svg[role=img][aria-label='']:not([aria-hidden])").count() == 0
    for control in page.locator("main input, main select").all():
        name = control.evaluate("e => e.labels.length")
        assert name == 1
