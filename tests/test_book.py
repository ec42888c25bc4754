"""The book: every page is in its table of contents, every link leads somewhere, no warning."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from toy2d.runs.frontier import HEADLINE, Trajectory, agreement, contrasts
from toy2d.runs.statistics import estimate

ROOT = Path(__file__).parent.parent
LECTURES = ROOT / "lectures"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted(LECTURES.glob("*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def toctree() -> list[str]:
    text = (LECTURES / "index.md").read_text()
    return re.search(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)[1].split()


def test_every_page_is_in_the_table_of_contents():
    stems = {p.stem for p in LECTURES.glob("*.md")} - {"index"}
    notebooks = {f"../notebooks/{p.stem}" for p in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert stems | notebooks == {entry for entry in toctree() if not entry.startswith(":")}


def anchors(page: Path) -> set[str]:
    """The names that a Git host gives to the page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if not link.startswith("http"):
            name, _, heading = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), f"{page.name}: {link}"
            assert not heading or heading in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_prose_is_wrapped_and_numbers_have_a_leading_zero(page):
    """Tables, pictures, formulas, code and links may be longer."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for line in text.splitlines():
        free = not line.startswith(("|", "!")) and not re.search(r"\$|`|\]\(", line)
        assert len(line) <= 100 or not free, f"{page.name}: {line}"
        assert not re.search(r"(?<![\w.:%])\.\d", re.sub(r"`[^`]*`", "", line)), line


NUMBERED = sorted(LECTURES.glob("[0-9]*.md"))


@pytest.mark.parametrize("page", NUMBERED, ids=lambda p: p.stem)
def test_a_lecture_begins_with_a_picture_and_a_question(page):
    """Then goals, minutes, difficulty, prerequisites and code; then the idea, before statements."""
    opening, _, rest = page.read_text().partition("\n## The idea\n")
    blocks = opening.strip().split("\n\n")
    assert blocks[0].startswith("# ")
    assert blocks[1].startswith("![")
    questions = [b for b in blocks if b.startswith("*") and b.endswith("?*")]
    assert len(questions) == 1
    for word in ("You will", "Minutes:", "Difficulty:", "Prerequisites.", "Code."):
        assert f"**{word}**" in opening, word
    idea = rest.split("\n## ")[0]
    assert len(idea.split()) > 40
    assert ":::" not in idea


@pytest.mark.slow
def test_the_pages_build_without_a_warning_and_ask_the_network_nothing(tmp_path):
    command = ["-m", "sphinx", "-b", "html", "-c", "lectures", "-W", "-n", "--keep-going", "-q"]
    where = ["-d", str(tmp_path / "doctrees"), ".", str(tmp_path / "pages")]
    offline = os.environ | {"BOOK_EXECUTION": "off"}
    subprocess.run([sys.executable, *command, *where], cwd=ROOT, env=offline, check=True)
    remote = r'<(script|img|iframe)[^>]*src="(https?:)?//|<link[^>]*href="(https?:)?//'
    built = list((tmp_path / "pages").rglob("*.html"))
    assert len(built) > 20
    assert not [p for p in built if re.search(remote, p.read_text())]


def readme() -> str:
    return " ".join((ROOT / "README.md").read_text().split())


def test_readmes_first_numbers_are_those_of_the_recorded_course():
    """Seed 1, mean over old classes of KL(base || tuned), in the first figure's caption."""
    toy = json.loads((LECTURES / "_data" / "explorer" / "toy.json").read_text())
    last = {r["run"]: r["along"][-1]["kl"] for r in toy["runs"] if r["seed"] == 1}
    measured = [sum(kl for kl, _ in last[r]) / len(last[r]) for r in ("standard", "l2:0.1")]
    caption = re.search(r"moves the old classes by ([\d.]+) nats .*?: ([\d.]+) nats", readme())
    assert [float(n) for n in caption.groups()] == pytest.approx(measured, rel=0.02)


def headlines(scale: str) -> dict:
    """objective -> its contrast with standard at the headline level, from the recorded runs."""
    kept = json.loads((LECTURES / "_data" / "mini" / "frontier.json").read_text())[scale]
    at = contrasts([Trajectory(**r) for r in kept["runs"]])
    return {objective: shares[HEADLINE] for objective, shares in at.items()}


@pytest.mark.parametrize("scale", ["full", "lora"])
def test_readmes_table_is_that_of_the_recorded_comparison(scale):
    """Drift over standard's, with its interval."""
    found, number = headlines(scale), r"([\d.]+) \(([\d.]+)\u2013([\d.]+)\)"
    cells = rf" \| {number} \| {number} \| {number} \| {number} \|"
    row = re.search(rf"\| {scale}{cells}", readme(), re.IGNORECASE)
    promised = [float(n) for n in row.groups()]
    for i, name in enumerate(("output", "fisher", "prior", "l2")):
        mean, half, _ = found[name].ratio.log
        measured = [math.exp(v) for v in (mean, mean - half, mean + half)]
        assert promised[3 * i : 3 * i + 3] == pytest.approx(measured, abs=0.006)


def test_readme_says_how_well_the_toy_predicts_the_order():
    """Kendall's tau with its interval, full fine-tuning and LoRA."""
    said = re.search(r"\(Kendall's tau (.*?)\), .*?\((.*?)\)", readme()).groups()
    by_unit = {s: {o: c.by_unit for o, c in headlines(s).items()} for s in ("toy", "full", "lora")}
    for scale, numbers in zip(("full", "lora"), said, strict=True):
        promised = [float(n) for n in re.findall(r"[\d.]+", numbers)]
        assert promised == pytest.approx(agreement(by_unit["toy"], by_unit[scale])[:3], abs=0.006)


def test_readme_says_by_how_much_l2_drifts_more_than_prior_preservation():
    l2, prior = (headlines("full")[name].by_unit for name in ("l2", "prior"))
    mean, half, _ = estimate([l2[u] - prior[u] for u in l2])
    more = re.search(r"\(([\d.]+) times, ([\d.]+) to ([\d.]+)\)", readme())
    measured = [math.exp(v) for v in (mean, mean - half, mean + half)]
    assert [float(n) for n in more.groups()] == pytest.approx(measured, abs=0.006)
