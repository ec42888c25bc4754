"""Pictures -> one row each: every number that belongs to a single picture. `summary` makes means
of rows, and reads nothing else.

Rows of one prompt are made together, because diversity and drift are about its pictures: n seeds
of the tuned model and, where there is one, the base's n pictures from the same seeds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from personalize.data.decode import open_rgb
from personalize.evaluate.judges import Clip, Dino, Evaluators, SubjectJudge, Truth
from personalize.evaluate.metrics import cosine, mean_to_others, paired_cosine, pairwise_perceptual
from personalize.sample.sampler import Wanted

Columns = dict[str, Tensor]  # each (n,) or (2 n,): the tuned model's pictures, then the base's


@dataclass
class References:
    """Features of the subject's pictures, and of those it was trained on."""

    names: list[str]
    training: list[str]
    clip: Tensor | None = None  # (R, D)
    dino: Tensor | None = None  # (R, D)
    training_dino: Tensor | None = None
    subject: str | None = None  # by the subject judge; None: none that it knows

    def real_images(self) -> dict[str, float | None]:
        """The references among themselves: the most that fidelity can mean ("Real Images" in
        DreamBooth's table). None for one.
        """
        found = {"clip_i": self.clip, "dino": self.dino}
        pairs = {k: mean_to_others(cosine(f, f)).mean() for k, f in found.items() if f is not None}
        return {k: None if math.isnan(v) else float(v) for k, v in pairs.items()}


def look_at(reference: list[Path], training: list[Path], evaluators: Evaluators) -> References:
    """Raises UserError naming a picture that cannot be read."""
    out = References([p.name for p in reference], [p.name for p in training])
    images = [open_rgb(p) for p in reference]
    if evaluators.subjects:
        out.subject = evaluators.subjects.subject_of(images)
    if evaluators.clip:
        out.clip = evaluators.clip.images(images)
    if evaluators.dino:
        out.dino = evaluators.dino.features(images)[0]
        same = training == reference
        out.training_dino = (
            out.dino if same else evaluators.dino.features([open_rgb(p) for p in training])[0]
        )
    return out


@dataclass
class Scores:
    """`rows`: one for each picture. `dino`: (model, group) -> DINO features of all its pictures,
    for distances of sets.
    """

    rows: list[dict] = field(default_factory=list)
    dino: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)


def score(
    jobs: list[tuple[str, str, list[int]]],
    plain: Callable[[str], str],
    tuned: dict[Wanted, Path],
    base: dict[Wanted, Path],
    evaluators: Evaluators,
    references: References,
) -> Scores:
    """Score the pictures of every (group, prompt, seeds); `base` may be empty: then no drift.

    plain: the prompt that CLIP-T compares with (without the identifier).
    """
    scores = Scores()
    sides = {"tuned": tuned, "base": base} if base else {"tuned": tuned}
    for group, prompt, seeds in jobs:
        n = len(seeds)
        files = [(side, seed, of[prompt, seed]) for side, of in sides.items() for seed in seeds]
        images = [open_rgb(path) for _, _, path in files]
        columns: Columns = {}
        if evaluators.clip:
            columns |= clip_columns(evaluators.clip, plain(prompt), images, n, references)
        if evaluators.dino:
            found, features = dino_columns(evaluators.dino, images, n, references)
            columns |= found
            for (side, _, _), f in zip(files, features, strict=True):
                scores.dino.setdefault((side, group), []).append(f)
        if evaluators.lpips:
            columns |= distance_columns("lpips", evaluators.lpips.pairwise(images), n)
        if evaluators.truth:
            columns |= truth_columns(evaluators.truth, prompt, images)
        if evaluators.subjects and references.subject:
            columns |= subject_columns(evaluators.subjects, references.subject, images)
        for i, (side, seed, path) in enumerate(files):
            row = {"model": side, "group": group, "prompt": prompt, "seed": seed, "file": path.name}
            scores.rows.append(row | _cells(columns, i, references))
    return scores


def _cells(columns: Columns, i: int, references: References) -> dict:
    """Row i of the columns; what does not exist there (nan) stays empty, the nearest picture
    gets its name.
    """
    numbers = {k: float(v[i]) for k, v in columns.items()}
    cells = {k: v for k, v in numbers.items() if not math.isnan(v)}
    if "nearest" in cells:
        cells["nearest"] = references.training[int(cells["nearest"])]
    return cells


def clip_columns(
    clip: Clip, text: str, images: list[Image.Image], n: int, references: References
) -> Columns:
    features = clip.images(images)
    to_text = cosine(features, clip.texts([text]))[:, 0]
    to_subject = cosine(features, references.clip)
    out = {"clip_t": to_text, "clip_i": to_subject.mean(1), "subject_max": to_subject.max(1).values}
    out["pairwise_clip"] = within(cosine(features, features), n)
    if len(features) > n:
        out["moved_clip"] = 1 - paired_cosine(features[:n], features[n:])
        out["clip_t_change"] = to_text[:n] - to_text[n:]
    return pad(out, len(images))


def dino_columns(
    dino: Dino, images: list[Image.Image], n: int, references: References
) -> tuple[Columns, Tensor]:
    """And the features. Distances of the layers are taken here, so that one prompt's layers at a
    time are in memory.
    """
    features, layers = dino.features(images)
    nearest = cosine(features, references.training_dino).max(1)
    out = {"dino": cosine(features, references.dino).mean(1), "memorization": nearest.values}
    out["nearest"] = nearest.indices
    out |= distance_columns("perceptual", pairwise_perceptual(layers), n)
    if len(features) > n:
        out["moved_dino"] = 1 - paired_cosine(features[:n], features[n:])
    return pad(out, len(images)), features


def distance_columns(name: str, pairwise: Tensor, n: int) -> Columns:
    """`name`: mean distance to the prompt's other pictures of the same model; moved_`name`: to
    the base's with the same seed.
    """
    out = {name: within(pairwise, n)}
    if len(pairwise) > n:
        out[f"moved_{name}"] = pairwise[:n, n:].diagonal()
    return pad(out, len(pairwise))


def truth_columns(truth: Truth, prompt: str, images: list[Image.Image]) -> Columns:
    """1 where the picture shows the class, the scene that the prompt names first, else 0; no
    column where it names none that is known.
    """
    read, out = truth.read(images), {}
    for k, name in enumerate(("class", "scene")):
        places = {word: f" {prompt} ".find(f" {word} ") for word in truth.labels[k]}
        asked = sorted((w for w, place in places.items() if place >= 0), key=places.get)
        if asked:
            out[f"{name}_right"] = torch.tensor([float(r[k] == asked[0]) for r in read])
    return out


def subject_columns(judge: SubjectJudge, subject: str, images: list[Image.Image]) -> Columns:
    """The probability that each picture shows the subject of the references."""
    p, labels = judge.probabilities(images)
    return {"subject_seen": p[:, labels.index(subject)]}


def within(pairwise: Tensor, n: int) -> Tensor:
    """Mean to the others of the same model: the first n pictures among themselves, and the rest
    among themselves.
    """
    return torch.cat([mean_to_others(pairwise[:n, :n]), mean_to_others(pairwise[n:, n:])])


def pad(columns: Columns, length: int) -> Columns:
    """nan for the base's pictures in columns that only the tuned model's have."""
    nan = torch.full((length,), math.nan)
    return {
        k: torch.cat([v, nan[len(v) :].to(v)]) if v.is_floating_point() else v
        for k, v in columns.items()
    }
