"""The closing table of `toy2d verify`: one line a statement; a failed proof with its command."""

import math
import sys

from rich.console import Console
from rich.table import Table

from toy2d.runs.files import RunFailure
from toy2d.theorems.row import LIMIT, Row

KINDS = ("proved", "identity", "claim of the paper", "observation")
TITLE = (
    "worst case of every statement; both sides with one standard error, margin in standard errors"
)


def summary(rows: list[Row]) -> list[dict]:
    """One line a statement: how often it held, failed or did not apply, and its worst row."""
    groups: dict[tuple, list[Row]] = {}
    for r in rows:
        groups.setdefault((r.label, r.kind, r.statement), []).append(r)
    lines = []
    for (label, kind, statement), same in groups.items():
        counted = [r for r in same if r.holds is not None]
        lines.append(
            {
                "label": label,
                "kind": kind,
                "statement": statement,
                "worst": min(counted, key=lambda r: r.margin, default=None),
                "holds": sum(r.holds for r in counted),
                "fails": sum(not r.holds for r in counted),
                "not applicable": len(same) - len(counted),
                "why": next((r.note for r in same if r.holds is None), ""),
            }
        )
    return lines


def with_error(value: float, error: float) -> str:
    return f"{value:.3g}" + (f" ± {error:.1g}" if error else "")


def margin(row: Row) -> str:
    """In standard errors; "exact" where there is no error but rounding."""
    exact = not (row.lhs_error or row.rhs_error) or math.isinf(row.margin)
    if exact and row.holds:
        return "exact"
    if abs(row.margin) > 999:
        return ">999" if row.margin > 0 else "<-999"
    return f"{row.margin:+.1f}"


def print_table(title: str, columns: dict[str, dict], lines: list[tuple]) -> None:
    """A table on the terminal. A line of one cell is a heading; a last cell "!" prints it red."""
    table = Table(title=title, title_justify="left")
    for name, how in columns.items():
        table.add_column(name, **how)
    for *cells, mark in lines:
        if mark == "heading":
            table.add_section()
        style = {"heading": "bold", "!": "red"}.get(mark)
        table.add_row(*(str(c) for c in cells), style=style)
    Console(width=None if sys.stdout.isatty() else 150).print(table, markup=True)


def show(rows: list[Row]) -> None:
    right, text = {"justify": "right"}, {"overflow": "fold"}
    columns = {
        "statement": text | {"ratio": 5},
        "holds": right,
        "fails": right,
        "n/a": right,
        "worst case": text | {"ratio": 4},
        "lhs": right | {"ratio": 2},
        "rhs": right | {"ratio": 2},
        "margin": right,
    }
    lines: list[tuple] = []
    for kind in KINDS:
        mine = [line for line in summary(rows) if line["kind"] == kind]
        if mine:
            meaning = ": both sides from one computation, no evidence" if kind == "identity" else ""
            lines.append((f"{kind}{meaning}", "heading"))
        lines += [_cells(line) for line in mine]
    print_table(TITLE, columns, lines)
    _report_claims(rows)


def _cells(line: dict) -> tuple:
    """One statement's cells, and "!" where something proved failed."""
    w = line["worst"]
    if w is None:
        sides = (f"not applicable: {line['why']}", "", "", "")
    else:
        both = (with_error(w.lhs, w.lhs_error), with_error(w.rhs, w.rhs_error))
        sides = (f"{w.condition}, seed {w.seed}", *both, margin(w))
    counts = (line[k] for k in ("holds", "fails", "not applicable"))
    bug = line["kind"] in ("proved", "identity") and line["fails"]
    return f"{line['label']}: {line['statement']}", *counts, *sides, "!" if bug else ""


def _report_claims(rows: list[Row]) -> None:
    """Say in words which claims and expectations did not hold: results, not failures."""
    for kind, words in (
        ("claim of the paper", "the paper's claim"),
        ("observation", "the expectation"),
    ):
        for line in summary([r for r in rows if r.kind == kind]):
            total = line["holds"] + line["fails"]
            if line["fails"]:
                w = line["worst"]
                print(
                    f"- {words} {line['statement']!r} does not hold in {line['fails']} of {total}"
                    f" cases; worst: {w.condition}, seed {w.seed}."
                )


def refuse_bugs(rows: list[Row], flags: str = "") -> None:
    """Raises RunFailure (exit 1) if a proved statement failed: the row, its seed and its command.

    `flags`: what the command needs besides, e.g. " --name mine".
    """
    told = [
        f"{r.label}: {r.statement} [{r.condition}, seed {r.seed}]: "
        f"{with_error(r.lhs, r.lhs_error)} {r.relation} {with_error(r.rhs, r.rhs_error)} fails by "
        f"{-r.margin:.1f} standard errors (limit {LIMIT:g}); reproduce: {r.command}{flags}"
        for r in rows
        if r.is_bug
    ]
    if told:
        raise RunFailure("a proved statement failed, which is a bug of ours\n" + "\n".join(told))
