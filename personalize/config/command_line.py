"""Command lines: arguments -> a command's name and its typed configuration, or one line about what
is wrong.

Every flag may be written with underscores or dashes. `train` and `compare` show their help by topic
(topics.py); a file of settings (toml.py) comes before the flags, and a flag beside it wins.
"""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, field, fields, make_dataclass
from typing import Annotated, Any, get_type_hints

import tyro

from personalize.config.compare_config import (
    CompareConfig,
    ComparePlan,
    completed,
    each_run,
    mini_compare,
)
from personalize.config.flags import completed as completed_train
from personalize.config.flags import explain_foreign_flags, split_switches
from personalize.config.rules import refuse_missing_folders, resolve
from personalize.config.toml import read_settings, split_file
from personalize.config.topics import TOPICS
from personalize.config.train_config import TrainConfig
from toy2d.runs.cli import complaints_in_one_line
from toy2d.runs.files import UserError

PROGRAM = "personalize"
ABOUT = """Personalize Stable Diffusion with your photos, and measure what that does to the rest.

The base may be `mini`, a small model that comes with driftlab and needs no download:

$ personalize train --pretrained_model_name_or_path mini --output_dir runs/bear
$ personalize generate runs/bear --prompt "a photo of sks bear" "a photo of a bear" --base

Exit codes: 0 done, 1 the machine refused (disk, memory, a number that is not finite),
2 the command was wrong, 130 interrupted (Ctrl-C), 143 ended by SIGTERM."""
NOTHING: Mapping[str, Any] = {}
GROUPED = {TrainConfig: TOPICS, CompareConfig: (ComparePlan, *TOPICS)}
DEFAULTS = {CompareConfig: mini_compare}


def parse(commands: Mapping[str, type], arguments: Sequence[str]) -> tuple[str, Any, list[str]]:
    """(the command's name, its configuration, notes to print).

    Raises UserError; SystemExit after --help.
    """
    arguments, notes = explain_foreign_flags(list(arguments))
    name = next(iter(arguments), "--help")
    if name in ("-h", "--help"):
        _list(commands)
    if name not in commands:
        raise UserError(f"{name!r} is no command{nearest(name, commands)}; see {PROGRAM} --help")
    kind, rest = commands[name], arguments[1:]
    settings = {}
    if kind is TrainConfig:
        rest, file = split_file(rest)
        settings = read_settings(file, kind) if file else {}
    if kind in GROUPED:
        rest, switches = split_switches(rest)
        settings |= switches
    given = refuse_unknown(name, kind, rest) | set(settings)
    config = _parsed(name, kind, rest, settings)
    if kind is CompareConfig:
        config = completed(config, given)
    if kind is TrainConfig:
        config, more = completed_train(config, given)
        notes += more
    return name, config, notes


def judge(config: Any) -> None:
    """Everything that can be said about the flags before torch, diffusers or a model is opened.

    Raises UserError.
    """
    if isinstance(config, TrainConfig):
        refuse_missing_folders(resolve(config))
    elif isinstance(config, CompareConfig):
        each_run(config)
    elif problems := config.problems():
        raise UserError("; ".join(problems))


# ---- names of flags
def flag_names(kind: type) -> dict[str, str]:
    """Every name of every flag of a command, with underscores and without dashes -> its field."""
    found = {}
    for part in GROUPED.get(kind, (kind,)):
        hints = get_type_hints(part, include_extras=True)
        for f in fields(part):
            found[f.name] = f.name
            for mark in getattr(hints[f.name], "__metadata__", ()):
                for alias in getattr(mark, "aliases", None) or ():
                    found[alias.lstrip("-")] = f.name
    return found


def refuse_unknown(name: str, kind: type, arguments: Iterable[str]) -> set[str]:
    """The fields that the arguments name.

    Raises UserError for a flag that does not exist, with the nearest that does.
    """
    known, given = flag_names(kind), set()
    for word in (a.split("=")[0] for a in arguments if a.startswith("--")):
        flag = word.lstrip("-").replace("-", "_")
        if flag not in known and flag != "help":
            hint = nearest(flag, known, "--")
            raise UserError(
                f"{word} is no flag of `{PROGRAM} {name}`{hint}; see {PROGRAM} {name} --help"
            )
        given.add(known.get(flag, flag))
    return given


def nearest(word: str, known: Iterable[str], dashes: str = "") -> str:
    """ "; did you mean --rank?", or nothing if no name is near."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {dashes}{found[0]}?" if found else ""


# ---- tyro
def _parsed(name: str, kind: type, arguments: Sequence[str], settings: Mapping[str, Any]):
    parts = GROUPED.get(kind)
    with complaints_in_one_line(f"{PROGRAM} {name} --help"):
        found = tyro.cli(
            shape_of(kind, settings),
            prog=f"{PROGRAM} {name}",
            description=inspect.cleandoc(kind.__doc__),
            args=arguments,
            use_underscores=True,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    if not parts:
        return found
    values = [
        {f.name: getattr(part, f.name) for f in fields(part)} for part in vars(found).values()
    ]
    if kind is TrainConfig:
        return TrainConfig(**{k: v for part in values for k, v in part.items()})
    plan, *topics = values
    return CompareConfig(each=TrainConfig(**{k: v for t in topics for k, v in t.items()}), **plan)


def shape_of(kind: type, settings: Mapping[str, Any] = NOTHING) -> type:
    """What tyro parses: the command's dataclass, or one with a nested dataclass for each topic, so
    that tyro prints a box of help for each.
    """
    parts = GROUPED.get(kind)
    if not parts:
        return kind
    default = _defaults(kind) | settings
    shown = []
    for part in parts:
        values = {f.name: default.get(f.name, tyro.MISSING) for f in fields(part)}
        flat = Annotated[part, tyro.conf.OmitArgPrefixes]
        shown.append((part.title, flat, field(default=part(**values))))
    return make_dataclass(kind.__name__, shown, frozen=True)


def _defaults(kind: type) -> dict[str, Any]:
    """Default of every flag of a grouped command that has one."""
    if kind is TrainConfig:
        return {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    usual = DEFAULTS[kind]()
    own = {f.name: getattr(usual, f.name) for f in fields(ComparePlan)}
    return {f.name: getattr(usual.each, f.name) for f in fields(usual.each)} | own


def _list(commands: Mapping[str, type]) -> None:
    """Print the commands with the first sentence of each; raises SystemExit(0) as every --help
    does.
    """

    def in_short(kind: type) -> Callable[[], None]:
        def listed() -> None: ...

        listed.__doc__ = kind.__doc__.split("\n\n")[0]
        return listed

    listed = {name: in_short(kind) for name, kind in commands.items()}
    tyro.extras.subcommand_cli_from_dict(listed, prog=PROGRAM, description=ABOUT, args=["--help"])
