"""What a run's numbers say, in sentences. If an order flips in the numbers, the sentence flips.

Levels are medians over seeds, with an interval that needs no law (`statistics.Median`). Objectives
are compared at equal learning, along training, within each seed (`runs/frontier.py`). What this
page says of distance and of sweeps over weights, the comparison's page says in the same words
(`runs/sentences.py`).
"""

import math
from collections.abc import Sequence
from statistics import mean, stdev

from toy2d.runs.frontier import HEADLINE, SHARES, Trajectory, contrasts
from toy2d.runs.sentences import distance_sentence, sweep_sentence, toy_scale
from toy2d.runs.statistics import (
    Median,
    by_objective,
    geometric,
    number,
    old_kl,
    proportion,
    value,
)

Runs = list[dict]  # one run's records, one a seed


def median(same: Runs, key: str) -> float:
    """Median over seeds of `key` (see `statistics.value`)."""
    return Median.of(value(r, key) for r in same).value


def median_range(same: Runs, key: str) -> str:
    """ "median (low-high)" over seeds."""
    return str(Median.of(value(r, key) for r in same))


TWO_LAWS = (
    "Path KL bounds the KL of the ancestral sampler's laws. The KLs here are of other laws, those "
    "of the probability-flow ODE, and may be larger (lecture 6)."
)


def readings(metrics: dict, trajectories: Sequence[Trajectory] = ()) -> list[str]:
    """The sentences about a run, each decided by its numbers.

    `trajectories`: what was measured along training (`figures.frontier.toy_trajectories`).
    """
    objectives = by_objective(metrics["runs"])
    base = Median.of(old_kl(b, "kl_truth") for b in metrics["base"])
    say = [
        f"The base models are {base} nats from the world on the old classes "
        "(mean over classes, median over seeds)."
    ]
    if "standard" in objectives:
        say += _standard(objectives["standard"][0], trajectories)
        say.append(distance_sentence(toy_scale(metrics)))
    if any(t.objective == "standard" for t in trajectories):
        say += equal_learning(trajectories)
    if metrics.get("groups") and "prior" in objectives and "standard" in objectives:
        say += contexts_reading(objectives["prior"], objectives["standard"][0], metrics)
    elif "prior" in objectives:
        say.append(_prior(objectives["prior"][-1], metrics["replayed_class"]))
    if any(len(weights) > 1 for weights in objectives.values()):
        say.append(sweep_sentence(toy_scale(metrics)))
    if "standard" in objectives:
        say.append(TWO_LAWS)
    say += _targets(objectives)
    if stopped := [r["stopped"] for r in metrics["runs"] if r["stopped"]]:
        say.append(f"{len(stopped)} runs diverged and were stopped: " + "; ".join(stopped) + ".")
    return say


def _targets(objectives: dict[str, list[Runs]]) -> list[str]:
    """How well each run with a target kept it, over seeds."""
    say = []
    for same in (same for runs in objectives.values() for same in runs):
        kept = [r["target"] for r in same if "target" in r]
        if kept:
            over = [t["overshoot"] for t in kept]
            seeds = "one seed"
            if len(over) > 1:
                error = stdev(over) / len(over) ** 0.5
                seeds = f"mean over {len(over)} seeds, standard error {error:.0%}; from "
                seeds += f"{min(over):+.0%} to {max(over):+.0%}"
            weights = sorted(t["weight"] for t in kept)
            say.append(
                f"{same[0]['run']} was allowed {kept[0]['path_kl']:g} nats of path KL and ended "
                f"{mean(over):+.0%} from it ({seeds}), with weights from "
                f"{weights[0]:.2g} to {weights[-1]:.2g}."
            )
    return say


def _standard(standard: Runs, trajectories: Sequence[Trajectory]) -> list[str]:
    """What standard fine-tuning does to the old classes, and where it learns the new one best."""
    new, old = (median_range(standard, key) for key in ("kl_new", "old_base"))
    say = (
        f"Standard fine-tuning ends with the new class at {new} nats and the old classes {old} "
        "nats away from the base, although it never saw their prompts."
    )
    own = [t for t in trajectories if t.objective == "standard"]
    if not own or len(own[0].step) < 3:
        return [say]
    peaks = [t.step[t.learnt.index(t.peak)] for t in own]
    early = sum(step < t.step[-1] for step, t in zip(peaks, own, strict=True))
    low, high = proportion(early, len(own))
    return [
        say,
        f"In {early} of {len(own)} seeds ({low:.0%}\u2013{high:.0%}) it overfits: the new class "
        f"was learnt best before the last step (at step {Median.of(peaks)} over all seeds). "
        "Objectives are compared at what standard learns at its best, not at its end.",
    ]


def equal_learning(trajectories: Sequence[Trajectory]) -> list[str]:
    """Drift of each objective against standard's where both have learnt as much."""
    found = contrasts(trajectories)
    order = sorted(found, key=lambda o: _ratio(found[o][HEADLINE]))
    say = [
        f"{o} ({', '.join(found[o][HEADLINE].weights)}): {found[o][HEADLINE].words('seed')}"
        for o in order
    ]
    along = []
    for o in order:
        ratios = [found[o][share].ratio.log.mean for share in SHARES]
        shown = [number(math.exp(r)) if r == r else "not reached" for r in ratios]
        along.append(f"{o} {', '.join(shown)}")
    levels = ", ".join(f"{share:.0%}" for share in SHARES)
    return [
        f"Where {HEADLINE:.0%} of standard's best is learnt, along training and within each seed, "
        f"the old classes' drift KL(base || tuned) compares so: {'; '.join(say)}.",
        f"The same ratio of drifts at {levels} of standard's best: {'; '.join(along)}.",
    ]


def _ratio(contrast) -> float:
    mean = contrast.ratio.log.mean
    return math.inf if math.isnan(mean) else mean


def _prior(same: Runs, replayed: str) -> str:
    """Does prior preservation keep the class that it replays, and the others?"""
    names = [n for n in same[0]["kl_base"] if n != "mixture"]
    drift = {n: Median.of(r["kl_base"][n][0] for r in same).value for n in names}
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
        drift = Median.of(r["kl_base_group"][g][0] for r in same).value
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

    ours, theirs = (Median.of(composed(r) for r in runs).value for runs in (same, standard))
    modes = [sum(r["coverage"][replayed] for r in runs) / len(runs) for runs in (same, standard)]
    return (
        f"In contexts never seen with the new word it is {number(ours)} nats from the world "
        f"(standard {number(theirs)}): "
        f"{'composition is far from learnt' if ours > 1 else 'composition holds'}. The class keeps "
        f"{modes[0]:.0%} of its modes (standard {modes[1]:.0%})."
    )
