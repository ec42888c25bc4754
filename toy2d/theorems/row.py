"""One line of evidence: both sides of a statement, their errors, and whether the statement held."""

import math
from dataclasses import asdict, dataclass, field
from typing import Literal

Kind = Literal["proved", "identity", "claim of the paper", "observation"]
Relation = Literal["<=", ">=", "=="]
# Of some 400 rows, chance alone breaks a tight inequality once in 80 runs of `toy2d verify`.
LIMIT = 4.0  # standard errors


@dataclass(frozen=True)
class Row:
    """`lhs relation rhs`, each side with its standard error (nats unless `unit` says otherwise).

    kind "proved": a failure beyond the errors is a bug of ours.
    kind "identity": both sides come from one computation, so the row documents a size and a
        failure could only come from rounding or a broken program. It is no evidence.
    kind "claim of the paper": a failure is a result. kind "observation": neither.
    `applies` = False: the statement says nothing here, `note` says why, and `holds` is None.
    `rounding` is a relative tolerance for floating point, added to the errors.
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
        """Standard errors to the wrong side (negative: on it); None where it does not apply."""
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
        """True also for a negative margin within LIMIT: the data do not contradict it."""
        return None if self.margin is None else self.margin >= -LIMIT

    @property
    def is_bug(self) -> bool:
        return self.kind in ("proved", "identity") and self.holds is False

    @property
    def command(self) -> str:
        return f"toy2d verify --only {self.label} --seeds {self.seed}"

    def as_dict(self) -> dict:
        """For JSON: an infinite margin and a side that does not apply are None."""

        def number(x):
            return x if x is not None and math.isfinite(x) else None

        sides = {k: number(getattr(self, k)) for k in ("lhs", "rhs", "lhs_error", "rhs_error")}
        verdict = {"margin": number(self.margin), "holds": self.holds, "command": self.command}
        return asdict(self) | sides | verdict


def not_applicable(
    label: str, statement: str, condition: str, kind: Kind, why: str, seed: int = 0
) -> Row:
    """A statement whose condition is not met, with the reason."""
    nothing = (math.nan,) * 4
    return Row(
        label, statement, condition, kind, "<=", *nothing, seed=seed, note=why, applies=False
    )
