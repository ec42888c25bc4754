"""The pictures of one or several subjects as one set: each under its own prompt, each beside the class images of its own class."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from personalize.config import TrainConfig
from personalize.photos import Record, Scan, scan
from toy2d.runfolder import UserError


def scan_subjects(config: TrainConfig) -> Scan:
    """`scan` of every concept's folder. Of several, the pictures without a caption take their concept's prompt.

    Raises UserError if a new word is in no prompt: it would not train.
    """
    found = [scan(c.instance_data_dir, config.resolution, not config.ignore_captions) for c in config.concepts]  # fmt: skip
    together = found[0]
    if config.concepts_list:
        records = [replace(r, caption=r.caption or c.instance_prompt) for c, f in zip(config.concepts, found, strict=True) for r in f.records]  # fmt: skip
        problems = [(f"{f.folder}/{name}", why) for f in found for name, why in f.problems]
        together = Scan(Path("--concepts_list"), records, problems, [s for f in found for s in f.skipped])  # fmt: skip
    _check_words(config, [r.caption or config.instance_prompt or "" for r in together.records])
    return together


def _check_words(config: TrainConfig, prompts: list[str]) -> None:
    unseen = [w.placeholder for w in config.words if not any(w.placeholder in p for p in prompts)]
    if unseen and prompts:
        raise UserError(f"--placeholder_token {unseen[0]} has no effect: no prompt or caption contains it, e.g. --instance_prompt \"a photo of {unseen[0]}\"")  # fmt: skip


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
