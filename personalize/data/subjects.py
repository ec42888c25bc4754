"""The pictures of one or several subjects as one set: each under its own prompt, each beside the
class images of its own class.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from personalize.config.concepts import Concept, read_concepts
from personalize.config.train_config import TrainConfig
from personalize.data.held_out import hold_out, refuse_trained_pictures
from personalize.data.photos import Record, Scan, scan
from personalize.data.prompts import alone
from toy2d.runs.files import UserError


def scan_subjects(config: TrainConfig) -> Scan:
    """`scan` of every concept's folder. Of several, the pictures without a caption take their
    concept's prompt.

    Raises UserError if a new word is in no prompt: it would not train.
    """
    concepts, listed = config.concepts, bool(config.concepts_list)
    how = config.resolution, not config.ignore_captions
    together = gather(concepts, listed, *how, held_out=config.held_out)
    if config.held_out_data_dir:
        others = tuple(scan(config.held_out_data_dir, *how).require())
        together = replace(together, held_out=others)
    refuse_trained_pictures(together.records, together.held_out)
    _check_words(config, [r.caption or config.instance_prompt or "" for r in together.records])
    return together


def gather(
    concepts: Sequence[Concept],
    listed: bool,
    resolution: int | None = None,
    captions: bool = True,
    held_out: int = 0,
) -> Scan:
    """The folders' pictures as one set, `held_out` of each concept's apart.

    `listed`: of --concepts_list, where each picture without a caption takes its concept's prompt.
    """
    found = [scan(c.instance_data_dir, resolution, captions) for c in concepts]
    if held_out:
        found = [hold_out(f, held_out) for f in found]
    if not listed:
        return found[0]

    def named(part: str) -> list[Record]:
        return [
            replace(r, caption=r.caption or c.instance_prompt)
            for c, f in zip(concepts, found, strict=True)
            for r in getattr(f, part)
        ]

    problems = [(f"{f.folder}/{name}", why) for f in found for name, why in f.problems]
    skipped = [s for f in found for s in f.skipped]
    held = tuple(named("held_out"))
    return Scan(Path("--concepts_list"), named("records"), problems, skipped, held)


def _check_words(config: TrainConfig, prompts: list[str]) -> None:
    """As words of their own: "ca" is not in "a cat"."""
    new = [w.placeholder for w in config.words]
    unseen = [w for w in new if not any(re.search(alone(w), p) for p in prompts)]
    if unseen and prompts:
        raise UserError(
            f"--placeholder_token {unseen[0]} has no effect: no prompt or caption contains it; "
            f'write it into one, e.g. --instance_prompt "a photo of {unseen[0]}"'
        )


def as_their_class(config: TrainConfig, records: list[Record]) -> list[Record]:
    """The pictures under their class's prompt instead of their own."""
    if not config.concepts_list:
        return [replace(r, caption=config.class_prompt) for r in records]
    of = {Path(c.instance_data_dir).expanduser(): c.class_prompt for c in config.concepts}
    return [replace(r, caption=of[r.path.parent]) for r in records]


class Together:
    """Sets of pictures one after the other, drawn from as one (a train.Pool)."""

    def __init__(self, sets: Sequence):
        self.sets = sets
        self.prompts = [p for s in sets for p in s.prompts]
        self._places = [(s, i) for s in sets for i in range(len(s))]

    def __len__(self) -> int:
        return len(self._places)

    def cache(self) -> "Together":
        for s in self.sets:
            s.cache()
        return self

    def draw(self, indices: list[int], rng: torch.Generator) -> tuple[Tensor, list[str]]:
        drawn = [s.draw([i], rng) for s, i in (self._places[k] for k in indices)]
        return torch.cat([x0 for x0, _ in drawn]), [p for _, prompts in drawn for p in prompts]


# ---- what a run was trained on
def training_pictures(
    named: str | None, config: dict, run: Path, reference: Path
) -> tuple[Scan | None, list[str]]:
    """(the pictures that may be memorized, what is unsure about them); None: the reference.

    A run's folders are looked for where the run was begun, then here; the first whose pictures
    have the hash that the run recorded is taken, also if it is the reference. What has changed
    since, is gone, or was never recorded is said.
    """
    if named:
        return scan(named, captions=False), []
    if not (concepts := concepts_of(config)):
        return None, [
            "training pictures unknown: memorization is against --reference; "
            "name them with --training"
        ]
    listed, captions = bool(config.get("concepts_list")), not config.get("ignore_captions")
    env = run / "env.json"
    recorded = json.loads(env.read_text()).get("data_hash") if env.is_file() else None
    places = [
        [
            c._replace(instance_data_dir=str(root / Path(c.instance_data_dir).expanduser()))
            for c in concepts
        ]
        for root in roots(config, run)
    ]
    places = [p for p in places if all(Path(c.instance_data_dir).is_dir() for c in p)]
    apart = int(config.get("held_out") or 0)
    found = [gather(p, listed, captions=captions, held_out=apart) for p in places]
    for pictures in [*found, scan(reference, captions=captions)]:
        if pictures.hash() == recorded:
            return pictures, []
    folders = ", ".join(c.instance_data_dir for c in concepts)
    if found:
        return found[0], [
            f"{folders}: not the pictures that the run recorded; memorization is against those "
            "there now (--training names others)"
        ]
    return None, [
        f"training pictures not found ({folders}): memorization is against --reference; "
        "name them with --training"
    ]


def concepts_of(config: dict) -> tuple[Concept, ...]:
    if config.get("concepts_list"):
        return read_concepts(config["concepts_list"])
    folder = config.get("instance_data_dir")
    return (Concept(folder),) if folder else ()


def roots(config: dict, run: Path) -> list[Path]:
    """What relative paths may start from: where the run was begun, as far as the run's own path
    tells, and here.
    """
    begun, run = Path(config.get("output_dir") or ""), run.resolve()
    parts = begun.parts
    same = not begun.is_absolute() and parts and run.parts[-len(parts) :] == parts
    return [*([run.parents[len(parts) - 1]] if same else []), Path()]
