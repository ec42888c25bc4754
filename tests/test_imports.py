"""Who imports whom: packages only from those above them, and personalize from the toy's core."""

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("package_map", ROOT / "lectures" / "package_map.py")
package_map = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(package_map)
ORDER, MODULES = package_map.ORDER, package_map.modules()
TOYS_THAT_REPORT_READS = {"figures", "report"}


def test_every_module_stands_in_the_written_order():
    for name in MODULES:
        top, place = package_map.room(name)
        assert place in ORDER[top], f"{name}: add {place!r} to ORDER in lectures/package_map.py"


@pytest.mark.parametrize("top", ORDER)
def test_a_package_imports_only_from_those_above_it(top):
    for here, others in package_map.arrows().items():
        above = ORDER[top][: ORDER[top].index(here[1])] if here[0] == top else ()
        wrong = [b for a, b in others if here[0] == a == top and b not in above]
        assert not wrong, f"{top}.{here[1]} imports from below: {wrong}"


def test_no_module_imports_in_a_circle():
    """Modules of one package may import each other, but not in a circle."""
    graph = {
        name: package_map.imported(file, MODULES) & set(MODULES) for name, file in MODULES.items()
    }
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in sorted(graph[name]):
                visit(other)
            done.add(path.pop())

    for name in graph:
        visit(name)


def test_personalize_imports_the_toys_core_and_run_folders_only():
    for (top, name), others in package_map.arrows().items():
        if top == "personalize":
            allowed = {"core", "runs"} | (TOYS_THAT_REPORT_READS if name == "report" else set())
            assert {b for a, b in others if a == "toy2d"} <= allowed, name
        if top == "toy2d":
            assert not [b for a, b in others if a == "personalize"], name


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("toy2d.core")])
def test_the_core_imports_torch_and_jaxtyping_only(name):
    """Beside the standard library and itself."""
    allowed = {"torch", "jaxtyping"}
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        for other in names:
            own = other.startswith("toy2d.core")
            standard = other.split(".")[0] in sys.stdlib_module_names
            assert own or standard or other.split(".")[0] in allowed, f"{name} imports {other}"


def test_a_package_says_in_one_sentence_what_it_is_and_stays_small():
    for folder in sorted({f.parent for f in MODULES.values()}):
        text = (folder / "__init__.py").read_text()
        if folder.parent != ROOT:  # the top level carries the version
            body = ast.parse(text).body
            assert len(body) == 1, f"{folder}/__init__.py holds more than its sentence"
            assert "\n" not in ast.get_docstring(ast.parse(text)), folder
            assert len(list(folder.glob("*.py"))) <= 13, f"{folder} holds too many modules"


def test_no_module_re_exports():
    """A name is imported from where it lives: no __all__ that lists other modules' names."""
    for name, file in MODULES.items():
        tree = ast.parse(file.read_text())
        assert not any(
            isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
            for n in tree.body
        ), name


def test_the_committed_map_is_what_the_source_says():
    assert package_map.PAGE.read_text() == package_map.page(), "python lectures/package_map.py"
