"""What a run's numbers say, in sentences. If an order flips in the numbers, the sentence flips.

A group of runs is read as its geometric mean over seeds, with one-standard-error limits.
"""

from toy2d.runs.statistics import (
    best_at_equal_adaptation,
    by_objective,
    geometric,
    number,
    old_kl,
    value,
)

Runs = list[dict]  # one run's records, one a seed


def mean_of(same: Runs, key: str) -> float:
    """Geometric mean over seeds of `key` (see `statistics.value`)."""
    return geometric([value(r, key) for r in same])[0]


def spread(same: Runs, key: str) -> str:
    """ "mean (lower-upper)": geometric mean over seeds and its one-standard-error limits."""
    mean, low, high = geometric([value(r, key) for r in same])
    return number(mean) if mean != mean else f"{number(mean)} ({number(low)}\u2013{number(high)})"


def readings(metrics: dict) -> list[str]:
    """The sentences about a run, each decided by its numbers."""
    best = best_at_equal_adaptation(metrics["runs"])
    objectives = by_objective(metrics["runs"])
    base = geometric([old_kl(b, "kl_truth") for b in metrics["base"]])[0]
    say = [
        f"The base models are {number(base)} nats from the world on the old classes "
        "(mean over classes, geometric mean over seeds)."
    ]
    if "standard" in objectives:
        say += _standard(objectives, best)
    if metrics.get("groups") and "prior" in objectives and "standard" in objectives:
        say += contexts_reading(objectives["prior"], objectives["standard"][0], metrics)
    elif "prior" in best:
        say.append(_prior(best["prior"], metrics["replayed_class"]))
    if "l2" in objectives and len(objectives["l2"]) > 2:
        say.append(_is_monotone(objectives["l2"]))
    if stopped := [r["stopped"] for r in metrics["runs"] if r["stopped"]]:
        say.append(f"{len(stopped)} runs diverged and were stopped: " + "; ".join(stopped) + ".")
    return say


def _standard(objectives: dict[str, list[Runs]], best: dict[str, Runs]) -> list[str]:
    """What standard fine-tuning costs, and which objective costs less for the same."""
    standard = objectives["standard"][0]
    ranked = sorted(best, key=lambda o: mean_of(best[o], "old_base"))
    order = [f"{best[o][0]['run']} ({spread(best[o], 'old_base')} nats)" for o in ranked]
    say = [
        f"Standard fine-tuning brings the new class to {spread(standard, 'kl_new')} nats and moves "
        f"the old classes {spread(standard, 'old_base')} nats away from the base, although it "
        "never saw their prompts.",
        "At equal adaptation (new class learnt at least as well as by standard), the old classes "
        f"drift least with {', then '.join(order)}.",
    ]
    if missing := [o for o in objectives if o not in best]:
        say.append(
            f"No weight of {', '.join(missing)} learnt the new class as well as standard did."
        )
    return [*say, _distance_reading(objectives, standard)]


def _distance_reading(objectives: dict[str, list[Runs]], standard: Runs) -> str:
    """Does distance in theta order drift? A run that moved further yet drifted less says no."""
    others = [same for o, runs in objectives.items() if o != "standard" for same in runs]
    drift, distance = (mean_of(standard, key) for key in ("old_base", "delta_theta"))
    less = [same for same in others if mean_of(same, "old_base") < drift]
    further = [same for same in less if mean_of(same, "delta_theta") > distance]
    if not further:
        return "Here every run that drifted less than standard also moved theta less."
    far = max(further, key=lambda same: mean_of(same, "delta_theta"))
    return (
        f"Distance in theta does not rank drift: {', '.join(same[0]['run'] for same in further)} "
        f"moved theta further than standard ({number(mean_of(far, 'delta_theta'))} against "
        f"{number(distance)} for {far[0]['run']}) and drifted less "
        f"({number(mean_of(far, 'old_base'))} against {number(drift)} nats)."
    )


def _prior(same: Runs, replayed: str) -> str:
    """Does prior preservation keep the class that it replays, and the others?"""
    names = [n for n in same[0]["kl_base"] if n != "mixture"]
    drift = {n: geometric([r["kl_base"][n][0] for r in same])[0] for n in names}
    kept, others = drift[replayed], [v for n, v in drift.items() if n != replayed]
    if max(others) > 3 * kept:
        verdict = "keeps the class it replays and loses others"
    elif max(others) > kept:
        verdict = "keeps the other classes about as well as the one it replays"
    else:
        verdict = "keeps the others even better than the class it replays"
    return (
        f"{same[0]['run']} {verdict}: {number(kept)} nats on {replayed}, "
        f"{number(min(others))} to {number(max(others))} on the others."
    )


def contexts_reading(prior: list[Runs], standard: Runs, metrics: dict) -> list[str]:
    """Does prior preservation keep the class but lose its contexts?

    Weight 1 (DreamBooth's) is read if it was run, else the first.
    """
    same = next((runs for runs in prior if runs[0]["weight"] == 1), prior[0])
    groups = list(metrics["groups"])
    kept = {g: _share_of_drift(same, standard, g) for g in groups}
    parts = []
    for g in groups:
        drift = geometric([r["kl_base_group"][g][0] for r in same])[0]
        mean, low, high = kept[g]
        parts.append(
            f"{g} {number(drift)} nats, {mean:.0%} ({low:.0%}\u2013{high:.0%}) of standard's"
        )
    own, context = (kept[g] for g in groups[:2])
    if context[1] > 1:
        verdict = "It keeps the class and loses its contexts"
    elif context[0] > 0.5:
        verdict = "It keeps the class but hardly protects its contexts"
    elif context[1] > own[2]:
        verdict = "It protects the contexts less than the class, but does not lose them"
    else:
        verdict = "It does not lose the contexts to keep the class"
    return [
        f"{same[0]['run']}, which replays {metrics['replayed_class']!r} only, leaves of the drift "
        f"KL(base || tuned): {'; '.join(parts)}.",
        f"{verdict}: {context[0]:.0%} of standard's drift is left on its contexts, {own[0]:.0%} on "
        "the class alone.",
        _composition(same, standard, metrics["replayed_class"]),
    ]


def _share_of_drift(same: Runs, standard: Runs, group: str) -> tuple[float, float, float]:
    """The group's drift over standard's, seed by seed: geometric mean and its limits."""
    pairs = zip(same, standard, strict=True)
    return geometric(
        [a["kl_base_group"][group][0] / b["kl_base_group"][group][0] for a, b in pairs]
    )


def _composition(same: Runs, standard: Runs, replayed: str) -> str:
    """The new word in contexts never seen with it, and the modes that the class keeps."""

    def composed(record):
        triples = record["kl_composed"].values()
        return sum(v[0] for v in triples) / len(triples)

    ours, theirs = (geometric([composed(r) for r in runs])[0] for runs in (same, standard))
    modes = [sum(r["coverage"][replayed] for r in runs) / len(runs) for runs in (same, standard)]
    return (
        f"In contexts never seen with the new word it is {number(ours)} nats from the world "
        f"(standard {number(theirs)}): "
        f"{'composition is far from learnt' if ours > 1 else 'composition holds'}. The class keeps "
        f"{modes[0]:.0%} of its modes (standard {modes[1]:.0%})."
    )


def _is_monotone(runs: list[Runs]) -> str:
    """Does KL(world || tuned) fall at every step up in lambda?"""
    levels = [mean_of(same, "old_truth") for same in runs]
    rises = [i for i in range(1, len(levels)) if levels[i] > levels[i - 1]]
    if not rises:
        return "KL(world || tuned) of the old classes falls at every step up in lambda of l2."
    weights = [same[0]["weight"] for same in runs]
    where = ", ".join(f"{weights[i - 1]:g} to {weights[i]:g}" for i in rises)
    return (
        "KL(world || tuned) of the old classes is not monotone in lambda of l2: "
        f"it rises from {where}."
    )
