"""The closing table of `toy2d verify`: one line a statement, its worst row, and a failing proof printed with its command."""

import math
import sys

from rich.console import Console
from rich.table import Table

from toy2d.runs.files import RunFailure
from toy2d.theorems.row import LIMIT, Row


def summary(rows: list[Row]) -> list[dict]:
    """One line a statement: how often it held, how often it did not apply and why, and its worst row (smallest margin)."""
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
    return "exact" if exact and row.holds else ">999" if row.margin > 999 else f"{row.margin:+.1f}" if row.margin > -999 else "<-999"  # fmt: skip


def show(rows: list[Row]) -> None:
    table = Table(
        title="worst case of every statement; lhs and rhs with one standard error, margin in standard errors",
        title_justify="left",
    )
    for name, how in (
        ("statement", {"ratio": 5, "overflow": "fold"}),
        ("holds", {"justify": "right"}),
        ("fails", {"justify": "right"}),
        ("n/a", {"justify": "right"}),
        ("worst case", {"ratio": 4, "overflow": "fold"}),
        ("lhs", {"justify": "right", "ratio": 2}),
        ("rhs", {"justify": "right", "ratio": 2}),
        ("margin", {"justify": "right"}),
    ):
        table.add_column(name, **how)
    lines = summary(rows)
    for kind in ("proved", "claim of the paper", "observation"):
        mine = [line for line in lines if line["kind"] == kind]
        if mine:
            table.add_row(f"[bold]{kind}[/bold]", end_section=False)
        for line in mine:
            w = line["worst"]
            cells = (
                (f"not applicable: {line['why']}", "", "", "")
                if w is None
                else (f"{w.condition}, seed {w.seed}", with_error(w.lhs, w.lhs_error), with_error(w.rhs, w.rhs_error), margin(w))
            )  # fmt: skip
            style = "red" if kind == "proved" and line["fails"] else None
            counts = (str(line[k]) for k in ("holds", "fails", "not applicable"))
            table.add_row(f"{line['label']}: {line['statement']}", *counts, *cells, style=style)
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 150).print(table, markup=True)
    _report_claims(rows)


def _report_claims(rows: list[Row]) -> None:
    """Where something that is not proved does not hold: a result, said in words, never a failure."""
    for kind, words in (
        ("claim of the paper", "the paper's claim"),
        ("observation", "the expectation"),
    ):
        for line in summary([r for r in rows if r.kind == kind]):
            total = line["holds"] + line["fails"]
            if line["fails"]:
                w = line["worst"]
                print(f"- {words} {line['statement']!r} does not hold in {line['fails']} of {total} cases; worst: {w.condition}, seed {w.seed}.")  # fmt: skip


def refuse_bugs(rows: list[Row], flags: str = "") -> None:
    """Raises RunFailure (exit 1) with the row, the seed and the command that reproduces it, if a proved statement failed.

    `flags`: what the command needs besides, e.g. " --name mine".
    """
    bugs = [r for r in rows if r.is_bug]
    if bugs:
        told = [
            f"{r.label}: {r.statement} [{r.condition}, seed {r.seed}]: {with_error(r.lhs, r.lhs_error)} {r.relation} "
            f"{with_error(r.rhs, r.rhs_error)} fails by {-r.margin:.1f} standard errors (limit {LIMIT:g}); reproduce: {r.command}{flags}"
            for r in bugs
        ]
        raise RunFailure("a proved statement failed, which is a bug of ours\n" + "\n".join(told))
