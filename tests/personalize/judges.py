"""Tiny random evaluators of the real classes, saved as folders: CLIPModel with its tokenizer,
ViTModel, a classifier.
"""

from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from personalize.pipeline.tokenizer import WORDS, word_tokenizer

SIZE = {"height": 32, "width": 32}
BODY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
EYE = {**BODY, "image_size": 32, "patch_size": 8}
LABELS = [f"{c}|{s}" for c in ("dog", "cat") for s in ("in the snow", "on the beach")]


def judges(folder: Path) -> dict[str, str]:
    """clip, dino and truth folders below `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_clip(folder / "clip")
        save_eye(ViTModel(ViTConfig(**EYE), add_pooling_layer=False), folder / "dino")
        labels = {
            "id2label": dict(enumerate(LABELS)),
            "label2id": {n: i for i, n in enumerate(LABELS)},
        }
        save_eye(ViTForImageClassification(ViTConfig(**EYE, **labels)), folder / "truth")
    return {name: str(folder / name) for name in ("clip", "dino", "truth")}


def save_clip(folder: Path) -> None:
    words = word_tokenizer(set(WORDS.split()))
    ends = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    text = {**BODY, "vocab_size": len(words), **ends}
    CLIPModel(CLIPConfig(text_config=text, vision_config=EYE, projection_dim=8)).save_pretrained(
        folder
    )
    words.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE).save_pretrained(folder)


def save_eye(network, folder: Path) -> None:
    network.save_pretrained(folder)
    ViTImageProcessor(size=SIZE).save_pretrained(folder)
