"""What a user's or a machine's fault looks like: one line, the exit code by contract, nothing left
behind.

A new command or flag gets a row in FAULTS; a new way of writing is reached by WRITES.
"""

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import config, photos, trained, workshop

from personalize.__main__ import main
from personalize.config.toml import SETTINGS
from toy2d.runs import folder as run_folder

torch.set_num_threads(1)


def command_of(out: Path, *args, **more) -> list[str]:
    return shlex.split(config(out, *args, **more).command())[1:]


def train(*words: str) -> Callable[[Path], list[str]]:
    return lambda here: [*command_of(here / "run"), *words]


def nested_concepts(here: Path) -> list[str]:
    file = here / "concepts.json"
    file.write_text("[" * 100_000)
    words = command_of(here / "run")
    at = words.index("--instance_data_dir")
    return [*words[:at], *words[at + 2 :], "--concepts_list", str(file)]


def base_with_nan(here: Path) -> list[str]:
    shutil.copytree(workshop() / "sd", here / "sd")
    file = here / "sd/unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_in.weight"][0, 0, 0, 0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    return [*command_of(here / "run"), "--pretrained_model_name_or_path", str(here / "sd")]


def folder_of_others(here: Path) -> list[str]:
    (here / "run").mkdir()
    (here / "run/thesis.tex").write_text("mine")
    return command_of(here / "run")


def file_for_a_folder(here: Path) -> list[str]:
    (here / "file").write_text("")
    return command_of(here / "file" / "run")


def heic_photo(here: Path) -> list[str]:
    folder = photos(here / "p", 1)
    (folder / "phone.heic").write_bytes(b"\0\0\0\x1cftypheic" + bytes(100))
    return ["check", str(folder)]


class Fault(NamedTuple):
    """`words(folder)`: the command line, after it has made what is wrong."""

    words: Callable[[Path], list[str]]
    said: str
    code: int = 2


FAULTS = {
    "a rank of a billion": Fault(
        train("--rank", "1000000000"),
        "--rank 1000000000 is larger than the widest layer of this model (64)",
    ),
    "no number": Fault(
        train("--learning_rate", "nan"), "--learning_rate nan is not a finite number"
    ),
    "no choice": Fault(train("--train", "lara"), "invalid choice 'lara'"),
    "an unknown flag": Fault(
        train("--ranc", "3"), "--ranc is no flag of `personalize train`; did you mean --rank?"
    ),
    "an unknown command": Fault(
        lambda here: ["trian"], "'trian' is no command; did you mean train?"
    ),
    "concepts nested too deeply": Fault(
        nested_concepts, "is no list of concepts: it is nested too deeply"
    ),
    "a base that holds NaN": Fault(
        base_with_nan, "/unet holds weights that are not finite numbers (conv_in.weight)"
    ),
    "a folder of others": Fault(
        folder_of_others, "is not a run folder (it holds 'thesis.tex'); choose another --output_dir"
    ),
    "a file where a folder should be": Fault(file_for_a_folder, "cannot write", 1),
    "an unknown engine": Fault(
        lambda here: ["compare", "--engine", "foo:bar", "--output_dir", str(here / "run")],
        "--engine foo:bar: use local",
    ),
    "no settings file": Fault(
        lambda here: ["train", str(here / "none.toml")], "none.toml cannot be read"
    ),
    "a HEIC photo": Fault(heic_photo, "1 problem(s)"),
    "one chain": Fault(
        lambda here: ["evaluate", "--model", "x", "--reference", str(here), "--chains", "1"],
        "--chains 1: one chain",
    ),
    "a layer that is not there": Fault(
        train("--lora_target_modules", "nowhere"), "nowhere: UNet2DConditionModel has no such layer"
    ),
}


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_and_leaves_nothing(name, tmp_path, capsys):
    fault = FAULTS[name]
    words = fault.words(tmp_path)
    before = all_files(tmp_path)
    assert main(words) == fault.code
    err = capsys.readouterr().err
    assert err.startswith("personalize: ")
    assert err.count("\n") == 1
    assert fault.said in err
    assert all_files(tmp_path) == before


# ---- every write may fail
WRITES = {
    "fsync": "toy2d.runs.files.os.fsync",
    "rename": "toy2d.runs.files.os.replace",
    "tensors": "toy2d.runs.folder.save_file",
}
FULL = OSError(errno.ENOSPC, "No space left on device")


def failing(real: Callable, at: int, error: Exception) -> Callable:
    """`real`, until its call number `at`: from there on the disk is full."""
    calls = []

    def write(*args, **kwargs):
        calls.append(1)
        if len(calls) >= at:
            raise error
        return real(*args, **kwargs)

    return write


@pytest.mark.parametrize(
    ("write", "at"),
    [
        ("tensors", 2),
        ("fsync", 6),
        *(
            pytest.param(w, n, marks=pytest.mark.slow)
            for w in WRITES
            for n in (1, 2, 3, 4, 7, 11, 16)
        ),
    ],
)
def test_a_full_disk_is_said_and_the_same_command_goes_on_to_the_same_weights(
    write, at, tmp_path, capsys
):
    from safetensors import SafetensorError

    more = {"max_train_steps": 3, "checkpointing_steps": 1}
    expected = trained(config(tmp_path / "whole", **more))
    words = command_of(tmp_path / "run", **more)
    real = {"fsync": os.fsync, "rename": os.replace, "tensors": run_folder.save_file}[write]
    error = FULL
    if write == "tensors":
        error = SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WRITES[write], failing(real, at, error))
        code = main(words)
    err = capsys.readouterr().err
    if code == 0:  # there were not so many writes
        return
    assert code == 1
    assert err.count("\n") == 1
    assert f"the disk of {tmp_path}" in err
    assert "is full (" in err
    assert "the same command goes on" in err
    assert main(words) == 0
    found = trained(config(tmp_path / "run", **more))  # done already: its weights
    assert all(torch.equal(found[k], v) for k, v in expected.items())


# ---- folders
def test_a_finished_run_is_found_again_by_another_path_and_after_a_move(
    tmp_path, capsys, monkeypatch
):
    c = config(tmp_path / "run", max_train_steps=1)
    trained(c)
    assert (tmp_path / "run" / SETTINGS).exists()
    monkeypatch.chdir(tmp_path)
    assert main([*command_of(Path("run"), max_train_steps=1)]) == 0
    assert "run is done already" in capsys.readouterr().out
    shutil.move("run", "moved")
    assert main(["train", f"moved/{SETTINGS}", "--output_dir", "moved"]) == 0
    assert "moved is done already" in capsys.readouterr().out
    assert main(["train", f"moved/{SETTINGS}", "--output_dir", "moved", "--seed", "1"]) == 2
    assert "seed: 0 there, 1 now); choose another --output_dir" in capsys.readouterr().err


# ---- pipes and streams
def shell(line: str) -> subprocess.CompletedProcess:
    line = line.replace("personalize", f"{sys.executable} -m personalize", 1)
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True)


@pytest.mark.parametrize(
    "line",
    [
        "set -o pipefail; personalize train --help | head -1 > /dev/null; exit "
        "$((${PIPESTATUS[0]} % 141))",
        "personalize presets >&-",
        "personalize presets <&-",
        "personalize presets > /dev/null 2>&-",
    ],
)
def test_closed_streams_end_quietly(line):
    done = shell(line)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "words",
    [
        ["check", "none"],
        ["evaluate", "--model", "none", "--reference", "none"],
        ["compare", "--subjects", "none:dog", "--output_dir", "out"],
    ],
    ids=lambda words: words[0],
)
def test_a_refusal_says_nothing_as_json(words, tmp_path, capsys, monkeypatch):
    """stdout stays empty, so what reads it sees no half result: exit code 2 and one line."""
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("personalize: ")
    assert err.count("\n") == 1


def test_check_as_json(tmp_path, capsys):
    folder = photos(tmp_path / "p", 2)
    (folder / "0.txt").write_text("a sks dog, " * 40)
    (folder / "torn.jpg").write_bytes(b"")
    assert main(["check", str(folder), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert [p["file"] for p in found["pictures"]] == ["0.jpg", "1.jpg"]
    assert found["pictures"][0]["notes"] == [
        "caption of at least 160 tokens: CLIP reads 75, its end is lost"
    ]
    assert found["problems"] == [{"file": "torn.jpg", "why": "is empty; copy it again"}]
