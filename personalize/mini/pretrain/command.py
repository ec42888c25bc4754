"""`personalize pretrain`: train the parts of the mini base and publish them.

The VAE, the mini CLIP and the UNet, on cached latents, are the model; the image encoder, the
classifier and the subject judge check it. The IP-Adapter comes last: it needs all of them, and
changes none.

Every part continues from its newest checkpoint; parts do not wait for others that they do not need.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from personalize.config.commands import ADAPTER, JUDGES, PARTS, Part, Pretrain
from personalize.evaluate.judges import load_subjects
from personalize.mini.pretrain import clip, data, ip_adapter, publish, unet, vae
from personalize.mini.pretrain.artwork import Artwork
from personalize.mini.pretrain.loop import Terms, fit, has_bf16, trained
from personalize.mini.pretrain.muon import Muon
from personalize.mini.pretrain.quality import image_prompts, quality, right_on_shipped_pictures
from personalize.mini.shipped import FOLDER, WEIGHTS
from toy2d.runs.files import write_json
from toy2d.runs.folder import environment, hash_tensors, load_tensors, save_tensors

# steps and peak learning rate of each part
PLAN = {
    "vae": (4000, 3e-3),
    "clip": (1200, 1e-3),
    "unet": (7850, 2e-3),
    "dino": (800, 1e-3),
    "classifier": (1200, 2e-3),
    "subject_judge": (600, 2e-3),
    "ip_adapter": (1200, 1e-3),
}
# trained by Muon, in bfloat16 where the CPU has it; the judges by AdamW in float32
LARGE = ("vae", "unet")
BUILD = {  # the adapter's needs the UNet: Parts.new
    "vae": vae.build,
    "clip": clip.build_clip,
    "unet": unet.build,
    "dino": clip.build_dino,
    "classifier": clip.build_classifier,
    "subject_judge": clip.build_subject_judge,
}
TERMS = {  # those of the UNet, the subject judge and the adapter need others: Parts.terms
    "vae": vae.terms,
    "clip": clip.clip_terms,
    "dino": clip.dino_terms,
    "classifier": clip.classifier_terms,
}


def pretrain(asked: Pretrain) -> None:
    if asked.threads:
        torch.set_num_threads(asked.threads)
    out, artwork = Path(asked.out), Artwork(Path(asked.artwork))
    world = data.make(out / "data", artwork, asked.seed)
    parts = Parts(asked)
    for part in asked.parts:
        steps, peak = parts.plan(part)
        how = {"optimizer": Muon} if part in LARGE else {}
        how |= {"bf16": parts.bf16} if part in (*LARGE, ADAPTER) else {}
        terms = parts.terms(part, world)
        fit(part, parts.new(part), terms, steps, peak, out, asked.seed, **how)
    others = set(asked.parts) - {ADAPTER}
    if asked.start and others <= set(JUDGES):
        publish_judges(parts, world)
    elif asked.start or others == set(PARTS):
        finish(parts, world, artwork)
    if ADAPTER in asked.parts and (asked.start or others == set(PARTS)):
        finish_adapter(parts, world)


@dataclass(frozen=True)
class Parts:
    """What training needs of each part: its steps, its first weights, its last ones, its loss."""

    asked: Pretrain

    def plan(self, part: Part) -> tuple[int, float]:
        steps, peak = PLAN[part]
        return self.asked.steps or steps, peak

    @property
    def bf16(self) -> bool:
        """Are the large parts trained in bfloat16?"""
        precision = self.asked.precision
        return has_bf16() if precision == "auto" else precision == "bf16"

    def new(self, part: Part) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.asked.seed)
            mine = part == ADAPTER
            network = ip_adapter.IPAdapter(self.done("unet")) if mine else BUILD[part]()
        random = self.asked.anew and part in self.asked.parts
        if self.asked.start and not random:
            start = Path(self.asked.start)
            if mine:
                return network.load_file(publish.read_adapter(start))
            network.load_state_dict(publish.read(part, start).state_dict())
        return network

    def done(self, part: Part) -> nn.Module:
        """The part with the averaged weights of its last checkpoint.

        With --start, a part that is not trained here is read from there.

        Raises:
            UserError: it is not trained to the end.
        """
        if self.asked.start and part not in self.asked.parts:
            return self.new(part).eval().requires_grad_(False)
        steps = self.plan(part)[0] if part in self.asked.parts else PLAN[part][0]
        return trained(Path(self.asked.out, part), self.new(part), steps)

    def latents(self, world: data.Data) -> Tensor:
        """The posterior means of the training pictures, (N, CHANNELS, 16, 16)."""
        return self._encoded(world, world.train, "latents")

    def _encoded(self, world: data.Data, pictures: np.ndarray, name: str) -> Tensor:
        """Posterior means, kept in a file whose name says of which VAE and pictures they are."""
        network = self.done("vae")
        weights = hash_tensors(network.state_dict())
        name = f"{name}-{self.asked.seed}-{world.digest}-{weights}.safetensors"
        path = Path(self.asked.out, "data", name)
        with data.held(path.parent):
            if not path.exists():
                save_tensors(path, {"mean": vae.encode(network, pictures)})
        return load_tensors(path)["mean"]

    def terms(self, part: Part, world: data.Data) -> Terms:
        if part == "subject_judge":
            folder, artwork = Path(self.asked.out, "data"), Artwork(Path(self.asked.artwork))
            drawn = data.subject_composites(folder, artwork, self.asked.seed)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.asked.seed)
                return clip.subject_judge_terms(world, drawn, self.done("vae"))
        if part not in ("unet", ADAPTER):
            return TERMS[part](world)
        latents, words = self.latents(world), self.done("clip")
        mean, std = (m[:, None, None] for m in vae.moments(latents))
        if part == "unet":
            return unet.terms(world, (latents - mean) / std, words.text_model)
        more = self._encoded(world, world.instances[ip_adapter.unlearnt(world) :], "others")
        return ip_adapter.terms(world, (latents - mean) / std, (more - mean) / std, words)


def publish_judges(parts: Parts, world: data.Data) -> None:
    """Publish the judges that were trained, and nothing else: the model stays as it is."""
    asked = parts.asked
    weights = Path(asked.weights)
    for part in (p for p in asked.parts if p in JUDGES):
        publish.publish_judge(parts.done(part), weights / part)
        record = made_record(parts, world)
        record["losses"] = {part: record["losses"][part]}
        if part == "subject_judge":
            judge = load_subjects(str(weights / part))
            record["right_on_shipped_pictures"] = right_on_shipped_pictures(judge)
        write_json(weights / f"{part}.json", record)
        print(f"published: {weights / part}; how it was made: {weights / part}.json")


def made_record(parts: Parts, world: data.Data) -> dict:
    """What made the weights, for made_by.json."""
    asked = parts.asked
    return {
        "asked": _placeless(asdict(asked)),
        "plan": {part: parts.plan(part) for part in asked.parts},
        "precision": "bf16" if parts.bf16 and {*asked.parts} & {*LARGE, ADAPTER} else "fp32",
        "drawings": world.digest,
        "environment": environment(("torch", "diffusers", "transformers")),
        "losses": publish.losses(Path(asked.out)),
    }


def finish(parts: Parts, world: data.Data, artwork: Artwork) -> None:
    """Publish the parts and measure them; record beside them what made the weights.

    The shipped subjects are drawn again only with the shipped weights. Weights in other folders are
    measured on the same pictures.
    """
    asked = parts.asked
    out, weights = Path(asked.out), Path(asked.weights)
    made = {part: parts.done(part) for part in PARTS}
    vae.standardize(made["vae"], *vae.moments(parts.latents(world)))
    record = made_record(parts, world)
    before = Path(asked.start or weights, "made_by.json")
    if asked.start and before.exists():
        record["began_with"] = json.loads(before.read_text())
        record["began_with"]["asked"] = _placeless(record["began_with"].get("asked", {}))
    publish.publish(made, record, weights)
    if weights.resolve() == WEIGHTS.resolve():
        publish.write_subjects(artwork, FOLDER / "subjects", asked.seed)
    if asked.pictures:
        numbers, picture = quality(weights, artwork.training(), asked.pictures)
        write_json(weights / "quality.json", numbers)
        picture.save(out / "overview.png")
        print(f"every animal in every scene: {out}/overview.png; numbers: {weights}/quality.json")


def finish_adapter(parts: Parts, world: data.Data) -> None:
    """Publish the IP-Adapter beside the base, which stays as it is."""
    asked, weights = parts.asked, Path(parts.asked.weights)
    publish.publish_adapter(parts.done(ADAPTER), parts.done("clip"), weights)
    record = made_record(parts, world)
    record["losses"] = {ADAPTER: record["losses"][ADAPTER]}
    if asked.pictures:
        record["quality"] = image_prompts(weights)
        file = weights / "quality.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        write_json(file, known | {ADAPTER: record["quality"]})
    write_json(weights / f"{ADAPTER}.json", record)
    print(f"published: {weights / ADAPTER}; how it was made: {weights / ADAPTER}.json")


def _placeless(asked: dict) -> dict:
    """Shorten absolute paths to their last name: the record is published, a home folder is not."""
    return {k: Path(v).name if _absolute(v) else v for k, v in asked.items()}


def _absolute(value) -> bool:
    return isinstance(value, str) and Path(value).expanduser().is_absolute()
