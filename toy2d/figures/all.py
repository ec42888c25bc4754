"""Draw every figure of a toy run from its files: metrics.json, history.csv, samples.safetensors."""

import json
from pathlib import Path

from toy2d.figures.drift import (
    draw_chain,
    draw_groups,
    draw_kl_per_class,
    draw_tradeoff,
    draw_training,
    draw_weights,
)
from toy2d.figures.layers import draw_layers
from toy2d.figures.samples import draw_samples
from toy2d.figures.style import save
from toy2d.runs.files import read_csv, write_json
from toy2d.runs.folder import load_tensors


def draw_all(path: Path) -> dict[str, str]:
    """Draw every figure into `path`/figures; returns {file stem: caption}.

    Files appear atomically.
    """
    path = Path(path)
    metrics = json.loads((path / "metrics.json").read_text())
    config = json.loads((path / "config.json").read_text())
    rows = read_csv(path / "history.csv")
    samples = load_tensors(path / "samples.safetensors")
    figures = {
        "samples": draw_samples(samples, metrics, config),
        "kl_per_class": draw_kl_per_class(metrics, config),
        "chain": draw_chain(metrics, config),
        "weights": draw_weights(metrics, config),
        "tradeoff": draw_tradeoff(metrics, config),
        "training": draw_training(rows, metrics, config),
    }
    if any(r.get("layers") for r in metrics["runs"]):  # not recorded before 0.2
        figures["layers"] = draw_layers(metrics, config)
    if metrics.get("groups"):
        figures["groups"] = draw_groups(metrics, config)
    for stem, (figure, _) in figures.items():
        save(figure, path / "figures" / f"{stem}.png")
    captions = {stem: caption for stem, (_, caption) in figures.items()}
    write_json(path / "figures" / "captions.json", captions)
    return captions
