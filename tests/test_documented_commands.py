"""Every command that README, lectures and --help print is one that the command line accepts.

Default suite: each is parsed to the end in this process, with the function that does the work put
aside. Slow suite: those that need neither a hub, a GPU nor more than some minutes are executed.
"""

import ast
import functools
import importlib
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import personalize.__main__
import toy2d.__main__
from personalize.config import command_line

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "lectures").glob("*.md"))]
PAGES.append(ROOT / "personalize" / "parallel" / "configs" / "README.md")
VARIABLES = {"MODEL": "stable-diffusion-v1-5/stable-diffusion-v1-5", "BASE": "mini"}
RUNS = ("runs/rex", "runs/bear", "runs/personalize/try")
FILES = ("delta.bin", "train_dreambooth_lora.py")
PHOTOS = ("photos", "photos/rex", "photos/tea", "dreambooth")
SHELL = ("source", "export", "pip", "jupyter", "#")  # commands of others
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands_of(text: str) -> list[str]:
    """The commands of a shell block, without comments and assignments."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if words and not re.match(r"[A-Z_]+=", words[0]):
            found.append(line.replace(".venv/bin/", ""))
    return found


def documented() -> list[tuple[str, str]]:
    """(place, command) of every ```bash block of the pages."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            found += [(page.stem, command) for command in commands_of(block)]
    return found


def in_help() -> list[tuple[str, str]]:
    """(place, command) of every example in a --help text: a line that begins with the program."""
    texts = {"personalize": command_line.ABOUT}
    for name, (kind, _) in personalize.__main__.COMMANDS.items():
        texts[f"personalize {name}"] = kind.__doc__
    texts["toy2d"] = "\n".join(v for v in vars(toy2d.__main__).values() if isinstance(v, str))
    found = []
    for place, text in texts.items():
        # a deeper line that follows "$ command" goes on with it
        joined = re.sub(r"\\?\n {4,}(?=--)", " ", inspect.cleandoc(text))
        for line in re.findall(r"^\s*(?:\$ )?((?:toy2d|personalize) [a-z-].*)$", joined, re.M):
            found.append((place, re.split(r"\s{3,}", line)[0]))
    return found


COMMANDS = list(dict.fromkeys(documented() + in_help()))


def words_of(command: str) -> list[str]:
    filled = re.sub(r"\$(\w+)", lambda m: VARIABLES[m[1]], command)
    words = shlex.split(filled, comments=True)
    return [w for w in words if w != "..."]  # "..." stands for the rest of a command


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the pictures and runs that the examples name."""
    subject = next((ROOT / "personalize" / "mini" / "subjects").glob("*/"))
    for name in PHOTOS:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        for picture in sorted(subject.glob("*.png"))[:4]:
            shutil.copy(picture, tmp_path / name)
    for run in RUNS:
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "config.json").write_text("{}")
    for file in FILES:
        (tmp_path / file).touch()
    (tmp_path / "personalize").symlink_to(ROOT / "personalize")
    (tmp_path / "lectures").symlink_to(ROOT / "lectures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def parsed_only(monkeypatch):
    """The command lines with the work put aside; the list of what they would have done."""
    asked = []
    aside = types.ModuleType("put_aside")
    aside.work = asked.append
    monkeypatch.setitem(sys.modules, "put_aside", aside)
    for name, (kind, _) in personalize.__main__.COMMANDS.items():
        monkeypatch.setitem(personalize.__main__.COMMANDS, name, (kind, "put_aside:work"))
    monkeypatch.setattr(personalize.__main__, "DRY_RUN", "put_aside:work")
    for table in (toy2d.__main__.COMMANDS, toy2d.__main__.RUN_COMMANDS):
        for name, work in list(table.items()):

            @functools.wraps(work)
            def note(*values, **named):
                asked.append((values, named))

            monkeypatch.setitem(table, name, note)
    return asked


def accelerated(words: list[str]) -> list[str]:
    """`accelerate launch --config_file FILE ... -m personalize ARGUMENTS` -> the arguments."""
    file = words[words.index("--config_file") + 1]
    assert (ROOT / file).exists(), file
    return words[words.index("-m") + 2 :]


def refuse_names_that_are_not_there(code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=lambda v: v[:60])
def test_the_command_line_accepts_it(page, command, place, parsed_only, capsys):
    words = words_of(command)
    program, rest = Path(words[0]).name, words[1:]
    if program == "accelerate":
        program, rest = "personalize", accelerated(words)
    if program == "make":
        assert set(rest) <= TARGETS
    elif program in ("python", "python3"):
        assert rest[0] in ("-c", "-m") or (ROOT / rest[0]).exists(), command
        if rest[0] == "-c":
            refuse_names_that_are_not_there(rest[1])
    elif program in ("toy2d", "personalize"):
        wholly = "..." not in command
        code = importlib.import_module(f"{program}.__main__").main(rest)
        complaint = capsys.readouterr().err
        assert code == 0 or not wholly, complaint
        assert wholly is False or parsed_only, "nothing was asked for"
        assert "Unrecognized" not in complaint
        assert "is no flag" not in complaint
    else:
        assert program in SHELL, f"{page}: what is {program}?"


def test_there_is_something_to_test():
    programs = [Path(words_of(command)[0]).name for _, command in COMMANDS]
    assert programs.count("toy2d") > 10
    assert programs.count("personalize") > 20


# ---- executed
LONG = (
    "paper",
    "prompts",
    "sweep",
    "--tune",
    "personalize compare",
    "personalize pretrain",
    "personalize study",
    "verify",
)
NEEDS = (
    "$MODEL",
    "stabilityai",
    "dog-lora",
    "...",
    "delta.bin",
    "bench",
    "accelerate",
    "$BASE",
    "--full",
)


def executable(block: str) -> bool:
    """Needs neither a hub, nor a GPU, nor more than some minutes; calls one of our programs."""
    ours = re.search(r"^(toy2d|personalize) ", block, re.MULTILINE)
    return bool(ours) and not any(word in block for word in (*LONG, *NEEDS))


def blocks() -> list[tuple[str, str]]:
    """(page, what of each block can be executed); a block's commands follow each other."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            kept = [command for command in commands_of(block) if executable(command)]
            first = [c for c in commands_of(block) if c.startswith("python -c")]
            if kept:
                found.append((page.stem, "\n".join(first + kept)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("page", "script"), blocks(), ids=lambda v: v[:60])
def test_it_runs(page, script, place):
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }
    for program in ("toy2d", "personalize"):
        script = re.sub(rf"^{program} ", f"python -m {program} ", script, flags=re.MULTILINE)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


PYTHON = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
MANUAL = (ROOT / "lectures" / "manual_toy2d.md").read_text()


def test_the_manuals_python_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", MANUAL, re.DOTALL)
    exec(block, {})
    mean, error = re.findall(r"-?\d+\.\d+", capsys.readouterr().out)[:2]
    assert float(mean) > 10 * float(error) > 0


@pytest.mark.slow
def test_readmes_python_trains_and_prints_the_numbers_that_it_promises(place, capsys):
    (block,) = PYTHON
    exec(block, {})
    shown = capsys.readouterr().out
    promised = re.findall(r"(standard|l2:0\.1) ([\d.]+)", block.rpartition("#")[2])
    assert len(promised) == 2
    for name, value in promised:
        measured = float(re.search(rf"{name} ([\d.]+) nats", shown)[1])
        assert abs(measured / float(value) - 1) < 0.02
