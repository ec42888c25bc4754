"""Rows of samples: the toy's cloud of points beside the pictures of one subject and seed."""

import math
from pathlib import Path

from personalize.data.photos import scan
from personalize.report.figures import figure, kept_pictures, strip
from personalize.report.folders import FinishedRun
from toy2d.figures.samples import samples_panel
from toy2d.runs.folder import load_tensors
from toy2d.runs.sentences import Scale
from toy2d.runs.statistics import by_objective, number, value

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
    pictures = strips(full, full.path / "base", prompts, "the base")
    base = {"title": "", "words": "the base model, before any training", "strips": pictures}
    out = [sample_row("base", cloud(tensors, "base"), [base])]
    for objective, weights in by_objective(drawn(full, subject)).items():
        in_toy = small.best.get(objective)
        shown_runs = [weights[0], weights[-1]] if len(weights) > 1 else weights
        settings = [setting(full, same[0], prompts) for same in shown_runs]
        in_toy = in_toy and in_toy[0]["run"]
        out.append(sample_row(objective, in_toy and cloud(tensors, in_toy), settings, in_toy))
    photos = shown(full, subject)
    truth = photos and cloud(tensors, "truth")
    return {"samples": out, "truth": truth, "shown_to_it": photos}


def drawn(full: FinishedRun, subject: str) -> list[dict]:
    """The records of this subject whose pictures are there."""
    return [
        r
        for r in full.metrics["runs"]
        if r["subject"] == subject
        and not r["stopped"]
        and (full.path / r["folder"] / "evaluation" / "tuned").is_dir()
    ]


def setting(full: FinishedRun, record: dict, prompts: dict[str, str]) -> dict:
    """One run's pictures: its name, its scores, a strip for each group of prompts."""
    folder, run = full.path / record["folder"] / "evaluation" / "tuned", record["run"]
    words = f"subject {record['subject']}, seed {record['seed']}{scores(record)}"
    return {"title": run, "words": words, "strips": strips(full, folder, prompts, run)}


def sample_row(
    title: str, cloud: dict | None, settings: list[dict], in_toy: str | None = None
) -> dict:
    words = "" if title == "base" else f"toy: {in_toy or 'not run'}"
    if len(settings) > 1:
        words += "; a weak and a strong weight side by side"
    return {"title": title, "words": words, "cloud": cloud, "settings": settings}


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
