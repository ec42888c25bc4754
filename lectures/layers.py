"""Record and draw how far each kind of layer moves, and what its change does alone.

    python lectures/layers.py                        the course run and a short run of the mini
    python lectures/layers.py --toy RUN --full RUN   your own: finished runs of `toy2d run` and of
                                                     `personalize train --measure_layers`

The rows go to lectures/_data/layers.json (with --toy or --full: to layers.json here), the figure
beside them. `make figures` draws the recorded rows again.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from toy2d.core.objectives import STANDARD, Objective
from toy2d.figures.layers import layer_panels
from toy2d.figures.style import plt, save
from toy2d.model import members
from toy2d.records import drift_by_layer
from toy2d.runs.files import write_json
from toy2d.runs.statistics import chosen
from toy2d.train import Group
from toy2d.verify.course import Course

HERE = Path(__file__).parent
ROWS = HERE / "_data" / "layers.json"
FIGURE = HERE / "_static" / "figures" / "layers.png"
COURSE = HERE.parent / "runs" / "toy2d" / "course"
KEYS = ("run", "seed", "delta_theta", "path_kl", "layers")
STEPS = 40  # of the mini model's run
TITLES = {"toy": "toy", "full": "mini"}


def of_toy(folder: Path) -> dict[str, list[dict]]:
    """objective -> a row for each seed, at the weight that the run's metrics name.

    A folder made before 0.2 has no layers in its metrics: they are measured from its weights.
    """
    metrics = json.loads((folder / "metrics.json").read_text())
    if "layers" not in metrics["runs"][0]:
        measured = from_weights(folder, tuple(b["seed"] for b in metrics["base"]))
        for record, layers in zip(metrics["runs"], measured, strict=True):
            record["layers"] = layers
    found = chosen(metrics)
    return {o: [{k: r[k] for k in KEYS} for r in same] for o, same in found.items()}


def from_weights(folder: Path, seeds: tuple[int, ...]) -> list[dict]:
    """The layers of every run of a finished toy folder, on the folder's own chains."""
    c = Course(folder, seeds)
    at = torch.tensor([seeds.index(r["seed"]) for r in c.metrics["runs"]])
    names = [r["run"] for r in c.metrics["runs"]]
    objective = Objective.stack([STANDARD] * len(names))
    group = Group(c.net, c.tuned, members(c.theta_star, at), objective, at, names, {})
    return drift_by_layer(group, c.probe)


def of_full(folder: Path) -> tuple[str, dict]:
    """(objective and what it holds, the run's row)."""
    metrics = json.loads((folder / "metrics.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    if "path_kl" not in next(iter(metrics["layers"].values())):
        sys.exit(f"{folder} was run without --measure_layers: run it anew with it")
    held = " ".join(config.get("l2_layers") or ())
    weight = "" if metrics["weight"] is None else f":{metrics['weight']}"
    name = f"{metrics['objective']}{weight}" + (f", {held}" if held else "")
    row = {k: metrics.get(k) for k in KEYS} | {"run": name, "seed": config["seed"]}
    learnt = {k: metrics[k] for k in ("gain_peak", "gain_peak_step") if k in metrics}
    return metrics["objective"] + (f" {held}" if held else ""), row | learnt


def mini_run() -> Path:
    """Standard fine-tuning of the mini model: one subject, one seed."""
    import mini_figures as mini

    from personalize.mini.shipped import subjects
    from personalize.train.experiment import run

    subject = subjects()[mini.SUBJECT]
    more = {"output_dir": str(mini.RUNS / "layers-standard"), "measure_layers": True}
    more |= {"held_out_data_dir": str(subject.held_out), "nodes_per_chain": 3}
    more |= {"max_train_steps": STEPS, "probe_steps": 10, "measure_chains": 4}
    return run(replace(mini.config(subject, "standard", None), **more))


def draw(rows: dict):
    """One row of panels for each scale that is there."""
    scales = [s for s in TITLES if rows.get(s)]
    figure, grid = plt.subplots(len(scales), 2, figsize=(9.5, 3.2 * len(scales)), squeeze=False)
    for axes, scale in zip(grid, scales, strict=True):
        layer_panels(axes, rows[scale])
        axes[0].set_ylabel(TITLES[scale])
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--toy", type=Path, help="folder of a finished toy run")
    parser.add_argument("--full", type=Path, nargs="*", help="folders of finished runs")
    asked = parser.parse_args(arguments)
    own = bool(asked.toy or asked.full)
    toy = asked.toy or (None if own else COURSE)
    full = asked.full or ([] if own else [mini_run()])
    named = [of_full(folder) for folder in full]
    rows = {"toy": of_toy(toy) if toy else {}, "full": {name: [row] for name, row in named}}
    write_json(Path("layers.json") if own else ROWS, rows)
    save(draw(rows), Path("layers.png") if own else FIGURE)


if __name__ == "__main__":
    main()
