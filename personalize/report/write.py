"""`personalize report`: a toy run and a comparison side by side, row by row, on one self-contained page. Reads files only.

The same panels draw both scales, the same functions compare them; what differs is which number of a record stands for what.
"""

import json
import math
from functools import partial
from pathlib import Path

from personalize.compare.table import COLUMNS, common, costs, rows, times
from personalize.config.commands import Report
from personalize.data.photos import scan
from personalize.report import sentences as readings
from personalize.report.figures import figure, kept_pictures, strip
from personalize.report.page import render
from personalize.report.sentences import Scale
from toy2d.figures.drift import CHAIN, chain_panel, conditions_panel, tradeoff_panel, weights_panel
from toy2d.figures.samples import samples_panel
from toy2d.figures.style import STYLES
from toy2d.report import summary as toy_summary
from toy2d.runs.files import UserError, write_atomic
from toy2d.runs.folder import load_tensors
from toy2d.runs.statistics import by_objective, by_run, number, value

VERDICTS = {"supported": "supported", "contradicted": "contradicted", "undecided": "not decided", "unknown": "no answer"}  # fmt: skip
MARKS = {"o": "\u25cf", "s": "\u25a0", "^": "\u25b2", "D": "\u25c6", "v": "\u25bc", "P": "\u271a", "<": "\u25c0", ">": "\u25b6", "*": "\u2605"}  # fmt: skip
KINDS = {"subject": "the subject", "class": "its class", "contexts": "its class elsewhere", "unrelated": "something else"}  # fmt: skip
DEFINITIONS = (
    "Fidelity: cosine of DINO (CLIP) features with the subject's pictures; adherence: cosine of CLIP features of picture and prompt; diversity: mean "
    "perceptual distance within a prompt; drift: 1 \u2212 cosine of DINO features with the base's picture of the same prompt and seed, mean over class, context "
    "and unrelated prompts; path KL: an upper bound of KL(base || tuned) of the ancestral sampler; seconds: class images, preparing, training."
)


class Run:
    """A finished run folder's files. Raises UserError for what is none."""

    def __init__(self, path: Path | str, remedy: str):
        self.path = Path(path).expanduser()
        try:
            for name in ("metrics", "config", "env"):
                setattr(self, name, json.loads((self.path / f"{name}.json").read_text()))
        except (OSError, ValueError) as e:
            raise UserError(f"{self.path} is no finished run ({e}); make it with `{remedy}`") from e


def write(toy: Path | str, full: Path | str, out: Path | str | None = None) -> Path:
    """Write the page; returns its path (default: report.html in the comparison's folder). Raises UserError for a folder that is no such run."""
    toy, full = Run(toy, "toy2d course"), Run(full, "personalize compare")
    if "runs" not in full.metrics or "equal_fidelity" not in full.metrics:
        raise UserError(f"{full.path} is no comparison; make it with `personalize compare`")
    file = Path(out) if out else full.path / "report.html"
    write_atomic(file, render(**page(toy, full)))
    return file


def report(command: Report) -> None:
    """`personalize report`: write the page and say where it is."""
    print(f"report: {write(command.toy, command.full, command.out)}")


def page(toy: Run, full: Run) -> dict:
    """Every value that the template names."""
    name = "Mini model" if full.metrics["mini"] else Path(full.metrics["model"]).name
    small, large = readings.toy_scale(toy.metrics), readings.full_scale(full.metrics, name)
    found = readings.claims(small, large, full.metrics)
    return {
        "title": "Language drift, measured at two scales",
        "description": f"Drift of personalized diffusion models: the 2D toy beside {name}, objective by objective.",
        "lead": lead(found, name),
        "subtitle": subtitle(toy, full, name),
        "old_prompts": len(small.conditions),
        "names": {"toy": "Toy", "full": name},
        "adaptation": f"in the toy at most standard's KL; here at least {full.metrics['equal_fidelity']:.0%} of standard's gain in DINO fidelity",
        "claims": found,
        "verdict_words": VERDICTS,
        "legend_items": legend(small.records + large.records),
        "right": readings.right_sentence(full.metrics),
        **samples(toy, full, small, large),
        **curves(small, large),
        "say_drift": {"toy": [readings.drift_sentence(small)], "full": [readings.drift_sentence(large)]},
        "say_chain": {s: [readings.slope_sentence(scale), readings.distance_sentence(scale)] for s, scale in (("toy", small), ("full", large))},
        "say_sweep": {"toy": [readings.sweep_sentence(small)], "full": [readings.sweep_sentence(large)]},
        "say_cost": readings.cost_sentence(full.metrics),
        "toy_cost": toy_cost(toy),
        "costs": cost_rows(full.metrics),
        "table": full_table(full.metrics),
        "toy_table": dict(zip(("header", "rows"), toy_summary(toy.metrics), strict=True)),
        "definitions": DEFINITIONS,
        "made": [made("Toy", toy), made(name, full), *full.metrics["left_out"], *stopped(full.metrics)],
    }  # fmt: skip


# ---- words
def lead(found: list[dict], name: str) -> str:
    """How many claims each scale supports, and which ones measurement contradicts."""

    def count(scale: str, verdict: str) -> int:
        return sum(c[scale][0] == verdict for c in found)

    against = [(c["text"], n) for c in found for s, n in (("toy", "the toy"), ("full", name)) if c[s][0] == "contradicted"]  # fmt: skip
    words = (
        f"Of {len(found)} claims about how fine-tuning on a few examples changes the rest of a model, the toy supports {count('toy', 'supported')} and "
        f"{name} {count('full', 'supported')}; {count('toy', 'undecided')} and {count('full', 'undecided')} stay undecided. "
    )  # fmt: skip
    if not against:
        return words + "None is contradicted."
    return words + "Contradicted: " + "; ".join(f"\u201c{text}\u201d ({where})" for text, where in against) + "."  # fmt: skip


def subtitle(toy: Run, full: Run, name: str) -> str:
    seeds = sorted({r["seed"] for r in full.metrics["runs"]})
    return (
        f"Toy: {len(toy.metrics['runs'])} fine-tunings on {toy.config['shots']} points, seeds {', '.join(map(str, toy.config['seeds']))}. "
        f"{name}: {len(full.metrics['runs'])} fine-tunings of {full.metrics['steps']} steps on {', '.join(full.metrics['subjects'])}, "
        f"seeds {', '.join(map(str, seeds))}. The same file defines the objectives of both."
    )  # fmt: skip


def toy_cost(toy: Run) -> str:
    seconds = sum(r["seconds"] for r in toy.metrics["runs"])
    return f"In the toy all {len(toy.metrics['runs'])} runs train as one stack in {number(seconds)} s together; their times cannot be told apart."  # fmt: skip


def made(name: str, run: Run) -> str:
    env = run.env
    versions = ", ".join(f"{k} {v}" for k, v in env["versions"].items())
    dirty = " with uncommitted changes" if env["uncommitted_changes"] else ""
    return (
        f"{name}: {run.path.name}, commit {env['commit']}{dirty}; python {env['python']}, {versions}; {env['machine']}, {env['threads']} threads; "
        f"base weights {run.metrics['base_hash']}. Configuration in config.json, every number in metrics.json and history.csv."
    )  # fmt: skip


def stopped(metrics: dict) -> list[str]:
    return [f"Diverged and left out: {r['stopped']}." for r in metrics["runs"] if r["stopped"]]


def legend(records: list[dict]) -> list[dict]:
    names = [o for o in STYLES if o in by_objective(records)]
    return [
        {"name": o, "mark": MARKS[STYLES[o][1]], "colour": "inherit" if STYLES[o][0] == "#000000" else STYLES[o][0]}
        for o in names
    ]  # fmt: skip


# ---- curves
def panels(draw, small: Scale, large: Scale, what: str) -> dict:
    """One panel of each scale: `draw(ax, scale)`; an empty one where every run diverged."""

    def drawn(ax, scale):
        if scale.records:
            draw(ax, scale=scale)

    return {
        side: figure(partial(drawn, scale=scale), f"{scale.name}: {what}.")
        for side, scale in (("toy", small), ("full", large))
    }


def curves(small: Scale, large: Scale) -> dict:
    lost = {small.name: "KL(base || tuned), old classes (nats)", large.name: "drift: 1 \u2212 cosine with the base"}  # fmt: skip
    learnt = {small.name: "not learnt: KL(world || tuned), new class (nats)", large.name: "not learnt: 1 \u2212 DINO similarity"}  # fmt: skip

    def conditions(ax, scale):
        best = common([r for same in scale.best.values() for r in same])
        shown = {o: runs[0] for o, runs in by_objective(best).items()}
        conditions_panel(ax, shown, scale.conditions, scale.at)
        ax.set_ylabel(lost[scale.name])

    def link(ax, scale, step):
        keys = [*CHAIN[:-1], (scale.lost, lost[scale.name])]
        exact = step == 2 and scale.lost == "old_base"
        chain_panel(ax, scale.records, keys[step], keys[step + 1], (1, 2, 1)[step], exact)

    def weights(ax, scale, key):
        weights_panel(ax, common(scale.records), getattr(scale, key), (lost if key == "lost" else learnt)[scale.name])  # fmt: skip

    def tradeoff(ax, scale):
        tradeoff_panel(ax, common(scale.records), (scale.learnt, learnt[scale.name]), (scale.lost, lost[scale.name]))  # fmt: skip

    steps = ("output norm \u0394\u03b5 against parameter distance \u0394\u03b8", "path KL against \u0394\u03b5", "drift against path KL")  # fmt: skip
    return {
        "conditions": panels(conditions, small, large, "drift of each objective's best weight for every condition, on the subjects and seeds that all of them have, bars one standard error"),
        "chain": [panels(partial(link, step=i), small, large, f"{words}, one point a run, log-log") for i, words in enumerate(steps)],
        "sweep": [
            panels(partial(weights, key=key), small, large, f"{words} of every objective over its weight, on the subjects and seeds that every run has, band one standard error")
            for key, words in (("lost", "drift"), ("learnt", "what is not learnt"))
        ],
        "tradeoff": panels(tradeoff, small, large, "drift against what is not learnt, on the subjects and seeds that every run has, weights of an objective joined, bars one standard error"),
    }  # fmt: skip


# ---- samples
def samples(toy: Run, full: Run, small: Scale, large: Scale) -> dict:
    """Rows "base", "standard", ...: the toy's cloud beside the pictures of one subject and seed."""
    tensors = load_tensors(toy.path / "samples.safetensors")
    subject = next(iter(full.metrics["subjects"]))
    prompts = {g: p[0] for g, p in full.metrics["subjects"][subject]["prompts"].items()}
    runs = by_run([r for r in full.metrics["runs"] if r["subject"] == subject and not r["stopped"]])
    out = [sample_row("base", "the base model, before any training", cloud(tensors, "base"), strips(full, full.path / "base", prompts, "the base"))]  # fmt: skip
    for objective, weights in by_objective(large.records).items():
        run = large.best.get(objective, weights[0])[0]["run"]
        if run not in runs:  # it diverged on this subject
            continue
        mine = small.best.get(objective)
        key = mine[0]["run"] if mine else None
        record = runs[run][0]
        words = f"toy: {key or 'not run'}; here: {run}, subject {subject}, seed {record['seed']}" + _scores(record)  # fmt: skip
        out.append(sample_row(objective, words, key and cloud(tensors, key), strips(full, full.path / record["folder"] / "evaluation" / "tuned", prompts, run)))  # fmt: skip
    photos = shown(full, subject)
    truth = photos and cloud(tensors, "truth")
    return {"samples": out, "truth": truth, "shown_to_it": photos}


def sample_row(title: str, words: str, cloud: dict | None, strips: list[dict]) -> dict:
    return {"title": title, "words": words, "cloud": cloud, "strips": strips}


def _scores(record: dict) -> str:
    found = {"fidelity": record["dino"], "drift": record["moved"], "path KL": value(record, "path_kl")}  # fmt: skip
    known = [f"{k} {number(v)}" for k, v in found.items() if v is not None and not math.isnan(v)]
    return f" ({', '.join(known)})" if known else ""


def cloud(tensors: dict, key: str) -> dict:
    def draw(ax):
        samples_panel(ax, tensors, key)
        ax.tick_params(labelsize=7)

    return figure(draw, f"Toy: samples of every prompt, {key}.", size=(2.9, 2.8))


def strips(full: Run, folder: Path, prompts: dict[str, str], who: str) -> list[dict]:
    """One strip of pictures for the first prompt of every group."""
    kept, seeds, out = kept_pictures(folder), full.metrics["image_seeds"], []
    for group, prompt in prompts.items():
        files = [kept[prompt, s] for s in seeds if (prompt, s) in kept]
        if files:
            alt = f"{len(files)} pictures for \u201c{prompt}\u201d ({KINDS[group]}) by {who}"
            out.append(strip(files, f"{KINDS[group]}: \u201c{prompt}\u201d", alt))
    return out


def shown(full: Run, subject: str) -> dict | None:
    """The subject's own pictures, where they are drawings of ours: a shared page holds nobody's photos."""
    if not full.metrics["mini"]:
        return None
    folder = next(s["folder"] for s in full.config["subjects"] if s["name"] == subject)
    records = scan(folder, captions=False).records
    word = full.metrics["subjects"][subject]["class_word"]
    return strip([r.path for r in records], f"the subject, a {word}", f"{len(records)} pictures of the subject, a {word}")  # fmt: skip


# ---- tables
def full_table(metrics: dict) -> dict:
    return {
        "header": ["run", "runs", *COLUMNS],
        "rows": [{"cells": [r["run"], r["runs"], *r["cells"]], "best": r["best"]} for r in rows(metrics)],
    }  # fmt: skip


def cost_rows(metrics: dict) -> list[dict]:
    found = costs(metrics)
    most = max((c["total"].mean for c in found if c["total"].n), default=math.nan)
    out = []
    for c in found:
        parts = {p.split()[-1]: e.mean for p, e in c["parts"].items()}
        out.append({
            "objective": c["objective"],
            "parts": [str(e) for e in c["parts"].values()],
            "total": str(c["total"]),
            "times": times(c),
            "bar": [(p, round(100 * s / most, 2)) for p, s in parts.items() if s > 0 and most > 0],
            "bar_words": f"{c['objective']}: " + ", ".join(f"{p} {number(s)} s" for p, s in parts.items() if not math.isnan(s)),
        })  # fmt: skip
    return out
