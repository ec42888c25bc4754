"""Record the mini model's runs that lectures, notebooks and the explorer show.

    python lectures/mini_figures.py     14 runs of 100 steps; then `make figures`

One subject, one training seed. Each run leaves in lectures/_data/mini a grid of pictures (rows:
PROMPTS, columns: SEEDS) after its last step, smaller ones along training, and its drift along
training, with their provenance. Run folders stay in runs/personalize/lecture-*, so a killed call
goes on where it stopped.
"""

import io
import json
import time
from pathlib import Path

from PIL import Image

from personalize.config.train_config import TrainConfig
from personalize.mini.shipped import GUIDANCE, Subject, subjects
from personalize.sample.sampler import image_seed
from personalize.train.experiment import run
from toy2d.runs.files import read_csv, write_atomic, write_json
from toy2d.runs.folder import environment

HERE = Path(__file__).parent
OUT, RUNS = HERE / "_data" / "mini", HERE.parent / "runs" / "personalize"
SUBJECT = "polar_bear"
STEPS = (25, 50, 75, 100)
SETTINGS = {
    "train": "full",
    "learning_rate": 2e-4,
    "max_train_steps": STEPS[-1],
    "train_batch_size": 2,
    "center_crop": True,
    "seed": 0,
}
WEIGHTS = {
    "standard": (None,),
    "prior": (0.1, 1.0, 10.0),
    "l2": (0.001, 0.01, 0.1, 1.0),
    "output": (0.1, 1.0, 10.0),
    "fisher": (0.03, 0.3, 3.0),
}
SHOWN = {("standard", None), ("l2", 0.01), ("prior", 1.0), ("output", 1.0)}  # in the lectures
FLAGS = {
    "l2": "l2_reg_weight",
    "prior": "prior_loss_weight",
    "output": "output_weight",
    "fisher": "fisher_weight",
}
SEEDS = [image_seed(SETTINGS["seed"], i) for i in range(4)]  # those of the validation grid
TILE, GAP, LABEL = 64, 4, 14  # pixels of that grid: picture, gap, line of text
BASE = "base"  # the name of the pictures before any training


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
        log_every=STEPS[0],
        probe_steps=STEPS[0],
        path_kl_steps=STEPS[0],
        checkpointing_steps=50,
        validation_prompt=prompts(subject.class_word),
        validation_steps=STEPS[0],
        validation_inference_steps=15,
        validation_guidance=GUIDANCE,
        **SETTINGS,
        **flags,
    )


def rows_of(validation: Path, tuned: bool) -> Image.Image:
    """The base's or the tuned model's rows of a validation grid, which holds them in turns."""
    page = Image.open(validation).convert("RGB")
    height = LABEL + TILE + GAP
    rows = [page.crop((0, y, page.width, y + height)) for y in range(GAP, page.height, height)]
    kept = rows[1::2] if tuned else rows[::2]
    sheet = Image.new("RGB", (page.width, height * len(kept)), "white")
    for i, row in enumerate(kept):
        sheet.paste(row, (0, i * height))
    return sheet


def save(picture: Image.Image, name: str) -> str:
    data = io.BytesIO()
    picture.quantize(128).save(data, "PNG", optimize=True)
    (OUT / name).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(OUT / name, data.getvalue())
    return name


def record(subject: Subject, objective: str, weight: float | None) -> dict:
    folder = run(config(subject, objective, weight))
    figures = folder / "figures"
    name = f"{objective}-{weight or 0:g}"
    if objective == "standard":
        save(rows_of(figures / f"validation-{STEPS[0]:06d}.png", tuned=False), f"{BASE}.png")
    files = {
        step: save(
            rows_of(figures / f"validation-{step:06d}.png", tuned=True),
            f"{name}.png" if step == STEPS[-1] else f"steps/{name}-{step}.png",
        )
        for step in STEPS
    }
    last = json.loads((folder / "metrics.json").read_text())
    groups = last["path_kl_groups"].values()
    n = sum(count for *_, count in groups)
    error = sum((e * count) ** 2 for _, e, count in groups) ** 0.5 / n
    history = {row["step"]: row for row in read_csv(folder / "history.csv")}
    columns = ("path_kl", "path_kl_error", "delta_theta", "delta_eps", "loss_instance")
    return {
        "objective": objective,
        "weight": weight,
        "seed": SETTINGS["seed"],
        "path_kl": [last["path_kl"], error],
        "path_kl_groups": last["path_kl_groups"],
        "delta_theta": last["delta_theta"],
        "delta_eps": last["delta_eps"],
        "seconds": last["seconds"]["training"],
        "file": files[STEPS[-1]],
        "along": [
            {"step": step, "file": files[step]} | {c: history[step][c] for c in columns}
            for step in STEPS
        ],
        "shown": (objective, weight) in SHOWN,
    }


def main() -> None:
    subject = subjects()[SUBJECT]
    records = [record(subject, o, w) for o, weights in WEIGHTS.items() for w in weights]
    env = environment(("torch", "diffusers"))
    base = json.loads((RUNS / "lecture-standard-0" / "env.json").read_text())["base_hash"]
    provenance = (
        f"Mini model {base}, subject {subject.name}, {SETTINGS['max_train_steps']} steps of batch "
        f"{SETTINGS['train_batch_size']}, one training seed; commit {env['commit']}, "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}."
    )
    about = {"provenance": provenance, "settings": SETTINGS, "environment": env}
    about |= {"prompts": prompts(subject.class_word), "base": f"{BASE}.png"}
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
