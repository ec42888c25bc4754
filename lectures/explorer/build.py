"""Write the explorer, one page without a network: `python lectures/explorer/build.py explore.html`.

The page is template, style and script of this folder with recorded data inside: the toy's samples
and KLs (lectures/_data/explorer/toy.json, written by record_toy.py), the mini model's pictures
(lectures/_data/mini, written by lectures/mini_figures.py) and the curves of learning against drift
at both scales (lectures/_data/mini/frontier.json, written by lectures/frontier.py).
"""

import base64
import json
import math
import sys
from pathlib import Path

import numpy as np

from toy2d.figures.style import CLASS_COLOURS, style
from toy2d.runs.files import write_atomic

HERE = Path(__file__).parent
DATA = HERE.parent / "_data"
OBJECTIVES = {
    "standard": "Standard fine-tuning: the denoising loss on the six points alone.",
    "prior": "Prior preservation: plus weight x the loss on the base's own samples of class 0.",
    "replay_all": "Replay: plus weight x the loss on the base's own samples of every old class.",
    "l2": "L2: plus weight x the squared distance from the base's parameters.",
    "l2_tensor_mean": "L2 averaged within each tensor, as in the paper's code.",
    "output": "Output preservation: plus weight x the squared change of the base's outputs.",
    "fisher": "Fisher-weighted L2 (EWC): each coordinate weighted by the base's Fisher "
    "information.",
}


def picture(file: Path) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def mini_data(folder: Path) -> dict:
    """The recorded runs of the mini model, their pictures inside."""
    about = json.loads((folder / "runs.json").read_text())
    base = folder / about.get("base", "base.png")
    kept = ("objective", "weight", "path_kl", "delta_theta", "seconds")
    return {
        "provenance": about["provenance"],
        "prompts": about["prompts"],
        "steps": about["settings"]["max_train_steps"],
        "base": picture(base) if base.exists() else None,
        "runs": [
            {k: run[k] for k in kept} | {"picture": picture(folder / run["file"])}
            for run in about["runs"]
        ],
    }


def curves(scale: dict) -> dict:
    """Learning and drift along training, nats: per run the mean over units, step 0 left out.

    A unit is a seed of the toy or a subject of the mini; its seeds are averaged first. Learning is
    averaged as it is, drift as its logarithm; "low" and "high" are one standard error over units.
    Runs that stopped early are left out.
    """
    groups: dict[str, list[dict]] = {}
    for r in scale["runs"]:
        if r["stopped"] is None:
            groups.setdefault(r["run"], []).append(r)
    return {
        "commit": scale["commit"],
        "units": len({r["unit"] for r in scale["runs"]}),
        "curves": [_curve(run, same) for run, same in groups.items()],
    }


def _curve(run: str, same: list[dict]) -> dict:
    _, _, weight = run.partition(":")
    units = sorted({r["unit"] for r in same})

    def over_units(of_run) -> tuple[list, list, list]:
        means = [np.mean([of_run(r) for r in same if r["unit"] == u], 0) for u in units]
        mean = np.mean(means, 0)
        error = np.std(means, 0, ddof=1) / len(units) ** 0.5 if len(units) > 1 else 0 * mean
        return mean, mean - error, mean + error

    learnt = over_units(lambda r: np.array(r["learnt"][1:]))
    drift = over_units(lambda r: np.log(np.maximum(r["drift"][1:], 1e-9)))
    kept = {"x": learnt, "y": [np.exp(v) for v in drift]}
    numbers = {
        f"{axis}{end}": [float(f"{v:.4g}") for v in values]
        for axis, three in kept.items()
        for end, values in zip(("", "_low", "_high"), three, strict=True)
    }
    about = {"objective": same[0]["objective"], "weight": float(weight) if weight else None}
    return about | {"step": same[0]["step"][1:], "runs": len(same)} | numbers


def ticks(curves_of: list[dict], axis: str, log: bool) -> dict:
    """Range and ticks that hold every point of an axis."""
    low, high = (f(f(c[axis]) for c in curves_of) for f in (min, max))
    if log:
        low, high = low * 0.8, high * 1.25
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        digits = (1,) if high > 100 * low else (1, 2, 5)
        marks = [float(f"{d}e{p}") for p in decades for d in digits]
        return {"low": low, "high": high, "ticks": [v for v in marks if low <= v <= high]}
    step = 10 ** math.floor(math.log10(high))
    step = step if high / step > 3 else step / 2 if high / step > 1.5 else step / 4
    marks = np.arange(math.floor(min(low, 0) / step), math.floor(high / step) + 1) * step
    return {"low": min(low, 0), "high": high * 1.03, "ticks": [round(float(v), 6) for v in marks]}


def frontiers() -> dict:
    """The curves of both scales with their axes."""
    recorded = json.loads((DATA / "mini" / "frontier.json").read_text())
    found = {}
    for name, scale in (("toy", "toy"), ("mini", "full")):
        made = curves(recorded[scale])
        axes = {"x": ticks(made["curves"], "x", False), "y": ticks(made["curves"], "y", True)}
        found[name] = made | {"axes": axes, "settings": recorded[scale]["settings"]}
    return found


def page() -> str:
    toy = json.loads((DATA / "explorer" / "toy.json").read_text())
    kinds = [k for k in OBJECTIVES if any(run["objective"] == k for run in toy["runs"])]
    data = {
        "toy": toy,
        "mini": mini_data(DATA / "mini"),
        "frontiers": frontiers(),
        "objectives": {k: OBJECTIVES[k] for k in kinds},
        "colours": {
            "classes": CLASS_COLOURS,
            "objectives": {k: style(k)["color"] for k in kinds},
        },
    }
    # neither "</script>" nor "<!--<script" of a text may end or hide what follows
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    made = (HERE / "page.html").read_text()
    made = made.replace("@STYLE@", (HERE / "style.css").read_text())
    made = made.replace("@SCRIPT@", (HERE / "explorer.js").read_text())
    return made.replace("@DATA@", text)


def main(out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page().encode())
    print(f"explorer: {out} ({out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
