"""The notebooks: twins agree, nothing is stored, every cell runs, wrong answers are refused.

This is CI's only execution of the notebooks: `make pages` takes the outputs from build/executed.
"""

import re
import sys
from pathlib import Path

import jupytext
import nbclient
import nbformat
import numpy as np
import pytest
import torch
from scipy import stats

from toy2d.config import course
from toy2d.course import TASKS, check
from toy2d.experiment import run
from toy2d.runs.files import write_atomic

ROOT = Path(__file__).parent.parent
LECTURES, NOTEBOOKS = ROOT / "lectures", ROOT / "notebooks"
STEMS = sorted(p.stem for p in NOTEBOOKS.glob("[0-9]*.ipynb"))
TO_PLAY = ("01b_playground", "08b_your_photos")  # beside lectures 1 and 8, without exercises
LONGEST = 10  # lines of a function defined in a notebook; what is longer belongs in the library


def cells(path: Path) -> list[tuple[str, str, list[str]]]:
    """(kind, source, tags) of every cell."""
    notebook = jupytext.read(path)
    return [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in notebook.cells]


def test_every_numbered_lecture_has_its_notebook_and_there_are_two_more():
    assert sorted({p.stem for p in LECTURES.glob("[0-9]*.md")} | set(TO_PLAY)) == STEMS
    assert len(STEMS) == 16


@pytest.mark.parametrize("stem", STEMS)
def test_twins_agree(stem):
    """`make twins` mends a difference."""
    assert cells(NOTEBOOKS / f"{stem}.ipynb") == cells(NOTEBOOKS / f"{stem}.py")


@pytest.mark.parametrize("stem", STEMS)
def test_nothing_is_stored(stem):
    for cell in nbformat.read(NOTEBOOKS / f"{stem}.ipynb", 4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("stem", STEMS)
def test_functions_are_short(stem):
    for kind, source, _ in cells(NOTEBOOKS / f"{stem}.ipynb"):
        for body in source.split("def ")[1:] if kind == "code" else ():
            inside = [line for line in body.splitlines()[1:] if line.startswith(" ")]
            assert len(inside) <= LONGEST


@pytest.fixture(scope="session")
def course_run():
    """The run that all notebooks read: found where `make demo` left it, or made (two minutes)."""
    return run(course(), ROOT / "runs")


@pytest.mark.parametrize("stem", STEMS)
def test_every_cell_runs(stem, course_run, monkeypatch):
    """In a kernel of its own, in notebooks/, as a student runs it. The pages show the result.

    Offline, because nothing may wait for a network; one thread, because tests run side by side.
    """
    offline = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    for name, value in offline.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", 4)
    where = {"metadata": {"path": str(NOTEBOOKS)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    write_atomic(ROOT / "build" / "executed" / f"{stem}.ipynb", nbformat.writes(notebook).encode())
    shown = [o for c in notebook.cells for o in c.get("outputs", ())]
    assert len(shown) >= sum(kind == "code" for kind, *_ in cells(NOTEBOOKS / f"{stem}.ipynb")) / 2


def exercises():
    sys.path.insert(0, str(NOTEBOOKS))
    try:
        import exercises as found
    finally:
        sys.path.remove(str(NOTEBOOKS))
    return found


def test_an_open_exercise_hints_a_wrong_one_raises_a_right_one_passes(capsys):
    found = exercises()
    for number, exercise in found.EXERCISES.items():
        found.check(number, ...)
        assert exercise.hint in capsys.readouterr().out
        right = exercise.right()
        found.check(number, right)
        wrong = "z" if isinstance(right, str) else 1.5 * right
        with pytest.raises(AssertionError, match="Hint"):
            found.check(number, wrong)


def test_every_exercise_is_asked_and_solved_once():
    """Asked open (`check("4.1", answer)`), solved in the folded cell below."""
    found = exercises()
    everything = [cell for stem in STEMS for cell in cells(NOTEBOOKS / f"{stem}.ipynb")]
    code = [source for kind, source, _ in everything if kind == "code"]
    solutions = [source for source in code if source.startswith("# solutions")]
    for number in found.EXERCISES:
        assert sum(f'check("{number}", answer)' in source for source in code) == 1
        assert sum(f'check("{number}",' in source for source in solutions) == 1


def test_every_graded_task_is_asked_and_solved_once():
    """Asked with an open function, solved in the folded cell below; both check the same task."""
    asked, solved = [], []
    for stem in STEMS:
        for kind, source, tags in cells(NOTEBOOKS / f"{stem}.ipynb"):
            found = re.findall(r'^check(?:_code)?\("([a-z_0-9]+)", \w+\)$', source, re.MULTILINE)
            if kind == "code":
                (solved if "hide-cell" in tags else asked).extend(n for n in found if n in TASKS)
    assert sorted(asked) == sorted(solved) == sorted(TASKS)


@pytest.mark.parametrize("stem", [s for s in STEMS if s not in TO_PLAY])
def test_every_lectures_notebook_has_a_task_in_which_code_is_written(stem):
    code = "".join(source for kind, source, _ in cells(NOTEBOOKS / f"{stem}.ipynb"))
    assert re.search(r"return \.\.\.  # your code", code)


@pytest.mark.parametrize("name", TASKS)
def test_the_notebooks_solution_is_right(name):
    """The folded cell alone, without the rest of its notebook."""
    for stem in STEMS:
        for _, source, tags in cells(NOTEBOOKS / f"{stem}.ipynb"):
            if "hide-cell" in tags and f'("{name}",' in source:
                names = {"check": check, "check_code": check, "np": np, "stats": stats}
                names["torch"] = torch
                exec(source, names)
                return
    pytest.fail(f"no notebook solves {name}")
