"""The benchmark's table in the paper's columns and ours, the paper's own numbers beside them.

Reads records only. Means are over runs (subjects x seeds) with Student's 95 % interval.
"""

import csv
import json
import math
import sys
from functools import cache
from pathlib import Path

from rich.console import Console
from rich.table import Table

from personalize.compare.table import of, table_of
from personalize.config.recipes.benchmark import BACKBONES, IP_ADAPTER, NAMES
from toy2d.runs.statistics import Estimate

COLUMNS = {
    "DINO": "dino",
    "CLIP-I": "clip_i",
    "CLIP-T": "clip_t",
    "seconds": "total_seconds",
    "gain (nats)": "gain",
    "path KL (nats)": "path_kl",
}
DATA = Path(__file__).parents[2] / "lectures" / "_data"  # absent from an installed package
PAPERS = ("DINO", "CLIP-I", "CLIP-T", "seconds")
OTHERS = (
    "The paper's columns are of Stable Diffusion's weights, 30 subjects and its own judges: other "
    "weights, pictures and scores than this table's, so only orders can be compared."
)


def gain(record: dict) -> float | None:
    """Nats at the last step (IP-Adapter: with the image prompt on); None if not measured."""
    if record["objective"] == IP_ADAPTER:
        return (record["learning"] or {}).get("gain")
    return (record["curve"] or [{}])[-1].get("gain")


def table_rows(records: list[dict]) -> list[dict]:
    """One row for each method and run: its name, how many runs ended, [mean, half] of COLUMNS."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for r in records:
        groups.setdefault((r["method"], r["run"]), []).append(r)
    out = []
    for (method, run), same in groups.items():
        ended = [r | {"gain": gain(r)} for r in same if not r["stopped"]]
        cells = {title: known(of(ended, key)) for title, key in COLUMNS.items()}
        objective = same[0]["objective"]
        row = {"method": method, "run": run, "objective": objective, "runs": len(ended)}
        out.append(row | {"cells": cells})
    return out


def known(e: Estimate) -> list[float | None]:
    """[mean, half of its interval]; None for what one run or none cannot say."""
    return [None if math.isnan(v) else v for v in (e.mean, e.half)]


def cell(mean: float | None, half: float | None) -> str:
    return str(Estimate(*(math.nan if v is None else v for v in (mean, half)), 0))


@cache
def published(backbone: str) -> dict[tuple[str, str], dict[str, float]]:
    """(method, objective) -> the paper's DINO, CLIP-I, CLIP-T, seconds; {} where they are absent.

    For the mini: of SD-1.5, where the paper has most methods.
    """
    named, found = BACKBONES.get(backbone, "SD-1.5"), {}
    for name in ("published_main_table.csv", "published_baselines.csv"):
        if not (DATA / name).is_file():
            continue
        for r in csv.DictReader((DATA / name).open()):
            if r["backbone"] == named:
                cells = (r["dino"], r["clip_i"], r["clip_t"], r["seconds"])
                of_paper = zip(PAPERS, cells, strict=True)
                found[r["method"], r["objective"]] = {k: float(v) for k, v in of_paper if v}
    return found


def beside(backbone: str, row: dict) -> dict[str, float]:
    """The paper's numbers of the same method and objective; {} if it has none."""
    objective = row["objective"].removesuffix("_tensor_mean")
    return published(backbone).get((NAMES[row["method"]], objective), {})


def paper_table(metrics: dict) -> Table:
    backbone = BACKBONES.get(metrics["backbone"], "SD-1.5")
    title = "mean \u00b1 95 % interval over runs (subjects x seeds); paper: its own " + backbone
    heads = [*COLUMNS, *(f"paper {name}" for name in PAPERS)]
    out = table_of(title, ("method", "run", "runs", *heads))
    for row in metrics["table"]:
        theirs = beside(metrics["backbone"], row)
        ours = [cell(*row["cells"][title]) for title in COLUMNS]
        paper = [f"{theirs[p]:g}" if p in theirs else "\u2013" for p in PAPERS]
        out.add_row(NAMES[row["method"]], row["run"], str(row["runs"]), *ours, *paper)
    return out


def show(path: Path) -> None:
    metrics = json.loads((path / "metrics.json").read_text())
    Console(width=None if sys.stdout.isatty() else 180).print(paper_table(metrics))
    if published(metrics["backbone"]):
        print(OTHERS)
    print(f"every number: {path / 'metrics.json'}")
