"""Run by each process of a launch: the runs of a JSON file, one after another.

It notes in made.txt which process made how many class images.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from personalize.config.train_config import TrainConfig
from personalize.sample import class_images as classimages
from personalize.train.experiment import run

make = classimages._make


def noted(model, store, missing, *more):
    with Path(sys.argv[1]).with_name("made.txt").open("a") as list_of_makers:
        list_of_makers.writelines(f"{dist.get_rank()}\n" for _ in missing)
    make(model, store, missing, *more)


classimages._make = noted
torch.set_num_threads(1)
for settings in json.loads(Path(sys.argv[1]).read_text()):
    lists = {k: tuple(v) for k, v in settings.items() if isinstance(v, list)}
    run(TrainConfig(**settings | lists))
dist.destroy_process_group()
