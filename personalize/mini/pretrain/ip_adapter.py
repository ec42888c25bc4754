"""The mini base's IP-Adapter: a picture as a prompt, beside the text (Ye et al. 2023).

    tokens = LayerNorm(W e),  e = the mini CLIP's image embedding, TOKENS tokens a picture
    cross-attention = Attention(q, to_k(text), to_v(text))
                    + Attention(q, to_k_ip(tokens), to_v_ip(tokens))

Only W, the norm, to_k_ip and to_v_ip train; the UNet stays as it is. The file is diffusers' own
format (`image_proj.*`, `ip_adapter.*`), which `pipeline.load_ip_adapter` reads.

Shapes: B batch, V pictures of a prompt, E = 96 (the embedding), D = 128 (cross-attention).
"""

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, IPAdapterAttnProcessor
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from personalize.data.prompts import with_article
from personalize.mini.pretrain.artwork import OTHERS
from personalize.mini.pretrain.data import Data
from personalize.mini.pretrain.unet import BATCH, DROPPED, SNR_GAMMA, Prompts, scheduler
from personalize.mini.pretrain.vae import pixels
from personalize.mini.pretrain.world import CLASSES, PHRASES, SCENES, STYLES, caption
from personalize.mini.shipped import ADAPTER_FILE
from personalize.pipeline.families import from_diffusers
from toy2d.core.objectives import STANDARD, Example

TOKENS = 4  # of a picture, as in the published adapters: diffusers' loader assumes it
EMBEDDING = 96  # of the mini CLIP
MOST = 4  # pictures of one prompt in training: 1 to MOST, the same number in a batch
OTHERS_SHARE = 0.5  # of a batch: drawings that the base never learnt to draw


class IPAdapter(nn.Module):
    """The adapter's weights; `forward` asks the frozen UNet, in which they are installed.

    to_k_ip and to_v_ip begin as the UNet's own to_k and to_v, as the published adapters do.
    """

    def __init__(self, unet: UNet2DConditionModel):
        super().__init__()
        unet.requires_grad_(False).eval()
        self._unet = (unet,)  # in a tuple: no submodule, so its weights are none of ours
        width = unet.config.cross_attention_dim
        self.image_proj = ImageProjection(EMBEDDING, width, TOKENS)
        self.attention = nn.ModuleList()
        installed = {}
        for name in unet.attn_processors:
            installed[name] = AttnProcessor()
            if name.endswith("attn2.processor"):
                own = unet.get_submodule(name.removesuffix(".processor"))
                installed[name] = IPAdapterAttnProcessor(own.inner_dim, width, (TOKENS,))
                installed[name].to_k_ip[0].load_state_dict(own.to_k.state_dict())
                installed[name].to_v_ip[0].load_state_dict(own.to_v.state_dict())
                self.attention.append(installed[name])
        unet.set_attn_processor(installed)
        unet.encoder_hid_proj = MultiIPAdapterImageProjection([self.image_proj])
        unet.config.encoder_hid_dim_type = "ip_image_proj"

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, image: Tensor) -> Tensor:
        """`image`: B V E; a row of zeros is no picture."""
        return self._unet[0](x_t, t, text, added_cond_kwargs={"image_embeds": [image]}).sample

    def file(self) -> dict[str, Tensor]:
        """The state as diffusers' loader reads it: cross-attention layers count 1, 3, 5, ..."""
        own = self.image_proj
        found = {
            "image_proj.proj.weight": own.image_embeds.weight,
            "image_proj.proj.bias": own.image_embeds.bias,
            "image_proj.norm.weight": own.norm.weight,
            "image_proj.norm.bias": own.norm.bias,
        }
        for i, layer in enumerate(self.attention):
            found[f"ip_adapter.{2 * i + 1}.to_k_ip.weight"] = layer.to_k_ip[0].weight
            found[f"ip_adapter.{2 * i + 1}.to_v_ip.weight"] = layer.to_v_ip[0].weight
        return {k: v.detach() for k, v in found.items()}

    def load_file(self, tensors: dict[str, Tensor]) -> "IPAdapter":
        with torch.no_grad():
            for name, weight in self.file().items():
                weight.copy_(tensors[name])
        return self


# ---- what it is trained on
@torch.no_grad()
def embeddings(clip: CLIPModel, pictures: np.ndarray, batch: int = 250) -> Tensor:
    """The mini CLIP's image embeddings, not normalized, (N, E)."""
    parts = [
        clip.visual_projection(clip.vision_model(pixels(pictures[i : i + batch])).pooler_output)
        for i in range(0, len(pictures), batch)
    ]
    return torch.cat(parts)


def unlearnt(world: Data) -> int:
    """Where `world.instances` stops to be drawings that the base has learnt."""
    return len(CLASSES) * len(STYLES) * world.views


def terms(world: Data, latents: Tensor, others: Tensor, clip: CLIPModel):
    """The loss of the noise that the UNet predicts under a caption and pictures of its drawing.

    Half of a batch are the world's pictures, half are other drawings: "a photo of an animal in the
    snow" (the class word where it is one of the world's), so that only the picture prompt says
    what to draw. The pictures of a prompt are any of the same drawing, in any scene. A tenth of the
    captions is empty, and a tenth of the picture prompts zeros.

    Args:
        latents: (N, C, 16, 16) of world.train; others: of world.instances from `unlearnt` on.
    """
    schedule, prompts = from_diffusers(scheduler()), Prompts(clip.text_model)
    weights, first = schedule.min_snr_weights(SNR_GAMMA), unlearnt(world)
    shown = embeddings(clip, world.train), embeddings(clip, world.instances[first:])
    of_drawing: dict[tuple[int, int], list[int]] = {}
    for i, c in enumerate(world.train_contents):
        of_drawing.setdefault((c.animal, c.style), []).append(i)
    names = [name for name in OTHERS.values() for _ in STYLES]

    def learnt_row(dice: random.Random, many: int):
        i = dice.randrange(len(latents))
        content = world.train_contents[i]
        same = dice.choices(of_drawing[content.animal, content.style], k=many)
        return latents[i], caption(content, dice), shown[0][same]

    def other_row(dice: random.Random, many: int):
        i = dice.randrange(len(others))
        drawing = i // world.views
        name = names[drawing] if names[drawing] in CLASSES else "animal"
        text = dice.choice(PHRASES).format(with_article(name), SCENES[world.scenes[first + i]])
        same = dice.choices(range(drawing * world.views, (drawing + 1) * world.views), k=many)
        return others[i], text, shown[1][same]

    def of(network: IPAdapter, rng: torch.Generator) -> dict[str, Tensor]:
        dice = random.Random(int(torch.randint(2**31, (), generator=rng)))
        many = dice.randint(1, MOST)
        n = round(OTHERS_SHARE * BATCH)
        rows = [(other_row if k < n else learnt_row)(dice, many) for k in range(BATCH)]
        x0, texts, pictures = zip(*rows, strict=True)
        said = prompts(["" if dice.random() < DROPPED else text for text in texts])
        seen = torch.stack([p * (dice.random() >= DROPPED) for p in pictures])
        t = torch.randint(len(schedule.alpha_bar), (BATCH,), generator=rng)
        eps = torch.randn(BATCH, *latents.shape[1:], generator=rng)

        def predict(x_t, steps, cond):
            return network(x_t, steps, *cond)

        example = Example(torch.stack(x0), t, eps, (said, seen))
        return STANDARD.terms(predict, schedule, {"instance": example}, weights=weights)

    return of


# ---- its folder
@torch.no_grad()
def image_encoder(clip: CLIPModel) -> CLIPVisionModelWithProjection:
    """The mini CLIP's image tower, for pixels normalized as CLIP's are: diffusers makes those.

    With x' = (x - m) / s of a channel in [0, 1] and the mini's own 2 x - 1 = 2 s x' + 2 m - 1, the
    first convolution takes up 2 s, and the embeddings of the places take up 2 m - 1.
    """
    config = clip.config.vision_config
    config.projection_dim = clip.config.projection_dim
    alone = CLIPVisionModelWithProjection(config)
    alone.visual_projection.load_state_dict(clip.visual_projection.state_dict())
    alone.vision_model.load_state_dict(clip.vision_model.state_dict())
    first = alone.vision_model.embeddings
    mean, std = torch.tensor(OPENAI_CLIP_MEAN), torch.tensor(OPENAI_CLIP_STD)
    weight = first.patch_embedding.weight
    offset = (weight * (2 * mean - 1)[:, None, None]).sum((1, 2, 3))
    first.position_embedding.weight[1:] += offset
    weight *= 2 * std[:, None, None]
    return alone.eval()


def save(network: IPAdapter, clip: CLIPModel, folder: Path) -> None:
    """The folder that `pipeline.load_ip_adapter` opens, in fp16."""
    tensors = {k: v.half().contiguous() for k, v in network.file().items()}
    save_file(tensors, folder / ADAPTER_FILE, {"format": "pt"})
    image_encoder(clip).half().save_pretrained(folder / "image_encoder")
