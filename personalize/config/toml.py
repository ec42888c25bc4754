"""A file of settings for `personalize train`: TOML with the names of the flags, read and written.

    personalize train run.toml --seed 1          a flag beside the file wins

Every run folder holds a run.toml that gives the same run again.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from personalize.config.presets import PRESETS
from personalize.config.train_config import TrainConfig
from toy2d.runs.files import UserError, read_text

SETTINGS = "run.toml"  # in a run folder


def split_file(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """(arguments without the file, the file): the first word if it ends in .toml, or what follows
    --config.
    """
    rest, file = list(arguments), None
    if rest and rest[0].endswith(".toml"):
        file = rest.pop(0)
    for i, word in enumerate(rest):
        flag, equals, value = word.partition("=")
        if flag == "--config":
            if file or not (equals or rest[i + 1 : i + 2]):
                raise UserError("--config needs one file, e.g. --config run.toml")
            file = value if equals else rest.pop(i + 1)
            rest.pop(i)
            break
    return rest, Path(file).expanduser() if file else None


def read_settings(file: Path, kind: type = TrainConfig) -> dict[str, Any]:
    """The settings of a TOML file.

    Raises UserError for what cannot be read, an unknown name or a value of another type.
    """
    try:
        found = tomllib.loads(read_text(file))
    except OSError as e:
        raise UserError(f"{file} cannot be read: {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{file} is not TOML: {str(e)[:200]}") from e
    hints = get_type_hints(kind)
    return {name: _value(file, name, value, hints) for name, value in found.items()}


def _value(file: Path, name: str, value: Any, hints: Mapping[str, Any]) -> Any:
    if name not in hints:
        near = difflib.get_close_matches(name, list(hints), n=1)
        hint = f"; did you mean {near[0]}?" if near else "; see personalize train --help"
        raise UserError(f"{file}: {name!r} is no flag of `personalize train`{hint}")
    hint = hints[name]
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = tuple(value)
    allowed = get_args(hint) or (hint,)
    if isinstance(value, int) and not isinstance(value, bool) and float in (hint, *allowed):
        value = float(value)
    if not _fits(value, hint):
        kinds = ", ".join(getattr(a, "__name__", str(a)) for a in allowed if a is not type(None))
        raise UserError(f"{file}: {name} = {value!r} is not one of: {kinds}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Does the value have the type that a flag's annotation says?"""
    if isinstance(hint, type):
        return type(value) is hint
    choices = get_args(hint)
    if tuple in (getattr(hint, "__origin__", None),):
        return isinstance(value, tuple)
    return any(_fits(value, c) if not isinstance(c, str) else value == c for c in choices)


def as_toml(config: TrainConfig) -> str:
    """run.toml: what differs from the defaults, or from the preset.

    `personalize train run.toml` gives this run again.
    """
    lines = ["# personalize train run.toml   gives this run again; a flag beside it wins"]
    lines += [f"{name} = {_written(value)}" for name, value in differing(config).items()]
    return "\n".join(lines) + "\n"


def differing(config: TrainConfig) -> dict[str, Any]:
    """The fields that differ from their default, or from what the preset sets."""
    usual = {f.name: f.default for f in fields(config)}
    usual |= PRESETS[config.preset]() if config.preset else {}
    values = {name: getattr(config, name) for name in usual}
    changed = {k: v for k, v in values.items() if v is not None and v != usual[k]}
    return {k: v for k, v in changed.items() if k != "dry_run"}


def _written(value: Any) -> str:
    """A TOML value: its basic strings, lists and numbers are written as in JSON."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, float):
        return repr(value) if value == value and abs(value) != float("inf") else str(value)
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")
