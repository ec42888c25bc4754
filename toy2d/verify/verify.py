"""`toy2d verify`: every statement from a run folder, verify.json and figures."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from toy2d.config import course
from toy2d.experiment import run
from toy2d.figures import theorems as figures
from toy2d.runs.files import UserError, write_json
from toy2d.runs.folder import RunFolder
from toy2d.theorems import paper_theorem_2
from toy2d.theorems.row import LIMIT, Row
from toy2d.verify.course import Course
from toy2d.verify.parts import LABELS, LOCAL, PARTS, PRINTED
from toy2d.verify.power import power

SEEDS = 3  # of the folder's, unless --seeds names others: the densities take the time


def verify(
    name: str = "course",
    out: Path | str = "runs",
    only: str | None = None,
    seeds: tuple[int, ...] = (),
    say: Callable[[str], None] = print,
    with_power: bool = False,
) -> tuple[Path, list[Row], list[dict]]:
    """(<run>/verify/, all rows, the power of each statement), written to that folder.

    The course is run first where it is missing; another run must be there. `only`: one label.
    `seeds`: default, the folder's first three. `with_power` also fills the third answer.
    Raises UserError for an unknown label or seed.
    """
    if only is not None and only not in LABELS:
        raise UserError(f"--only {only!r}: choose from {', '.join(LABELS)}")
    if with_power and only is not None:
        raise UserError("--power needs every row: leave --only out")
    path = _finished(name, out, say)
    saved = json.loads((path / "config.json").read_text())
    if saved.get("world") != "pentagon":
        raise UserError(
            f"{path} is a run of the world {saved.get('world')!r}; verify needs the mixture of all "
            "old prompts: pentagon"
        )
    c = Course(path, tuple(seeds) or tuple(saved["seeds"])[:SEEDS])
    rows = _rows(c, only, say)
    records = power(c, rows, say) if with_power else []
    folder = path / "verify"
    write(folder, rows, c, partial=only is not None or bool(seeds))
    if records:
        write_json(folder / "power.json", {"statements": records})
    return folder, rows, records


def _finished(name: str, out: Path | str, say: Callable[[str], None]) -> Path:
    """The folder of a finished run."""
    path = Path(out) / "toy2d" / name
    if RunFolder(path, {}).status != "done":
        if name != course().name:
            raise UserError(f"{path} holds no finished run; `toy2d run` makes one")
        say(f"{path} holds no finished run: making it first")
        run(course(), out, say)
    return path


def _rows(c: Course, only: str | None, say: Callable[[str], None]) -> list[Row]:
    rows: list[Row] = []
    local: list[Row] = []
    for part, (function, labels) in PARTS.items():
        for_the_printed = only == paper_theorem_2.LABEL and part == LOCAL  # it reads the ladders
        if only is not None and only not in labels and not for_the_printed:
            continue
        start = time.perf_counter()
        found = function(c, local) if part == PRINTED else function(c)
        if part == LOCAL:
            local = found
        rows += [r for r in found if only is None or r.label == only]
        say(f"{part}: {len(found)} rows ({time.perf_counter() - start:.0f} s)")
    return rows


def write(folder: Path, rows: list[Row], c: Course, partial: bool) -> None:
    """verify.json and the figures of a complete run; partial.json, and no figures, of a part."""
    record = {
        "run": str(c.config.name),
        "base_hash": c.metrics["base_hash"],
        "seeds": c.seeds,
        "limit_in_standard_errors": LIMIT,
        "rows": [r.as_dict() for r in rows],
    }
    write_json(folder / ("partial.json" if partial else "verify.json"), record)
    if not partial:
        figures.draw_all(folder)
