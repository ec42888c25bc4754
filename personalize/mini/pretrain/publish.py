"""Publish the mini base: the pipeline and its judges in fp16, and the subjects' pictures."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPModel, CLIPTextModel, ResNetForImageClassification, ViTModel

from personalize.config.commands import JUDGES
from personalize.mini.pretrain import clip, ip_adapter, unet
from personalize.mini.pretrain.artwork import SUBJECTS, Artwork
from personalize.mini.pretrain.clip import tokenizer
from personalize.mini.pretrain.world import SCENES, compose
from personalize.mini.shipped import ADAPTER_FILE, FOLDER
from toy2d.runs.files import UserError, read_csv, write_atomic, write_json
from toy2d.runs.folder import whole_folder

VIEWS = 5  # pictures of a subject to train on
HELD_OUT_VIEWS = 2  # more of them in each scene, to measure what was learnt


def publish(parts: dict[str, nn.Module], record: dict, out: Path) -> None:
    """Write each folder whole, with a manifest.

    `record` (command, commit, data digest, losses: what made the weights) goes to made_by.json.
    """
    _whole(out / "model", lambda folder: pipeline(parts).save_pretrained(folder))
    _whole(out / "clip", lambda folder: _judge(parts["clip"], folder, tokenizer()))
    for part in JUDGES:
        publish_judge(parts[part], out / part)
    write_json(out / "made_by.json", record)


def publish_judge(network: nn.Module, folder: Path) -> None:
    """Write a judge's folder whole: fp16 weights, its image processor, a manifest."""
    _whole(folder, lambda temporary: _judge(network, temporary))


def pipeline(parts: dict[str, nn.Module]) -> StableDiffusionPipeline:
    """The pipeline in fp16, of SD-1.5's classes. Its text encoder is the mini CLIP's text tower."""
    made = StableDiffusionPipeline(
        vae=parts["vae"],
        text_encoder=text_encoder(parts["clip"]),
        tokenizer=tokenizer(),
        unet=parts["unet"],
        scheduler=unet.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return made.to(torch.float16)


def text_encoder(whole) -> CLIPTextModel:
    alone = CLIPTextModel(whole.config.text_config)
    weights = whole.text_model.state_dict()
    own = alone.state_dict()
    prefix = "" if own.keys() == weights.keys() else "text_model."
    alone.load_state_dict({prefix + k: v for k, v in weights.items()})
    return alone.eval()


def read(part: str, folder: Path) -> nn.Module:
    """Read a part that `publish` wrote, in float32."""
    of = {
        "vae": (AutoencoderKL, "model/vae"),
        "unet": (UNet2DConditionModel, "model/unet"),
        "clip": (CLIPModel, "clip"),
        "dino": (ViTModel, "dino"),
        "classifier": (ResNetForImageClassification, "classifier"),
        "subject_judge": (ResNetForImageClassification, "subject_judge"),
    }
    kind, place = of[part]
    more = {"add_pooling_layer": False} if kind is ViTModel else {}
    return kind.from_pretrained(folder / place, **more).float()


def publish_adapter(network: ip_adapter.IPAdapter, words: CLIPModel, out: Path) -> None:
    _whole(out / "ip_adapter", lambda folder: ip_adapter.save(network, words, folder))


def read_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """The file that `publish_adapter` wrote, in float32.

    Raises:
        UserError: it is not there.
    """
    file = folder / "ip_adapter" / ADAPTER_FILE
    if not file.is_file():
        raise UserError(f"no IP-Adapter in {folder}: add --anew to begin one")
    return {k: v.float() for k, v in load_file(file).items()}


def _judge(network: nn.Module, folder: Path, words=None) -> None:
    network.half().save_pretrained(folder)
    clip.processor().save_pretrained(folder)
    if words is not None:
        words.save_pretrained(folder)


def _whole(folder: Path, write: Callable[[Path], None]) -> None:
    with whole_folder(folder) as temporary:
        write(temporary)
        for config in temporary.rglob("config.json"):
            _say_float32(config)


def _say_float32(config: Path) -> None:
    """Make transformers compute in float32, as diffusers does, with weights stored in half.

    transformers takes the dtype from this file.
    """
    written = json.loads(config.read_text())
    if "dtype" in written:
        write_json(config, written | {"dtype": "float32"})


def write_subjects(artwork: Artwork, out: Path, seed: int = 0) -> None:
    """Write what there is of each held-out drawing to out/NAME.

    NAME/*.png are five pictures to train on, each in another scene. NAME/held_out/*.png are sixteen
    more, drawn with another random state, twice in each scene: what a model has learnt of the
    subject is measured on them. out/subjects.json lists scenes and who drew it.
    """
    about = {}
    for name, drawing in artwork.subjects().items():
        class_word, style, _, _ = SUBJECTS[name]
        rng = random.Random(f"{seed} {name}")
        train = rng.sample(range(len(SCENES)), VIEWS)
        held_out = [scene for scene in range(len(SCENES)) for _ in range(HELD_OUT_VIEWS)]
        _compose_all(drawing, train, rng, out / name)
        _compose_all(
            drawing, held_out, random.Random(f"{seed} {name} held out"), out / name / "held_out"
        )
        about[name] = {
            "class_word": class_word,
            "scenes": [SCENES[s] for s in train],
            "held_out_scenes": [SCENES[s] for s in held_out],
        } | SOURCES[style]
    write_json(out / "subjects.json", about)
    write_atomic(out / "ATTRIBUTION.md", (FOLDER / "subjects" / "ATTRIBUTION.md").read_text())


def _compose_all(drawing: Image.Image, scenes: list[int], rng: random.Random, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(scenes):
        compose(drawing, scene, rng).save(folder / f"{i:02d}.png", optimize=True)


SOURCES = {
    "cartoon": {"artwork": "Noto Emoji, Google", "licence": "Apache-2.0"},
    "bold": {"artwork": "Twemoji, Twitter, Inc and other contributors", "licence": "CC BY 4.0"},
    "flat": {"artwork": "Fluent Emoji, Microsoft", "licence": "MIT"},
    "glossy": {"artwork": "Fluent Emoji, Microsoft", "licence": "MIT"},
}


def losses(folder: Path) -> dict[str, list]:
    """Read each part's loss curve, every twentieth logged row."""
    return {p.parent.name: read_csv(p)[::20] for p in sorted(folder.glob("*/history.csv"))}
