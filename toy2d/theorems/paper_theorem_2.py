"""The paper's Theorem 2 and Remark 3 as printed (lecture 7).

    Theorem 2: KL(p_star || p_theta) <= lam ||theta - theta_star||
    Remark 3:  lam ||theta - theta_star|| <= lam' ||theta - theta_star||^2

For one pair of models a constant always exists. What can be measured: which constant a *set* of
models needs, how unevenly it fits them, and where Remark 3 fails. It fails below the distance
lam / lam', where the KL is quadratic anyway (lecture 6b, Theorem 6.8).
"""

from dataclasses import dataclass

from toy2d.theorems.row import Row

LABEL = "paper_theorem_2"


@dataclass(frozen=True)
class Drift:
    """One fine-tuned model: its distance from the base and its KL(p_star || p_theta), nats.

    The KL is averaged over the old prompts; `distance` is ||theta - theta_star||, not squared.
    """

    run: str
    objective: str
    weight: float | None
    seed: int
    distance: float
    kl: float
    error: float = 0.0


def needed(drifts: list[Drift], power: int) -> tuple[float, Drift]:
    """(least constant with KL <= constant * distance^power on all, the model that needs it)."""
    moved = [d for d in drifts if d.distance > 0]
    if not moved:
        raise ValueError("needed: no model has moved")
    worst = max(moved, key=lambda d: d.kl / d.distance**power)
    return worst.kl / worst.distance**power, worst


def paper_theorem_2(drifts: list[Drift], near: list[Drift]) -> list[Row]:
    """Rows of Theorem 2 on trained models (`drifts`), of Remark 3 on models close to the base.

    `near`: models moved by small distances along one direction (the ladder of local_law).
    """
    rows, constants = [], {}
    for power, name in ((1, "lam ||delta theta||"), (2, "lam' ||delta theta||^2")):
        constants[power], _ = needed(drifts, power)
        rows += [_one_constant(drifts, power, name), *_standards_constant(drifts, power, name)]
    lam, lam2 = constants[1], constants[2]
    statement = "Remark 3: lam ||delta theta|| <= lam' ||delta theta||^2"
    for d in sorted(near, key=lambda d: d.distance):
        where = f"||delta theta|| = {d.distance:.3g} along {d.run}"
        sides = (lam * d.distance, lam2 * d.distance**2)
        note = (
            f"fails below lam / lam' = {lam / lam2:.3g}; there KL itself is {d.kl:.2g}, quadratic"
        )
        rows.append(
            Row(LABEL, statement, where, "claim of the paper", "<=", *sides, seed=d.seed, note=note)
        )
    return rows


def _one_constant(drifts: list[Drift], power: int, name: str) -> Row:
    constant, worst = needed(drifts, power)
    least = min(d.kl / d.distance**power for d in drifts if d.distance > 0)
    distance = name.split(" ", 1)[1]
    statement = f"one constant fits: max of KL / {distance} within twice its min"
    note = (
        f"KL <= {name} needs {constant:.3g} ({worst.run}, seed {worst.seed}); "
        f"the model that needs least needs {least:.2g}"
    )
    points = [(d.distance, d.kl, d.objective) for d in drifts]
    return Row(
        LABEL,
        statement,
        f"{len(drifts)} trained models",
        "observation",
        "<=",
        constant,
        2 * least,
        unit=f"nats / distance^{power}",
        note=note,
        curve={"power": power, "constant": constant, "points": points},
    )


def _standards_constant(drifts: list[Drift], power: int, name: str) -> list[Row]:
    """Does the constant that the standard runs need serve the others too?"""
    standard = [d for d in drifts if d.objective == "standard"]
    others = [d for d in drifts if d.objective != "standard"]
    if not standard or not others:
        return []
    learnt, _ = needed(standard, power)
    worst = max(others, key=lambda d: d.kl / d.distance**power)
    statement = f"KL <= {name}: the standard runs' constant serves the others"
    where = f"{worst.run}, worst of the others"
    sides = (worst.kl, learnt * worst.distance**power, worst.error, 0.0)
    note = f"constant {learnt:.3g}"
    return [Row(LABEL, statement, where, "observation", "<=", *sides, worst.seed, note=note)]
