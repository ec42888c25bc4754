"""Record the mini model's runs that lectures, notebooks and the explorer show.

    python lectures/mini_figures.py     11 runs of 200 steps; then `make figures`

One subject, one training seed. The base and each run leave a grid of pictures (a row for each of
`prompts`, a column for each of SEEDS) in lectures/_data/mini, and each run its drift, with their
provenance. A run that runs.json holds already, of the same base and settings, is kept. Run folders
stay in runs/personalize/lecture-*, so a killed call goes on where it stopped.
"""

import io
import json
import time
from pathlib import Path

from personalize.config.train_config import TrainConfig
from personalize.export.write import load_run
from personalize.mini.shipped import GUIDANCE, Subject, subjects
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from personalize.sample.sampler import Sampling, generate, grid, image_seed
from personalize.train.experiment import run
from toy2d.runs.files import write_atomic, write_json
from toy2d.runs.folder import environment

HERE = Path(__file__).parent
OUT, RUNS = HERE / "_data" / "mini", HERE.parent / "runs" / "personalize"
SUBJECT = "polar_bear"
SETTINGS = {
    "train": "full",
    "learning_rate": 5e-5,
    "max_train_steps": 200,
    "train_batch_size": 2,
    "center_crop": True,
    "seed": 0,
}
WEIGHTS = {
    "standard": (None,),
    "prior": (0.1, 1.0),
    "l2": (0.001, 0.01, 0.1, 1.0),
    "output": (0.1, 1.0),
    "fisher": (0.03, 0.3),
}
SHOWN = {("standard", None), ("l2", 0.01), ("prior", 1.0), ("output", 1.0)}  # in the lectures
FLAGS = {
    "l2": "l2_reg_weight",
    "prior": "prior_loss_weight",
    "output": "output_weight",
    "fisher": "fisher_weight",
}
SEEDS = [image_seed(0, i) for i in range(4)]


def prompts(class_word: str) -> tuple[str, ...]:
    """The subject, the subject elsewhere, and three that were not to change."""
    return (
        f"a photo of a sks {class_word}",
        f"a photo of a sks {class_word} on the beach",
        f"a photo of a {class_word}",
        f"a photo of a {class_word} on the beach",
        "a photo of a panda in the snow",
    )


def config(subject: Subject, objective: str, weight: float | None) -> TrainConfig:
    flags = {FLAGS[objective]: weight} if weight else {}
    if objective in ("prior", "output"):
        flags |= {
            "num_class_images": 32,
            "class_steps": 12,
            "class_guidance": GUIDANCE,
            "class_data_dir": str(RUNS / "lecture-class-images"),
        }
    return TrainConfig(
        pretrained_model_name_or_path="mini",
        instance_data_dir=str(subject.folder),
        instance_prompt=f"a photo of a sks {subject.class_word}",
        class_prompt=f"a photo of a {subject.class_word}",
        objective=objective,
        output_dir=str(RUNS / f"lecture-{objective}-{weight or 0:g}"),
        unrelated_prompts=("a photo of a panda", "a pig at night"),
        measure_chains=16,
        checkpointing_steps=100,
        **SETTINGS,
        **flags,
    )


def save_grid(model: Model, made: tuple[str, ...], name: str) -> str:
    pictures = generate(model, list(made), SEEDS, Sampling(15, GUIDANCE, batch_size=4))
    data = io.BytesIO()
    grid(pictures, len(SEEDS), list(made)).quantize(128).save(data, "PNG", optimize=True)
    write_atomic(OUT / name, data.getvalue())
    return name


def record(subject: Subject, objective: str, weight: float | None) -> dict:
    folder = run(config(subject, objective, weight))
    made = prompts(subject.class_word)
    last = json.loads((folder / "metrics.json").read_text())
    groups = last["path_kl_groups"].values()
    n = sum(count for *_, count in groups)
    error = sum((e * count) ** 2 for _, e, count in groups) ** 0.5 / n
    return {
        "objective": objective,
        "weight": weight,
        "seed": SETTINGS["seed"],
        "path_kl": [last["path_kl"], error],
        "path_kl_groups": last["path_kl_groups"],
        "delta_theta": last["delta_theta"],
        "delta_eps": last["delta_eps"],
        "seconds": last["seconds"]["training"],
        "file": save_grid(load_run(folder), made, f"{objective}-{weight or 0:g}.png"),
        "shown": (objective, weight) in SHOWN,
    }


def kept(base: str) -> dict[tuple, dict]:
    """The records of runs.json by (objective, weight), if base and settings are these."""
    file = OUT / "runs.json"
    about = json.loads(file.read_text()) if file.exists() else {}
    if (about.get("base_hash"), about.get("settings")) != (base, SETTINGS):
        return {}
    return {(r["objective"], r["weight"]): r for r in about["runs"]}


def main() -> None:
    subject = subjects()[SUBJECT]
    made = prompts(subject.class_word)
    model = load("mini")
    base = model.hash()
    env = environment(("torch", "diffusers"))
    today = {"commit": env["commit"], "date": time.strftime("%Y-%m-%d", time.gmtime())}
    known = kept(base)
    records = [
        known.get((o, w)) or record(subject, o, w) | today
        for o, weights in WEIGHTS.items()
        for w in weights
    ]
    commits = " and ".join(dict.fromkeys(f"{r['commit']} ({r['date']})" for r in records))
    provenance = (
        f"Mini model {base}, subject {subject.name}, {SETTINGS['max_train_steps']} steps of batch "
        f"{SETTINGS['train_batch_size']}, one training seed; commit {commits}."
    )
    about = {"provenance": provenance, "base_hash": base, "settings": SETTINGS}
    about |= {"environment": env, "prompts": made, "base": save_grid(model, made, "base.png")}
    write_json(OUT / "runs.json", about | {"runs": records})
    for r in records:
        kl, error = r["path_kl"]
        print(
            f"{r['objective']:9s} {r['weight'] or '':>5} path KL {kl:.3g} +- {error:.2g}, "
            f"delta theta {r['delta_theta']:.3g}"
        )


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    main()
