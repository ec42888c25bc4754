"""Is the mini base good enough? Class and scene of 2,000 generated pictures as read by the classifier, composition, and diversity."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from personalize.evaluators import Dino, Truth, load_dino, load_truth
from personalize.metrics import mean_to_others, pairwise_perceptual
from personalize.mini import GUIDANCE
from personalize.mini.world import CLASSES, SCENES, Content, contents, pictures
from personalize.model import load
from personalize.prompts import with_article
from personalize.sample import draw, grid

HELD_OUT_SHARE = 8  # one picture in eight shows a pair that training never did
GROUP = 8  # pictures of one prompt, for diversity


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
def diversity(dino: Dino, images: list[Image.Image]) -> float:
    """Mean perceptual distance between pictures of one prompt, over consecutive groups of GROUP."""
    means = []
    for i in range(0, len(images) - GROUP + 1, GROUP):
        _, layers = dino.features(images[i : i + GROUP])
        means.append(float(mean_to_others(pairwise_perceptual(layers)).mean()))
    return float(np.mean(means))


def quality(
    weights: Path, drawings: dict, n: int = 2000, seed: int = 1, steps: int = 15, guidance=GUIDANCE
) -> tuple[dict, Image.Image]:
    """The numbers of the README, and a grid of every animal in every scene."""
    model = load(str(weights / "model"))
    truth, dino = load_truth(str(weights / "classifier")), load_dino(str(weights / "dino"))
    asked = asked_for(n, seed)
    made = draw(model, [(prompt(c), seed * 10**6 + i) for i, c in enumerate(asked)], steps, guidance, batch_size=50)  # fmt: skip
    real = [Image.fromarray(p) for p in pictures(drawings, asked, seed + 100)]
    seen = n - n // HELD_OUT_SHARE
    numbers = {
        "n": n, "seed": seed, "steps": steps, "guidance": guidance, "sampler": "dpmsolver++",
        "seen": accuracy(truth, made[:seen], asked[:seen]),
        "held_out_pairs": accuracy(truth, made[seen:], asked[seen:]),
        "classifier_on_new_composites": accuracy(truth, real, asked),
        "diversity": diversity(dino, made[:seen]),
        "diversity_of_world": diversity(dino, real[:seen]),
    }  # fmt: skip
    numbers["diversity_ratio"] = numbers["diversity"] / numbers["diversity_of_world"]
    return numbers, overview(model, steps, guidance)


def overview(model, steps: int, guidance: float) -> Image.Image:
    prompts = [f"a photo of {with_article(c)} {s}" for c in CLASSES for s in SCENES]
    images = draw(model, [(p, 0) for p in prompts], steps, guidance, batch_size=32)
    return grid(images, len(SCENES), list(CLASSES), list(SCENES))
