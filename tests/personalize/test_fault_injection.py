"""Whatever stops a command: one line, its exit code, and the same command again ends where a run
never stopped does.

A table of commands x kinds of fault. A new command gets a row in COMMANDS and meets every fault;
a new way of writing is met because operations are counted where Python and the kernel see them.
The default suite runs one trial of a few pairs; `-m slow` runs TRIALS of every pair.
"""

import contextlib
import functools
import math
import os
import random
import shlex
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import comparisons
import pytest
import torch
from accelerate.state import AcceleratorState
from discs import disc
from injected import (
    KINDS,
    Ended,
    Fault,
    can_mount,
    ending,
    fork,
    keeps_the_contract,
    run,
    small_disk,
    wait,
)
from small import config, load_quickly, opened, workshop

from personalize.__main__ import main as personalize
from personalize.compare import run as comparison
from personalize.mini.pretrain import command as pretraining
from personalize.mini.pretrain import loop, world
from personalize.pipeline.libraries import quiet_libraries
from personalize.train import experiment
from toy2d.__main__ import main as toy2d
from toy2d.runs.cli import guard

TRIALS = 3  # of every pair in the slow version, with other moments each
torch.set_num_threads(1)


# ---- the commands; each writes all it writes below the folder that it is given
def train(objective: str = "standard", kind: str = "lora", **more) -> Callable[[Path], int]:
    def command(folder: Path) -> int:
        experiment.load = load_quickly
        few = {"max_train_steps": 3, "checkpointing_steps": 1}
        own = {"class_data_dir": str(folder / "class")} if "prior" in objective else {}
        c = config(folder / "run", objective, kind, **few | own | more)
        return personalize(shlex.split(c.command())[1:])

    return command


def toy(folder: Path) -> int:
    few = "--pretrain-steps 40 --steps 12 --snapshots 4 --fisher-samples 20 --runs standard l2:0.1"
    return toy2d(["run", "smoke", *few.split(), "--out", str(folder)])


def compare(folder: Path) -> int:
    quiet_libraries()
    c = comparisons.config(folder / "run", runs=("standard",), seeds=(0,))
    return guard(lambda: comparison.run(c, say=lambda text: None), "personalize")


class Drawings:
    """Stand-ins for the artwork."""

    def __init__(self, folder: Path): ...

    def training(self) -> dict:
        return {(c, s): disc((15 * c, 60 * s, 99, 255)) for c in range(16) for s in range(4)}

    def instances(self) -> list:
        return list(self.training().values())[:8]


def few_contents(n: int, seed: int, held_out: bool = False) -> list[world.Content]:
    return world.contents(min(n, 64), seed, held_out)


def pretrain(folder: Path) -> int:
    pretraining.Artwork, loop.SAVE_EVERY = Drawings, 0.0
    pretraining.data.contents = few_contents
    words = ["pretrain", "--parts", "vae", "clip", "--steps", "3", "--precision", "fp32"]
    return personalize([*words, "--out", str(folder / "run")])


class Command(NamedTuple):
    run: Callable[[Path], int]
    prog: str = "personalize"
    processes: int = 1


COMMANDS = {
    "toy": Command(toy, "toy2d run"),
    "lora": Command(train("prior+l2", "lora+text", use_ema=True)),
    "full": Command(train("l2", "full")),
    "adapter": Command(train("fisher", "svdiff")),
    "compare": Command(compare),
    "pretrain": Command(pretrain),
    "two processes": Command(train(train_batch_size=1), processes=2),
}


# ---- one trial
def start(command: Command, folder: Path, fault: Fault | None, usual: float) -> Ended:
    os.environ["DRIFTLAB_CACHE"] = str(folder / "cache")
    if command.processes > 1:
        return start_several(command, folder, fault, usual)
    return run(lambda: command.run(folder), folder, fault, usual)


def start_several(command: Command, folder: Path, fault: Fault | None, usual: float) -> Ended:
    """As a launcher does: the fault happens to the main process, and the others are then ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def process(rank: int) -> int:
        world_of = {"WORLD_SIZE": command.processes, "MASTER_ADDR": "127.0.0.1"}
        own = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port, "ACCELERATE_USE_CPU": True}
        os.environ.update({k: str(v) for k, v in (world_of | own).items()})
        AcceleratorState._reset_state(True)  # what an earlier test in this process has left
        return command.run(folder)

    others = [
        fork(functools.partial(process, rank), folder) for rank in range(1, command.processes)
    ]
    ended = run(lambda: process(0), folder, fault, usual)
    for pid, err, count in others:
        if ended.code:
            time.sleep(0.2)
            os.kill(pid, signal.SIGKILL)
        wait(pid, err, count, 0.0)
    return ended


def prepared(name: str) -> None:
    """What is the same for all trials is made here, before any fork."""
    opened()
    workshop()
    if name == "compare":
        comparisons.shop()


class Whole(NamedTuple):
    """A run that nothing disturbs: the hashes of its files, how it ended, its bytes on disk."""

    files: dict[str, str]
    ended: Ended
    size: int


@functools.cache
def never_stopped(name: str) -> Whole:
    prepared(name)
    place = workshop() / "trial"
    shutil.rmtree(place, ignore_errors=True)
    ended = start(COMMANDS[name], place, None, 0.0)
    assert ended.code == 0, ended.err
    whole = Whole(ending(place), ended, sum(f.stat().st_size for f in place.rglob("*")))
    shutil.rmtree(place)
    return whole


def drawn(kind: str, name: str, trial: int) -> Fault:
    """A fault of this kind at a moment of its own."""
    rng = random.Random(f"{kind} {name} {trial}")
    operations = never_stopped(name).ended.operations
    byte = int(math.exp(rng.uniform(0, math.log(20_000)))) - 1
    return Fault(kind, rng.randint(1, operations), byte, rng.uniform(0.02, 1.0))


class Trial(NamedTuple):
    first: Ended  # the faulted run
    again: Ended  # the same command without a fault
    found: dict[str, str]  # the files it leaves


def one_trial(name: str, fault: Fault) -> Trial:
    whole, command, place = never_stopped(name), COMMANDS[name], workshop() / "trial"
    shutil.rmtree(place, ignore_errors=True)
    disk = contextlib.nullcontext(lambda: None)
    if fault.kind == "full tmpfs":
        disk = small_disk(place, int(whole.size * fault.moment))
    with disk as mend:
        first = start(command, place, fault, whole.ended.seconds)
        mend()
        return Trial(first, start(command, place, None, 0.0), ending(place))


QUICK = {
    ("toy", "kill in a write"),
    ("lora", "short write"),
    ("lora", "SIGTERM"),
    ("full", "full"),
    ("full", "kill"),
    ("adapter", "read-only"),
    ("two processes", "kill"),
}


PAIRS = [
    pytest.param(
        name,
        kind,
        trial,
        marks=() if trial == 0 and (name, kind) in QUICK else pytest.mark.slow,
        id=f"{name}, {kind}, {trial}",
    )
    for name in COMMANDS
    for kind in KINDS
    for trial in range(TRIALS)
]


@pytest.mark.parametrize(("name", "kind", "trial"), PAIRS)
def test_one_line_the_exit_code_and_the_end_of_a_run_never_stopped(name, kind, trial):
    if kind == "full tmpfs" and not can_mount():
        pytest.skip("mounting a small disk needs root")
    fault = drawn(kind, name, trial)
    first, again, found = one_trial(name, fault)
    wrong = keeps_the_contract(fault, first, COMMANDS[name].prog)
    assert not wrong, f"{fault}: {wrong}:\n{first.err}"
    assert again.code == 0, f"{fault}: {first}\nThe same command again: {again}"
    assert not again.err, f"{fault}: {again.err}"
    assert found == never_stopped(name).files, f"{fault}: {first}"
