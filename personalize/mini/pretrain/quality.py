"""Measure how good the mini base is.

The VAE: how well it draws pictures again that it never saw. The whole model: class and scene of
generated pictures as the classifier reads them, also of pairs that training never showed, and how
diverse pictures of one prompt are.
"""

import math
import tempfile
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from personalize.data.decode import open_rgb
from personalize.data.prompts import PromptSet, prompt_set, with_article
from personalize.evaluate.image_prompt import with_image_prompt
from personalize.evaluate.judges import (
    Dino,
    SubjectJudge,
    Truth,
    evaluators_of,
    load_dino,
    load_truth,
)
from personalize.evaluate.learning import held_out_config
from personalize.evaluate.metrics import mean_to_others, pairwise_perceptual
from personalize.evaluate.model import Evaluation, Plan, evaluate_model
from personalize.mini.pretrain.vae import pixels
from personalize.mini.pretrain.world import CLASSES, SCENES, Content, contents, pictures
from personalize.mini.shipped import GUIDANCE, Subject, subjects
from personalize.pipeline.load import load
from personalize.sample.sampler import Sampling, draw_pictures, grid

# with more, the class is right more often and pictures are more alike
GUIDANCES = (1.0, 1.25, 1.5, 2.0)
SCALES = (1.0, 0.6)  # of the IP-Adapter's image prompt
HELD_OUT_SHARE = 8  # one picture in eight shows a pair that training never did


def prompt(content: Content) -> str:
    return f"a photo of {with_article(CLASSES[content.animal])} {SCENES[content.scene]}"


def asked_for(n: int, seed: int) -> list[Content]:
    """Sorted by prompt, so that pictures of one prompt are neighbours; held-out pairs last."""
    unseen = n // HELD_OUT_SHARE
    both = contents(n - unseen, seed), contents(unseen, seed, held_out=True)
    return [c for part in both for c in sorted(part, key=prompt)]


def accuracy(truth: Truth, images: list[Image.Image], asked: list[Content]) -> dict[str, float]:
    """Shares, and their standard errors."""
    read = truth.read(images)
    right = {
        "class": [r[0] == CLASSES[c.animal] for r, c in zip(read, asked, strict=True)],
        "scene": [r[1] == SCENES[c.scene] for r, c in zip(read, asked, strict=True)],
    }
    right["both"] = [a and b for a, b in zip(*right.values(), strict=True)]
    shares = {k: float(np.mean(v)) for k, v in right.items()}
    errors = {f"{k}_se": (p * (1 - p) / len(read)) ** 0.5 for k, p in shares.items()}
    return shares | errors


@torch.no_grad()
def diversity(dino: Dino, images: list[Image.Image], asked: list[Content]) -> float:
    """Mean perceptual distance between two pictures of one prompt, mean over the prompts.

    Pictures of one prompt must be neighbours in `asked`, as asked_for sorts them.
    """
    means = []
    for _, group in groupby(range(len(asked)), key=lambda i: prompt(asked[i])):
        chosen = [images[i] for i in group]
        if len(chosen) > 1:
            _, layers = dino.features(chosen)
            means.append(float(mean_to_others(pairwise_perceptual(layers)).mean()))
    return float(np.mean(means))


@torch.no_grad()
def reconstruction(vae: AutoencoderKL, shown: np.ndarray) -> dict[str, float]:
    """How well the VAE draws (N, 64, 64, 3) uint8 pictures again from their posterior means.

    `mse`: mean of the squares over pixels and pictures, pixels in [-1, 1]; `mse_se` its standard
    error over pictures; `decibels`: the peak signal-to-noise ratio 10 log10(2^2 / mse).
    """
    x = pixels(shown)
    again = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    each = (again - x).square().mean((1, 2, 3)).double()
    mse = float(each.mean())
    return {
        "n": len(each),
        "mse": mse,
        "mse_se": float(each.std()) / len(each) ** 0.5,
        "decibels": 10 * math.log10(4 / mse),
    }


def right_on_shipped_pictures(judge: SubjectJudge) -> dict[str, float]:
    """Of each subject: the share of its shipped pictures that the judge reads rightly."""
    right = {}
    for name, s in subjects().items():
        p, labels = judge.probabilities([open_rgb(f) for f in sorted(s.folder.rglob("*.png"))])
        right[name] = float((p.argmax(1) == labels.index(name)).float().mean())
    return right


def held_out_pictures() -> np.ndarray:
    """The shipped subjects' held-out pictures, (N, 64, 64, 3) uint8. No drawing was trained on."""
    files = [p for s in subjects().values() for p in sorted(s.held_out.glob("*.png"))]
    return np.stack([np.asarray(Image.open(p).convert("RGB")) for p in files])


def quality(
    weights: Path, drawings: dict, n: int = 2000, seed: int = 1, steps: int = 25
) -> tuple[dict, Image.Image]:
    """Measure the model in `weights` with n pictures at each of GUIDANCES.

    Also gives a grid of every animal in every scene at the default guidance. `drawings` maps
    (class, style) to the artwork.
    """
    model = load(str(weights / "model"))
    truth, dino = load_truth(str(weights / "classifier")), load_dino(str(weights / "dino"))
    asked = asked_for(n, seed)
    seen = n - n // HELD_OUT_SHARE
    real = [Image.fromarray(p) for p in pictures(drawings, asked, seed + 100)]
    real_pairs = np.stack([np.asarray(p) for p in real[seen:]])
    of_world = diversity(dino, real[:seen], asked[:seen])
    numbers = {
        "n": n, "seed": seed, "steps": steps, "sampler": "dpmsolver++",
        "vae": {
            "subjects": reconstruction(model.vae, held_out_pictures()),
            "held_out_pairs": reconstruction(model.vae, real_pairs),
        },
        "classifier_on_new_composites": accuracy(truth, real, asked),
        "diversity_of_world": of_world,
        "guidance": {},
    }  # fmt: skip
    wanted = [(prompt(c), seed * 10**6 + i) for i, c in enumerate(asked)]
    for guidance in GUIDANCES:
        made = draw_pictures(model, wanted, Sampling(steps, guidance, batch_size=50))
        varied = diversity(dino, made[:seen], asked[:seen])
        numbers["guidance"][str(guidance)] = {
            "seen": accuracy(truth, made[:seen], asked[:seen]),
            "held_out_pairs": accuracy(truth, made[seen:], asked[seen:]),
            "diversity": varied,
            "diversity_ratio": varied / of_world,
        }
    return numbers, overview(model, steps, GUIDANCE)


def image_prompts(
    weights: Path, seeds: int = 4, steps: int = 25, chosen: dict | None = None
) -> dict[str, dict]:
    """Does the IP-Adapter in `weights` follow pictures of drawings that nothing was trained on?

    scale -> {"dino", "dino_base", "class_right", "scene_right", "gain"}: means over the shipped
    subjects (`chosen`: some of them) and over `seeds` pictures of each in the eight scenes, every
    one with its standard error over subjects, NAME_se. `dino_base` is the base's under the text
    alone; `gain` is in nats on the held-out pictures.
    """
    judges, found = evaluators_of(True, None, None, "cpu"), {}
    for scale in SCALES:
        rows = []
        for subject in (chosen or subjects()).values():
            shown = [open_rgb(f) for f in sorted(subject.folder.glob("*.png"))]
            base = load(str(weights / "model"))
            views = with_image_prompt(base, str(weights / "ip_adapter"), shown, "sks", scale)
            plan = _plan(subject, seeds, steps)
            with tempfile.TemporaryDirectory() as folder:
                seen = evaluate_model(views.model, plan, judges, folder, views.base, say=_silent)
            rows.append(_followed(seen))
        found[f"{scale:g}"] = _over_subjects(rows)
    return found


def _plan(subject: Subject, seeds: int, steps: int) -> Plan:
    """The subject in the eight scenes, its class, and gain on its held-out pictures."""
    word = subject.class_word
    asked = prompt_set("mini", "sks", word).groups
    prompts = PromptSet("sks", word, {g: asked[g] for g in ("subject", "class")})
    named = f"a photo of sks {word}", f"a photo of {with_article(word)}"
    how, held_out = Sampling(steps, GUIDANCE), held_out_config(subject.held_out, *named)
    more = {"sampling": how, "chains": 0, "held_out": held_out}
    return Plan(subject.folder, prompts, list(range(seeds)), **more)


def _followed(seen: Evaluation) -> dict[str, float]:
    """One subject's numbers."""
    means = seen.summary["means"]
    tuned, base = (means[side]["subject"] for side in ("tuned", "base"))
    kept = {k: tuned[k]["mean"] for k in ("dino", "class_right", "scene_right")}
    return kept | {"dino_base": base["dino"]["mean"], "gain": seen.summary["learning"]["gain"]}


def _over_subjects(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means, and standard errors where there is more than one subject."""
    out = {}
    for name in rows[0]:
        values = np.array([r[name] for r in rows])
        out[name] = float(values.mean())
        if len(values) > 1:
            out[f"{name}_se"] = float(values.std(ddof=1) / len(values) ** 0.5)
    return out


def _silent(text: str) -> None:
    """evaluate_model's messages would drown those of pretraining."""


def overview(model, steps: int, guidance: float) -> Image.Image:
    prompts = [f"a photo of {with_article(c)} {s}" for c in CLASSES for s in SCENES]
    images = draw_pictures(
        model, [(p, 0) for p in prompts], Sampling(steps, guidance, batch_size=32)
    )
    return grid(images, len(SCENES), list(CLASSES), list(SCENES))
