"""Record the lectures' runs of the mini model: `python lectures/mini_figures.py` (seven runs of 100 steps), then `make figures`.

One subject; standard, prior and output, L2 over its weight; a picture grid and the drift of each go to lectures/_data/mini with their provenance.
Run folders stay in runs/personalize/lecture-*: a killed call goes on where it was.
"""

import io
import json
import time
from pathlib import Path

from personalize.config.train_config import TrainConfig
from personalize.export.write import load_run
from personalize.mini.shipped import GUIDANCE, subjects
from personalize.sample.sampler import generate, grid, image_seed
from personalize.train.experiment import run
from toy2d.runs.files import write_atomic, write_json
from toy2d.runs.folder import environment

HERE = Path(__file__).parent
OUT, RUNS = HERE / "_data" / "mini", HERE.parent / "runs" / "personalize"
SUBJECT = "polar_bear"
SETTINGS = {"train": "full", "learning_rate": 2e-4, "max_train_steps": 100, "train_batch_size": 2, "center_crop": True, "seed": 0}  # fmt: skip
WEIGHTS = {"standard": (None,), "l2": (0.001, 0.01, 0.1, 1.0), "prior": (1.0,), "output": (1.0,)}
SHOWN = {("standard", None), ("l2", 0.01), ("prior", 1.0), ("output", 1.0)}  # in the lectures
FLAGS = {"l2": "l2_reg_weight", "prior": "prior_loss_weight", "output": "output_weight"}
SEEDS = [image_seed(0, i) for i in range(4)]


def config(subject, objective: str, weight: float | None) -> TrainConfig:
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
        checkpointing_steps=50,
        **SETTINGS,
        **flags,
    )


def prompts(class_word: str) -> list[str]:
    """The subject, the subject elsewhere, and three that were not to change."""
    return [
        f"a photo of a sks {class_word}",
        f"a photo of a sks {class_word} on the beach",
        f"a photo of a {class_word}",
        f"a photo of a {class_word} on the beach",
        "a photo of a panda in the snow",
    ]


def record(subject, objective: str, weight: float | None) -> dict:
    folder = run(config(subject, objective, weight))
    file = f"{objective}-{weight or 0:g}.png"
    made = prompts(subject.class_word)
    picture = grid(
        generate(load_run(folder), made, SEEDS, steps=15, guidance=GUIDANCE), len(SEEDS), made
    )
    data = io.BytesIO()
    picture.quantize(128).save(data, "PNG", optimize=True)
    write_atomic(OUT / file, data.getvalue())
    last = json.loads((folder / "metrics.json").read_text())
    total = last["path_kl_groups"].values()
    n = sum(count for *_, count in total)
    error = sum((e * count) ** 2 for _, e, count in total) ** 0.5 / n
    return {
        "objective": objective,
        "weight": weight,
        "seed": SETTINGS["seed"],
        "path_kl": [last["path_kl"], error],
        "path_kl_groups": last["path_kl_groups"],
        "delta_theta": last["delta_theta"],
        "seconds": last["seconds"]["training"],
        "file": file,
        "shown": (objective, weight) in SHOWN,
    }


def main() -> None:
    subject = subjects()[SUBJECT]
    records = [record(subject, o, w) for o, weights in WEIGHTS.items() for w in weights]
    env = environment(("torch", "diffusers"))
    base = json.loads((RUNS / "lecture-standard-0" / "env.json").read_text())["base_hash"]
    provenance = (
        f"Mini model {base}, subject {subject.name}, {SETTINGS['max_train_steps']} steps of batch {SETTINGS['train_batch_size']}, one training seed; "
        f"commit {env['commit']}, {time.strftime('%Y-%m-%d', time.gmtime())}."
    )
    write_json(OUT / "runs.json", {"provenance": provenance, "settings": SETTINGS, "environment": env, "runs": records})  # fmt: skip
    for r in records:
        print(f"{r['objective']:9s} {r['weight'] or '':>5} path KL {r['path_kl'][0]:.3g} +- {r['path_kl'][1]:.2g}, delta theta {r['delta_theta']:.3g}")  # fmt: skip


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    main()
