"""The bench's stand: networks with random weights, random latents, and the loop's parts put together as `experiment` would."""

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, UNet2DConditionModel

from personalize.adapters import anchors_for, copy_of, plain_parameters
from personalize.config import TrainConfig
from personalize.data import Prompts
from personalize.fisher import effective_weights, fisher_anchor
from personalize.model import SD15, Model, choose, load
from personalize.prepare import DTYPES
from personalize.tiny import tiny
from personalize.train import Run, StoredAnswers, Streams, objective_of


def open_model(asked, kind: str = "full") -> Model:
    dtype = DTYPES[asked.mixed_precision] if kind == "lora" else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if asked.model:
        return load(asked.model, dtype=dtype).to(device)
    model = Model(random_pipeline(asked.width), SD15)
    model.denoiser.to(dtype)
    return model.to(device)


def random_pipeline(width: int):
    """SD-1.5's architecture with `width` channels at the first level: 320 is SD-1.5 itself (its text encoder apart)."""
    pipeline, cross = tiny(), 32
    pipeline.unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        layers_per_block=2,
        cross_attention_dim=cross,
        attention_head_dim=8,
        norm_num_groups=32 if width % 32 == 0 else 8,
    )
    base = max(16, round(width / 20) * 8)  # 128 for SD-1.5
    pipeline.vae = AutoencoderKL(
        block_out_channels=(base, 2 * base, 4 * base, 4 * base),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=8,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    return pipeline


class RandomPool:
    """Four latents under one prompt."""

    def __init__(self, model: Model, resolution: int, prompt: str):
        shape = (4, *model.latent_shape(resolution))
        self.x0 = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device)
        self.prompt = prompt

    def __len__(self) -> int:
        return len(self.x0)

    def draw(self, indices, rng):
        return self.x0[indices], [self.prompt] * len(indices)


def configuration(asked, objective: str, kind: str, steps: int) -> TrainConfig:
    return TrainConfig(
        pretrained_model_name_or_path=asked.model or "random",
        instance_data_dir="",
        objective=objective,
        train=kind,
        train_batch_size=asked.batch_size,
        max_train_steps=steps,
        lr_warmup_steps=0,
        learning_rate=1e-6,
        log_every=10**6,
        mixed_precision=asked.mixed_precision,
        checkpointing_steps=0,
    )


def assemble(asked, objective: str, kind: str, accelerator: Accelerator) -> tuple[Run, Model, dict]:
    """The loop's parts, as `experiment` would make them."""
    model = open_model(asked, kind)
    theta = choose(model, kind)
    model.unload("vae")
    config = configuration(asked, objective, kind, 2)
    roles = {"instance": "a photo of sks dog", "prior": "a photo of a dog", "output": "a photo of a dog"}  # fmt: skip
    pools = {r: RandomPool(model, asked.resolution, p) for r, p in roles.items() if r == "instance" or config.uses(r)}  # fmt: skip
    prompts = Prompts(model).add(list(roles.values()))
    model.unload("text_encoders")

    def predict(x_t, t, texts):
        with accelerator.autocast():
            return model.predict(x_t, t, prompts(texts))

    def predict_base(x_t, t, texts):
        with model.base():
            return predict(x_t, t, texts)

    anchors = anchors_for(model, theta) if config.uses("l2") else {}
    if config.uses("fisher"):
        ones = copy_of(effective_weights(model, theta))
        star = copy_of(plain_parameters(theta))
        anchors["fisher"] = fisher_anchor(model, theta, ones, star, None, None)
    streams, base = Streams(pools, config, len(model.schedule)), None
    if config.uses("output"):
        base = predict_base
        if kind == "full":
            base = StoredAnswers.ask(predict, streams, model.schedule, 4)
    run = Run(config, model.schedule, predict, objective_of(config), anchors, streams, base)
    return run, model, theta
