"""Train the mini base from nothing: VAE, mini CLIP, UNet on cached latents; the image encoder and the classifier that check it.

Every part continues from its newest checkpoint; parts do not wait for others that they do not need.
"""

from pathlib import Path

import torch
from torch import nn

from personalize.mini import FOLDER, clip, data, publish, unet, vae
from personalize.mini.artwork import Artwork
from personalize.mini.loop import Terms, fit, trained
from personalize.mini.plan import PARTS, PLAN, Part, Pretrain
from personalize.mini.quality import quality
from toy2d.runfolder import environment, hash_tensors, load_tensors, save_tensors, write_json

BUILD = {
    "vae": vae.build,
    "clip": clip.build_clip,
    "unet": unet.build,
    "dino": clip.build_dino,
    "classifier": clip.build_classifier,
}


def pretrain(asked: Pretrain) -> None:
    if asked.threads:
        torch.set_num_threads(asked.threads)
    out = Path(asked.out)
    world = data.make(out / "data", Artwork(Path(asked.artwork)), asked.seed)
    for part in asked.parts:
        steps, peak = PLAN[part]
        network = build(part, asked.seed)
        fit(part, network, terms(part, world, out, asked.seed), steps, peak, out, asked.seed)
    if set(asked.parts) == set(PARTS):
        finish(asked, world, Artwork(Path(asked.artwork)))


def finish(asked: Pretrain, world: data.Data, artwork: Artwork) -> None:
    """Publish, measure, and keep what made the weights, the numbers and the losses beside them."""
    out, weights = Path(asked.out), Path(asked.weights)
    parts = {part: done(part, out, asked.seed) for part in PARTS}
    vae.standardize(parts["vae"], *vae.moments(latents_of(world, out, asked.seed)))
    record = {
        "command": "personalize pretrain",
        "plan": PLAN,
        "seed": asked.seed,
        "drawings": world.digest,
        "environment": environment(("torch", "diffusers", "transformers")),
        "losses": publish.losses(out),
    }
    publish.publish(parts, record, weights)
    publish.write_subjects(artwork, FOLDER / "subjects", asked.seed)
    if asked.pictures:
        numbers, picture = quality(weights, artwork.training(), asked.pictures)
        write_json(weights / "quality.json", numbers)
        picture.save(out / "overview.png")
        print(f"every animal in every scene: {out}/overview.png; numbers: {weights}/quality.json")


def build(part: Part, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BUILD[part]()


def terms(part: Part, world: data.Data, out: Path, seed: int) -> Terms:
    if part == "unet":
        text = done("clip", out, seed).text_model
        latents = latents_of(world, out, seed)
        mean, std = (m[:, None, None] for m in vae.moments(latents))
        return unet.terms(world, (latents - mean) / std, text)
    of = {
        "vae": vae.terms,
        "clip": clip.clip_terms,
        "dino": clip.dino_terms,
        "classifier": clip.classifier_terms,
    }
    return of[part](world)


def done(part: Part, out: Path, seed: int) -> nn.Module:
    """The part as its last checkpoint's average has it.

    Raises:
        UserError: it is not trained to the end.
    """
    steps, _ = PLAN[part]
    return trained(out / part, build(part, seed), steps)


def latents_of(world: data.Data, out: Path, seed: int) -> torch.Tensor:
    """(N, 4, 16, 16) posterior means of the training pictures; computed once for each VAE."""
    network = done("vae", out, seed)
    path = out / "data" / f"latents-{hash_tensors(network.state_dict())}.safetensors"
    if not path.exists():
        save_tensors(path, {"mean": vae.encode(network, world.train)})
    return load_tensors(path)["mean"]
