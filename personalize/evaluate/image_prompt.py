"""The subject's pictures as a prompt: an IP-Adapter (Ye et al. 2023), opened by diffusers' loader.

Nothing trains. A prompt that names the subject, "a sks dog in the snow", becomes the text "a dog in
the snow" together with the subject's pictures. Every other prompt is text alone, and there the
adapter is off: its branch is not computed, so the network answers as its base does, bit for bit,
and path KL of such prompts is exactly 0.

    --ip_adapter mini | FOLDER | FOLDER/x.safetensors | OWNER/REPO/SUBFOLDER/x.safetensors

A folder holds one safetensors file (`image_proj.*`, `ip_adapter.*`) and image_encoder/.
Shapes: B batch, V pictures of the prompt, E features of an embedding.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from torch import Tensor

from personalize.data.prompts import alone, without_identifier
from personalize.mini.shipped import ip_adapter_folder
from personalize.pipeline.families import SD15, SDXL, Cond, Family
from personalize.pipeline.model import Model
from toy2d.runs.files import UserError
from toy2d.runs.folder import hash_tensors, load_tensors

SHOWN, IMAGE = "shown", "image"  # keys of cond: is the adapter on (B), the embeddings (B V E)
SUFFIX = ".safetensors"
HOW = "FOLDER, FOLDER/x.safetensors or OWNER/REPO/SUBFOLDER/x.safetensors"


class Prompted(NamedTuple):
    """Two views of one pipeline: with the image prompt, and as the base."""

    model: Model
    base: Model


def with_image_prompt(
    model: Model,
    adapter: str,
    pictures: Sequence[Image.Image],
    identifier: str,
    scale: float = 1.0,
) -> Prompted:
    """Load the adapter into the model's pipeline; both views share its networks.

    `pictures`: all of them are one image prompt. `scale`: what the image branch counts. Use the
    views from now on: `model` itself can no longer be asked.
    Raises UserError for an adapter that is not there or does not fit the base, naming both shapes.
    """
    if model.family not in (SD15, SDXL):
        raise UserError(f"--ip_adapter is for UNets (SD-1.x, SDXL), not for {model.family.name}")
    if model.trained != "nothing":
        raise UserError("--ip_adapter is for a base that nothing has trained")
    weights, pipeline = model.hash(), model.pipeline
    place = find(adapter)
    tensors = load_tensors(place.file)
    refuse_misfit(model, tensors, adapter)
    try:
        pipeline.load_ip_adapter(place.source, place.subfolder, place.file.name)
        if pipeline.image_encoder is not None:
            pipeline.image_encoder.to(model.device).eval()
            refuse_other_encoder(pipeline, tensors, adapter)
        with torch.no_grad():
            made = pipeline.prepare_ip_adapter_image_embeds(
                [list(pictures)], None, model.device, 1, do_classifier_free_guidance=True
            )
    except UserError:
        raise
    except Exception as e:  # files that others wrote can fail in any way
        raise UserError(f"--ip_adapter {adapter} cannot be loaded: {_in_short(e)}") from e
    nothing, shown = made[0].chunk(2)
    family = image_family(model.family, pipeline, identifier, (nothing, shown), scale)
    off = replace(family, encode=_text_only(model.family, shown))
    views = [Model(pipeline, f, source=model.source) for f in (family, off)]
    seen = hash_tensors(tensors | {"pictures": shown.float()})
    named = f"{weights} {seen} {identifier} {scale}"
    views[0]._hash = hashlib.sha256(named.encode()).hexdigest()[:16]
    views[1]._hash = weights
    return Prompted(*views)


# ---- where it lies, and whether it fits
class Place(NamedTuple):
    source: str  # a folder or a repository
    subfolder: str
    file: Path


def find(name: str) -> Place:
    """Raises UserError for what is neither a file nor a folder here nor a file of the hub."""
    path = ip_adapter_folder() if name == "mini" else Path(name).expanduser()
    if path.is_dir():
        files = sorted(path.glob(f"*{SUFFIX}"))
        if len(files) != 1:
            held = ", ".join(f.name for f in files) or "none"
            raise UserError(f"--ip_adapter {name}: name one *{SUFFIX} in it (there: {held})")
        path = files[0]
    if path.is_file() and path.suffix == SUFFIX:
        if not (path.parent / "image_encoder").is_dir():
            raise UserError(f"--ip_adapter {name}: {path.parent} lacks the folder image_encoder/")
        return Place(str(path.parent), "", path)
    owner, repository, *folders = name.split("/") if name.count("/") > 1 else ("", "", "")
    if not owner or not name.endswith(SUFFIX):
        raise UserError(f"--ip_adapter {name} is not here; write {HOW}, safetensors only")
    subfolder = "/".join(folders[:-1])
    try:
        file = hf_hub_download(f"{owner}/{repository}", folders[-1], subfolder=subfolder or None)
    except Exception as e:
        raise UserError(
            f"--ip_adapter {name} is neither here nor given by the hub or its cache "
            f"({_in_short(e)}); write {HOW}"
        ) from e
    return Place(f"{owner}/{repository}", subfolder, Path(file))


def refuse_misfit(model: Model, tensors: dict[str, Tensor], name: str) -> None:
    """Raise UserError if to_k_ip of the file has not the shapes of the base's own to_k."""
    unet = model.parts["unet"]
    layers = [n for n in unet.attn_processors if n.endswith("attn2.processor")]
    own = [unet.get_submodule(n.removesuffix(".processor")).to_k.weight.shape for n in layers]
    keys = [k for k in tensors if re.fullmatch(r"ip_adapter\.\d+\.to_k_ip\.weight", k)]
    theirs = [tensors[k].shape for k in sorted(keys, key=lambda k: int(k.split(".")[1]))]
    if not keys or not any(k.startswith("image_proj.") for k in tensors):
        raise UserError(
            f"--ip_adapter {name} is no IP-Adapter: no image_proj.* and ip_adapter.N.to_k_ip.weight"
        )
    apart = [(a, b) for a, b in zip(theirs, own, strict=False) if a != b]
    if len(theirs) != len(own) and not apart:
        raise UserError(
            f"--ip_adapter {name} does not fit the base: it has {len(theirs)} layers of "
            f"cross-attention, the base {len(own)}"
        )
    if apart:
        a, b = (" x ".join(map(str, shape)) for shape in apart[0])
        raise UserError(
            f"--ip_adapter {name} does not fit the base: its keys are {a}, the base's {b}; "
            "choose an adapter that was trained for this base"
        )


def refuse_other_encoder(pipeline, tensors: dict[str, Tensor], name: str) -> None:
    """Raise UserError if the image encoder's features are not those that the adapter projects."""
    projection = tensors.get("image_proj.proj.weight")
    width = pipeline.image_encoder.config.projection_dim
    if projection is not None and projection.shape[1] != width:
        raise UserError(
            f"--ip_adapter {name}: its projection is {projection.shape[0]} x "
            f"{projection.shape[1]}, its image encoder gives {width} features; they belong to "
            "different adapters"
        )


def _in_short(e: Exception) -> str:
    return re.sub(r"\s+", " ", str(e))[:200] or type(e).__name__


# ---- a family that takes pictures
def image_family(
    family: Family, pipeline, identifier: str, pair: tuple[Tensor, Tensor], scale: float
) -> Family:
    """`family` with an image prompt where the text names the subject.

    `pair`: embeddings (1 V E) of no pictures, which is what guidance goes away from, and of the
    pictures.
    """
    nothing, shown = pair
    plain = _text_only(family, shown)

    def encode(pipeline, prompts: list[str]) -> Cond:
        named = [bool(re.search(alone(identifier), p, re.IGNORECASE)) for p in prompts]
        pairs = zip(prompts, named, strict=True)
        said = plain(pipeline, [without_identifier(p, identifier) if n else p for p, n in pairs])
        on = torch.tensor(named, device=said[SHOWN].device)
        rows = on.reshape(-1, *[1] * (shown.ndim - 1))
        image = torch.where(rows, shown.to(said[IMAGE]), said[IMAGE])
        return said | {SHOWN: on, IMAGE: image}

    def unconditional(uncond: Cond, cond: Cond) -> Cond:
        off = family.unconditional(uncond, cond)
        return off | {SHOWN: cond[SHOWN], IMAGE: nothing.to(cond[IMAGE]).expand_as(cond[IMAGE])}

    def call(denoiser, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        on, out = cond[SHOWN], torch.empty_like(x_t)
        for flag in on.unique().tolist():
            rows = on == flag
            pipeline.set_ip_adapter_scale(scale if flag else 0.0)  # at 0 the branch is left out
            part = {k: v[rows] for k, v in cond.items() if k not in (SHOWN, IMAGE)}
            asked = _showing(denoiser, cond[IMAGE][rows])
            out[rows] = family.call(asked, x_t[rows], t[rows] if t.ndim else t, part).to(out)
        return out

    return replace(family, encode=encode, call=call, unconditional=unconditional)


def _text_only(family: Family, shown: Tensor):
    """The family's encoding, with no pictures."""

    def encode(pipeline, prompts: list[str]) -> Cond:
        said = family.encode(pipeline, prompts)
        device, B = said["encoder_hidden_states"].device, len(prompts)
        off = torch.zeros(B, dtype=torch.bool, device=device)
        return said | {SHOWN: off, IMAGE: shown.to(device).new_zeros(B, *shown.shape[1:])}

    return encode


def _showing(denoiser, image: Tensor):
    """The UNet, told of the pictures where diffusers' UNet looks for them."""

    def asked(x_t, t, added_cond_kwargs=None, **cond):
        added = (added_cond_kwargs or {}) | {"image_embeds": [image]}
        return denoiser(x_t, t, added_cond_kwargs=added, **cond)

    return asked
