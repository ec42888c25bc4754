"""Small real comparisons for the tests: the tiny Stable Diffusion, two pictures, two steps."""

import functools
from pathlib import Path

from judges import judges
from small import workshop

from personalize.config.compare_config import CompareConfig
from personalize.config.train_config import TrainConfig

PROMPTS = "a {0} {1} in the snow\na {1} on the beach\na red car\n"
RUNS = ("standard", "prior:1")


@functools.cache
def shop() -> Path:
    """The tests' workshop with evaluators and a list of prompts."""
    judges(workshop())
    (workshop() / "prompts.txt").write_text(PROMPTS)
    return workshop()


def config(out: Path, runs=RUNS, seeds=(0, 1), each=None, **more) -> CompareConfig:
    few = {
        "pretrained_model_name_or_path": str(shop() / "sd"),
        "instance_data_dir": "",
        "train": "lora",
        "learning_rate": 1e-2,
        "max_train_steps": 2,
        "train_batch_size": 2,
        "center_crop": True,
        "log_every": 1,
        "probe_steps": 2,
        "measure_nodes": 3,
        "measure_chains": 2,
        "output_dir": str(out),
    }
    if any("prior" in r for r in runs):
        few |= {"num_class_images": 2, "class_steps": 2}
    chosen = {
        "subjects": (f"{shop() / 'photos'}:dog",),
        "prompts": str(shop() / "prompts.txt"),
        "images": 2,
        "inference_steps": 2,
        "clip": str(shop() / "clip"),
        "dino": str(shop() / "dino"),
        "workers": 1,
    }
    shared = TrainConfig(**(few | (each or {})))
    return CompareConfig(each=shared, runs=runs, seeds=seeds, **(chosen | more))
