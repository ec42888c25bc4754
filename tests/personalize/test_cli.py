"""The command line: one line for the user's faults, exit 2; one for the machine's, exit 1; no
traceback.
"""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from small import config, photos, trained, workshop

from personalize.__main__ import COMMANDS, main

torch.set_num_threads(1)


def arguments(c, *more: str) -> list[str]:
    import shlex

    return [*shlex.split(c.command())[1:], *more]


def said(capsys) -> str:
    out = capsys.readouterr()
    assert "Traceback" not in out.err + out.out
    return out.err


def test_help_teaches_with_an_example(capsys):
    """Below the usage line, every command but `presets` shows a whole command to copy."""
    for command in COMMANDS:
        with pytest.raises(SystemExit) as e:
            main([command, "--help"])
        assert e.value.code == 0
        said = capsys.readouterr().out.partition("\n")[2]
        assert command == "presets" or f"$ personalize {command}" in said


def test_train_from_the_command_line_and_again(tmp_path, capsys):
    c = config(tmp_path / "run", max_train_steps=1)
    assert main(arguments(c)) == 0
    assert "done" in capsys.readouterr().out
    assert main(arguments(c)) == 0
    assert "is done already" in capsys.readouterr().out
    card = (tmp_path / "run" / "README.md").read_text()
    assert c.command() in card


def test_both_spellings(tmp_path):
    c = config(tmp_path / "run", max_train_steps=1)
    dashed = [a.replace("_", "-") if a.startswith("--") else a for a in arguments(c)]
    assert main(dashed) == 0
    assert main(arguments(c)) == 0  # the same configuration: done already


def test_faults_of_the_user(tmp_path, capsys):
    c = config(tmp_path / "run")
    assert main(arguments(c, "--rank", "0")) == 2
    assert "--rank 0 must be above 0" in said(capsys)
    assert main(arguments(c, "--instance_data_dir", str(tmp_path / "none"))) == 2
    assert "none is not a folder" in said(capsys)
    assert main(arguments(c, "--pretrained_model_name_or_path", str(tmp_path))) == 2
    assert "model_index.json" in said(capsys)
    assert main(["train", "--push_to_hub"]) == 2
    assert "hf upload" in said(capsys)
    assert main(["generate", str(tmp_path / "none"), "--prompt", "a dog"]) == 2
    assert "no run folder" in said(capsys)
    assert main(["train", "--no_such_flag", "1"]) == 2
    assert "--no_such_flag is no flag of `personalize train`" in said(capsys)


def test_every_bad_picture_is_named_before_anything_trains(tmp_path, capsys):
    folder = photos(tmp_path / "photos", 2)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "torn.jpg").write_bytes((folder / "0.jpg").read_bytes()[:200])
    (folder / "text.png").write_text("not a picture")
    c = config(tmp_path / "run", instance_data_dir=str(folder))
    assert main(arguments(c)) == 2
    message = said(capsys)
    assert all(name in message for name in ("empty.jpg", "torn.jpg", "text.png"))
    assert not (tmp_path / "run").exists()
    assert main(["check", str(folder)]) == 2
    out = capsys.readouterr()
    assert "3 problem" in out.err
    assert "torn.jpg" in out.out


def test_check_of_good_pictures(tmp_path, capsys):
    folder = photos(tmp_path / "photos", 2)
    (folder / "0.txt").write_text("a green sks toy")
    Image.new("RGBA", (64, 64), (255, 0, 0, 100)).save(folder / "clear.png")
    assert main(["check", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "a green sks toy" in out
    assert "clear.png" in out


def test_a_refused_run_leaves_the_folder_to_the_mended_command(tmp_path, capsys):
    c = config(tmp_path / "run", max_train_steps=1)
    assert main(arguments(c, "--lora_target_modules", "nowhere")) == 2
    assert "nowhere: UNet2DConditionModel has no such layer" in said(capsys)
    assert main(arguments(c)) == 0


def test_faults_of_the_machine(tmp_path, capsys):
    c = config(tmp_path / "run", kind="full", learning_rate=1e20)
    assert main(arguments(c)) == 1
    message = said(capsys)
    assert message.startswith("personalize: ")
    assert message.count("\n") == 1
    (tmp_path / "file").write_text("")
    assert main(arguments(config(tmp_path / "file" / "run"))) == 1
    assert "cannot write" in said(capsys)


def test_dry_run_writes_nothing_and_says_what_it_costs(tmp_path, capsys):
    c = config(tmp_path / "run", "prior", class_data_dir=str(tmp_path / "class"), max_train_steps=9)
    assert main(arguments(c, "--dry_run")) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "9 steps of 1 x 2: each of 3 pictures is seen 6.0 times" in out
    assert (
        "prior: beside each minibatch, 2 of the base's own pictures under 'a photo of a dog'" in out
    )
    assert "one step" in out
    assert not list(tmp_path.iterdir())
    assert main(arguments(c, "--dry_run", "--resolution", "40")) == 2


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_generate_makes_a_grid_with_the_base_above(tmp_path, capsys, kind):
    run = tmp_path / "run"
    trained(config(run, kind=kind, max_train_steps=2))
    words = [
        "generate",
        str(run),
        "--prompt",
        "a photo of sks dog",
        "a cat",
        "--images",
        "2",
        "--steps",
        "2",
    ]
    assert main([*words, "--base"]) == 0
    assert main(words) == 0
    both, alone = (Image.open(run / "figures" / f"generate-{i}.png") for i in (1, 2))
    assert both.width == alone.width
    assert both.height > 1.8 * alone.height - 40
    out = tmp_path / "mine.png"
    assert main([*words, "--out", str(out)]) == 0
    assert out.read_bytes() == (run / "figures" / "generate-2.png").read_bytes()


def test_names_and_prompts_are_data(tmp_path):
    """Markup, templates and quotes in a prompt end up as text, in the card and in history."""
    prompt = "a sks <b>dog</b> {{7*7}} $\\frac{1}{2}$ 'quoted' \"twice\""
    c = config(tmp_path / "run", instance_prompt=prompt, max_train_steps=1)
    assert main(arguments(c)) == 0
    assert "<b>dog" not in (tmp_path / "run" / "README.md").read_text().split("```")[2]
    with open(tmp_path / "run" / "history.csv", newline="") as f:
        assert len(list(csv.DictReader(f))) == 2


def test_a_finished_run_can_be_moved(tmp_path):
    trained(config(tmp_path / "run", max_train_steps=1))
    shutil.move(tmp_path / "run", tmp_path / "moved")
    words = [
        "generate",
        str(tmp_path / "moved"),
        "--prompt",
        "a cat",
        "--images",
        "1",
        "--steps",
        "2",
    ]
    assert main(words) == 0
    assert Path(workshop() / "sd").is_dir()
