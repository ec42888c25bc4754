"""The mini CLIP and the three other judges of pictures.

CLIP's text tower conditions the UNet, the whole of it compares pictures with prompts. The image
encoder takes DINO's part: it tells instances apart. The classifier reads class and scene. The
subject judge says which of the shipped subjects a picture shows, or "other".

Every word of the world's captions and of the benchmarks' prompts is one token. Rare words such as
"sks" are tokens that training never uses.
"""

import random

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTokenizer,
    CLIPVisionConfig,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from personalize.evaluate.judges import OTHER
from personalize.mini.pretrain.artwork import SUBJECTS
from personalize.mini.pretrain.data import Data
from personalize.mini.pretrain.vae import draw, encode, pixels
from personalize.mini.pretrain.world import CLASSES, SCENES, Content, caption, captions_all
from personalize.pipeline.tokenizer import WORDS, word_tokenizer

LENGTH = 24  # tokens of a prompt, start and end included
RARE = "sks zwx xxy ohwx mnk vqd"  # never trained: identifiers for subjects
TOWER = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
PICTURE = {"image_size": 64, "patch_size": 8}
TEMPERATURE = 0.1
OTHERS = 2048  # pictures of the world that the subject judge learns to call "other"
PAIRS = 64  # pictures (and captions) in a batch; all of different (class, scene)


def tokenizer() -> CLIPTokenizer:
    words = {*WORDS.split(), *RARE.split(), *(w for c in captions_all() for w in c.split())}
    return word_tokenizer(words, LENGTH)


def build_clip() -> CLIPModel:
    words = tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(words),
        max_position_embeddings=LENGTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        projection_dim=96,
        **TOWER,
    )
    vision = CLIPVisionConfig(projection_dim=96, **PICTURE, **TOWER)
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=96)
    )


def build_dino() -> ViTModel:
    return ViTModel(ViTConfig(**PICTURE, **TOWER), add_pooling_layer=False)


def build_classifier() -> ResNetForImageClassification:
    return _resnet(32, [f"{c}|{s}" for c in CLASSES for s in SCENES])


def build_subject_judge() -> ResNetForImageClassification:
    return _resnet(16, [*SUBJECTS, OTHER])


def _resnet(width: int, labels: list[str]) -> ResNetForImageClassification:
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=width,
            hidden_sizes=[width, 2 * width, 4 * width],
            depths=[1, 1, 1],
            layer_type="basic",
            id2label=dict(enumerate(labels)),
            label2id={name: i for i, name in enumerate(labels)},
        )
    )


def processor() -> ViTImageProcessor:
    """The image processor of all three: 64 x 64 pixels in [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    return ViTImageProcessor(size={"height": 64, "width": 64}, image_mean=half, image_std=half)


def contrast(a: Tensor, b: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric InfoNCE (CLIP, fig. 3): row i of a belongs to row i of b. Nats."""
    similarity = scale * normalize(a, dim=-1) @ normalize(b, dim=-1).T
    own = torch.arange(len(a))
    return (cross_entropy(similarity, own) + cross_entropy(similarity.T, own)) / 2


def clip_terms(world: Data):
    words = tokenizer()
    of_pair: dict[tuple[int, int], list[int]] = {}
    for i, c in enumerate(world.train_contents):
        of_pair.setdefault((c.animal, c.scene), []).append(i)
    pairs = sorted(of_pair)

    def of(network: CLIPModel, rng: torch.Generator) -> dict[str, Tensor]:
        dice = random.Random(int(torch.randint(2**31, (), generator=rng)))
        chosen = [dice.choice(of_pair[p]) for p in dice.sample(pairs, PAIRS)]
        texts = [caption(world.train_contents[i], dice) for i in chosen]
        tokens = words(texts, padding="max_length", return_tensors="pt")
        out = network(input_ids=tokens.input_ids, pixel_values=pixels(world.train[chosen]))
        scale = network.logit_scale.exp()
        return {"contrast": contrast(out.image_embeds, out.text_embeds, scale)}

    return of


def dino_terms(world: Data):
    """Contrast pictures of one drawing with those of others: features keep the subject, not the
    scene.
    """

    def of(network: ViTModel, rng: torch.Generator) -> dict[str, Tensor]:
        drawing = torch.randperm(len(world.instances) // world.views, generator=rng)[:PAIRS]
        view = torch.rand(PAIRS, world.views, generator=rng).argsort(1)[:, :2]
        index = (drawing[:, None] * world.views + view).T
        a, b = (network(pixels(world.instances[i.numpy()])).last_hidden_state[:, 0] for i in index)
        return {"contrast": contrast(a, b, 1 / TEMPERATURE)}

    return of


def label(content: Content) -> int:
    return content.animal * len(SCENES) + content.scene


def classifier_terms(world: Data):
    """The classifier's loss. It trains on every (class, scene) pair, also on the held-out ones."""
    sets = (world.train, world.train_contents), (world.unseen_pairs, world.unseen_contents)
    labels = [torch.tensor([label(c) for c in contents]) for _, contents in sets]

    def of(network: nn.Module, rng: torch.Generator) -> dict[str, Tensor]:
        seen, unseen = (
            draw(pictures, n, rng) for (pictures, _), n in zip(sets, (60, 4), strict=True)
        )
        x = torch.cat([seen[0], unseen[0]])
        truth = torch.cat([labels[0][seen[1]], labels[1][unseen[1]]])
        return {"label": cross_entropy(network(x).logits, truth)}

    return of


def subject_judge_terms(world: Data, drawn: np.ndarray, vae: AutoencoderKL):
    """The loss of a batch of 32 pictures of subjects and 32 of the world.

    A quarter has passed through the VAE, as the pictures have that it will judge, and a half with
    noise in the latents: pictures of a model that was trained too long are smeared and spotted, and
    what they show counts, not how cleanly they are drawn.

    Args:
        drawn: (subjects x views, 64, 64, 3) composites in the order of SUBJECTS, none of which is
            among the shipped pictures.
    """
    subjects, others = (
        torch.stack([pixels(p), _through(vae, p), *(_through(vae, p, 0.8) for _ in range(2))])
        for p in (drawn, np.array(world.train[:OTHERS]))
    )
    labels = torch.arange(len(drawn)) // (len(drawn) // len(SUBJECTS))

    def of(network: nn.Module, rng: torch.Generator) -> dict[str, Tensor]:
        side = torch.arange(32) % 4
        i, j = (torch.randint(len(p[0]), (32,), generator=rng) for p in (subjects, others))
        x = torch.cat([subjects[side, i], others[side, j]])
        truth = torch.cat([labels[i], torch.full((32,), len(SUBJECTS))])
        return {"label": cross_entropy(network(x).logits, truth)}

    return of


@torch.no_grad()
def _through(vae: AutoencoderKL, pictures: np.ndarray, noise: float = 0.0) -> Tensor:
    """The pictures as the VAE draws them again: (N, 3, 64, 64) in [-1, 1].

    noise: most that is added to the latents, in their standard deviations; each picture has its
    own share of it.
    """
    latents = encode(vae, pictures)
    if noise:
        share = noise * torch.rand(len(latents), 1, 1, 1)
        latents = latents + share * latents.std((0, 2, 3), keepdim=True) * torch.randn_like(latents)
    return torch.cat([vae.decode(z).sample.clamp(-1, 1) for z in latents.split(64)])
