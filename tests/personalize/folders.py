"""Folders as a toy run and a comparison leave them, with made-up numbers whose order is known."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from personalize.report.sentences import claims, full_scale
from toy2d.runs.files import file_digest, write_json
from toy2d.runs.folder import save_tensors
from toy2d.runs.sentences import toy_scale

ENV = {
    "commit": "abc",
    "uncommitted_changes": False,
    "python": "3",
    "versions": {"torch": "2"},
    "machine": "here",
    "threads": 1,
}
PROMPTS = {
    "subject": ["a photo of sks dog in the snow"],
    "class": ["a photo of a dog"],
    "contexts": ["a photo of a dog in the snow"],
    "unrelated": ["a photo of a cat"],
}
WEIGHTS = {
    "standard": (None,),
    "prior": (0.3, 1.0, 3.0),
    "l2": (0.01, 0.1, 1.0),
    "output": (1.0, 10.0, 100.0),
    "fisher": (1.0, 10.0, 100.0),
}
STRENGTH = {"standard": 1.0, "prior": 0.7, "l2": 0.15, "output": 0.05, "fisher": 0.1}  # of drift


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def claims_of(toy_folder: Path, full_folder: Path) -> dict[str, dict]:
    """What the report says of each claim, by its text."""
    small, full = metrics(toy_folder), metrics(full_folder)
    return {c["text"]: c for c in claims(toy_scale(small), full_scale(full, "full"), full)}


def toy(folder: Path, strength: dict = STRENGTH, seeds=(0, 1, 2)) -> Path:
    """A toy run on three classes, the first of which prior replays."""
    rng, runs = np.random.default_rng(0), []
    for objective, weight, k in settings():
        for seed in seeds:
            lost = 3 * strength[objective] / 3**k * rng.uniform(0.8, 1.2)
            own = lost / 10 if objective == "prior" else lost
            kl = {"class 0": [own, 0.01, 9], "class 1": [lost, 0.01, 9], "mixture": [lost, 0.01, 9]}
            theta = 2 - 0.3 * k if objective != "output" else 2.5
            new = 0.5 + 0.1 * k - 0.2 * (objective != "standard")
            record = {
                "seed": seed,
                "kl_base": kl,
                "kl_truth": kl,
                "kl_new": [new, 0.01, 9],
                "path_kl": [lost, 0.01, 9],
                "delta_theta": theta,
                "delta_eps": (lost / 3) ** 0.5,
                "seconds": 1.0,
                "stopped": None,
            }
            runs.append(named(objective, weight) | record)
    bases = [{"seed": seed, "kl_new": [7.0, 0.01, 9]} for seed in seeds]
    base = {"base": bases, "replayed_class": "class 0", "base_hash": "b0"}
    write_json(folder / "metrics.json", {"runs": runs} | base)
    write_json(folder / "config.json", {"seeds": seeds, "shots": 6, "steps": 10, "name": "course"})
    write_json(folder / "env.json", ENV)
    points = {r: torch.randn(60, 2) for r in {x["run"] for x in runs} | {"truth", "base"}}
    cond = torch.arange(3).repeat_interleave(20)
    points |= {"cond": cond, "shots": torch.randn(6, 2)}
    save_tensors(folder / "samples.safetensors", points)
    return folder


def comparison(folder: Path, strength: dict = STRENGTH, seeds=(0, 1), draw=None, **more) -> Path:
    """A comparison on one subject. `draw(prompt, seed, objective)` makes each picture."""
    rng, runs, draw = np.random.default_rng(0), [], draw or plain
    for objective, weight, k in settings():
        for seed in seeds:
            moved = 0.4 * strength[objective] / 3**k * rng.uniform(0.8, 1.2)
            record = full_record(objective, k, moved, seed) | named(objective, weight)
            where = f"runs/rex/{record['run'].replace(':', '_')}/seed{seed}"
            runs.append(record | {"seed": seed, "subject": "rex", "folder": where})
            gallery(
                folder / where / "evaluation" / "tuned", lambda p, s, o=objective: draw(p, s, o)
            )
    gallery(folder / "base", lambda p, s: draw(p, s, "base"))
    found = {
        "model": "models/sd15",
        "mini": False,
        "base_hash": "b1",
        "subjects": {"rex": {"class_word": "dog", "prompts": PROMPTS}},
        "image_seeds": [1, 2, 3, 4],
        "steps": 20,
        "equal_fidelity": 0.9,
        "runs": runs,
        "left_out": [],
    }
    write_json(folder / "metrics.json", found | more)
    rex = {"name": "rex", "class_word": "dog", "folder": str(folder)}
    write_json(folder / "config.json", {"subjects": [rex]})
    write_json(folder / "env.json", ENV)
    return folder


def settings():
    return [(o, w, k) for o, weights in WEIGHTS.items() for k, w in enumerate(weights)]


def named(objective: str, weight: float | None) -> dict:
    run = objective if weight is None else f"{objective}:{weight:g}"
    return {"run": run, "objective": objective, "weight": weight}


def full_record(objective: str, k: int, moved: float, seed: int) -> dict:
    dino = 0.8 - 0.02 * k + 0.01 * seed
    images = 20.0 if objective in ("prior", "output") else 0.0
    seconds = {"class images": images, "preparing": 2.0, "training": 10.0 + k}
    own = moved * (0.3 if objective == "prior" else 1)
    groups = {"class": own, "contexts": moved, "unrelated": moved}
    right = {g: {"class": 0.9, "scene": 0.8} for g in groups}
    return {
        "delta_theta": 3.0 - 0.5 * k if objective != "output" else 3.5,
        "delta_eps": 10 * moved**0.5,
        "path_kl": [40 * moved, 1.0, 8],
        "path_kl_group": {},
        "dino": dino,
        "clip_i": dino,
        "clip_t": 0.3,
        "div": 0.2,
        "pres": 0.5,
        "unlearnt": 1 - dino,
        "moved": moved,
        "moved_group": groups,
        "right": {"tuned": right, "base": right},
        "base": {"unlearnt": 0.6},
        "seconds": seconds,
        "total_seconds": sum(seconds.values()),
        "stopped": None,
    }


def curve(factor: float, k: int) -> list[dict]:
    """Learns to a peak (less with each further weight k), then overfits; drift = factor x
    learnt^2.
    """
    learnt = (1 - 0.15 * k) * np.sin(np.linspace(0, np.pi, 9))
    drift = factor * np.maximum.accumulate(learnt) ** 2
    return [
        {"step": i, "gain": 100 * g, "gain_error": 1.0, "path_kl": 100 * d}
        for i, (g, d) in enumerate(zip(learnt.tolist(), drift.tolist(), strict=True))
    ]


def with_curves(folder: Path, strength: dict = STRENGTH, subjects: int = 4) -> None:
    """The comparison in `folder` as if it had measured gain, on so many subjects."""
    m, rng, runs = metrics(folder), np.random.default_rng(0), []
    for s in range(subjects):
        hard = 1.0 + s
        for r in m["runs"]:
            k = 0 if r["weight"] is None else WEIGHTS[r["objective"]].index(r["weight"])
            factor = hard * strength[r["objective"]] * rng.uniform(0.95, 1.05)
            name = r["subject"] if s == 0 else f"{r['subject']}{s}"
            runs.append(r | {"subject": name, "curve": curve(factor, k)})
            m["subjects"].setdefault(name, m["subjects"][r["subject"]])
    write_json(folder / "metrics.json", m | {"runs": runs, "learning": "gain"})


def plain(prompt: str, seed: int, objective: str) -> Image.Image:
    colour = np.random.default_rng([seed, len(prompt), len(objective)]).integers(0, 256, 3)
    return Image.new("RGB", (32, 32), tuple(int(c) for c in colour))


def gallery(folder: Path, draw) -> None:
    """Pictures with their manifest, as personalize.sample.gallery leaves them."""
    folder.mkdir(parents=True)
    files = {}
    for n, prompt in enumerate(p for prompts in PROMPTS.values() for p in prompts):
        for seed in (1, 2, 3, 4):
            data, name = io.BytesIO(), f"{n}-{seed}.png"
            draw(prompt, seed).save(data, "PNG")
            (folder / name).write_bytes(data.getvalue())
            files[name] = {"prompt": prompt, "seed": seed, **file_digest(folder / name)}
    (folder / "manifest.json").write_text(json.dumps({"settings": {}, "files": files}))
