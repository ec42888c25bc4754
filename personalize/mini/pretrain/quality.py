"""Is the mini base good enough? Class and scene of 2,000 generated pictures as read by the classifier, composition, and diversity."""

from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from personalize.data.prompts import with_article
from personalize.evaluate.judges import Dino, Truth, load_dino, load_truth
from personalize.evaluate.metrics import mean_to_others, pairwise_perceptual
from personalize.mini.pretrain.world import CLASSES, SCENES, Content, contents, pictures
from personalize.mini.shipped import GUIDANCE
from personalize.pipeline.load import load
from personalize.sample.sampler import draw, grid

GUIDANCES = (
    1.25,
    GUIDANCE,
)  # more of it: the right class more often, and pictures that are more alike
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
    """Mean perceptual distance between two pictures of one prompt, mean over the prompts; `asked` as asked_for sorts it."""
    means = []
    for _, group in groupby(range(len(asked)), key=lambda i: prompt(asked[i])):
        chosen = [images[i] for i in group]
        if len(chosen) > 1:
            _, layers = dino.features(chosen)
            means.append(float(mean_to_others(pairwise_perceptual(layers)).mean()))
    return float(np.mean(means))


def quality(
    weights: Path, drawings: dict, n: int = 2000, seed: int = 1, steps: int = 25
) -> tuple[dict, Image.Image]:
    """The numbers of the README for each of GUIDANCES, and a grid of every animal in every scene at the default one."""
    model = load(str(weights / "model"))
    truth, dino = load_truth(str(weights / "classifier")), load_dino(str(weights / "dino"))
    asked = asked_for(n, seed)
    seen = n - n // HELD_OUT_SHARE
    real = [Image.fromarray(p) for p in pictures(drawings, asked, seed + 100)]
    of_world = diversity(dino, real[:seen], asked[:seen])
    numbers = {
        "n": n, "seed": seed, "steps": steps, "sampler": "dpmsolver++",
        "classifier_on_new_composites": accuracy(truth, real, asked),
        "diversity_of_world": of_world,
        "guidance": {},
    }  # fmt: skip
    wanted = [(prompt(c), seed * 10**6 + i) for i, c in enumerate(asked)]
    for guidance in GUIDANCES:
        made = draw(model, wanted, steps, guidance, batch_size=50)
        varied = diversity(dino, made[:seen], asked[:seen])
        numbers["guidance"][str(guidance)] = {
            "seen": accuracy(truth, made[:seen], asked[:seen]),
            "held_out_pairs": accuracy(truth, made[seen:], asked[seen:]),
            "diversity": varied,
            "diversity_ratio": varied / of_world,
        }
    return numbers, overview(model, steps, GUIDANCE)


def overview(model, steps: int, guidance: float) -> Image.Image:
    prompts = [f"a photo of {with_article(c)} {s}" for c in CLASSES for s in SCENES]
    images = draw(model, [(p, 0) for p in prompts], steps, guidance, batch_size=32)
    return grid(images, len(SCENES), list(CLASSES), list(SCENES))
