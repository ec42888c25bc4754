"""What somebody else made, in every place where a command reads it: one line, nothing executed,
nothing written elsewhere, and no more memory than a file of honest size takes.

A new place that reads a file gets a row in HOSTILE.
"""

import json
import os
import pickle
import shlex
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from small import config, photos, workshop
from test_faults import command_of

from personalize.__main__ import main
from personalize.compare.table import table_of
from personalize.data.prompts import prompt_set
from toy2d.runs.files import MAX_TEXT, UserError, clear_torn, write_atomic
from toy2d.runs.folder import RunFolder

DEEP = "[" * 100_000


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path):
        self.mark = str(mark)

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


def train(here: Path, **files: str) -> list[str]:
    """The words of a training into here/run, which holds these files already."""
    (here / "run").mkdir()
    for name, text in files.items():
        (here / "run" / f"{name}.json").write_text(text)
    return command_of(here / "run")


def concepts(here: Path, source: str) -> list[str]:
    words = command_of(here / "run")
    at = words.index("--instance_data_dir")
    return [*words[:at], *words[at + 2 :], "--concepts_list", source]


def deep_settings(here: Path) -> list[str]:
    (here / "run.toml").write_text(f"a = {DEEP}")
    return ["train", str(here / "run.toml")]


def of_a_model(here: Path, harm: Callable[[Path], None]) -> list[str]:
    shutil.copytree(workshop() / "sd", here / "sd")
    harm(here / "sd")
    return [*command_of(here / "run"), "--pretrained_model_name_or_path", str(here / "sd")]


def pickled_unet(here: Path) -> list[str]:
    def harm(model: Path) -> None:
        file = model / "unet/diffusion_pytorch_model.safetensors"
        file.unlink()
        file.with_suffix(".bin").write_bytes(pickle.dumps(Evil(here / "mark")))

    return of_a_model(here, harm)


def pickle_named_safetensors(here: Path) -> list[str]:
    def harm(model: Path) -> None:
        file = model / "unet/diffusion_pytorch_model.safetensors"
        file.write_bytes(pickle.dumps(Evil(here / "mark")))

    return of_a_model(here, harm)


def endless_header(here: Path) -> list[str]:
    def harm(model: Path) -> None:
        file = model / "unet/diffusion_pytorch_model.safetensors"
        file.write_bytes((2**62).to_bytes(8, "little") + b"{}")

    return of_a_model(here, harm)


def foreign_code(here: Path) -> list[str]:
    """A model that names a module of its own for the UNet."""

    def harm(model: Path) -> None:
        code = f"import pathlib; pathlib.Path({str(here / 'mark')!r}).touch()"
        for folder in (model, model / "unet", here):
            (folder / "evil.py").write_text(code)
        index = json.loads((model / "model_index.json").read_text())
        index["unet"] = ["evil", "Evil"]
        (model / "model_index.json").write_text(json.dumps(index))

    return of_a_model(here, harm)


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4) + kind + data + zlib.crc32(kind + data).to_bytes(4)


def text_bomb(here: Path) -> list[str]:
    """A small PNG whose comment unpacks to 200 MB."""
    folder = photos(here / "photos", 1)
    from PIL import Image

    Image.new("RGB", (64, 64)).save(folder / "b.png")
    data = (folder / "b.png").read_bytes()
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000_000), 1))
    (folder / "b.png").write_bytes(data[:33] + bomb + data[33:])
    return ["check", str(folder)]


def torn_photo_with_a_strange_name(here: Path) -> list[str]:
    folder = photos(here / "photos", 1)
    (folder / "a\n\x1b[31m<b>b.jpg").write_bytes(b"torn")
    return [*command_of(here / "run"), "--instance_data_dir", str(folder)]


class Hostile(NamedTuple):
    words: Callable[[Path], list[str]]
    said: str


HOSTILE = {
    "settings nested too deeply": Hostile(deep_settings, "is not TOML"),
    "settings without an end": Hostile(lambda h: ["train", "--config", "/dev/zero"], "larger than"),
    "concepts without an end": Hostile(lambda h: concepts(h, "/dev/zero"), "larger than"),
    "concepts that are a folder": Hostile(lambda h: concepts(h, str(h)), "cannot be read"),
    "status nested too deeply": Hostile(
        lambda h: train(h, status=DEEP), "status.json cannot be read"
    ),
    "status of another kind": Hostile(
        lambda h: train(h, status="[]"), "status.json cannot be read"
    ),
    "config nested too deeply": Hostile(
        lambda h: train(h, config=DEEP), "config.json cannot be read"
    ),
    "config of another kind": Hostile(lambda h: train(h, config="3"), "config.json is not a"),
    "a pickle for weights": Hostile(pickled_unet, "unet"),
    "a pickle named safetensors": Hostile(pickle_named_safetensors, "unet"),
    "a header without an end": Hostile(endless_header, "unet"),
    "code in a model": Hostile(foreign_code, "evil"),
    "a comment that unpacks to 200 MB": Hostile(text_bomb, "1 problem(s)"),
    "a name with a newline": Hostile(torn_photo_with_a_strange_name, "b.jpg"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_is_one_line_and_runs_nothing(name, tmp_path, capsys, monkeypatch):
    words = HOSTILE[name].words(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert HOSTILE[name].said in err
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("field", ["{0.__class__}", "{0!r}", "{0:>9999999999}", "{1:{0}}", "{2}"])
def test_a_list_of_prompts_fills_in_two_words_and_computes_nothing(field, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"a {{0}} {{1}}\n{field}\n")
    with pytest.raises(UserError, match=r"line 2: only .* may be in braces"):
        prompt_set(str(file), "sks", "dog")


def test_prompts_without_an_end_are_refused():
    with pytest.raises(UserError, match="larger than"):
        prompt_set("/dev/zero", "sks", "dog")


def test_a_link_in_a_run_folder_is_replaced_and_not_followed(tmp_path):
    """Neither writing nor clearing touches what it names."""
    mine, run = tmp_path / "mine", tmp_path / "run"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    with RunFolder(run, {}).open():
        for name in ("history.csv", ".a.new.tmp", "checkpoints"):
            (run / name).symlink_to(mine if name != "history.csv" else mine / "thesis.tex")
        write_atomic(run / "history.csv", "step\n")
        clear_torn(run)
        RunFolder(run, {}).drop_checkpoints()
    assert os.listdir(mine) == ["thesis.tex"]
    assert (mine / "thesis.tex").read_text() == "mine"
    assert not (run / "history.csv").is_symlink()


def test_a_file_is_read_up_to_its_limit(tmp_path):
    """A list of prompts of MAX_TEXT bytes is no device."""
    (tmp_path / "p.txt").write_text("a {0} {1}\n" + "#" * (MAX_TEXT - 20) + "\n")
    assert prompt_set(str(tmp_path / "p.txt"), "sks", "dog").groups["subject"] == ("a sks dog",)


WORDS = "<script>alert(1)</script> $(touch mark) `touch mark`; touch mark [/b] {0} ../../x"


def test_words_of_prompts_and_captions_are_drawn_and_nothing_else(tmp_path, monkeypatch, capsys):
    """In the plan, in training and in its validation pictures."""
    folder = photos(tmp_path / "photos", 1)
    (folder / "0.txt").write_text(f"a sks dog, {WORDS}")
    few = {"max_train_steps": 1, "num_validation_images": 1, "validation_inference_steps": 1}
    words = {"instance_data_dir": str(folder), "validation_prompt": (WORDS,), "class_prompt": WORDS}
    c = config(tmp_path / "run", "prior", **few | words, class_data_dir=str(tmp_path / "class"))
    monkeypatch.chdir(tmp_path)
    command = shlex.split(c.command())[1:]
    assert main([*command, "--dry_run"]) == 0
    assert "[/b] {0}" in capsys.readouterr().out
    assert main(command) == 0
    figures = {str(p.relative_to(tmp_path / "run/figures")) for p in tmp_path.rglob("figures/**/*")}
    assert figures == {"base", "base/00000.png", "validation-000000.png", "validation-000001.png"}
    assert {p.name for p in tmp_path.iterdir()} == {"photos", "run", "class"}
    assert not [p for p in tmp_path.rglob("*") if "mark" in p.name or "script" in p.name]
    assert json.loads((tmp_path / "run/config.json").read_text())["validation_prompt"] == [WORDS]


def test_the_name_of_a_folder_is_no_markup_of_a_table():
    assert table_of(f"{WORDS}: mean", ("run",)).title.replace("\\", "") == f"{WORDS}: mean"
    from rich.console import Console

    with Console(width=200, file=open(os.devnull, "w")) as console:
        console.print(table_of("[/b]", ("run",)))
