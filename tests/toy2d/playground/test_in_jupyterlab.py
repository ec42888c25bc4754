"""The playground in JupyterLab in a real browser: Train shows both runs, a cross can be dragged."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toy2d.playground.live import Sandbox

ROOT = Path(__file__).parents[3]
NOTEBOOK = "01b_playground.ipynb"
CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
LONG = 480_000  # milliseconds: seconds on a quiet machine, minutes on a busy one
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab of its own on a copy of the notebook; its address."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    Sandbox.open(folder / "runs")  # so that the page need not wait for the base
    notebook = json.loads((ROOT / "notebooks" / NOTEBOOK).read_text())
    first = next(i for i, c in enumerate(notebook["cells"]) if c["cell_type"] == "code")
    notebook["cells"] = notebook["cells"][: first + 1]  # the widget alone
    (folder / "notebooks" / NOTEBOOK).write_text(json.dumps(notebook))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    settings = {
        "ServerApp.root_dir": str(folder),
        "ServerApp.port": port,
        "IdentityProvider.token": "",
        "ServerApp.allow_root": True,
        "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    flags = [f"--{k}={v}" for k, v in settings.items()]
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
    }
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", *flags]
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def page(lab):
    if CHROMIUM is None:
        pytest.skip("chromium is missing: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1700})
        page.set_default_timeout(LONG)
        _open(page, f"{lab}/lab/tree/notebooks/{NOTEBOOK}")
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
        page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").first.click()
        page.keyboard.press("Shift+Enter")
        page.get_by_role("button", name="Train").wait_for()
        page.locator(".bqplot .dot.element").first.wait_for()
        yield page
        browser.close()


def _open(page, address: str) -> None:
    """Once the server answers."""
    ends = time.monotonic() + LONG / 1000
    while True:
        try:
            page.goto(address)
            return
        except Exception:
            if time.monotonic() > ends:
                raise
            time.sleep(1)


def test_train_shows_both_sides_numbers(page):
    page.get_by_role("button", name="Train").click()
    page.get_by_text(re.compile("step 600 of 600: done")).wait_for()
    told = page.get_by_text(re.compile(r"step 600: mean KL .* nats")).all_inner_texts()
    assert len(told) == 2
    standard, output = (float(re.search(r"mean KL ([\d.e-]+)", text)[1]) for text in told)
    assert 0 < output < 0.1 * standard


def cross(page, figure: int) -> tuple[float, float]:
    """Where the last cross of this plane is, from the plane's corner, in pixels."""
    plane = page.locator(".bqplot").nth(figure)
    corner, dot = (part.bounding_box() for part in (plane, plane.locator(".dot.element").last))
    return dot["x"] + dot["width"] / 2 - corner["x"], dot["y"] + dot["height"] / 2 - corner["y"]


def test_a_cross_can_be_dragged_and_the_other_side_follows(page):
    left, right = 0, 2  # planes; 1 and 3 are the bars
    before = cross(page, left)
    assert before == pytest.approx(cross(page, right), abs=2)
    corner = page.locator(".bqplot").nth(left).bounding_box()
    page.mouse.move(corner["x"] + before[0], corner["y"] + before[1])
    page.mouse.down()
    page.mouse.move(corner["x"] + before[0] + 30, corner["y"] + before[1] + 60, steps=5)
    page.mouse.up()
    ends = time.monotonic() + 60
    while cross(page, right) == pytest.approx(before, abs=20):
        assert time.monotonic() < ends, "the other side's cross did not move"
        page.wait_for_timeout(200)
    assert cross(page, right) == pytest.approx((before[0] + 30, before[1] + 60), abs=6)
