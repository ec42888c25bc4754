"""The run folder: whole files or none, one owner, one configuration, checked checkpoints."""

import contextlib
import errno
import json
import os
import platform
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from toy2d.runs import folder as runfolder
from toy2d.runs.files import (
    RunFailure,
    UserError,
    read_csv,
    verify_manifest,
    write_atomic,
    write_csv,
)
from toy2d.runs.folder import RunFolder, hash_tensors, load_tensors, save_tensors


def folder(tmp_path, **config):
    return RunFolder(tmp_path / "run", {"steps": 3} | config)


def test_status_goes_from_new_to_done(tmp_path):
    run = folder(tmp_path)
    assert run.status == "new"
    with run.open():
        assert run.status == "running"
    assert run.status == "done"
    with run.open():
        assert run.status == "done"  # a finished run stays finished


def test_a_fault_is_recorded_and_raised(tmp_path):
    run = folder(tmp_path)
    with pytest.raises(ZeroDivisionError), run.open():
        raise ZeroDivisionError("why")
    record = json.loads((run.path / "status.json").read_text())
    assert record["status"] == "failed"
    assert "why" in record["reason"]
    with run.open():
        pass
    assert run.status == "done"


def test_another_configuration_is_refused_and_the_difference_listed(tmp_path):
    with folder(tmp_path).open():
        pass
    with pytest.raises(UserError, match="steps: 3 there, 4 now"), folder(tmp_path, steps=4).open():
        pass


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not a run folder .*thesis\.txt"), folder(tmp_path).open():
        pass
    assert os.listdir(tmp_path / "run") == ["thesis.txt"]


def test_two_processes_on_one_folder(tmp_path):
    in_use = pytest.raises(UserError, match=f"in use by process {os.getpid()}")
    with folder(tmp_path).open(), in_use, folder(tmp_path).open():
        pass


HOLDER = """
import sys, time
from pathlib import Path
import torch
from toy2d.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1]), {"steps": 3}).open() as run:
    run.save_checkpoint(1, {"x": torch.ones(3)}, {"step": 1})
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_leaves_the_folder_free(tmp_path):
    """kill -9 half-way: the lock goes with the process, the status still says running, the
    checkpoint is whole.
    """
    run = folder(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {process.pid} on {platform.node()}"), run.open():
        pass
    process.kill()
    process.communicate()
    assert run.status == "running"
    assert not (run.path / "manifest.json").exists()
    with run.open():
        assert run.newest_checkpoint()[1] == {"step": 1}
    assert run.status == "done"


def finished(tmp_path):
    run = folder(tmp_path)
    with run.open():
        write_atomic(run.path / "weights", "0123")
        write_atomic(run.path / "figures" / "a.png", "drawn")
    return run


def test_a_finished_run_carries_a_manifest_of_what_counts(tmp_path):
    run = finished(tmp_path)
    assert verify_manifest(run.path)
    assert list(json.loads((run.path / "manifest.json").read_text())) == ["config.json", "weights"]
    (run.path / "figures" / "a.png").write_text("drawn anew")
    with run.open():
        assert run.status == "done"
    (run.path / "weights").write_text("0124")
    assert not verify_manifest(run.path)


@pytest.mark.parametrize("lost", ["weights", "manifest.json"])
def test_a_finished_run_that_lost_a_file_does_not_pass_for_done(tmp_path, lost):
    run = finished(tmp_path)
    (run.path / lost).unlink()
    with pytest.raises(UserError, match=f"was done, but '{lost}' is gone"), run.open():
        pass


@pytest.mark.parametrize("name", ["status.json", "config.json"])
def test_garbage_in_the_folder_is_named(tmp_path, name):
    with folder(tmp_path).open():
        pass
    (tmp_path / "run" / name).write_text("{")
    with pytest.raises(UserError, match=name), folder(tmp_path).open():
        pass


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_atomic(file, "old")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runfolder.os, "fsync", full)
    said = rf"cannot write .*: the disk of {tmp_path} is full \(.* are free\); "
    said += "free some space, and the same command goes on"
    with pytest.raises(RunFailure, match=said):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(RunFailure, match=said):
        save_tensors(tmp_path / "a.json", {"x": torch.ones(3)})
    assert os.listdir(tmp_path) == ["a.json"]
    assert file.read_text() == "old"


def test_no_permission_is_one_line(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(runfolder.Path, "mkdir", denied)
    with (
        pytest.raises(
            RunFailure,
            match=r"cannot write .*Permission denied; choose a folder that you may write to",
        ),
        folder(tmp_path).open(),
    ):
        pass


def checkpointed(tmp_path, steps=(1, 2, 3)):
    run = folder(tmp_path)
    for step in steps:
        run.save_checkpoint(step, {"x": torch.full((3,), float(step))}, {"step": step})
    return run


def test_checkpoints_come_back_and_old_ones_go(tmp_path):
    run = checkpointed(tmp_path)
    tensors, scalars = run.newest_checkpoint()
    assert scalars["step"] == 3
    assert torch.equal(tensors["x"], torch.full((3,), 3.0))
    assert [p.name for p in run.checkpoints()] == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "no manifest"])
def test_a_harmed_checkpoint_is_passed_over_and_named(tmp_path, harm, capsys):
    run = checkpointed(tmp_path)
    file = run.checkpoints()[-1] / "state.safetensors"
    data = bytearray(file.read_bytes())
    if harm == "truncate":
        file.write_bytes(data[:-1])
    elif harm == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif harm == "remove":
        file.unlink()
    else:
        (file.parent / "manifest.json").unlink()
    assert run.newest_checkpoint()[1]["step"] == 2
    line = capsys.readouterr().out
    why = {"truncate": "was cut (", "flip": "was altered"}.get(harm, "is missing")
    assert line.startswith(f"skipped the checkpoint {file.parent}: ")
    assert why in line
    assert line.endswith("; going on from step-00000002\n")


def test_no_room_for_a_checkpoint_is_said_before_writing(tmp_path, monkeypatch):
    run = checkpointed(tmp_path)
    usage = type("usage", (), {"free": 60_000})
    monkeypatch.setattr(runfolder.shutil, "disk_usage", lambda p: usage)
    said = r"is full \(200.0 kB are needed, 60.0 kB are free\); .* the same command goes on"
    with pytest.raises(RunFailure, match=said):
        run.save_checkpoint(4, {"x": torch.zeros(3)}, {})
    assert run.newest_checkpoint()[1]["step"] == 3


def test_csv_round_trip_with_growing_columns(tmp_path):
    rows = [{"step": 0, "a": 1.5}, {"step": -1, "b": 2.0, "objective": "l2", "a": None}]
    write_csv(tmp_path / "h.csv", rows)
    read = read_csv(tmp_path / "h.csv")
    assert read == [{"step": 0, "a": 1.5}, {"step": -1, "b": 2.0, "objective": "l2"}]
    assert [type(r["step"]) for r in read] == [int, int]


def test_csv_read_and_written_again_is_the_same_bytes(tmp_path):
    """A run that goes on writes the rows of before as they were: seed 0 stays 0."""
    odd = {
        "zero": 0,
        "float": 0.0,
        "small": 1e-05,
        "third": 1 / 3,
        "word": "prior:1+l2",
        "n": "007",
    }
    write_csv(tmp_path / "h.csv", [odd | {"more": 10**20}, odd])
    write_csv(tmp_path / "again.csv", read_csv(tmp_path / "h.csv"))
    once, again = (tmp_path / n for n in ("h.csv", "again.csv"))
    assert once.read_bytes().replace(b"007", b"7.0") == again.read_bytes()


def test_a_refused_run_leaves_nothing(tmp_path):
    run = RunFolder(tmp_path / "new" / "deep" / "run", {})
    with pytest.raises(UserError, match="why"), run.open():
        raise UserError("why")
    assert os.listdir(tmp_path) == []


def test_a_refusal_after_the_first_row_or_of_an_older_run_keeps_everything(tmp_path):
    run = folder(tmp_path)
    with contextlib.suppress(UserError), run.open():
        write_csv(run.path / "history.csv", [{"step": 0}])
        raise UserError("too late")
    assert run.status == "failed"
    with pytest.raises(UserError), folder(tmp_path, steps=4).open():
        pass
    assert (run.path / "history.csv").exists()


def test_folders_are_compared_as_places_and_a_run_folder_may_be_moved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"output_dir": "run", "photos_dir": "photos", "prompt": "a/b"}
    with RunFolder("run", settings).open():
        pass
    os.rename("run", "moved")
    whole = {"output_dir": "moved", "photos_dir": str(tmp_path / "photos"), "prompt": "a/b"}
    with RunFolder("moved", whole).open() as run:
        assert run.status == "done"
    with pytest.raises(UserError, match="prompt: a/b there, a/b/ now"):
        RunFolder("moved", whole | {"prompt": "a/b/"}).open().__enter__()


def test_what_a_killed_process_left_half_written_is_cleared(tmp_path):
    """Also where nothing else was written yet; other hidden files and locked folders stay."""
    path = tmp_path / "run"
    (path / ".lora.new.tmp").mkdir(parents=True)
    (path / ".config.json.123.tmp").write_text("{")
    with folder(tmp_path).open():
        (path / "own").mkdir()
    kept = [path / ".notes.tmp", path / "own" / ".lock", path / "own" / ".a.1.tmp"]
    for file in kept:
        file.write_text("kept")
    (path / ".b.old.tmp").write_text("torn")
    (path / "status.json").write_text(json.dumps({"status": "running"}))
    with folder(tmp_path).open():
        pass
    left = {p for p in path.rglob("*") if p.name.endswith(".tmp")}
    assert left == {kept[0], kept[2]}


def test_hash_sees_names_values_and_shapes():
    a = {"x": torch.arange(4.0)}
    assert hash_tensors(a) == hash_tensors({"x": torch.arange(4.0)})
    others = [{"y": a["x"]}, {"x": a["x"] + 1}, {"x": a["x"].reshape(2, 2)}, {"x": a["x"].double()}]
    assert len({hash_tensors(o) for o in (a, *others)}) == 5


def test_tensors_that_share_memory_are_saved_each_on_its_own(tmp_path):
    x = torch.arange(6.0).reshape(2, 3)
    tensors = {"x": x, "same": x, "row": x[1], "turned": x.T, "empty": x[:0], "bf16": x.bfloat16()}
    save_tensors(tmp_path / "t.safetensors", tensors)
    loaded = load_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(loaded[k], v) for k, v in tensors.items())


def test_equal_tensors_and_metadata_are_equal_bytes(tmp_path):
    """safetensors writes metadata in an order that changes from call to call; ours is sorted."""
    metadata = {f"key{i}": "\u00e9" * i for i in range(6)}
    for i in range(8):
        save_tensors(tmp_path / str(i), {"x": torch.arange(5.0)}, metadata)
    assert len({(tmp_path / str(i)).read_bytes() for i in range(8)}) == 1
    with safe_open(tmp_path / "0", "pt") as f:
        assert f.metadata() == metadata
        assert torch.equal(f.get_tensor("x"), torch.arange(5.0))
