"""`personalize bench --memory`: every preset's peak memory and time, predicted and measured.

Each prediction (the dry run's) and each run has a process of its own, so that neither sees the
other's memory; bytes are counted above what the libraries take. On a GPU the device's memory is
counted, on a CPU the process's. A preset runs on random networks of its family's architecture,
--width wide, at --resolution; class sets and steps are cut short, and what this machine lacks (half
precision, bitsandbytes) is left out.
"""

import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.table import Table

from personalize.config.commands import Bench
from personalize.config.flags import preset
from personalize.config.presets import PRESETS
from personalize.config.train_config import TrainConfig
from personalize.cost.fixture import save_photograph
from personalize.pipeline.random_pipeline import random_pipeline
from toy2d.runs.files import read_csv

STEPS = 4
SHORT = {
    "max_train_steps": STEPS,
    "checkpointing_steps": 0,
    "log_every": 1,
    "probe_steps": STEPS,
    "measure_nodes": 3,
    "measure_chains": 2,
    "unrelated_prompts": ("a red car",),
    "context_prompts": ("a dog in the snow",),
}
MIB = 2**20


def memory_of_presets(command: Bench) -> dict[str, dict]:
    """Estimate, measurement and relative error of each preset.

    "peak" in bytes; "step" and "seconds" (the whole run without its export) in seconds.
    """
    out = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "photos").mkdir()
        save_photograph(folder / "photos" / "0.jpg")
        for name in command.presets or PRESETS:
            config = small_run(command, name, folder)
            predicted, measured = alone(predict, config), alone(measure, config)
            out[name] = {
                k: {"estimate": p, "measured": measured[k], "error": p / measured[k] - 1}
                for k, p in predicted.items()
            }
    return out


def small_run(command: Bench, name: str, folder: Path) -> TrainConfig:
    settings, family = PRESETS[name](), family_of(name)
    word = settings.get("placeholder_token", "sks")
    given = SHORT | {
        "pretrained_model_name_or_path": str(_model(command, family, folder)),
        "instance_data_dir": str(folder / "photos"),
        "instance_prompt": f"a photo of {word} dog",
        "class_prompt": "a photo of a dog",
        "output_dir": str(folder / name),
        "resolution": command.resolution,
    }
    if settings.get("lr_warmup_steps"):
        given["lr_warmup_steps"] = 1
    if word != "sks" and "initializer_token" not in settings:
        given["initializer_token"] = "dog"
    if "prior" in settings["objective"]:
        class_folder = str(folder / f"{name}-class")
        given |= {"class_data_dir": class_folder, "num_class_images": 4, "class_steps": 2}
    if not torch.cuda.is_available():
        given["mixed_precision"] = "no"
    if find_spec("bitsandbytes") is None:
        given["use_8bit_adam"] = False
    return preset(name, **given)


def family_of(name: str) -> str:
    return next((f for f in ("sdxl", "sd3") if f in name), "sd15")


def _model(command: Bench, family: str, folder: Path) -> Path:
    path = folder / f"model-{family}"
    if not path.exists():
        random_pipeline(family, command.width).save_pretrained(path)
    return path


# ---- in a process of its own
def alone(work, config: TrainConfig) -> dict[str, float]:
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(work, config).result()


def predict(config: TrainConfig) -> dict[str, float]:
    from personalize.cost.dry_run import measure_cost
    from personalize.train.experiment import read
    from personalize.train.setup import make_accelerator

    config, pictures = read(config)
    cost = measure_cost(config, pictures, make_accelerator(config))
    return {"peak": cost.peak, "step": cost.step, "seconds": cost.total}


def measure(config: TrainConfig) -> dict[str, float]:
    from personalize.train.experiment import run
    from personalize.train.setup import make_accelerator, peak_memory, start_peak

    device = make_accelerator(config).device
    before = start_peak(device)
    folder = run(config, say=lambda text: None)
    metrics = json.loads((folder / "metrics.json").read_text())
    clock = [row["seconds"] for row in read_csv(folder / "history.csv")]
    phases = ("load", "pictures", "base", "training", "measuring", "validation")
    return {
        "peak": peak_memory(device) - before,
        "step": (clock[-1] - clock[1]) / (STEPS - 1),  # the first also makes the moments
        "seconds": sum(metrics["seconds"].get(p, 0.0) for p in phases),
    }


def table(records: dict[str, dict], device: str) -> Table:
    columns = ("preset", "peak, MiB", "s / step", "s in all")
    shown = Table(*columns, title=f"predicted / measured (error) on {device}")
    for name, record in records.items():
        units = (("peak", MIB), ("step", 1), ("seconds", 1))
        shown.add_row(name, *(_cell(record[quantity], unit) for quantity, unit in units))
    return shown


def _cell(r: dict[str, float], unit: int) -> str:
    return f"{r['estimate'] / unit:.3g} / {r['measured'] / unit:.3g} ({r['error']:+.0%})"
