"""Record the toy's half of the explorer, after `make course`.

    python lectures/explorer/record_toy.py

For every run of the course and the steps of its history.csv: POINTS samples of every prompt, drawn
from one x_T by the probability-flow ODE, so that a sample moves with the parameters. KLs, their
errors and distances are those of the course's own rows. Writes lectures/_data/explorer/toy.json.
"""

import base64
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from toy2d.config import course
from toy2d.core.drift import Params
from toy2d.core.likelihood import flow_sample
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.experiment import finetune, pretrain, run
from toy2d.prepare import Setting, probe_of
from toy2d.runs.files import read_csv, write_atomic
from toy2d.runs.folder import RunFolder, environment
from toy2d.verify.course import Course

ROOT = Path(__file__).parents[2]
OUT = ROOT / "lectures" / "_data" / "explorer" / "toy.json"
POINTS = 40  # samples of each prompt
SCALE = 20  # one unit of the plane in recorded integers, so a point is exact to 0.025
NUMBERS = ("kl_new", "kl_new_error", "path_kl", "path_kl_error", "delta_theta", "delta_eps")


def packed(points: Tensor) -> str:
    """(prompts, POINTS, 2) as base64 of signed bytes; a point outside +-6.35 is put on the edge."""
    levels = (points * SCALE).round().clamp(-127, 127).to(torch.int8)
    return base64.b64encode(levels.numpy().tobytes()).decode()


def draw(setting: Setting, ode: Schedule, theta: Params, x_T: Tensor) -> Tensor:
    """(members, prompts, POINTS, 2) samples of a stack of parameters, old prompts first."""
    world = setting.world
    prompts = (*world.old, world.new)
    cond = torch.tensor(prompts).repeat_interleave(POINTS)
    members = len(next(iter(theta.values())))
    start = x_T.repeat(len(prompts), 1).expand(members, -1, -1)
    x = flow_sample(setting.net.bind(theta), ode, start, cond, runs=1)
    return x.reshape(members, len(prompts), POINTS, 2)


def samples(base: Path, steps: tuple[int, ...]) -> dict[str, dict[int, str]]:
    """Packed samples by "spec, seed n" and step; "base, seed n" has step 0 only."""
    x_T = torch.randn(POINTS, 2, generator=generator(0, "explorer"))
    found: dict[str, dict[int, str]] = {}
    for step in steps:
        config = replace(course(), name=f"explorer-{step}", steps=step, snapshots=())
        folder = RunFolder(ROOT / "runs" / "toy2d" / config.name, config.as_dict())
        with folder.open():
            setting = Setting(config)
            bases = pretrain(setting, folder, base)
            probe = probe_of(setting, bases.theta)
            tuned = finetune(setting, folder, bases, probe)
        if not found:
            at_base = draw(setting, probe.ode, bases.theta, x_T)
            for seed, points in zip(config.seeds, at_base, strict=True):
                found[f"base, seed {seed}"] = {0: packed(points)}
        for group in tuned.groups:
            theta = {k: p.detach() for k, p in group.theta.items()}
            drawn = draw(setting, probe.ode, theta, x_T)
            for name, points in zip(map(str, group.runs), drawn, strict=True):
                found.setdefault(name, {})[step] = packed(points)
    return found


def number(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def rows_of(history: list[dict], spec: str, seed: int, classes: list[str]) -> list[dict]:
    rows = []
    for row in history:
        if (row["spec"], row["seed"]) == (spec, seed):
            kls = [
                [number(row[f"kl_base/{c}"]), number(row[f"kl_base_error/{c}"])] for c in classes
            ]
            rows.append(
                {"step": int(row["step"]), "kl": kls} | {key: number(row[key]) for key in NUMBERS}
            )
    return sorted(rows, key=lambda row: row["step"])


def main() -> None:
    config = course()
    folder = run(config, ROOT / "runs")
    metrics = json.loads((folder / "metrics.json").read_text())
    history = read_csv(folder / "history.csv")
    for row in history:
        weight = row.get("weight")
        row["spec"] = row["objective"] + (f":{weight:g}" if weight is not None else "")
    steps = tuple(sorted({int(row["step"]) for row in history}))
    points = samples(folder / "base.safetensors", steps)
    opened = Course(folder, config.seeds)
    classes = [opened.world.names[prompt] for prompt in opened.world.old]
    runs = []
    for record in metrics["runs"]:
        spec, seed = record["run"], record["seed"]
        along = rows_of(history, spec, seed, classes)
        for row in along:
            row["points"] = points[f"{spec}, seed {seed}"][row["step"]]
        identity = {key: record[key] for key in ("run", "objective", "weight", "seed")}
        runs.append(identity | {"along": along})
    base = [
        {
            "seed": b["seed"],
            "points": points[f"base, seed {b['seed']}"][0],
            "shots": [[number(v) for v in shot] for shot in opened.shots(b["seed"]).tolist()],
            "kl_new": [number(v) for v in b["kl_new"][:2]],
        }
        for b in metrics["base"]
    ]
    env = environment(("torch",))
    about = {
        "provenance": f"toy2d course, commit {env['commit']}, {config.steps} steps, "
        f"{config.shots} shots, seeds {', '.join(map(str, config.seeds))}",
        "classes": classes,
        "new_class": metrics["new_class"],
        "points": POINTS,
        "scale": SCALE,
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(about | {"base": base, "runs": runs}, separators=(",", ":"))
    write_atomic(OUT, text.encode())
    print(f"{OUT}: {len(runs)} runs, {len(text) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
