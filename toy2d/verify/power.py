"""`toy2d verify --power`: how wrong must a constant be before the rows of a statement notice?

Two ladders, for every proved statement:
    w_t      all rows with a path weight are computed anew with a wrong w_t (`WRONG_WEIGHTS`)
    bound    the bounding side of every row is multiplied by a factor: 0.98 and further from 1
             (both ways for an equality)
A statement that no wrong constant breaks is weak evidence: its bound leaves that much room. One
whose sides are exactly zero has no constant: any drift at all breaks it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from toy2d.core.schedule import Schedule, Variance
from toy2d.theorems.row import Row
from toy2d.verify.course import Course
from toy2d.verify.parts import local_laws, path_bounds
from toy2d.verify.table import print_table

FACTORS = (0.98, 0.95, 0.9, 0.8, 0.5, 0.1, 0.01)


@dataclass(frozen=True, eq=False)
class WrongWeights(Schedule):
    """A schedule with the right sampler and wrong path weights."""

    change: Callable = lambda schedule, w: w

    def path_weights(self, variance: Variance = "beta"):
        return self.change(self, super().path_weights(variance))


def _times(factor: float) -> Callable:
    return lambda schedule, w: factor * w


def _alpha_for_alpha_bar(schedule: Schedule, w):
    """w_t with 1 - alpha_t where 1 - alpha_bar_t belongs."""
    beta, alpha, s2 = schedule.reverse_chain()
    return torch.cat([w[:1], beta[1:] / (2 * s2[1:] * alpha[1:])])


WRONG_WEIGHTS: dict[str, Callable] = {
    **{f"w_t x {f:g}": _times(f) for f in (0.98, 0.95, 0.9, 0.8, 0.5)},
    "-w_t": _times(-1.0),
    "alpha for alpha_bar": _alpha_for_alpha_bar,
    "w of the next node": lambda schedule, w: torch.cat([w[:1], w[2:], w[-1:]]),
}


def spoiled(c: Course, change: Callable) -> Course:
    """The same folder, seen with wrong weights; what does not depend on them is shared."""

    def spoil(schedule: Schedule) -> Schedule:
        return WrongWeights(schedule.alpha_bar, schedule.prediction, schedule.timesteps, change)

    return replace(c, spoil=spoil)


def weighted_rows(c: Course) -> list[Row]:
    """Every row that knows w_t: one seed's path bounds and local law."""
    return path_bounds(c) + local_laws(c, every_direction=False)


def power(c: Course, rows: list[Row], say: Callable[[str], None] = print) -> list[dict]:
    """One record a proved statement: which wrong weights and which factor of the bound it catches.

    `rows` are those of a complete verify; the wrong weights are tried on the first seed.
    """
    one = replace(c, seeds=c.seeds[:1])
    found: dict[str, dict] = {}
    for r in rows:
        if r.kind == "proved" and r.applies:
            found.setdefault(r.statement, {"label": r.label, "caught": [], "knows_w": False})
    right = {(r.statement, r.condition): (r.lhs, r.rhs) for r in weighted_rows(one)}
    for name, change in WRONG_WEIGHTS.items():
        say(f"trying {name}")
        for r in weighted_rows(spoiled(one, change)):
            if r.kind != "proved":
                continue
            record = found.setdefault(
                r.statement, {"label": r.label, "caught": [], "knows_w": False}
            )
            record["knows_w"] |= (r.lhs, r.rhs) != right.get((r.statement, r.condition))
            if r.is_bug and name not in record["caught"]:
                record["caught"].append(name)
    for statement, record in found.items():
        same = [r for r in rows if r.statement == statement and r.kind == "proved" and r.applies]
        record["factor"] = smallest_factor(same)
        record["zero"] = bool(same) and all(r.relation == "==" and r.rhs == 0 for r in same)
    return [{"statement": s} | record for s, record in found.items()]


def smallest_factor(rows: list[Row]) -> float | None:
    """The factor nearest to 1 whose product with the bounding side breaks some row; None: none."""
    return next((f for f in FACTORS if any(_breaks(r, f) for r in rows)), None)


def _breaks(row: Row, factor: float) -> bool:
    if row.relation == "<=":
        wrong = [replace(row, rhs=row.rhs * factor, rhs_error=row.rhs_error * factor)]
    elif row.relation == ">=":
        wrong = [replace(row, lhs=row.lhs * factor, lhs_error=row.lhs_error * factor)]
    else:
        wrong = [replace(row, rhs=row.rhs * f) for f in (factor, 1 / factor)]
    return any(w.holds is False for w in wrong)


def show_power(records: list[dict]) -> None:
    """The table of `verify --power`."""
    right = {"justify": "right"}
    columns = {
        "proved statement": {"ratio": 5, "overflow": "fold"},
        "bound x": right,
        "nearest w_t x": right,
        "other wrong weights": {"ratio": 3, "overflow": "fold"},
    }
    lines = []
    for r in records:
        scaled = [n.split("x ")[1] for n in r["caught"] if n.startswith("w_t x")]
        others = [n for n in r["caught"] if not n.startswith("w_t x")]
        factor = "nothing" if r["factor"] is None else f"{r['factor']:g}"
        factor = "exact zero" if r["zero"] else factor
        weight = scaled[0] if scaled else "nothing"
        if not r["knows_w"]:
            weight, others = "no w_t", []
        lines.append((f"{r['label']}: {r['statement']}", factor, weight, ", ".join(others), ""))
    print_table("the wrong constant nearest to the right one that some row catches", columns, lines)
