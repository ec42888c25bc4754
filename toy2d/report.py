"""Write report.html: one self-contained page with the sentences, the table and the figures."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from toy2d.figures.frontier import toy_trajectories
from toy2d.runs.files import read_csv, write_atomic
from toy2d.runs.frontier import HEADLINE, Trajectory, contrasts
from toy2d.runs.statistics import Median, by_objective, number, value
from toy2d.sentences import median, median_range, readings

TEMPLATE = Path(__file__).with_name("report.html.j2")

# the authors' scripts as published, seed 42, one run each: delta theta, E delta eps^2 on the old
# classes, and KL(true Gaussian || moment fit) of the old classes (mean, worst) and of the new one
REFERENCE = {
    "standard": ("naive", 11.4, 1.87, 7.44, 9.80, 0.011),
    "prior:100": ("prior (real class 0, weight 100)", 12.6, 1.62, 6.45, 13.7, 0.009),
    "l2_tensor_mean:5": ("L2, 5", 1.5, 0.22, 0.65, 2.4, 0.004),
    "l2_tensor_mean:50": ("L2, 50", 1.1, 0.17, 0.62, 2.0, 0.008),
    "l2_tensor_mean:500": ("L2, 500", 0.9, 0.13, 0.53, 1.6, 0.065),
    "replay_all:1": ("replay all five classes, weight 1", 13.0, 0.0098, 0.006, 0.010, 0.003),
}
REFERENCE_NOTE = (
    "Theirs: the published scripts, seed 42, one run, KL of the true Gaussian to a moment fit of "
    "samples from a sampler with an infinite first step. Ours: clipped betas, KL of the "
    "probability-flow ODE's law, median over seeds. They are not the same quantity; the "
    "order is what can be compared."
)

COLUMNS = {
    "old classes, KL(base||tuned)": "old_base",
    "old classes, KL(world||tuned)": "old_truth",
    "new class, KL(world||tuned)": "kl_new",
    "path KL": "path_kl",
    "delta theta": "delta_theta",
    "delta eps": "delta_eps",
}


def summary(
    metrics: dict, limits: bool = True, trajectories: Sequence[Trajectory] = ()
) -> tuple[list[str], list[dict]]:
    """Header and rows of the table, one row a run at its last step: medians over seeds.

    `limits` adds intervals (`statistics.Median`). Best: the weights chosen at equal learning.
    """

    def show(same, key):
        return median_range(same, key) if limits else number(median(same, key))

    chosen = contrasts(trajectories).values()
    best = {run for at in chosen for run in at[HEADLINE].weights}
    rows = []
    for runs in by_objective(metrics["runs"]).values():
        for same in runs:
            run = same[0]["run"]
            cells = [run, *(show(same, key) for key in COLUMNS.values())]
            rows.append({"cells": cells, "best": run in best})
    return ["run", *COLUMNS], rows


def _reference(metrics: dict, config: dict) -> dict | None:
    """Our numbers beside the authors' toy, where the run is their setting."""
    runs = {r: [x for x in metrics["runs"] if x["run"] == r] for r in REFERENCE}
    if config["name"] != "paper" or not any(runs.values()):
        return None
    header = ["variant"]
    for name in ("delta theta", "E delta eps^2", "old KL, mean", "old KL, worst", "new KL"):
        header += [f"{name}: theirs", "ours"]
    rows = []
    for run, same in runs.items():
        if same:
            label, *theirs = REFERENCE[run]
            ours = [
                median_range(same, "delta_theta"),
                number(Median.of(value(r, "delta_eps") ** 2 for r in same).value),
                median_range(same, "old_truth"),
                number(Median.of(_worst_class(r) for r in same).value),
                median_range(same, "kl_new"),
            ]
            pairs = zip(map(number, theirs), ours, strict=True)
            rows.append([label, *(cell for pair in pairs for cell in pair)])
    return {"header": header, "rows": rows, "note": REFERENCE_NOTE}


def _worst_class(record: dict) -> float:
    """The largest KL(world || tuned) of an old class; NaN for a run that diverged."""
    kls = record["kl_truth"] or {"": [float("nan")]}
    return max(v[0] for name, v in kls.items() if name != "mixture")


def _table_note(metrics: dict, config: dict) -> str:
    covered = Median.of(range(len(config["seeds"]))).coverage
    return (
        f"After the last step: median over {len(config['seeds'])} seeds, in brackets the order "
        f"statistics that cover it with {covered:.0%}. Old classes: mean over classes. Of single "
        f"KLs, {_errors(metrics)}. Bold: the weights that the "
        "comparison at equal learning chose."
    )


def _errors(metrics: dict) -> str:
    """The stated errors of single KLs, in words: ODE + quadrature + rounding."""
    kls = [
        v[:2]
        for r in metrics["runs"]
        if not r["stopped"]
        for v in (r["kl_new"], *r["kl_truth"].values(), *r["kl_base"].values())
    ]
    if not kls:
        return "no run finished"
    errors = Median.of(error for _, error in kls).value
    worst = max((error / max(kl, 0.01) for kl, error in kls), default=0.0)
    return (
        f"the stated error (ODE, quadrature and rounding added) is {number(errors)} nat in the "
        f"median of {len(kls)} KLs, and at most {worst:.1%} of a KL above 0.01 nat"
    )


def _how_it_was_made(config: dict, env: dict, metrics: dict) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in env["versions"].items())
    changed = " with uncommitted changes" if env["uncommitted_changes"] else ""
    seeds = ", ".join(map(str, config["seeds"]))
    return (
        f"commit {env['commit']}{changed}; python {env['python']}, {versions}; {env['machine']}, "
        f"{env['threads']} threads; seeds {seeds}; base weights {metrics['base_hash']}. "
        "Configuration in config.json, every number in metrics.json and history.csv."
    )


def write(path: Path) -> Path:
    """Write `path`/report.html from the run's files; returns it."""
    path = Path(path)
    names = ("metrics", "config", "env", "figures/captions")
    metrics, config, env, captions = (
        json.loads((path / f"{name}.json").read_text()) for name in names
    )
    pictures = {stem: (path / "figures" / f"{stem}.png").read_bytes() for stem in captions}
    trajectories = toy_trajectories(metrics, read_csv(path / "history.csv"))
    header, table = summary(metrics, trajectories=trajectories)
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        TEMPLATE.read_text()
    )
    page = template.render(
        title=f"driftlab, toy: {config['name']}",
        subtitle=f"{len(metrics['runs'])} fine-tunings of {len(config['seeds'])} base models on "
        f"{config['shots']} points of a new class, {config['steps']} steps each. "
        "All KL in nats.",
        sentences=readings(metrics, trajectories),
        header=header,
        table=table,
        table_note=_table_note(metrics, config),
        figures=[
            {"caption": captions[stem], "data": base64.b64encode(png).decode()}
            for stem, png in pictures.items()
        ],
        reference=_reference(metrics, config),
        made=_how_it_was_made(config, env, metrics),
    )
    write_atomic(path / "report.html", page)
    return path / "report.html"
