"""`bench --peer`: what is run, in which order, and what is computed from it."""

import json
import sys
from pathlib import Path

import pytest
from small import photos

from personalize.config.commands import Bench
from personalize.cost.peer import (
    Took,
    in_turns,
    measured,
    our_command,
    peer_command,
    summary,
    table,
)
from personalize.cost.speed import bench
from toy2d.runs.files import RunFailure

# takes the flags of diffusers' train_dreambooth_lora.py, notes them, and does nothing else: the
# real script needs torchvision and is not shipped
STAND_IN = """
import argparse, json, pathlib, time
parser = argparse.ArgumentParser()
for name in ("pretrained_model_name_or_path", "instance_data_dir", "instance_prompt", "resolution",
             "train_batch_size", "max_train_steps", "learning_rate", "mixed_precision", "seed",
             "output_dir", "rank", "checkpointing_steps", "lr_warmup_steps"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--center_crop", action="store_true")
given = vars(parser.parse_args())
time.sleep(0.01 * int(given["max_train_steps"]))
pathlib.Path(given["output_dir"]).mkdir(parents=True)
pathlib.Path(given["output_dir"], "flags.json").write_text(json.dumps(given))
"""


def flags(words: list[str]) -> dict[str, str]:
    names = [w for w in words if w.startswith("--")]
    return {n: words[words.index(n) + 1] for n in names if n != "--center_crop"}


def test_both_are_given_the_same_training():
    command = Bench(peer="x/train_dreambooth_lora.py", resolution=64)
    known = command, "base", Path("photos"), 7, Path("out")
    ours, peer = our_command(*known), peer_command(*known)
    assert ours[1:4] == ["-m", "personalize", "train"]
    assert peer[1] == "x/train_dreambooth_lora.py"
    a, b = flags(ours), flags(peer)
    differ = {k for k in a.keys() | b.keys() if a.get(k) != b.get(k)}
    assert differ == {"--train", "--checkpointing_steps", "--lr_warmup_steps"}
    assert (a["--train"], a["--rank"], a["--max_train_steps"]) == ("lora", "4", "7")
    full = our_command(Bench(peer="train_dreambooth.py"), *known[1:])
    assert flags(full)["--train"] == "full"
    assert "--rank" not in full


def test_they_run_in_turns_and_peaks_are_each_process_s_own(tmp_path):
    note = tmp_path / "order.txt"

    def maker(name, megabytes):
        code = f"b = bytearray({megabytes} << 20); open({str(note)!r}, 'a').write({name!r})"
        return lambda steps, out: [sys.executable, "-c", code]

    took = in_turns({"ours": maker("o", 10), "peer": maker("p", 300)}, (1, 2), 2, tmp_path)
    assert note.read_text() == "op" * 4
    assert [t.steps for t in took["ours"]] == [1, 2, 1, 2]
    assert all(0 < t.cpu < 5 for t in took["ours"])
    apart = took["peer"][0].peak - took["ours"][0].peak
    assert 280 * 2**20 < apart < 300 * 2**20


def test_a_step_is_the_slope_between_two_lengths():
    """Start and end cost 5 s and 3 s here; a step 0.5 s and 2 s."""
    took = {
        name: [Took(n, start + n * step, 2 * n, peak) for _ in range(3) for n in (10, 30)]
        for name, start, step, peak in (("ours", 5.0, 0.5, 100), ("peer", 3.0, 2.0, 400))
    }
    numbers = summary(took)
    assert numbers["ours"]["step"] == pytest.approx(0.5)
    assert numbers["peer"]["whole"] == pytest.approx(63.0)
    wanted = {"step": 0.25, "whole": 20 / 63, "step_cpu": 1.0, "whole_cpu": 1.0, "peak": 0.25}
    assert numbers["ratio"] == pytest.approx(wanted)
    assert numbers["ours"]["step_cpu"] == pytest.approx(2.0)


def test_a_script_that_fails_is_named_with_its_last_line():
    with pytest.raises(RunFailure, match=r"ended with 3: no torchvision"):
        measured([sys.executable, "-c", "import sys; print('no torchvision'); sys.exit(3)"])


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (Bench(peer="nowhere.py"), "--peer nowhere.py is no file"),
        (Bench(peer=__file__, memory=True), "choose one"),
        (Bench(peer=__file__, peer_steps=(5, 5)), "two lengths, short first"),
        (Bench(peer_rounds=9), "--peer_rounds has no effect without --peer"),
        (Bench(photos="."), "--photos has no effect without --peer"),
        (Bench(peer=__file__, photos="nowhere"), "--photos nowhere is not a folder"),
    ],
)
def test_flags_of_the_peer_are_checked(command, said):
    assert any(said in problem for problem in command.problems())


def test_each_process_begins_with_an_empty_cache(tmp_path):
    """So ours samples the base's chains every time, and no earlier run of the user's speeds it."""
    note = tmp_path / "note.txt"
    code = "import os, pathlib; cache = pathlib.Path(os.environ['DRIFTLAB_CACHE']); "
    code += f"open({str(note)!r}, 'a').write(f'{{len(list(cache.iterdir()))}}'); "
    code += "(cache / 'chains').mkdir()"
    for _ in range(2):
        measured([sys.executable, "-c", code])
    assert note.read_text() == "00"


def test_the_table_shows_later_runs_without_the_chains():
    took = {
        "ours": [Took(1, 20.0, 2.0, 1), Took(2, 30.0, 3.0, 1)],
        "peer": [Took(1, 15.0, 2.0, 1), Took(2, 25.0, 4.0, 1)],
    }
    record = summary(took)
    record["our_seconds"] = {"chains": 10.0, "measuring": 0.5, "training": 20.0}
    columns = [list(column.cells) for column in table(record, "x").columns]
    cells = {row: cells for row, *cells in zip(*columns, strict=True)}
    assert cells["a base's later runs (no chains), s"] == ["20", "25", "0.800"]
    assert cells["of ours, measuring drift, s"] == ["0.5", "-", "2.5% of training"]


@pytest.mark.slow
def test_the_whole_measurement_with_a_stand_in(tmp_path, capsys):
    script = tmp_path / "train_dreambooth_lora.py"
    script.write_text(STAND_IN)
    small = {"width": 16, "resolution": 64, "peer_steps": (1, 3), "peer_rounds": 1}
    small["photos"] = str(photos(tmp_path / "photos", 2))
    out = tmp_path / "bench.json"
    numbers = bench(Bench(peer=str(script), **small, out=str(out)))["peer_times"]
    assert json.loads(out.read_text())["peer_times"] == numbers
    assert numbers["ours"]["peak"] > 100 * 2**20
    assert numbers["our_seconds"]["training"] > 0
    assert "whole command of 3 steps" in capsys.readouterr().out
