"""What each process of a launch does: the runs of a JSON file, one after another."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from personalize.config import TrainConfig
from personalize.experiment import run

torch.set_num_threads(1)
for settings in json.loads(Path(sys.argv[1]).read_text()):
    lists = {k: tuple(v) for k, v in settings.items() if isinstance(v, list)}
    run(TrainConfig(**settings | lists))
dist.destroy_process_group()
