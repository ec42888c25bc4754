"""The page and the tables of a study: verdicts, scores of every arm, pictures. Reads files only."""

import math
import sys
from pathlib import Path

from rich.console import Console

from personalize.compare.table import table_of
from personalize.report.figures import figure, kept_pictures, strip
from personalize.report.page import render
from personalize.study.conclusions import VERDICTS
from personalize.study.scores import MEANINGS, SCORES
from toy2d.runs.statistics import Estimate, estimate, number, value

TITLES = {
    "regimes": "Overfit, balanced, underfit: the report's regimes again",
    "face_and_toy": "A face and a toy, resumed to 1,200 steps",
}
UNITS = {"regimes": "subject and seed", "face_and_toy": "seed"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
HEADER = ("arm", "runs", *(title for title, _ in SCORES.values()))


def page(path: Path, metrics: dict) -> str:
    return render(
        "study.html.j2",
        title=TITLES[metrics["study"]],
        lead=lead(metrics["conclusions"]),
        subtitle=subtitle(metrics),
        unit=UNITS[metrics["study"]],
        conclusions=metrics["conclusions"],
        verdict_words=VERDICTS,
        scale=scale(metrics),
        settings={"header": SETTINGS, "rows": settings_rows(metrics)},
        scores=score_table(metrics),
        meanings=MEANINGS,
        sentences=sentences(metrics),
        curves=figure(
            lambda ax: gains(ax, metrics),
            "gain on held-out pictures against the step, one line a run, one colour an arm",
            "Gain on held-out pictures (nats) against the step; one line a run.",
        ),
        rows=pictures(path, metrics),
        made=[made(path, metrics), *metrics["left_out"], *stopped(metrics)],
    )


# ---- words
def lead(conclusions: list[dict]) -> str:
    """How many of the report's conclusions hold here."""
    theirs = [c["verdict"] for c in conclusions if c["source"] != "ours"]
    counts = {words: theirs.count(v) for v, words in VERDICTS.items()}
    said = ", ".join(f"{n} {words}" for words, n in counts.items() if n)
    return f"{len(theirs)} conclusions of a student report on DreamBooth, tried again: {said}."


def subtitle(metrics: dict) -> str:
    of = {r["subject"]: metrics["subjects"][r["subject"]]["class_word"] for r in metrics["runs"]}
    named = ", ".join(f"{s} (a {word})" for s, word in of.items())
    seeds = ", ".join(str(s) for s in sorted({r["seed"] for r in metrics["runs"]}))
    return f"{len(metrics['runs'])} runs on {metrics['model']}: {named}; seeds {seeds}."


def scale(metrics: dict) -> str:
    steps, rate = metrics["scales"]
    if (steps, rate) == (1, 1):
        return "Steps, class images and learning rates are the report's."
    return (
        f"One step or class image stands for {steps:g} of the report's, and its learning rates are "
        f"multiplied by {rate:g}. The names of the arms keep the report's steps."
    )


def sentences(metrics: dict) -> list[str]:
    """How near a new picture of each subject is to a training picture: what is no copy."""
    return [
        f"New pictures of {name} have a memorization of {number(about['memorization_of_new'])}: "
        "more than that would be a copy."
        for name, about in metrics["subjects"].items()
        if about["memorization_of_new"] is not None
    ]


def made(path: Path, metrics: dict) -> str:
    judges = ", ".join(f"{k}: {v}" for k, v in metrics["evaluators"].items())
    return f"Every number: {path.name}/metrics.json. Judges: {judges}."


def stopped(metrics: dict) -> list[str]:
    return [f"Diverged and left out: {r['stopped']}." for r in metrics["runs"] if r["stopped"]]


# ---- tables
SETTINGS = ("arm", "goes on from", "steps", "rate", "objective", "class images", "text encoder")


def settings_rows(metrics: dict) -> list[dict]:
    out = []
    for name, a in metrics["arms"].items():
        text = "trains" if a["text_encoder"] else "frozen"
        rate = f"{a['learning_rate']:g}, {a['schedule']}"
        cells = (name, a["after"] or "", a["steps"], rate, a["run"], a["class_images"], text)
        out.append({"cells": cells, "best": False})
    return out


def rows(metrics: dict) -> list[tuple[str, ...]]:
    """One row for the base on each subject, then one for each arm: its name, runs, SCORES."""
    ended = [r for r in metrics["runs"] if not r["stopped"]]
    out = []
    for subject in metrics["subjects"]:
        of = next((r["of_base"] for r in ended if r["subject"] == subject), {})
        cells = (str(estimate([of.get(k)])) for k in SCORES)
        out.append((f"the base on {subject}", "", *cells))
    for arm in metrics["arms"]:
        same = [r for r in ended if r["arm"] == arm]
        out.append((arm, str(len(same)), *(str(of_arm(same, k)) for k in SCORES)))
    return out


def of_arm(same: list[dict], key: str) -> Estimate:
    return estimate([value(r, key) for r in same])


def score_table(metrics: dict) -> dict:
    """A column for the base on each subject and for each arm, a row for each score."""
    found = rows(metrics)
    lines = zip(HEADER[1:], *(row[1:] for row in found), strict=True)
    header = ["score", *(row[0] for row in found)]
    return {"header": header, "rows": [{"cells": line, "best": False} for line in lines]}


def shown(metrics: dict, path: Path) -> None:
    """Print the table, the verdicts and where the page is."""
    console, found = Console(width=None if sys.stdout.isatty() else 140), score_table(metrics)
    title = f"{path.name}: mean \u00b1 95 % interval over runs"
    table = table_of(title, tuple(found["header"]))
    for row in found["rows"]:
        table.add_row(*row["cells"])
    console.print(table)
    for c in metrics["conclusions"]:
        print(f"{VERDICTS[c['verdict']]}: {c['text']} ({c['source']}). {c['words']}")
    print(f"as a page: {path / 'report.html'}")


# ---- pictures
def gains(ax, metrics: dict) -> None:
    for colour, arm in zip(COLOURS, metrics["arms"], strict=False):
        for i, r in enumerate(r for r in metrics["runs"] if r["arm"] == arm):
            known = [(row["step"], row["gain"]) for row in r["curve"] if "gain" in row]
            if known:
                ax.plot(*zip(*known, strict=True), color=colour, lw=1, label=None if i else arm)
    ax.set_xlabel("step")
    ax.set_ylabel("gain (nats)")
    if ax.lines:
        ax.legend(fontsize=7)


def pictures(path: Path, metrics: dict) -> list[dict]:
    """Strips of the subject's prompts, for each arm's first run on each subject."""
    out = []
    for arm in metrics["arms"]:
        for subject in metrics["subjects"]:
            same = [r for r in metrics["runs"] if (r["arm"], r["subject"]) == (arm, subject)]
            first = next((r for r in same if not r["stopped"]), None)
            if first:
                out.append(picture_row(path / arm / first["folder"], arm, first))
    return out


def picture_row(folder: Path, arm: str, record: dict) -> dict:
    kept = kept_pictures(folder / "evaluation" / "tuned")
    prompts: dict[str, list[Path]] = {}
    for (prompt, _), file in kept.items():
        prompts.setdefault(prompt, []).append(file)
    strips = [
        strip(
            files,
            f"\u201c{prompt}\u201d",
            f"{len(files)} pictures for \u201c{prompt}\u201d by {arm}",
        )
        for prompt, files in prompts.items()
        if len(files) > 1  # prompts without the subject have one
    ]
    known = ("clip_i", "clip_t", "memorization")
    values = {k: value(record, k) for k in known}
    words = ", ".join(f"{SCORES[k][0]} {number(v)}" for k, v in values.items() if not math.isnan(v))
    return {
        "title": f"{arm}, {record['subject']}",
        "words": f"seed {record['seed']}; {words}",
        "strips": strips,
    }
