"""The report's conclusions as contrasts of arms, and the verdict on each.

A contrast is a weighted sum of one score over arms that the conclusion says is above 0. It is taken
within each subject and seed; where the arms have other subjects, within each seed. Its interval is
Student's, 95 %, over those as if they were independent. A conclusion holds if every contrast's
interval is above 0, does not hold if one's is below, else these runs do not decide.
"""

import math
from itertools import pairwise
from typing import NamedTuple

from personalize.study.scores import SCORES
from toy2d.runs.statistics import Estimate, estimate, number, value

BASE, NEW = "the base", "new pictures"  # not arms: the base itself, and held-out pictures
CLOSE = 0.9  # "close to the base", "preserved": at least this share of the base's
VERDICTS = {
    "supported": "holds here",
    "contradicted": "does not hold here",
    "undecided": "undecided",
    "unknown": "not measured",
}


class Contrast(NamedTuple):
    score: str  # of SCORES
    weights: dict[str, float]  # arm, BASE or NEW -> its weight


class Conclusion(NamedTuple):
    text: str
    source: str  # section of the report, or "ours"
    contrasts: tuple[Contrast, ...]


def falling(score: str, *arms: str) -> tuple[Contrast, ...]:
    """Each arm has more of it than the next one."""
    return tuple(Contrast(score, {a: 1.0, b: -1.0}) for a, b in pairwise(arms))


def at_least_near(score: str, arm: str) -> tuple[Contrast, ...]:
    """The arm has at least CLOSE times what the base has."""
    return (Contrast(score, {arm: 1.0, BASE: -CLOSE}),)


def midway(score: str) -> Contrast:
    """Balanced lies above the middle of overfit and underfit."""
    return Contrast(score, {"balanced": 1.0, "overfit": -0.5, "underfit": -0.5})


UP = ("overfit", "balanced", "underfit")
DOWN = UP[::-1]
REGIMES = (
    Conclusion("Overfit has most identity, underfit least", "4.1", falling("clip_i", *UP)),
    Conclusion("The same by a classifier of the subjects", "ours", falling("subject_seen", *UP)),
    Conclusion("Underfit follows the prompt best, overfit least", "4.1", falling("clip_t", *DOWN)),
    Conclusion("The same by a classifier of the scenes", "ours", falling("scene_right", *DOWN)),
    Conclusion("Overfit is least diverse, underfit most", "4.1", falling("pairwise_clip", *UP)),
    Conclusion("The same by perceptual distance", "ours", falling("div", *DOWN)),
    Conclusion(
        "Balanced is the best trade-off: above the middle of the two others in identity and in "
        "adherence",
        "4.1",
        (midway("clip_i"), midway("clip_t")),
    ),
    Conclusion(
        "Balanced is less stable in identity than overfit",
        "4.1.1",
        falling("spread_subject", "balanced", "overfit"),
    ),
    Conclusion(
        "A lower learning rate underfits: with overfit's rate balanced has more identity",
        "4.1.1",
        falling("clip_i", "fast", "balanced"),
    ),
    Conclusion(
        "Class images cost identity", "4.1.1", falling("clip_i", "no-class-images", "balanced")
    ),
    Conclusion(
        "Class images keep the model near its base (language drift)",
        "3",
        falling("path_kl", "no-class-images", "balanced"),
    ),
    Conclusion(
        "Class images keep pictures diverse",
        "3",
        falling("pairwise_clip", "no-class-images", "balanced"),
    ),
    Conclusion(
        "Training the text encoder raises identity",
        "ours",
        falling("clip_i", "balanced", "frozen-text"),
    ),
    Conclusion(
        "Overfit copies: it is nearer to a training picture than balanced",
        "4.1",
        falling("memorization", "overfit", "balanced"),
    ),
)
TOY_END = "toy-1200-weight-0.5"
FACE_AND_TOY = (
    Conclusion(
        "After 300 steps on the face the context is right (90 % of the base's adherence)",
        "5.1",
        at_least_near("clip_t", "face-300"),
    ),
    Conclusion(
        "From 300 to 1,200 steps the face is learnt",
        "5.3",
        falling("clip_i", "face-1200", "face-300"),
    ),
    Conclusion(
        "The same by a classifier of the subjects",
        "ours",
        falling("subject_seen", "face-1200", "face-300"),
    ),
    Conclusion(
        "After 1,200 steps the face's adherence is near the base's (at least 90 %)",
        "5.5",
        at_least_near("clip_t", "face-1200"),
    ),
    Conclusion(
        "The face's diversity is preserved (at least 90 % of the base's)",
        "5.5",
        at_least_near("div", "face-1200"),
    ),
    Conclusion(
        "The toy, not there after 600 steps at weight 1, is learnt after 1,200 with weight 0.5",
        "6.2",
        falling("clip_i", TOY_END, "toy-600"),
    ),
    Conclusion(
        "It is the smaller weight that does it: more identity than 1,200 steps at weight 1",
        "6.2",
        falling("clip_i", TOY_END, "toy-1200-weight-1"),
    ),
    Conclusion(
        "The smaller weight lets the model drift further",
        "ours",
        falling("path_kl", TOY_END, "toy-1200-weight-1"),
    ),
    Conclusion(
        "The toy's adherence is near the base's (at least 90 %)",
        "6.4",
        at_least_near("clip_t", TOY_END),
    ),
    Conclusion(
        "The toy's diversity is higher than the face's", "6.5", falling("div", TOY_END, "face-1200")
    ),
    Conclusion(
        "The face reaches more identity than the toy",
        "6.5",
        falling("clip_i", "face-1200", TOY_END),
    ),
    Conclusion(
        "Nothing is copied: the face's pictures are less near to a training picture than new "
        "pictures of it are",
        "ours",
        falling("memorization", NEW, "face-1200"),
    ),
)
CONCLUSIONS = {"regimes": REGIMES, "face_and_toy": FACE_AND_TOY}


def verdicts(metrics: dict) -> list[dict]:
    """Each conclusion with its verdict and a computed sentence: text, source, verdict, words."""
    found = []
    for c in CONCLUSIONS[metrics["study"]]:
        measured = [(contrast, measure(contrast, metrics)) for contrast in c.contrasts]
        each = [judged(e) for _, e in measured]
        words = "; ".join(sentence(contrast, e) for contrast, e in measured)
        row = {"text": c.text, "source": c.source, "verdict": together(each), "words": words}
        found.append(row)
    return found


def measure(contrast: Contrast, metrics: dict) -> Estimate:
    """The contrast's mean over what its arms have in common."""
    records = [r for r in metrics["runs"] if not r["stopped"]]
    arms = {a: [r for r in records if r["arm"] == a] for a in contrast.weights if a not in NOT_ARMS}
    among = [r for same in arms.values() for r in same]
    for name, of_record in NOT_ARMS.items():
        if name in contrast.weights:
            arms[name] = [
                r | {contrast.score: of_record(r, contrast.score, metrics)} for r in among
            ]
    subjects = [{r["subject"] for r in same} for same in arms.values()]
    shared = bool(set.intersection(*subjects)) if subjects else False
    tables = {
        a: {(r["subject"] if shared else "", r["seed"]): value(r, contrast.score) for r in same}
        for a, same in arms.items()
    }
    both = set.intersection(*(set(t) for t in tables.values()))
    return estimate(
        sum(w * tables[a][k] for a, w in contrast.weights.items()) for k in sorted(both)
    )


NOT_ARMS = {
    BASE: lambda record, score, metrics: record["of_base"].get(score),
    NEW: lambda record, score, metrics: metrics["subjects"][record["subject"]][
        "memorization_of_new"
    ],
}


def judged(e: Estimate) -> str:
    """A verdict on "above 0"; one value decides nothing."""
    if math.isnan(e.mean):
        return "unknown"
    if math.isnan(e.half) or abs(e.mean) <= e.half:
        return "undecided"
    return "supported" if e.mean > 0 else "contradicted"


def together(each: list[str]) -> str:
    """Of a conclusion with several contrasts."""
    for verdict in ("contradicted", "unknown", "undecided"):
        if verdict in each:
            return verdict
    return "supported"


def sentence(contrast: Contrast, e: Estimate) -> str:
    """ "identity, CLIP-I: overfit - balanced = 0.03 +- 0.01 (n = 6)"."""
    title, (first, *rest) = SCORES[contrast.score][0], contrast.weights.items()
    terms = [first[0], *(f"\u2212 {times(-w)}{arm}" for arm, w in rest)]
    if not e.n:
        return f"{title}: {' '.join(terms)} was not measured"
    interval = "" if math.isnan(e.half) else f" \u00b1 {number(e.half)}"
    return f"{title}: {' '.join(terms)} = {number(e.mean)}{interval} (n = {e.n})"


def times(weight: float) -> str:
    return "" if weight == 1 else f"{weight:g} \u00d7 "
