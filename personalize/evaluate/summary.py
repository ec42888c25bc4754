"""Rows of pictures -> means with intervals. Reads rows only; every name is explained in METRICS,
which goes into evaluation.json.
"""

import math

import torch

from personalize.evaluate.metrics import auc, mmd2, over_seeds, pairs_over_seeds, spread

# what | where it is from; up: more is better, down: less is better
METRICS = {
    "dino": "up; mean cosine of DINO features with the reference pictures (DreamBooth, sec. 4.2)",
    "clip_i": (
        "up; mean cosine of CLIP image features with the reference pictures (DreamBooth; a "
        "report's Subj Mean)"
    ),
    "subject_max": "up; largest of those cosines (the report's Subj Max)",
    "clip_t": (
        "up; cosine of CLIP features of the picture and of its prompt without the identifier "
        "(prompt adherence)"
    ),
    "pairwise_clip": (
        "down; mean cosine of CLIP features with the prompt's other pictures (the report's "
        "Diversity; 1 - it: variety)"
    ),
    "lpips": "up; mean LPIPS distance to the prompt's other pictures",
    "perceptual": (
        "up; the same with DINO's own layers, unit vectors, a mean over layers "
        "(metrics.perceptual_distance)"
    ),
    "memorization": "down; largest cosine of DINO features with a training picture, `nearest`",
    "moved_dino": (
        "down; 1 - cosine of DINO features with the base's picture of the same prompt and seed"
    ),
    "moved_clip": (
        "down; the same with CLIP's image features (1 - it: the report's Identity vs Base)"
    ),
    "moved_perceptual": (
        "down; perceptual distance to the base's picture of the same prompt and seed"
    ),
    "moved_lpips": "down; the same with LPIPS",
    "clip_t_change": "up; clip_t minus that of the base's picture of the same prompt and seed",
    "class_right": "up; share whose class is the prompt's, by the mini world's classifier",
    "scene_right": "up; share whose scene is the prompt's, by the mini world's classifier",
    "subject_seen": (
        "up; probability that the picture shows the subject, by the mini's subject judge"
    ),
    "pres": (
        "down; `dino` of the class prompt's pictures: does any dog look like this dog? "
        "(DreamBooth, PRES)"
    ),
    "div": (
        "up; mean distance of a subject prompt's pictures, LPIPS where `div_distance` says so "
        "(DreamBooth, DIV)"
    ),
    "mmd2_dino": (
        "down; squared MMD between the tuned and the base model's DINO features, unbiased: may "
        "be below 0"
    ),
    "path_kl": (
        "down; upper bound of KL(base || tuned) along the base's chains, nats; mean, standard "
        "error, chains"
    ),
    "ode_kl": (
        "down; KL(base || tuned) of the deterministic samplers' laws, nats; mean, standard error, "
        "mean ODE error, points (--ode_points)"
    ),
    "learning": (
        "up; gain on held-out pictures under the subject's prompt, nats per picture; leak: under "
        "the class prompt; binding: gain - leak; each with its standard error"
    ),
    "stability": (
        "down; standard deviation over all pictures of subject prompts (the report's Stability:"
        " subject, text)"
    ),
}
COLUMNS = [
    k
    for k in METRICS
    if k not in ("pres", "div", "mmd2_dino", "path_kl", "ode_kl", "learning", "stability")
]
# whose rows are means to the prompt's other pictures, and so share pairs; all others are
# independent between seeds
PAIRED = dict.fromkeys(("pairwise_clip", "lpips", "perceptual"), pairs_over_seeds)
INTERVALS = (
    "95 %, percentile bootstrap of the means of seeds (prompts are fixed); "
    "few seeds make them too narrow. "
    f"{', '.join(PAIRED)} and div: jackknife over seeds with Student's t, "
    "because their pairs share pictures"
)


def summarise(rows: list[dict], real_images: dict, dino: dict, paths: dict) -> dict:
    """`headline`, `drift` by group, `means` by model and group, `check`: intervals are {"mean",
    "low", "high", "n"}, n seeds.

    `dino`: (model, group) -> features; `paths`: group -> (mean, error, chains). What was not
    measured is None or absent.
    """
    means = _means(rows)
    drift = {
        group: {k: v for k, v in found.items() if k.startswith("moved_") or k == "clip_t_change"}
        | {"mmd2_dino": _mmd(dino, group), "path_kl": _path(paths.get(group))}
        for group, found in means["tuned"].items()
        if "base" in means or group in paths
    }
    return {
        "headline": _headline(rows, means) | {"real_images": real_images},
        "drift": drift,
        "means": means,
        "check": _check(rows),
    }


def _headline(rows: list[dict], means: dict) -> dict:
    tuned, base = means["tuned"], means.get("base", {})
    subject, of_class = tuned.get("subject", {}), tuned.get("class", {})
    distance = "lpips" if "lpips" in subject else "perceptual"
    mine = [r for r in rows if (r["model"], r["group"]) == ("tuned", "subject")]
    stability = {
        "subject": spread(_column(mine, "clip_i")),
        "text": spread(_column(mine, "clip_t")),
    }
    names = ("dino", "clip_i", "subject_max", "clip_t", "pairwise_clip", "memorization")
    return {k: subject.get(k) for k in names} | {
        "pres": of_class.get("dino"),
        "pres_base": base.get("class", {}).get("dino"),
        "div": subject.get(distance),
        "div_distance": distance if distance in subject else None,
        "clip_t_base": base.get("subject", {}).get("clip_t"),
        "stability": stability,
        "nearest_to_training": _nearest(rows),
    }


def _nearest(rows: list[dict]) -> dict | None:
    """The tuned picture that is most like a training picture: the one to look at."""
    found = [r for r in rows if r["model"] == "tuned" and "memorization" in r]
    top = max(found, key=lambda r: r["memorization"], default=None)
    return top and {k: top[k] for k in ("memorization", "file", "nearest", "prompt", "seed")}


def _means(rows: list[dict]) -> dict[str, dict[str, dict[str, dict]]]:
    """model -> group -> metric -> interval over seeds."""
    out: dict = {}
    for key, group in _grouped(rows, "model", "group").items():
        model, name = key
        found = {c: _interval(group, c) for c in COLUMNS}
        out.setdefault(model, {})[name] = {c: v for c, v in found.items() if v is not None}
    return out


def prompt_rows(rows: list[dict]) -> list[dict]:
    """One line for each model and prompt: mean of each metric, and its interval over seeds."""
    out = []
    for (model, group, prompt), found in _grouped(rows, "model", "group", "prompt").items():
        line = {"model": model, "group": group, "prompt": prompt, "pictures": len(found)}
        for c in COLUMNS:
            if v := _interval(found, c):
                line |= {c: v["mean"], f"{c}_low": v["low"], f"{c}_high": v["high"]}
        out.append(line)
    return out


def _interval(rows: list[dict], column: str) -> dict | None:
    return PAIRED.get(column, over_seeds)(_column(rows, column), [r["seed"] for r in rows])


def _grouped(rows: list[dict], *names: str) -> dict[tuple, list[dict]]:
    out: dict[tuple, list[dict]] = {}
    for r in rows:
        out.setdefault(tuple(r[n] for n in names), []).append(r)
    return out


def _column(rows: list[dict], name: str) -> list[float]:
    return [r.get(name, math.nan) for r in rows]


def _mmd(dino: dict, group: str) -> float | None:
    sides = [dino.get((model, group)) for model in ("tuned", "base")]
    if not all(sides):
        return None
    value = mmd2(*(torch.stack(s) for s in sides))
    return None if math.isnan(value) else value


def _path(found: tuple | None) -> dict | None:
    return found and dict(zip(("mean", "error", "n"), found, strict=True))


def _check(rows: list[dict]) -> dict | None:
    """Does CLIP-T know what the classifier knows? AUC: P(clip_t of a right picture > of a wrong
    one), 0.5 for a coin.
    """
    known = [r for r in rows if {"clip_t", "class_right", "scene_right"} <= r.keys()]
    if not known:
        return None
    right = [r["class_right"] == r["scene_right"] == 1 for r in known]
    value = auc(_column(known, "clip_t"), right)
    return {
        "clip_t_auc": None if math.isnan(value) else value,
        "right": sum(right),
        "n": len(right),
    }
