"""What ships with the mini base: its folders of weights, its subjects, its classes and scenes.

The model draws 16 animals in 8 scenes at 64 x 64, with the classes that SD-1.5 is made of.
`--pretrained_model_name_or_path mini` is `model_folder()`, and nothing else is special about it.
`mini/pretrain` holds the code that made the weights.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from toy2d.runs.files import UserError, verify_manifest

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "weights"
# of its pictures; with more they are less diverse, and more often of the right class (quality.json)
GUIDANCE = 1.25
ADAPTER_FILE = "ip_adapter.safetensors"
CLASSES = (
    "dog",
    "cat",
    "fox",
    "bear",
    "panda",
    "koala",
    "tiger",
    "lion",
    "cow",
    "pig",
    "frog",
    "monkey",
    "penguin",
    "rabbit",
    "mouse",
    "owl",
)
SCENES = (
    "on the beach",
    "in the snow",
    "at night",
    "in the forest",
    "in the desert",
    "in the city",
    "in the meadow",
    "under water",
)


@dataclass(frozen=True)
class Subject:
    """A drawing to personalize with: "a photo of sks {class_word}"."""

    name: str
    class_word: str
    folder: Path  # 00.png ... 04.png, 64 x 64: to train on

    @property
    def held_out(self) -> Path:
        """00.png ... 15.png of the same drawing, two in each scene: to measure what was learnt."""
        return self.folder / "held_out"


def is_mini(name: str) -> bool:
    """Is it the mini base, by its name or its folder? Nothing is opened or hashed."""
    return name == "mini" or Path(name).expanduser().resolve() == (WEIGHTS / "model").resolve()


def is_folder(name: str) -> bool:
    """Is the base a pipeline folder here (the mini is one), not a hub id?"""
    return is_mini(name) or Path(name).expanduser().is_dir()


def usual_guidance(base: str) -> float:
    """Classifier-free guidance of pictures of a base: the mini's own, else 7.5."""
    return GUIDANCE if is_mini(base) else 7.5


def model_folder() -> Path:
    """The diffusers pipeline. Raises UserError if it is absent or altered; so do the next four."""
    return _folder("model")


def clip_folder() -> Path:
    """CLIPModel, CLIPTokenizer and image processor: CLIP's part in evaluation."""
    return _folder("clip")


def dino_folder() -> Path:
    """ViTModel and image processor, trained to tell instances apart: DINO's part."""
    return _folder("dino")


def classifier_folder() -> Path:
    """ResNetForImageClassification, labels "class|scene": the truth that checks the metrics."""
    return _folder("classifier")


def subject_judge_folder() -> Path:
    """ResNetForImageClassification, labels: the eight subjects and "other"."""
    return _folder("subject_judge")


def ip_adapter_folder() -> Path:
    """The IP-Adapter: ADAPTER_FILE and image_encoder/, as diffusers' loader wants them."""
    return _folder("ip_adapter")


def _folder(name: str) -> Path:
    folder = WEIGHTS / name
    if not folder.is_dir():
        raise UserError(
            f"the mini base has no weights in {folder}: install driftlab whole, "
            "or train them with `personalize pretrain`"
        )
    if not verify_manifest(folder):
        raise UserError(
            f"the weights in {folder} are not those that were published (manifest.json); "
            "restore them (git checkout) or publish again with `personalize pretrain`"
        )
    return folder


def subjects() -> dict[str, Subject]:
    """By name, in order."""
    listed = json.loads((FOLDER / "subjects" / "subjects.json").read_text())
    return {
        name: Subject(name, about["class_word"], FOLDER / "subjects" / name)
        for name, about in listed.items()
    }
