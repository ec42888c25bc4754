"""The wheel works without the checkout: it carries the mini's weights, subjects and templates.

The new environment borrows the dependencies of this one through a .pth file, so nothing is
downloaded; driftlab itself comes from the wheel alone.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing left in build/ can slip in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("toy2d", "personalize"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (made,) = out.glob("driftlab-*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Call a command line of a fresh environment, in a folder outside the checkout."""
    folder = tmp_path_factory.mktemp("outside")
    venv.create(folder / "env", with_pip=False)
    paths = {"base": str(folder / "env"), "platbase": str(folder / "env")}
    packages = Path(sysconfig.get_path("purelib", vars=paths))
    with zipfile.ZipFile(wheel) as archive:  # what pip does with a wheel of pure Python
        archive.extractall(packages)
    borrowed = sysconfig.get_path("purelib")
    (packages / "borrowed.pth").write_text(f"{borrowed}\n")
    python = folder / "env" / "bin" / "python"

    def call(*command: str) -> str:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        env |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "DRIFTLAB_CACHE": str(folder / "cache")}
        done = subprocess.run(
            [python, *command], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    call.folder = folder
    return call


def test_it_carries_the_minis_weights_and_subjects(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    here = [p for p in (ROOT / "personalize" / "mini").rglob("*") if p.is_file()]
    wanted = {p.relative_to(ROOT).as_posix() for p in here if "__pycache__" not in p.parts}
    assert any(name.endswith(".safetensors") for name in wanted)
    assert wanted <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "lectures/", "notebooks/"))]


def test_the_installed_package_is_the_wheels(installed):
    where = installed("-c", "import personalize, toy2d; print(toy2d, personalize)")
    assert where.count(str(installed.folder)) == 2


def test_toy2d_runs_outside_the_checkout(installed):
    installed("-m", "toy2d", "run", "smoke")
    run = installed.folder / "runs" / "toy2d" / "smoke"
    assert (run / "report.html").stat().st_size > 10_000
    assert (run / "metrics.json").exists()


def test_personalize_compares_outside_the_checkout(installed):
    installed("-m", "personalize", "compare", "--quick")
    run = installed.folder / "runs" / "personalize" / "compare-quick"
    runs = json.loads((run / "metrics.json").read_text())["runs"]
    assert {r["objective"] for r in runs} == {"standard", "prior", "l2", "output", "fisher"}
