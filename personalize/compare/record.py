"""One run's record in metrics.json: its drift, its cost, and the means of its evaluation.

Names are those of the toy's records.
"""

import json
from pathlib import Path

from personalize.evaluate.model import Evaluation
from toy2d.runs.files import read_csv

NUMBERS = (
    "delta_theta",
    "delta_eps",
    "path_kl",
    "path_kl_group",
    "dino",
    "clip_i",
    "clip_t",
    "subject_seen",
    "div",
    "pres",
    "unlearnt",
    "moved",
    "moved_group",
    "right",
    "base",
    "seconds",
    "total_seconds",
)
NOTHING = dict.fromkeys(NUMBERS)  # of a run that diverged
SIMILARITIES = ("dino", "clip_i", "clip_t", "subject_seen", "unlearnt", "pres")


def measured(path: Path, class_seconds: float | None, resumed: bool = False) -> dict:
    """Drift, and the seconds of the method: neither the chains nor the rows of history.csv count.

    None means not measured: the class images' seconds where they were not kept, and those of
    preparing where a killed process had done it (`resumed`).
    """
    m = json.loads((path / "metrics.json").read_text())
    groups, s = m["path_kl_groups"], m["seconds"]
    n = sum(chains for _, _, chains in groups.values())
    error = sum((e * chains) ** 2 for _, e, chains in groups.values()) ** 0.5 / n
    seconds = {
        "class images": class_seconds,
        "preparing": None if resumed else s["pictures"] + s["base"] - s["chains"],
        "training": s["training"],
    }
    return {
        "delta_theta": m["delta_theta"],
        "delta_eps": m["delta_eps"],
        "path_kl": [m["path_kl"], error, n],
        "path_kl_group": groups,
        "seconds": {k: v if v is None else round(v, 2) for k, v in seconds.items()},
        "total_seconds": None if None in seconds.values() else round(sum(seconds.values()), 2),
    }


ALONG = ("path_kl", "gain", "binding", "leak")  # columns of a curve, with their errors and bands


def curve(train: Path) -> list[dict]:
    """The rows of history.csv at which drift was measured: step, path KL, gain, binding, leak.

    A run that diverged has the rows up to there.
    """
    file, out = train / "history.csv", []
    for row in read_csv(file) if file.exists() else []:
        if isinstance(row.get("path_kl"), float):
            kept = {k: v for k, v in row.items() if k.startswith(ALONG) and isinstance(v, float)}
            out.append({"step": int(row["step"])} | kept)
    return out


def scores(found: Evaluation) -> dict:
    """Means over pictures; None where no evaluator was there.

    `unlearnt` = 1 - DINO similarity to the subject; `moved` = 1 - DINO similarity to the base's
    pictures, mean over class, contexts and unrelated prompts; `right`: shares of pictures with the
    right class and scene, where a classifier knows them.
    """
    tuned, base = found.summary["means"]["tuned"], found.summary["means"].get("base", {})
    moved = {g: mean(tuned, g, "moved_dino") for g in found.drift if g != "subject"}
    known = [v for v in moved.values() if v is not None]
    div, both = found.headline["div"], {"tuned": tuned, "base": base}
    return similarities(tuned) | {
        "div": div and div["mean"],
        "moved": sum(known) / len(known) if known else None,
        "moved_group": moved,
        "right": {who: {g: rights(part, g) for g in part} for who, part in both.items()},
        "base": similarities(base),
    }


def no_scores() -> dict:
    """The scores of a run that drew no pictures."""
    unknown = dict.fromkeys(SIMILARITIES)
    rest = {"div": None, "moved": None, "moved_group": {}, "right": {"tuned": {}, "base": {}}}
    return unknown | rest | {"base": dict(unknown)}


def mean(part: dict, group: str, name: str) -> float | None:
    found = part.get(group, {}).get(name)
    return found and found["mean"]


def similarities(part: dict) -> dict:
    found = {k: mean(part, "subject", k) for k in ("dino", "clip_i", "clip_t", "subject_seen")}
    away = None if found["dino"] is None else 1 - found["dino"]
    return found | {"unlearnt": away, "pres": mean(part, "class", "dino")}


def rights(part: dict, group: str) -> dict:
    return {word: mean(part, group, f"{word}_right") for word in ("class", "scene")}
