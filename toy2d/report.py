"""report.html: one self-contained page with the table, the figures, and sentences computed from the numbers.

No sentence is fixed where a number could contradict it: if an ordering flips, the sentence flips.
"""

import base64
import json
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from toy2d.runs.files import write_atomic
from toy2d.runs.statistics import (
    best_at_equal_adaptation,
    by_objective,
    geometric,
    number,
    old_kl,
    value,
)

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title><style>
:root { color-scheme: light dark; --fg: #1b1f24; --bg: #fff; --soft: #57606a; --line: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6edf3; --bg: #0d1117; --soft: #9198a1; --line: #30363d; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--fg); background: var(--bg); max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.2rem; border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr.best td { font-weight: 600; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; background: #fff; border-radius: 4px; }
figcaption, .soft { color: var(--soft); font-size: .88rem; } li { margin: .35rem 0; }
</style></head><body>
<h1>{{ title }}</h1><p class="soft">{{ subtitle }}</p>
<h2>What the numbers say</h2><ul>{% for s in sentences %}<li>{{ s }}</li>{% endfor %}</ul>
<h2>Every run</h2>
<p class="soft">{{ table_note }}</p>
<div class="scroll"><table><thead><tr>{% for h in header %}<th>{{ h }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table %}<tr{% if row.best %} class="best"{% endif %}>{% for c in row.cells %}<td>{{ c }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>
<h2>Figures</h2>
{% for f in figures %}<figure><img alt="{{ f.caption }}" src="data:image/png;base64,{{ f.data }}"><figcaption>{{ f.caption }}</figcaption></figure>{% endfor %}
{% if reference %}<h2>Beside the authors' scripts</h2><p class="soft">{{ reference.note }}</p>
<div class="scroll"><table><thead><tr>{% for h in reference.header %}<th>{{ h }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in reference.rows %}<tr>{% for c in row %}<td>{{ c }}</td>{% endfor %}</tr>{% endfor %}</tbody></table></div>{% endif %}
<h2>How it was made</h2><p class="soft">{{ made }}</p>
</body></html>
"""

# theory.md section 5: the authors' scripts as published, seed 42, one run each; gKL = KL(true Gaussian || moment fit)
REFERENCE = {
    "standard": ("naive", 11.4, 1.87, 7.44, 9.80, 0.011),
    "prior:100": ("prior (real class 0, weight 100)", 12.6, 1.62, 6.45, 13.7, 0.009),
    "l2_tensor_mean:5": ("L2, 5", 1.5, 0.22, 0.65, 2.4, 0.004),
    "l2_tensor_mean:50": ("L2, 50", 1.1, 0.17, 0.62, 2.0, 0.008),
    "l2_tensor_mean:500": ("L2, 500", 0.9, 0.13, 0.53, 1.6, 0.065),
    "replay_all:1": ("replay all five classes, weight 1", 13.0, 0.0098, 0.006, 0.010, 0.003),
}


def spread(same: list[dict], key: str) -> str:
    """ "mean (lower-upper)": geometric mean over seeds and its one-standard-error limits."""
    mean, low, high = geometric([value(r, key) for r in same])
    return number(mean) if mean != mean else f"{number(mean)} ({number(low)}\u2013{number(high)})"


def readings(metrics: dict) -> list[str]:
    """The plain reading of the run, each sentence decided by the numbers."""
    best = best_at_equal_adaptation(metrics["runs"])
    objectives = by_objective(metrics["runs"])
    say = []
    base = [old_kl(b, "kl_truth") for b in metrics["base"]]
    say.append(
        f"The base models are {number(geometric(base)[0])} nats from the world on the old classes (mean over classes, geometric mean over seeds)."
    )
    if "standard" in objectives:
        standard = objectives["standard"][0]
        say.append(
            f"Standard fine-tuning brings the new class to {spread(standard, 'kl_new')} nats and moves the old classes "
            f"{spread(standard, 'old_base')} nats away from the base, although it never saw their prompts."
        )
        ranked = sorted(best, key=lambda o: geometric([value(r, "old_base") for r in best[o]])[0])
        say.append(
            "At equal adaptation (new class learnt at least as well as by standard), the old classes drift least with "
            + ", then ".join(
                f"{best[o][0]['run']} ({spread(best[o], 'old_base')} nats)" for o in ranked
            )
            + "."
        )
        missing = [o for o in objectives if o not in best]
        if missing:
            say.append(
                f"No weight of {', '.join(missing)} learnt the new class as well as standard did."
            )
        say.append(_distance_reading(objectives, standard))
    if metrics.get("groups") and "prior" in objectives and "standard" in objectives:
        say += _contexts_reading(objectives["prior"], objectives["standard"][0], metrics)
    elif "prior" in best:
        say.append(_prior_reading(best["prior"], metrics["replayed_class"]))
    if "l2" in objectives and len(objectives["l2"]) > 2:
        say.append(_monotone_reading(objectives["l2"]))
    stopped = [r["stopped"] for r in metrics["runs"] if r["stopped"]]
    if stopped:
        say.append(f"{len(stopped)} runs diverged and were stopped: " + "; ".join(stopped) + ".")
    return say


def _distance_reading(objectives: dict, standard: list[dict]) -> str:
    """Does distance in theta rank drift? A counter-example is a run that moved further than standard and drifted less."""

    def of(same, key):
        return geometric([value(r, key) for r in same])[0]

    others = [same for o, runs in objectives.items() if o != "standard" for same in runs]
    less = [same for same in others if of(same, "old_base") < of(standard, "old_base")]
    further = [same for same in less if of(same, "delta_theta") > of(standard, "delta_theta")]
    if not further:
        return "Here every run that drifted less than standard also moved theta less."
    farthest = max(further, key=lambda same: of(same, "delta_theta"))
    return (
        f"Distance in theta does not rank drift: {', '.join(same[0]['run'] for same in further)} moved theta further than standard "
        f"({number(of(farthest, 'delta_theta'))} against {number(of(standard, 'delta_theta'))} for {farthest[0]['run']}) and drifted less "
        f"({number(of(farthest, 'old_base'))} against {number(of(standard, 'old_base'))} nats)."
    )


def _prior_reading(same: list[dict], replayed: str) -> str:
    names = [n for n in same[0]["kl_base"] if n != "mixture"]

    def of(n):
        return geometric([r["kl_base"][n][0] for r in same])[0]

    kept, others = of(replayed), [of(n) for n in names if n != replayed]
    verdict = (
        "keeps the class it replays and loses others" if max(others) > 3 * kept
        else "keeps the other classes about as well as the one it replays" if max(others) > kept
        else "keeps the others even better than the class it replays"
    )  # fmt: skip
    return f"{same[0]['run']} {verdict}: {number(kept)} nats on {replayed}, {number(min(others))} to {number(max(others))} on the others."


def _contexts_reading(prior: list[list[dict]], standard: list[dict], metrics: dict) -> list[str]:
    """Does prior preservation keep the class but lose its contexts? Weight 1 (DreamBooth's) if it was run, else the first."""
    same = next((runs for runs in prior if runs[0]["weight"] == 1), prior[0])
    run, groups = same[0]["run"], list(metrics["groups"])
    kept = {g: geometric([a["kl_base_group"][g][0] / b["kl_base_group"][g][0] for a, b in zip(same, standard, strict=True)]) for g in groups}  # fmt: skip
    drift = {g: geometric([r["kl_base_group"][g][0] for r in same])[0] for g in groups}
    parts = [f"{g} {number(drift[g])} nats, {kept[g][0]:.0%} ({kept[g][1]:.0%}\u2013{kept[g][2]:.0%}) of standard's" for g in groups]  # fmt: skip
    say = [f"{run}, which replays {metrics['replayed_class']!r} only, leaves of the drift KL(base || tuned): {'; '.join(parts)}."]  # fmt: skip
    own, context = (kept[g] for g in groups[:2])
    against = f"{context[0]:.0%} of standard's drift is left on its contexts, {own[0]:.0%} on the class alone"
    if context[1] > 1:
        verdict = f"It keeps the class and loses its contexts: {against}"
    elif context[0] > 0.5:
        verdict = f"It keeps the class but hardly protects its contexts: {against}"
    elif context[1] > own[2]:
        verdict = f"It protects the contexts less than the class, but does not lose them: {against}"
    else:
        verdict = f"It does not lose the contexts to keep the class: {against}"
    composed = [geometric([sum(v[0] for v in r["kl_composed"].values()) / len(r["kl_composed"]) for r in runs])[0] for runs in (same, standard)]  # fmt: skip
    modes = [sum(r["coverage"][metrics["replayed_class"]] for r in runs) / len(runs) for runs in (same, standard)]  # fmt: skip
    return [
        *say,
        verdict + ".",
        f"In contexts never seen with the new word it is {number(composed[0])} nats from the world (standard {number(composed[1])}): "
        f"{'composition is far from learnt' if composed[0] > 1 else 'composition holds'}. The class keeps {modes[0]:.0%} of its modes "
        f"(standard {modes[1]:.0%}).",
    ]


def _monotone_reading(runs: list[list[dict]]) -> str:
    levels = [geometric([value(r, "old_truth") for r in same])[0] for same in runs]
    rises = [i for i in range(1, len(levels)) if levels[i] > levels[i - 1]]
    if not rises:
        return "KL(world || tuned) of the old classes falls at every step up in lambda of l2."
    where = ", ".join(f"{runs[i - 1][0]['weight']:g} to {runs[i][0]['weight']:g}" for i in rises)
    return f"KL(world || tuned) of the old classes is not monotone in lambda of l2: it rises from {where}."


COLUMNS = {
    "old classes, KL(base||tuned)": "old_base",
    "old classes, KL(world||tuned)": "old_truth",
    "new class, KL(world||tuned)": "kl_new",
    "path KL": "path_kl",
    "delta theta": "delta_theta",
    "delta eps": "delta_eps",
}


def summary(metrics: dict, limits: bool = True) -> tuple[list[str], list[dict]]:
    """Header and rows of the table: one row a run, geometric mean over seeds, with one-standard-error limits if asked."""

    def show(same, key):
        return spread(same, key) if limits else number(geometric([value(r, key) for r in same])[0])

    best = {same[0]["run"] for same in best_at_equal_adaptation(metrics["runs"]).values()}
    rows = [
        {"cells": [same[0]["run"], *(show(same, k) for k in COLUMNS.values())], "best": same[0]["run"] in best}
        for runs in by_objective(metrics["runs"]).values() for same in runs
    ]  # fmt: skip
    return ["run", *COLUMNS], rows


def _reference(metrics: dict, config: dict) -> dict | None:
    """Our numbers beside the authors' toy, where the run is their setting."""
    runs = {r: [x for x in metrics["runs"] if x["run"] == r] for r in REFERENCE}
    if config["name"] != "paper" or not any(runs.values()):
        return None
    rows = []
    for run, same in runs.items():
        if same:
            label, theta, eps, mean, worst, new = REFERENCE[run]
            ours_worst = geometric([max(v[0] for n, v in r["kl_truth"].items() if n != "mixture") if r["kl_truth"] else float("nan") for r in same])[0]  # fmt: skip
            ours_eps = geometric([value(r, "delta_eps") ** 2 for r in same])[0]
            rows.append([label, number(theta), spread(same, "delta_theta"), number(eps), number(ours_eps), number(mean),
                         spread(same, "old_truth"), number(worst), number(ours_worst), number(new), spread(same, "kl_new")])  # fmt: skip
    header = ["variant"]
    for name in ("delta theta", "E delta eps^2", "old KL, mean", "old KL, worst", "new KL"):
        header += [f"{name}: theirs", "ours"]
    note = (
        "Theirs: the published scripts, seed 42, one run, KL of the true Gaussian to a moment fit of samples from a sampler with an infinite "
        "first step. Ours: clipped betas, exact KL of the probability-flow ODE's law, geometric mean over seeds. Not the same quantity; the "
        "order is what can be compared."
    )
    return {"header": header, "rows": rows, "note": note}


def write(path: Path) -> Path:
    """Write `path`/report.html from the run's files; returns it."""
    path = Path(path)
    metrics = json.loads((path / "metrics.json").read_text())
    config = json.loads((path / "config.json").read_text())
    env = json.loads((path / "env.json").read_text())
    captions = json.loads((path / "figures" / "captions.json").read_text())
    figures = [
        {
            "caption": caption,
            "data": base64.b64encode((path / "figures" / f"{stem}.png").read_bytes()).decode(),
        }
        for stem, caption in captions.items()
    ]
    header, table = summary(metrics)
    versions = ", ".join(f"{k} {v}" for k, v in env["versions"].items())
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    page = template.render(
        title=f"driftlab, toy: {config['name']}",
        subtitle=f"{len(metrics['runs'])} fine-tunings of {len(config['seeds'])} base models on {config['shots']} points of a new class, "
        f"{config['steps']} steps each. All KL in nats.",
        sentences=readings(metrics),
        header=header,
        table=table,
        table_note="Geometric mean over seeds (one-standard-error limits in brackets). Old classes: mean over classes. "
        "Bold: each objective's best weight at equal adaptation.",
        figures=figures,
        reference=_reference(metrics, config),
        made=f"commit {env['commit']}{' with uncommitted changes' if env['uncommitted_changes'] else ''}; python {env['python']}, {versions}; "
        f"{env['machine']}, {env['threads']} threads; seeds {', '.join(map(str, config['seeds']))}; "
        f"base weights {metrics['base_hash']}. Configuration in config.json, every number in metrics.json and history.csv.",
    )  # fmt: skip
    write_atomic(path / "report.html", page)
    return path / "report.html"
