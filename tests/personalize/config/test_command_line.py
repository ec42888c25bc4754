"""The real command line: every flag and alias in both spellings, each with a help text, judged
early.
"""

import json
import subprocess
import sys
import types
from dataclasses import fields
from typing import Literal, Union, get_args, get_origin, get_type_hints

import pytest
import tyro
from small import photos

from personalize.__main__ import COMMANDS, main
from personalize.config.command_line import GROUPED, flag_names, parse, shape_of
from personalize.config.topics import TOPICS
from personalize.config.train_config import TrainConfig

KINDS = {name: kind for name, (kind, _) in COMMANDS.items()}
POSITIONAL = {("check", "folder"), ("generate", "run"), ("export", "source"), ("study", "name")}
NEEDED = {
    "train": {"--pretrained_model_name_or_path": ["base"]},
    "check": {"": ["photos"]},
    "generate": {"": ["run"], "--prompt": ["a dog"]},
    "evaluate": {"--model": ["run"], "--reference": ["photos"]},
    "export": {"": ["run"], "--format": ["peft"]},
    "study": {"": ["regimes"]},
}


def flags(command: str):
    """(flag without dashes, field, type) of everything that is not positional."""
    hints = {}
    for part in GROUPED.get(KINDS[command], (KINDS[command],)):
        hints |= get_type_hints(part)
    for flag, name in flag_names(KINDS[command]).items():
        if (command, name) not in POSITIONAL:
            yield flag, name, hints[name]


def example(hint) -> tuple[list[str], object]:
    """(words on the command line, the value they give), another than the default."""
    simple = {int: (["7"], 7), float: (["0.5"], 0.5), str: (["word"], "word"), bool: ([], True)}
    if hint in simple:
        return simple[hint]
    choices = [a for a in get_args(hint) if a is not types.NoneType]
    if get_origin(hint) is Literal:
        return [choices[-1]], choices[-1]
    if get_origin(hint) is tuple and Ellipsis not in choices:  # a tuple of this length
        examples = [example(choice) for choice in choices]
        return [w for words, _ in examples for w in words], tuple(v for _, v in examples)
    words, value = example(choices[0])
    if get_origin(hint) in (Union, types.UnionType):
        return words, value
    return words, (value,)  # a tuple of any length


SPELLINGS = {"underscores": lambda f: f, "dashes": lambda f: f.replace("_", "-")}


@pytest.mark.parametrize("alias", [False, True], ids=["names", "aliases"])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("command", KINDS)
def test_every_flag_and_alias_works_in_both_spellings(command, spelling, alias):
    """One command line with all flags of a command at once, then one with all its aliases."""
    asked = {n: (f, *example(h)) for f, n, h in flags(command) if (f != n) == alias}
    if "preset" in asked:
        asked["preset"] = "preset", ["balanced"], "balanced"
    needed = {f: words for f, words in NEEDED.get(command, {}).items() if f[2:] not in asked}
    arguments = [w for f, words in needed.items() for w in (f, *words) if w]
    for flag, words, _ in asked.values():
        arguments += [f"--{SPELLINGS[spelling](flag)}", *words]
    config = parse(KINDS, [command, *arguments])[1]
    for name, (_, _, value) in asked.items():
        owner = config if hasattr(config, name) else config.each
        assert getattr(owner, name) == value, name


@pytest.mark.filterwarnings("ignore:get_parser")
@pytest.mark.parametrize("command", KINDS)
def test_every_flag_has_a_help_text(command):
    """Beside the default, which tyro adds itself."""
    shown = tyro.extras.get_parser(shape_of(KINDS[command]), use_underscores=True)._actions
    said = {
        o.lstrip("-"): (a.help or "").partition("(default")[0]
        for a in shown
        for o in a.option_strings
    }
    said |= {a.dest: a.help for a in shown if not a.option_strings}
    assert not [
        f for f in flag_names(KINDS[command]) if len(said[f].replace("(required)", "")) < 10
    ]


@pytest.mark.parametrize("command", ["train", "compare"])
def test_help_is_grouped_by_topic_and_says_itself_once(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    out = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    for topic in TOPICS:
        assert (
            out.count(f"{topic.title.replace('_', '-')} options") == 1
            or out.count(f"{topic.title} options") == 1
        )
        assert " ".join(topic.__doc__.split()) in out
    assert out.count(" ".join(KINDS[command].__doc__.split())[:80]) == 1
    assert "mini" in out


def test_topics_hold_every_field_of_a_run_once():
    held = [f.name for topic in TOPICS for f in fields(topic)]
    assert len(held) == len(set(held))
    assert held == [f.name for f in fields(TrainConfig)]


# ---- judged before anything heavy is imported
HEAVY = ("torch", "diffusers", "transformers", "numpy", "PIL")
PROBE = """
import json, sys
from {package}.__main__ import main
try:
    code = main(json.loads(sys.argv[1]))
except SystemExit as e:
    code = e.code
print(json.dumps([code, [m for m in json.loads(sys.argv[2]) if m in sys.modules]]))
"""


def probed(arguments: list[str], package: str = "personalize") -> tuple[int, list[str], str]:
    """(exit code, heavy modules imported, stderr) of a command in a process of its own."""
    words = [json.dumps(arguments), json.dumps(HEAVY)]
    code = PROBE.format(package=package)
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    status, heavy = json.loads(done.stdout.splitlines()[-1])
    return status, heavy, done.stderr


MINI = ["--pretrained_model_name_or_path", "mini"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["train", "--help"], 0, ""),
        (["train", *MINI, "--rank", "0"], 2, "--rank 0 must be above 0"),
        (["train", *MINI, "--rank", "1000000000"], 2, "--rank 1000000000 is larger than"),
        (["train", *MINI, "--learning_rat", "1"], 2, "did you mean --learning_rate?"),
        (["train", *MINI, "--instance_data_dir", "/nowhere"], 2, "/nowhere is not a folder"),
        (["train"], 2, "--pretrained_model_name_or_path is missing"),
        (["evaluate", "--model", "x", "--reference", "y", "--chains", "1"], 2, "--chains 1"),
        (["generate", "x", "--prompt", "a", "--images", "0"], 2, "--images 0: at least 1"),
        (["export", "/nowhere", "--format", "peft"], 2, "/nowhere is neither a run folder nor"),
        (["bench", "--width", "1000000"], 2, "--width 1000000 needs about"),
        (["compare", "--engine", "foo:bar"], 2, "--engine foo:bar: use local"),
        (["compare", "--runs", "l2:1"], 2, "--runs needs standard"),
        (["pretrain", "--parts", "hand"], 2, "hand"),
    ],
    ids=lambda v: " ".join(v[:4])[-40:] if isinstance(v, list) else None,
)
def test_a_command_is_judged_before_anything_heavy_is_imported(arguments, code, said):
    status, heavy, stderr = probed(arguments)
    assert (status, heavy) == (code, [])
    assert said in stderr
    assert stderr.count("\n") == (1 if code else 0)


def test_export_judges_the_format_by_the_runs_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"train": "full"}))
    status, heavy, stderr = probed(["export", str(tmp_path), "--format", "kohya"])
    assert (status, heavy) == (2, [])
    assert "--format kohya cannot hold --train full" in stderr


# ---- the mini's own preset
def test_the_mini_brings_a_preset_that_is_named(tmp_path, capsys):
    _, c, notes = parse(KINDS, ["train", *MINI])
    assert (c.preset, c.learning_rate, c.max_train_steps, c.train_batch_size) == (
        "mini",
        5e-5,
        200,
        2,
    )
    assert (c.validation_guidance, c.instance_prompt) == (1.25, "a photo of sks bear")
    assert "learning_rate 5e-05" in notes[0]
    assert "guidance 1.25" in notes[0]


def test_flags_beside_the_mini_win_and_your_pictures_bring_your_prompts(tmp_path):
    mine = ["--instance_data_dir", str(photos(tmp_path / "p", 1)), "--instance_prompt", "a sks cat"]
    _, c, notes = parse(KINDS, ["train", *MINI, "--train", "lora", "--max_train_steps", "3", *mine])
    assert (c.train, c.max_train_steps, c.class_prompt) == ("lora", 3, None)
    assert c.validation_prompt == ("a sks cat",)
    assert c.learning_rate != 5e-5  # LoRA's own
    assert "max_train_steps" not in notes[0]


def test_the_minis_class_images_have_a_folder_of_their_own():
    _, c, _ = parse(KINDS, ["train", *MINI, "--objective", "prior"])
    assert c.class_data_dir == "runs/personalize/mini-class/a-photo-of-a-bear-0-64"
    assert (c.class_guidance, c.class_steps) == (1.25, 12)


def test_the_command_of_a_mini_run_gives_it_again():
    import shlex

    _, c, _ = parse(KINDS, ["train", *MINI, "--objective", "prior", "--seed", "3"])
    assert parse(KINDS, shlex.split(c.command())[1:])[1] == c


# ---- a file of settings
def test_a_file_of_settings_and_flags_beside_it(tmp_path):
    from personalize.config.toml import as_toml

    flags = [
        "--objective",
        "prior+l2",
        "--l2_weight",
        "3",
        "--no-center_crop",
        "--lora_target_modules",
        "a",
        "b",
    ]
    _, c, _ = parse(
        KINDS, ["train", *MINI, *flags, "--instance_prompt", 'a "sks" \\ \x7f\u2028 b\u00e4r']
    )
    file = tmp_path / "run.toml"
    file.write_text(as_toml(c))
    assert parse(KINDS, ["train", str(file)])[1] == c
    assert parse(KINDS, ["train", "--seed", "5", "--config", str(file)])[1].seed == 5
    other = parse(KINDS, ["train", str(file), "--seed", "5", "--learning_rate", "0.5"])[1]
    assert (other.seed, other.learning_rate, other.l2_reg_weight) == (5, 0.5, 3.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "learning_rat = 1",
            "'learning_rat' is no flag of `personalize train`; did you mean learning_rate?",
        ),
        ("learning_rate = 'fast'", "learning_rate = 'fast' is not one of: float"),
        ("train = 'lara'", "train = 'lara' is not one of: full, lora"),
        ("pad = 1", "pad = 1 is not one of: bool"),
        ("seed = 1.5", "seed = 1.5 is not one of: int"),
        ("validation_prompt = [1]", "validation_prompt = [1] is not one of"),
        ("a = ", "is not TOML"),
        ("a = " + "[" * 5000, "is not TOML"),
    ],
)
def test_what_a_file_may_not_say(tmp_path, capsys, text, said):
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert main(["train", str(file)]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1
    assert main(["train", "--config", str(tmp_path / "none.toml")]) == 2
    assert "none.toml cannot be read" in capsys.readouterr().err
