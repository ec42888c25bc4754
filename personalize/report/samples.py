"""Rows of samples: the toy's cloud of points beside the pictures of one subject and seed."""

import math
from pathlib import Path

from personalize.data.photos import scan
from personalize.report.figures import figure, kept_pictures, strip
from personalize.report.folders import FinishedRun
from toy2d.figures.samples import samples_panel
from toy2d.runs.folder import load_tensors
from toy2d.runs.sentences import Scale
from toy2d.runs.statistics import by_objective, by_run, number, value

GROUPS = {  # of prompts, in a reader's words
    "subject": "the subject",
    "class": "its class",
    "contexts": "its class elsewhere",
    "unrelated": "something else",
}


def samples(toy: FinishedRun, full: FinishedRun, small: Scale, large: Scale) -> dict:
    """Rows "base", "standard", ...; and what was shown to the models."""
    tensors = load_tensors(toy.path / "samples.safetensors")
    subject = next(iter(full.metrics["subjects"]))
    prompts = {g: p[0] for g, p in full.metrics["subjects"][subject]["prompts"].items()}
    runs = by_run([r for r in full.metrics["runs"] if r["subject"] == subject and not r["stopped"]])
    pictures = strips(full, full.path / "base", prompts, "the base")
    words = "the base model, before any training"
    out = [sample_row("base", words, cloud(tensors, "base"), pictures)]
    for objective, weights in by_objective(large.records).items():
        run = large.best.get(objective, weights[0])[0]["run"]
        if run not in runs:  # it diverged on this subject
            continue
        in_toy = small.best.get(objective)
        toy_run, record = in_toy and in_toy[0]["run"], runs[run][0]
        words = (
            f"toy: {toy_run or 'not run'}; here: {run}, subject {subject}, seed {record['seed']}"
            f"{scores(record)}"
        )
        pictures = strips(full, full.path / record["folder"] / "evaluation" / "tuned", prompts, run)
        out.append(sample_row(objective, words, toy_run and cloud(tensors, toy_run), pictures))
    photos = shown(full, subject)
    truth = photos and cloud(tensors, "truth")
    return {"samples": out, "truth": truth, "shown_to_it": photos}


def sample_row(title: str, words: str, cloud: dict | None, strips: list[dict]) -> dict:
    return {"title": title, "words": words, "cloud": cloud, "strips": strips}


def scores(record: dict) -> str:
    found = {
        "fidelity": record["dino"],
        "drift": record["moved"],
        "path KL": value(record, "path_kl"),
    }
    known = [f"{k} {number(v)}" for k, v in found.items() if v is not None and not math.isnan(v)]
    return f" ({', '.join(known)})" if known else ""


def cloud(tensors: dict, key: str) -> dict:
    def draw(ax):
        samples_panel(ax, tensors, key)
        ax.tick_params(labelsize=7)

    return figure(draw, f"Toy: samples of every prompt, {key}.", size=(2.9, 2.8))


def strips(full: FinishedRun, folder: Path, prompts: dict[str, str], who: str) -> list[dict]:
    """One strip of pictures for the first prompt of every group."""
    kept, seeds, out = kept_pictures(folder), full.metrics["image_seeds"], []
    for group, prompt in prompts.items():
        files = [kept[prompt, s] for s in seeds if (prompt, s) in kept]
        if files:
            alt = f"{len(files)} pictures for \u201c{prompt}\u201d ({GROUPS[group]}) by {who}"
            out.append(strip(files, f"{GROUPS[group]}: \u201c{prompt}\u201d", alt))
    return out


def shown(full: FinishedRun, subject: str) -> dict | None:
    """The subject's own pictures, only if they ship with the mini.

    A page that is passed on shows nobody's photos.
    """
    if not full.metrics["mini"]:
        return None
    folder = next(s["folder"] for s in full.config["subjects"] if s["name"] == subject)
    records = scan(folder, captions=False).records
    word = full.metrics["subjects"][subject]["class_word"]
    alt = f"{len(records)} pictures of the subject, a {word}"
    return strip([r.path for r in records], f"the subject, a {word}", alt)
