"""Concepts: the subjects of one run, each with pictures and prompts of its own. --concepts_list is
diffusers' JSON:

[{"instance_data_dir": "photos/cat", "instance_prompt": "a photo of <new1> cat",
  "class_prompt": "a photo of a cat", "class_data_dir": "class/cat"},
 {"instance_data_dir": "photos/dog", "instance_prompt": "a photo of <new2> dog"}]
"""

import json
from pathlib import Path
from typing import NamedTuple

from toy2d.runs.files import UserError, read_text


class Concept(NamedTuple):
    """A folder of pictures and the prompt of those without a caption; the class's prompt and folder
    where an objective needs them.
    """

    instance_data_dir: str
    instance_prompt: str | None = None
    class_prompt: str | None = None
    class_data_dir: str | None = None


def read_concepts(source: str) -> tuple[Concept, ...]:
    """The concepts of a JSON file, or of JSON itself.

    Raises UserError naming what is wrong with which entry.
    """
    text, flag = source, f"--concepts_list {source[:60]}"
    if not source.lstrip().startswith("["):
        try:
            text = read_text(Path(source).expanduser())
        except (OSError, UnicodeDecodeError) as e:
            raise UserError(f"{flag} cannot be read: {e}") from e
    try:
        entries = json.loads(text)
    except ValueError as e:
        raise UserError(f"{flag} is not JSON: {e}") from e
    except RecursionError:
        raise UserError(f"{flag} is no list of concepts: it is nested too deeply") from None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{flag} must be a list of concepts, [{{...}}, {{...}}]")
    return tuple(_concept(e, f"{flag}: entry {i + 1}") for i, e in enumerate(entries))


def _concept(entry, where: str) -> Concept:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not an object {{...}}")
    if unknown := sorted(entry.keys() - set(Concept._fields)):
        raise UserError(f"{where} has {unknown[0]!r}; known are {', '.join(Concept._fields)}")
    if wrong := [k for k, v in entry.items() if not isinstance(v, str | None)]:
        raise UserError(f"{where}: {wrong[0]} must be text")
    if not entry.get("instance_data_dir"):
        raise UserError(f"{where} lacks instance_data_dir")
    return Concept(**entry)


def as_json(concepts: tuple[Concept, ...]) -> str:
    """What config.json keeps of a file, so that a run is described whole."""
    return json.dumps([{k: v for k, v in c._asdict().items() if v is not None} for c in concepts])
