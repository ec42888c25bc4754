"""One line of evidence: both sides of a statement, their errors, and whether it held."""

import math
from dataclasses import asdict, dataclass, field
from typing import Literal

Kind = Literal["proved", "claim of the paper", "observation"]
Relation = Literal["<=", ">=", "=="]
LIMIT = 4.0  # standard errors: of some 400 rows, chance alone breaks a tight inequality once in 80 runs of verify


@dataclass(frozen=True)
class Row:
    """`lhs relation rhs`, each with its standard error (nats unless `unit` says otherwise).

    kind "proved": a failure beyond the errors is a bug of ours; "claim of the paper": a failure is a result; "observation": neither.
    `applies` = False with a `note` that says why: the statement says nothing here, and `holds` is None.
    `rounding` is a relative tolerance for floating point, added to the errors where the two sides are equal in exact arithmetic.
    Raises ValueError for a side or an error that is not a number: a row never hides a NaN.
    """

    label: str  # of the lecture's theorem, the test file and `toy2d verify --only`
    statement: str
    condition: str  # which run, prompt, direction, ...
    kind: Kind
    relation: Relation
    lhs: float
    rhs: float
    lhs_error: float = 0.0
    rhs_error: float = 0.0
    seed: int = 0
    unit: str = "nats"
    note: str = ""
    applies: bool = True
    rounding: float = 1e-6
    curve: dict = field(default_factory=dict)  # what a figure needs beyond the two sides

    def __post_init__(self):
        for name in ("lhs", "rhs", "lhs_error", "rhs_error"):
            value = float(getattr(self, name))
            if not math.isfinite(value) and self.applies:
                raise ValueError(f"{self.label} ({self.condition}): {name} is {value}")
            object.__setattr__(self, name, value)

    @property
    def error(self) -> float:
        """Standard error of lhs - rhs, with the rounding of both."""
        round_off = self.rounding * max(abs(self.lhs), abs(self.rhs))
        return math.hypot(self.lhs_error, self.rhs_error, round_off)

    @property
    def margin(self) -> float | None:
        """How far on the right side, in standard errors (negative: on the wrong one); None where it does not apply."""
        if not self.applies:
            return None
        gap = {
            "<=": self.rhs - self.lhs,
            ">=": self.lhs - self.rhs,
            "==": -abs(self.rhs - self.lhs),
        }[self.relation]
        return gap / self.error if self.error else math.copysign(math.inf, gap) if gap else 0.0

    @property
    def holds(self) -> bool | None:
        """True also where the margin is negative but within LIMIT standard errors: the data do not contradict it."""
        return None if self.margin is None else self.margin >= -LIMIT

    @property
    def is_bug(self) -> bool:
        return self.kind == "proved" and self.holds is False

    @property
    def command(self) -> str:
        return f"toy2d verify --only {self.label} --seeds {self.seed}"

    def as_dict(self) -> dict:
        """JSON: infinite margins (no error at all) as None, sides that do not apply as None."""

        def number(x):
            return x if x is not None and math.isfinite(x) else None

        sides = {k: number(getattr(self, k)) for k in ("lhs", "rhs", "lhs_error", "rhs_error")}
        return asdict(self) | sides | {
            "margin": number(self.margin), "holds": self.holds, "command": self.command,
        }  # fmt: skip


def not_applicable(label: str, statement: str, condition: str, kind: Kind, why: str, seed: int = 0) -> Row:  # fmt: skip
    """A statement whose condition is not met, with the reason."""
    nan = math.nan
    return Row(label, statement, condition, kind, "<=", nan, nan, nan, nan, seed, note=why, applies=False)  # fmt: skip
