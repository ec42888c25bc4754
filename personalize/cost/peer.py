"""`personalize bench --peer SCRIPT`: another training script against ours, as whole processes.

SCRIPT is a file of yours that takes the flags of diffusers' examples/dreambooth/train_dreambooth.py
or train_dreambooth_lora.py ("lora" in its name chooses LoRA); none is shipped. Both train the same
pipeline folder on the same pictures, with the same prompt, batch size, learning rate, steps and
seed, in turns, so that a slow minute of the machine slows both.

Each runs at two lengths. The difference of their times over the difference of their steps is the
time of a step, without start and end. Ours measures drift as it does by default. Each of our runs
is a base's first: its cache is empty, so it samples the base's chains, which later runs of a base
find. How long chains and measuring took is shown, and the whole time without the chains. Peak
memory is the process's resident set; a GPU's memory is not seen from outside.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from personalize.config.commands import Bench
from personalize.cost.fixture import save_photograph
from personalize.pipeline.random_pipeline import random_pipeline
from toy2d.runs.files import RunFailure

PHOTOS = 5
MIB = 2**20
# Linux counts a process's peak from its parent's memory at the fork: a small parent starts it
WATCHER = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=open(sys.argv[1], "w"))  # s, KiB
sys.exit(code)
"""
MakeCommand = Callable[[int, Path], list[str]]  # (steps, output folder) -> the command line


class Took(NamedTuple):
    """Of one process."""

    steps: int
    seconds: float
    cpu: float  # seconds of all threads: what a machine that others use disturbs less
    peak: int  # bytes


def peer_times(command: Bench) -> dict:
    """Medians over rounds of ours and the peer's, and their ratios."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        photos = Path(command.photos).expanduser() if command.photos else made(folder / "photos")
        base = command.model or str(folder / "base")
        if not command.model:
            random_pipeline(width=command.width).save_pretrained(base)
        makers = {
            "ours": lambda steps, out: our_command(command, base, photos, steps, out),
            "peer": lambda steps, out: peer_command(command, base, photos, steps, out),
        }
        took = in_turns(makers, command.peer_steps, command.peer_rounds, folder)
        longest = sorted(folder.glob(f"ours-{max(command.peer_steps)}-*/metrics.json"))
        phases = [json.loads(f.read_text())["seconds"] for f in longest]
    return summary(took) | {"our_seconds": {k: median(p[k] for p in phases) for k in phases[0]}}


def made(photos: Path) -> Path:
    """Five JPEGs where the user names none."""
    photos.mkdir()
    for i in range(PHOTOS):
        save_photograph(photos / f"{i}.jpg", seed=i)
    return photos


def shared_flags(command: Bench, base: str, photos: Path, steps: int, out: Path) -> list[str]:
    flags = {
        "pretrained_model_name_or_path": base,
        "instance_data_dir": photos,
        "instance_prompt": "a photo of sks dog",
        "resolution": command.resolution,
        "train_batch_size": command.batch_size,
        "max_train_steps": steps,
        "learning_rate": 1e-4,
        "mixed_precision": command.mixed_precision,
        "seed": 0,
        "output_dir": out,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [*words, "--center_crop", *(("--rank", "4") if kind_of(command) == "lora" else ())]


def kind_of(command: Bench) -> str:
    return "lora" if "lora" in Path(command.peer).name else "full"


def our_command(command: Bench, base: str, photos: Path, steps: int, out: Path) -> list[str]:
    flags = shared_flags(command, base, photos, steps, out)
    ours = ["--train", kind_of(command), "--checkpointing_steps", "0"]
    return [sys.executable, "-m", "personalize", "train", *flags, *ours]


def peer_command(command: Bench, base: str, photos: Path, steps: int, out: Path) -> list[str]:
    flags = shared_flags(command, base, photos, steps, out)
    never = ["--checkpointing_steps", str(10**6), "--lr_warmup_steps", "0"]
    return [sys.executable, str(Path(command.peer).expanduser()), *flags, *never]


# ---- measuring
def in_turns(
    makers: dict[str, MakeCommand], lengths: tuple[int, int], rounds: int, folder: Path
) -> dict[str, list[Took]]:
    took = {name: [] for name in makers}
    for k in range(rounds):
        for steps in lengths:
            for name, make in makers.items():
                took[name].append(
                    Took(steps, *measured(make(steps, folder / f"{name}-{steps}-{k}")))
                )
    return took


def measured(words: list[str]) -> tuple[float, float, int]:
    """Seconds, CPU seconds and peak bytes of a process.

    Raises RunFailure with its last line if it fails.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    with (
        tempfile.TemporaryFile("w+") as log,
        tempfile.NamedTemporaryFile("r") as used,
        tempfile.TemporaryDirectory() as cache,
    ):
        environment["DRIFTLAB_CACHE"] = cache
        watched = [sys.executable, "-c", WATCHER, used.name, *words]
        started = time.perf_counter()
        done = subprocess.run(watched, env=environment, stdout=log, stderr=log)
        seconds = time.perf_counter() - started
        if done.returncode:
            log.seek(0)
            last = (log.read().strip().splitlines() or ["no output"])[-1]
            raise RunFailure(f"{' '.join(words[:3])} ... ended with {done.returncode}: {last}")
        cpu, peak = used.read().split()
        return seconds, float(cpu), int(peak) * 1024


def summary(took: dict[str, list[Took]]) -> dict[str, dict]:
    """By process: "step" and "whole" (seconds), the same in CPU seconds, "peak" (bytes); and the
    ratios ours / peer.
    """
    numbers = {name: _medians(of) for name, of in took.items()}
    ours, peer = numbers["ours"], numbers["peer"]
    return numbers | {"ratio": {k: ours[k] / peer[k] for k in ours if k != "steps"}}


def _medians(took: list[Took]) -> dict[str, float]:
    """A step's seconds are the slope between the two lengths, one slope a round."""
    short, long = (sorted({t.steps for t in took})[i] for i in (0, -1))
    starts, ends = ([t for t in took if t.steps == n] for n in (short, long))
    rounds = list(zip(starts, ends, strict=True))
    return {
        "steps": long,
        "step": median((b.seconds - a.seconds) / (long - short) for a, b in rounds),
        "step_cpu": median((b.cpu - a.cpu) / (long - short) for a, b in rounds),
        "whole": median(t.seconds for t in ends),
        "whole_cpu": median(t.cpu for t in ends),
        "peak": median(t.peak for t in ends),
    }


def table(record: dict, script: str) -> Table:
    ours, peer, ratio = record["ours"], record["peer"], record["ratio"]
    shown = Table(
        "what", "ours", "peer", "ratio", title=escape(f"whole processes, against {script}")
    )
    rows = {
        "s / step": ("step", 1),
        "CPU s / step": ("step_cpu", 1),
        f"whole command of {ours['steps']} steps, s": ("whole", 1),
        "the same, CPU s": ("whole_cpu", 1),
        "peak memory, MiB": ("peak", MIB),
    }
    for title, (key, unit) in rows.items():
        values = f"{ours[key] / unit:.4g}", f"{peer[key] / unit:.4g}", f"{ratio[key]:.3f}"
        shown.add_row(title, *values)
    phases = record["our_seconds"]
    chains, measuring = phases.get("chains", 0.0), phases.get("measuring", 0.0)
    later = ours["whole"] - chains
    words = f"{later:.4g}", f"{peer['whole']:.4g}", f"{later / peer['whole']:.3f}"
    shown.add_row("a base's later runs (no chains), s", *words)
    shown.add_row("of ours, the base's chains, s", f"{chains:.4g}", "-", "-")
    share = f"{measuring / phases['training']:.1%} of training"
    shown.add_row("of ours, measuring drift, s", f"{measuring:.4g}", "-", share)
    return shown
