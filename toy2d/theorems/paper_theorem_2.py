"""The paper's Theorem 2 as printed: KL(p_star || p_theta) <= lam ||theta - theta_star||, and Remark 3's lam ||.|| <= lam' ||.||^2.

For one pair a constant always exists, so what can be measured is which constant a *set* of models needs, how unevenly it fits them,
and where Remark 3 fails: below ||delta theta|| = lam / lam', where KL is quadratic anyway (local_law).
"""

from dataclasses import dataclass

from toy2d.theorems.row import Row

LABEL = "paper_theorem_2"


@dataclass(frozen=True)
class Drift:
    """One fine-tuned model: its run and seed, ||theta - theta_star||, KL(p_star || p_theta) averaged over the old prompts (nats)."""

    run: str
    objective: str
    weight: float | None
    seed: int
    distance: float
    kl: float
    error: float = 0.0


def needed(drifts: list[Drift], power: int) -> tuple[float, Drift]:
    """(the least constant with KL <= constant * distance^power on all of them, the model that needs it)."""
    moved = [d for d in drifts if d.distance > 0]
    if not moved:
        raise ValueError("needed: no model has moved")
    worst = max(moved, key=lambda d: d.kl / d.distance**power)
    return worst.kl / worst.distance**power, worst


def paper_theorem_2(drifts: list[Drift], near: list[Drift]) -> list[Row]:
    """`drifts`: trained models; `near`: models moved by small distances along one direction (the ladder of local_law)."""
    rows, constants = [], {}
    for power, name in ((1, "lam ||delta theta||"), (2, "lam' ||delta theta||^2")):
        constant, worst = needed(drifts, power)
        constants[power] = constant
        least = min(d.kl / d.distance**power for d in drifts if d.distance > 0)
        rows.append(
            Row(LABEL, f"one constant fits: max of KL / {name.split(' ', 1)[1]} within twice its min", f"{len(drifts)} trained models",
                "observation", "<=", constant, 2 * least, unit=f"nats / distance^{power}",
                note=f"KL <= {name} needs {constant:.3g} ({worst.run}, seed {worst.seed}); the model that needs least needs {least:.2g}",
                curve={"power": power, "constant": constant, "points": [(d.distance, d.kl, d.objective) for d in drifts]})
        )  # fmt: skip
        by_standard = [d for d in drifts if d.objective == "standard"]
        if by_standard:
            learnt, _ = needed(by_standard, power)
            others = [d for d in drifts if d.objective != "standard"]
            worst_other = max(others, key=lambda d: d.kl / d.distance**power, default=None)
            if worst_other:
                rows.append(
                    Row(LABEL, f"KL <= {name}: the standard runs' constant serves the others", f"{worst_other.run}, worst of the others",
                        "observation", "<=", worst_other.kl, learnt * worst_other.distance**power,
                        worst_other.error, 0.0, worst_other.seed, note=f"constant {learnt:.3g}")
                )  # fmt: skip
    lam, lam2 = constants[1], constants[2]
    for d in sorted(near, key=lambda d: d.distance):
        rows.append(
            Row(LABEL, "Remark 3: lam ||delta theta|| <= lam' ||delta theta||^2", f"||delta theta|| = {d.distance:.3g} along {d.run}",
                "claim of the paper", "<=", lam * d.distance, lam2 * d.distance**2, seed=d.seed,
                note=f"fails below lam / lam' = {lam / lam2:.3g}; there KL itself is {d.kl:.2g}, quadratic")
        )  # fmt: skip
    return rows
