"""What a comparison says beside the toy: claims with a verdict at both scales, own sentences.

The statistic and the sentences that both scales share are in toy2d/runs/sentences.py.
"""

import math
from collections.abc import Sequence

import numpy as np

from personalize.compare.frontier import trajectories
from personalize.compare.table import best, costs, times
from toy2d.runs.frontier import HEADLINE, Contrast, Trajectory, contrasts, in_words
from toy2d.runs.sentences import Records, Scale, drift_ratio
from toy2d.runs.statistics import (
    Ratio,
    by_objective,
    by_run,
    estimate,
    paired,
    positive_log,
    ratio,
)


def full_scale(metrics: dict, name: str) -> Scale:
    records = [r for r in metrics["runs"] if not r["stopped"]]
    groups = list(records[0]["moved_group"]) if records else []

    def at(record, group):
        found = record["moved_group"].get(group)
        return math.nan if found is None else found

    return Scale(
        name=name,
        records=records,
        best=best(metrics),
        lost="moved",
        learnt="unlearnt",
        unit="1 \u2212 cosine",
        conditions=groups,
        at=at,
    )


# ---- claims
PAPER, OURS = "the paper", "ours"
RIVALS = (  # claim, whose it is, (this objective, drifts less than this one)
    ("L2 drifts less than standard fine-tuning at equal adaptation", PAPER, ("l2", "standard")),
    ("L2 drifts less than prior preservation at equal adaptation", PAPER, ("l2", "prior")),
    ("Base-output preservation drifts less than L2 at equal adaptation", OURS, ("output", "l2")),
    ("Fisher weighting drifts less than plain L2 at equal adaptation", OURS, ("fisher", "l2")),
)
SPARED = "Prior preservation protects what it replays more than the rest"
CHEAPER = "L2 costs less time than prior preservation"
ONE_STACK = "unknown", "all objectives train as one stack: their times cannot be told apart"


def claims(toy: Scale, full: Scale, metrics: dict, along: Sequence[Trajectory] = ()) -> list[dict]:
    """Each claim with a (verdict, words) at both scales.

    `along`: the toy's runs along training. Where both scales have them, both are judged at equal
    learning, else each by what it has after the last step.
    """

    def claim(text, source, toy_says, full_says):
        return {"text": text, "source": source, "toy": toy_says, "full": full_says}

    measured = contrasts(trajectories(metrics), (HEADLINE,))
    of_toy = contrasts(along, (HEADLINE,)) if measured else {}

    def judged(scale, found, unit, rivals):
        return at_equal_learning(found, *rivals, unit) if found else drift_ratio(scale, *rivals)

    found = [
        claim(
            text,
            source,
            judged(toy, of_toy, "seed", rivals),
            judged(full, measured, "subject", rivals),
        )
        for text, source, rivals in RIVALS
    ]
    found.insert(2, claim(SPARED, PAPER, spared(toy), spared(full)))
    return [*found, claim(CHEAPER, PAPER, ONE_STACK, time_ratio(metrics))]


def at_equal_learning(
    found: dict[str, dict[float, Contrast]], ours: str, theirs: str, unit: str = "subject"
) -> tuple[str, str]:
    """(verdict, words): does `ours` drift less than `theirs` where both learnt the same?"""
    logs = {o: at[HEADLINE].by_unit for o, at in found.items()}
    mine = logs.get(ours, {})
    other = dict.fromkeys(mine, 0.0) if theirs == "standard" else logs.get(theirs, {})
    units = [u for u in mine if u in other]
    if not units:
        return "unknown", f"{ours} or {theirs} never learnt {HEADLINE:.0%} of standard's peak"
    ratio = Ratio(estimate(mine[u] - other[u] for u in units))
    return ratio.verdict, f"{ours} against {theirs}: \u00d7 {in_words(ratio, unit)}"


def spared(scale: Scale) -> tuple[str, str]:
    """Does prior preservation protect the condition that it replays more than the others?

    Compared are drift of prior over drift of standard, there and elsewhere.
    """
    runs = by_objective(scale.records)
    if "prior" not in runs or "standard" not in runs or len(scale.conditions) < 2:
        return "unknown", "not measured"
    same, standard = scale.best.get("prior") or runs["prior"][0], runs["standard"][0]
    own, *others = scale.conditions

    def log_share(record):
        logs = [positive_log(scale.at(record, c)) for c in (own, *others)]
        return logs[0] - float(np.mean(logs[1:]))

    found = Ratio(paired(same, standard, log_share))
    return (
        found.verdict,
        f"{same[0]['run']}, drift left on {own} over drift left elsewhere: \u00d7 {found}",
    )


def time_ratio(metrics: dict) -> tuple[str, str]:
    runs = {c["objective"]: by_run(metrics["runs"])[c["run"]] for c in costs(metrics)}
    if not {"l2", "prior"} <= runs.keys():
        return "unknown", "not measured"
    found = ratio(runs["l2"], runs["prior"], lambda r: r["total_seconds"])
    return found.verdict, f"seconds of l2 over prior, class images included: \u00d7 {found}"


# ---- sentences
READ = (  # group of prompts, what they are called, what the classifier reads
    ("class", "class", "class"),
    ("contexts", "context", "class"),
    ("contexts", "context", "scene"),
)


def right_sentence(metrics: dict) -> str:
    """What a classifier of the mini's world reads in pictures of class and context prompts.

    Standard against the base; empty where there is no classifier.
    """
    standard = by_run([r for r in metrics["runs"] if not r["stopped"]]).get("standard", [])
    say = []
    for group, prompts, word in READ:
        base, tuned = (right_share(standard, who, group, word) for who in ("base", "tuned"))
        if not math.isnan(base + tuned):
            say.append(
                f"the {word} is right in {base:.0%} of the base's pictures of {prompts} prompts, "
                f"in {tuned:.0%} after standard"
            )
    return f"Read by a classifier of this world: {'; '.join(say)}." if say else ""


def right_share(records: Records, who: str, group: str, word: str) -> float:
    return estimate([r["right"][who].get(group, {}).get(word) for r in records]).mean


def cost_sentence(metrics: dict) -> str:
    found = {c["objective"]: c for c in costs(metrics)}
    known = [c for c in found.values() if not math.isnan(c["times"])]
    if "standard" not in found or not known:
        return "Times as multiples of standard's were not measured."
    others = ", ".join(f"{o} {times(c)}" for o, c in found.items() if o != "standard")
    most = max(known, key=lambda c: c["times"])
    images = most["parts"]["class images"].mean / most["total"].mean
    return (
        f"At an equal budget of {metrics['steps']} steps standard takes "
        f"{found['standard']['total']} s; as multiples of it: {others or 'no other was run'}. "
        f"The most expensive is {most['objective']}, {images:.0%} of it for class images."
    )
