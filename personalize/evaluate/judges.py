"""The networks that judge pictures: CLIP, DINO, LPIPS where installed, and the mini world's
classifier. Same classes at both scales.

    CLIP   CLIPModel         CLIP-T, CLIP-I, identity     openai/clip-vit-base-patch32
    DINO   AutoModel (ViT)   DINO, PRES, memorization     facebook/dino-vits16
           its layers        perceptual distance (LPIPS-like, metrics.perceptual_distance)

The mini brings its own CLIP and DINO, and a classifier that knows its world.

Every picture is cut to its central square, then goes through the model's own processor (Pillow, so
the numbers do not depend on whether torchvision is there). An evaluator whose weights are absent
is left out and named; the others go on.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
    CLIPModel,
)

from personalize.export.model_card import public_name
from toy2d.runs.files import UserError
from toy2d.runs.folder import hash_tensors

CLIP_ID = "openai/clip-vit-base-patch32"
DINO_ID = "facebook/dino-vits16"
SQUARE = "central square"


def square(image: Image.Image) -> Image.Image:
    """The central square, so that a reference photo is seen as it was trained on, never
    squeezed.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


@dataclass(eq=False)
class Eye:
    """A vision network with its processor. `pixels` is all that its subclasses' features are
    made from.
    """

    name: str
    network: nn.Module
    processor: Any

    def pixels(self, images: list[Image.Image]) -> Tensor:
        """(N, 3, H, W) as the network was trained on."""
        squares = [square(i) for i in images]
        made = self.processor(images=squares, return_tensors="pt").pixel_values
        return made.to(next(self.network.parameters()).device)

    def describe(self) -> dict:
        """What the number depends on: name, class, hash of the weights, preprocessing."""
        kept = ("size", "crop_size", "resample", "image_mean", "image_std", "do_center_crop")
        how = {k: v for k, v in self.processor.to_dict().items() if k in kept and v is not None}
        return {
            "name": public_name(self.name),
            "class": type(self.network).__name__,
            "weights": hash_tensors(self.network.state_dict()),
            "preprocessing": {"first": SQUARE, **how},
        }


@dataclass(eq=False)
class Clip(Eye):
    tokenizer: Any = None

    @torch.no_grad()
    def images(self, images: list[Image.Image]) -> Tensor:
        """(N, D) projected image features."""
        return self.network.get_image_features(self.pixels(images)).pooler_output.float().cpu()

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Tensor:
        """(N, D) projected text features; what is longer than the tokenizer's limit is cut."""
        ids = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        ids = ids.to(next(self.network.parameters()).device)
        found = self.network.get_text_features(ids.input_ids, attention_mask=ids.attention_mask)
        return found.pooler_output.float().cpu()


class Dino(Eye):
    @torch.no_grad()
    def features(self, images: list[Image.Image]) -> tuple[Tensor, list[Tensor]]:
        """The CLS feature (N, D), and every block's patch tokens (N, P, C) for the perceptual
        distance.
        """
        out = self.network(self.pixels(images), output_hidden_states=True)
        layers = [h[:, 1:].float() for h in out.hidden_states[1:]]
        return out.last_hidden_state[:, 0].float().cpu(), layers


class Truth(Eye):
    """A supervised classifier of the mini's world, labels "class|scene": only to check the
    metrics with.
    """

    @property
    def labels(self) -> tuple[list[str], list[str]]:
        """The class and the scene of each output."""
        names = self.network.config.id2label
        pairs = [names[i].split("|") for i in range(len(names))]
        return [c for c, _ in pairs], [s for _, s in pairs]

    @torch.no_grad()
    def read(self, images: list[Image.Image]) -> list[tuple[str, str]]:
        """(class, scene) of each picture, each the likeliest by its own marginal."""
        p = self.network(self.pixels(images)).logits.float().softmax(1).cpu()
        return list(zip(*(_marginal(p, names) for names in self.labels), strict=True))


OTHER = "other"  # the subject judge's label of a picture that shows none of its subjects


class SubjectJudge(Eye):
    """A supervised classifier of the mini's subjects: which one does a picture show, if any?"""

    @torch.no_grad()
    def probabilities(self, images: list[Image.Image]) -> tuple[Tensor, list[str]]:
        """(N, labels) probabilities, rows sum to 1; and the labels, one of them OTHER."""
        p = self.network(self.pixels(images)).logits.float().softmax(1).cpu()
        names = self.network.config.id2label
        return p, [names[i] for i in range(len(names))]

    def subject_of(self, images: list[Image.Image]) -> str | None:
        """The subject that these pictures show; None if most of them show none that it knows."""
        p, labels = self.probabilities(images)
        found = labels[int(p.argmax(1).mode().values)]
        return None if found == OTHER else found


def _marginal(p: Tensor, names: list[str]) -> list[str]:
    kinds = sorted(set(names))
    membership = torch.tensor([[float(n == k) for k in kinds] for n in names])
    return [kinds[i] for i in (p @ membership).argmax(1)]


@dataclass(eq=False)
class Lpips:
    """LPIPS (Zhang et al. 2018), AlexNet, pictures at 224 x 224 in [-1, 1]."""

    network: nn.Module
    name: str = "lpips alex v0.1"

    def pixels(self, images: list[Image.Image]) -> Tensor:
        sized = [square(i).resize((224, 224), Image.Resampling.BICUBIC) for i in images]
        made = torch.stack(
            [torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8) for i in sized]
        )
        made = made.reshape(len(sized), 224, 224, 3).permute(0, 3, 1, 2) / 127.5 - 1
        return made.to(next(self.network.parameters()).device)

    @torch.no_grad()
    def pairwise(self, images: list[Image.Image]) -> Tensor:
        """(N, N), symmetric, 0 on the diagonal. One row of pairs at a time, for memory."""
        x, n = self.pixels(images), len(images)
        out = torch.zeros(n, n, dtype=torch.float64)
        for i in range(n - 1):
            rest = x[i + 1 :]
            found = self.network(x[i].expand_as(rest), rest).flatten().double().cpu()
            out[i, i + 1 :] = out[i + 1 :, i] = found
        return out

    def describe(self) -> dict:
        how = {"first": SQUARE, "size": [224, 224], "resample": "bicubic", "range": [-1, 1]}
        return {
            "name": self.name,
            "weights": hash_tensors(self.network.state_dict()),
            "preprocessing": how,
        }


# ---- the set of them
@dataclass
class Evaluators:
    """Whoever is there. `left_out`: one sentence for each that is not."""

    clip: Clip | None = None
    dino: Dino | None = None
    lpips: Lpips | None = None
    truth: Truth | None = None
    subjects: SubjectJudge | None = None
    left_out: list[str] = field(default_factory=list)

    def describe(self) -> dict:
        names = ("clip", "dino", "lpips", "truth", "subjects")
        there = {name: getattr(self, name) for name in names}
        return {k: v.describe() for k, v in there.items() if v is not None}


Where = str | Callable[[], Path]  # a folder or hub id, or who finds it


def load_evaluators(
    clip: Where = CLIP_ID,
    dino: Where = DINO_ID,
    truth: Where | None = None,
    lpips: bool = True,
    device="cpu",
    subjects: Where | None = None,
) -> Evaluators:
    """Whatever can be loaded (the local cache serves hub ids offline); `left_out` says what
    could not, why, and the remedy.
    """
    here = "download it where there is a network, or pass a folder"
    install = "pip install 'driftlab[lpips]'; it fetches torchvision's AlexNet once"
    wanted = [
        ("clip", load_clip, clip, "CLIP-T, CLIP-I and identity are", f"{here} with --clip"),
        ("dino", load_dino, dino, "DINO, PRES and memorization are", f"{here} with --dino"),
        ("truth", load_truth, truth, "true class and scene are", "run personalize pretrain"),
        ("subjects", load_subjects, subjects, "the subject is", "run personalize pretrain"),
        ("lpips", load_lpips, "lpips" if lpips else None, "LPIPS diversity is", install),
    ]
    found = Evaluators()
    for name, load, where, lost, remedy in wanted:
        if where is None:
            continue
        try:
            place = str(where()) if callable(where) else where
            setattr(found, name, load(place, device))
        except (
            Exception
        ) as e:  # a hub, a folder, a download can fail in any way; the reason is passed on
            reason = re.sub(r"\s+", " ", str(e))[:200]
            found.left_out.append(f"{lost} left out: {name} cannot be loaded ({reason}); {remedy}")
    return found


def evaluators_of(
    mini: bool, clip: str | None = None, dino: str | None = None, device="cpu"
) -> Evaluators:
    """The defaults of a model: the mini's own networks (LPIPS knows photographs, not its world),
    or the hub's.
    """
    if not mini:
        return load_evaluators(clip or CLIP_ID, dino or DINO_ID, device=device)
    from personalize.mini import shipped

    own = clip or shipped.clip_folder, dino or shipped.dino_folder, shipped.classifier_folder
    return load_evaluators(*own, False, device, shipped.subject_judge_folder)


@torch.no_grad()
def _network(kind, name: str, device, unused: tuple[str, ...] = ()) -> nn.Module:
    """Raises UserError if weights that are used are missing: transformers fills them at random
    and only says so in a log.
    """
    network, report = kind.from_pretrained(
        name,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    missing = [k for k in report["missing_keys"] if not k.startswith(unused)]
    if missing:
        raise UserError(f"{len(missing)} of its weights are missing, e.g. {sorted(missing)[0]}")
    for name in report[
        "missing_keys"
    ]:  # unused; left as transformers drew them, the hash would differ between processes
        network.get_parameter(name).zero_()
    return network.requires_grad_(False).eval().to(device)


def _processor(name: str):
    return AutoImageProcessor.from_pretrained(name, backend="pil", trust_remote_code=False)


def load_clip(name: str, device="cpu") -> Clip:
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    return Clip(name, _network(CLIPModel, name, device), _processor(name), tokenizer)


def load_dino(name: str, device="cpu") -> Dino:
    # the pooler is transformers' addition: DINO was published without, and its CLS feature is taken
    # before it
    return Dino(name, _network(AutoModel, name, device, ("pooler.",)), _processor(name))


def load_truth(name: str, device="cpu") -> Truth:
    return Truth(name, _network(AutoModelForImageClassification, name, device), _processor(name))


def load_subjects(name: str, device="cpu") -> SubjectJudge:
    return SubjectJudge(
        name, _network(AutoModelForImageClassification, name, device), _processor(name)
    )


def load_lpips(name: str, device="cpu") -> Lpips:
    import lpips

    return Lpips(lpips.LPIPS(net="alex", verbose=False).requires_grad_(False).eval().to(device))
