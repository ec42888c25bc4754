"""Draw the packages and their imports, read from the source, as lectures/package_map.md.

    python lectures/package_map.py            write the page
    python lectures/package_map.py --check    exit 1 if the committed page is out of date

Lists in the order of ORDER: a package may import from those above it only. tests/test_imports.py
checks the order and the page.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "lectures" / "package_map.md"
TOY2D = """
    core runs data model quadrature kl train measure config figures sentences report prepare
    records experiment theorems verify playground leaderboard sweep bench answers
    course __main__
"""
PERSONALIZE = """
    mini config parallel pipeline adapters data sample drift export train evaluate cost
    compare report study mini.pretrain __main__
"""
ORDER = {"toy2d": TOY2D.split(), "personalize": PERSONALIZE.split()}


def room(module: str) -> tuple[str, str] | None:
    """("personalize", "train") of "personalize.train.loop"; None for a module of others."""
    top, *rest = module.split(".")
    if top not in ORDER or not rest:
        return None
    two = ".".join(rest[:2])
    return top, two if two in ORDER[top] else rest[0]


def modules() -> dict[str, Path]:
    """Every module of both packages by its dotted name, without the __init__ files."""
    files = [f for top in ORDER for f in sorted((ROOT / top).rglob("*.py")) if f.stem != "__init__"]
    return {".".join(f.relative_to(ROOT).with_suffix("").parts): f for f in files}


def imported(file: Path, known) -> set[str]:
    """Dotted names of our own modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (whole & set(known)) or {node.module}
    return {name for name in found if name.split(".")[0] in ORDER}


def arrows() -> dict[tuple[str, str], set[tuple[str, str]]]:
    """room -> the other rooms that it imports from."""
    known, found = modules(), {}
    for name, file in known.items():
        here = room(name)
        there = {room(other) for other in imported(file, known)} - {here, None}
        found.setdefault(here, set()).update(there)
    return found


def sentence(place: tuple[str, str]) -> str:
    """The first line of the docstring of a package or module."""
    path = ROOT.joinpath(place[0], *place[1].split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")[0]


def page() -> str:
    found, known = arrows(), modules()
    text = [
        "# Map of the packages",
        "",
        "Drawn from the imports by `python lectures/package_map.py`. A package imports only "
        "from those",
        "above it in its table (`personalize` also from `toy2d.core` and `toy2d.runs`);",
        "tests/test_imports.py reads the source and fails otherwise.",
    ]
    for top, order in ORDER.items():
        text += [
            "",
            f"## {top}",
            "",
            "| package | modules | what it is | imports from |",
            "|---|---|---|---|",
        ]
        for name in order:
            inside = [m for m in known if room(m) == (top, name)]
            size = len(inside) if (ROOT / top / name.replace(".", "/")).is_dir() else 1
            others = found.get((top, name), set())
            own = [n for n in order if (top, n) in others]
            foreign = sorted(f"{a}.{b}" for a, b in others if a != top)
            text.append(
                f"| `{name}` | {size} | {sentence((top, name))} | {', '.join(own + foreign)} |"
            )
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text() != page())
    PAGE.write_text(page())
