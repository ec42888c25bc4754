"""`personalize report`: a toy run and a comparison side by side, on one self-contained page.

It reads files only. The same panels draw both scales and the same functions compare them; a Scale
says which number of a record means what.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from personalize.compare.frontier import trajectories
from personalize.compare.table import COLUMNS, costs, rows, times
from personalize.config.commands import Report
from personalize.report.curves import curves, legend
from personalize.report.folders import FinishedRun, open_both
from personalize.report.frontier import frontier, of_toy
from personalize.report.page import render
from personalize.report.samples import samples
from personalize.report.sentences import claims, cost_sentence, full_scale, right_sentence
from toy2d.report import summary as toy_summary
from toy2d.runs.files import write_atomic
from toy2d.runs.frontier import HEADLINE, Trajectory
from toy2d.runs.sentences import (
    distance_sentence,
    drift_sentence,
    slope_sentence,
    sweep_sentence,
    toy_scale,
)
from toy2d.runs.statistics import number

VERDICTS = {
    "supported": "supported",
    "contradicted": "contradicted",
    "undecided": "not decided",
    "unknown": "no answer",
}
DEFINITIONS = (
    "Fidelity: cosine of DINO (CLIP) features with the subject's pictures; adherence: cosine of "
    "CLIP features of picture and prompt; diversity: mean perceptual distance within a prompt; "
    "drift: 1 \u2212 cosine of DINO features with the base's picture of the same prompt and seed, "
    "mean over class, context and unrelated prompts; path KL: an upper bound of KL(base || tuned) "
    "of the ancestral sampler; seconds: class images, preparing, training."
)


def write(toy: Path | str, full: Path | str, out: Path | str | None = None) -> Path:
    """Write the page; returns its path (default: report.html in the comparison's folder).

    Raises UserError for a folder that is no finished run, or no comparison.
    """
    toy, full = open_both(toy, full)
    file = Path(out) if out else full.path / "report.html"
    write_atomic(file, render(**page(toy, full)))
    return file


def report(command: Report) -> None:
    """`personalize report`: write the page and say where it is."""
    print(f"report: {write(command.toy, command.full, command.out)}")


def page(toy: FinishedRun, full: FinishedRun) -> dict:
    """Every value that the template names."""
    name = "Mini model" if full.metrics["mini"] else Path(full.metrics["model"]).name
    small, large = toy_scale(toy.metrics), full_scale(full.metrics, name)
    along = of_toy(toy)
    found = claims(small, large, full.metrics, along)

    def say(*sentences):
        return {"toy": [s(small) for s in sentences], "full": [s(large) for s in sentences]}

    return {
        "title": "Language drift, measured at two scales",
        "description": "Drift of personalized diffusion models: the 2D toy beside "
        f"{name}, objective by objective.",
        "lead": lead(found, name, len(full.metrics["subjects"])),
        "subtitle": subtitle(toy, full, name),
        "old_prompts": len(small.conditions),
        "names": {"toy": "Toy", "full": name},
        "adaptation": adaptation(full.metrics, along),
        **frontier(along, full, name),
        "claims": found,
        "verdict_words": VERDICTS,
        "legend_items": legend(small.records + large.records),
        "right": right_sentence(full.metrics),
        **samples(toy, full, small, large),
        **curves(small, large),
        "say_drift": say(drift_sentence),
        "say_chain": say(slope_sentence, distance_sentence),
        "say_sweep": say(sweep_sentence),
        "say_cost": cost_sentence(full.metrics),
        "toy_cost": toy_cost(toy),
        "costs": cost_rows(full.metrics),
        "table": full_table(full.metrics),
        "toy_table": dict(zip(("header", "rows"), toy_summary(toy.metrics), strict=True)),
        "definitions": DEFINITIONS,
        "made": [
            made("Toy", toy),
            made(name, full),
            *full.metrics["left_out"],
            *stopped(full.metrics),
        ],
    }


# ---- words
LUCK = (
    "There the weight that drifts least is chosen and compared on the same runs: the more weights "
    "were tried, the smaller its drift looks by luck."
)


def adaptation(metrics: dict, along: Sequence[Trajectory]) -> str:
    """What "equal adaptation" means at each scale."""
    reached = f"where {HEADLINE:.0%} of what standard learns at its best is first reached"
    if trajectories(metrics) and along:
        return f"drift is compared {reached}, with a weight chosen on the other subjects or seeds."
    there = f"at least {metrics['equal_fidelity']:.0%} of standard's gain in DINO fidelity"
    if trajectories(metrics):
        there = reached
    return (
        "only weights that learnt the new thing as well as standard fine-tuning did are compared: "
        f"in the toy a KL on the new class of at most standard's; on the right {there}. {LUCK}"
    )


def lead(found: list[dict], name: str, subjects: int) -> str:
    """How many claims each scale supports, and which ones measurement contradicts."""

    def counted(scale: str) -> str:
        verdicts = [c[scale][0] for c in found]
        n = {words: verdicts.count(v) for v, words in VERDICTS.items()}
        return ", ".join(f"{k} {words}" for words, k in n.items() if k)

    against = [
        f"\u201c{c['text']}\u201d ({where})"
        for c in found
        for scale, where in (("toy", "the toy"), ("full", name))
        if c[scale][0] == "contradicted"
    ]
    words = (
        f"{len(found)} claims about how fine-tuning on a few examples changes the rest of a model. "
        f"In the toy: {counted('toy')}. On {name}: {counted('full')}. "
    )
    words += f"Contradicted: {'; '.join(against)}." if against else "None is contradicted."
    few = " One subject decides nothing: `personalize compare` without --quick takes six."
    return words + (few if subjects == 1 else "")


def subtitle(toy: FinishedRun, full: FinishedRun, name: str) -> str:
    seeds = sorted({r["seed"] for r in full.metrics["runs"]})
    return (
        f"Toy: {len(toy.metrics['runs'])} fine-tunings on {toy.config['shots']} points, "
        f"{numbered('seed', toy.config['seeds'])}. {name}: {len(full.metrics['runs'])} "
        f"fine-tunings of {full.metrics['steps']} steps on {', '.join(full.metrics['subjects'])}, "
        f"{numbered('seed', seeds)}. The same file defines the objectives of both."
    )


def numbered(word: str, values: list) -> str:
    """ "seed 0", "seeds 0, 1, 2"."""
    return f"{word}{'s' if len(values) > 1 else ''} {', '.join(map(str, values))}"


def toy_cost(toy: FinishedRun) -> str:
    seconds = sum(r["seconds"] for r in toy.metrics["runs"])
    return (
        f"In the toy all {len(toy.metrics['runs'])} runs train as one stack in {number(seconds)} s "
        "together; their times cannot be told apart."
    )


def made(name: str, run: FinishedRun) -> str:
    env = run.env
    versions = ", ".join(f"{k} {v}" for k, v in env["versions"].items())
    dirty = " with uncommitted changes" if env["uncommitted_changes"] else ""
    return (
        f"{name}: {run.path.name}, commit {env['commit']}{dirty}; python {env['python']}, "
        f"{versions}; {env['machine']}, {env['threads']} threads; base weights "
        f"{run.metrics['base_hash']}. Configuration in config.json, every number in metrics.json "
        "and history.csv."
    )


def stopped(metrics: dict) -> list[str]:
    return [f"Diverged and left out: {r['stopped']}." for r in metrics["runs"] if r["stopped"]]


# ---- tables
def full_table(metrics: dict) -> dict:
    return {
        "header": ["run", "runs", *COLUMNS],
        "rows": [
            {"cells": [r["run"], r["runs"], *r["cells"]], "best": r["best"]} for r in rows(metrics)
        ],
    }


def cost_rows(metrics: dict) -> list[dict]:
    found = costs(metrics)
    most = max((c["total"].mean for c in found if c["total"].n), default=math.nan)
    return [cost_row(c, most) for c in found]


def cost_row(cost: dict, most: float) -> dict:
    """`most`: the seconds that fill the whole width of a bar."""
    means = {p.split()[-1]: e.mean for p, e in cost["parts"].items()}
    words = [f"{p} {number(s)} s" for p, s in means.items() if not math.isnan(s)]
    bar = [(p, round(100 * s / most, 2)) for p, s in means.items() if s > 0 and most > 0]
    return {
        "objective": cost["objective"],
        "parts": [str(e) for e in cost["parts"].values()],
        "total": str(cost["total"]),
        "times": times(cost),
        "bar": bar,
        "bar_words": f"{cost['objective']}: {', '.join(words)}",
    }
