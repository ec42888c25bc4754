"""What is made from the base before training: latents, anchors, Fisher diagonal, base outputs.

Each is a function of the base, the pictures and the seed. What takes long to make is kept in the
run folder's cache/, where a resumed run finds it.
"""

from pathlib import Path

import torch

from personalize.adapters.anchors import (
    AnchorSum,
    anchors_for,
    copy_of,
    effective_names,
    plain_parameters,
)
from personalize.adapters.layers import LAYERS
from personalize.config.concepts import Concept
from personalize.config.train_config import TrainConfig
from personalize.data.latents import PictureSet, instance_set
from personalize.data.photos import Scan
from personalize.data.subjects import Together, as_their_class
from personalize.drift.fisher import base_fisher, fisher_anchor
from personalize.pipeline.model import Model
from personalize.sample.class_images import make_class_images
from personalize.sample.sampler import Sampling
from personalize.train.streams import StoredAnswers, Streams
from toy2d.core.drift import Params, Predict
from toy2d.core.objectives import Anchor
from toy2d.runs.folder import load_tensors, save_tensors
from toy2d.runs.layers import layer_weights

DTYPES = {"no": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolution_of(config: TrainConfig, model: Model) -> int:
    return config.resolution or model.default_resolution


# ---- pictures
def make_pools(
    config: TrainConfig, model: Model, pictures: Scan
) -> dict[str, PictureSet | Together]:
    """role -> pictures, all encoded. Call it before `choose`: class images are the base's.

    One set of class images serves the roles "prior" and "output" alike.
    """
    resolution = resolution_of(config, model)
    records, frame = pictures.require(), (resolution, _crop(config), config.random_flip)
    pools = {"instance": instance_set(model, records, config.instance_prompt, *frame)}
    if config.needs_class_images:
        made = [class_images(config, c, model, resolution) for c in config.concepts]
        made = made[0] if len(made) == 1 else Together(made)
        pools |= {role: made for role in ("prior", "output") if config.uses(role)}
    if config.uses("output") and config.output_source == "instance":
        pools["output"] = instance_set(model, as_their_class(config, records), None, *frame)
    return {role: pool.cache() for role, pool in pools.items()}


def _crop(config: TrainConfig):
    return "pad" if config.pad else "center" if config.center_crop else "random"


def class_images(
    config: TrainConfig, concept: Concept, model: Model, resolution: int
) -> PictureSet:
    """The base's own pictures of a concept's class: made, completed or found in class_data_dir."""
    dtype = DTYPES[config.prior_generation_precision]
    sampling = Sampling(
        config.class_steps,
        config.class_guidance,
        config.class_sampler,
        resolution,
        config.sample_batch_size,
    )
    with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        return make_class_images(
            model,
            concept.class_prompt,
            config.num_class_images,
            concept.class_data_dir,
            sampling,
            seed=config.seed,
            keep=config.class_keep,
        )


# ---- the base's answers, and where it is in parameter space
def importance(
    config: TrainConfig, model: Model, theta: Params, predict: Predict, cache: Path
) -> Params:
    """The Fisher diagonal of the base; computed once, then read from the cache."""
    shape = model.latent_shape(resolution_of(config, model))
    return base_fisher(cache / "fisher.safetensors", predict, model, theta, config, shape)


def stored_answers(
    config: TrainConfig, streams: Streams, predict: Predict, schedule, cache: Path
) -> StoredAnswers:
    """The base's outputs for every sample of the run, or for the first `output_draws`."""
    step = streams.world * config.train_batch_size * config.gradient_accumulation_steps
    samples = config.max_train_steps * step
    file = cache / "answers.safetensors"
    if not file.exists():
        n = min(config.output_draws, samples)
        made = StoredAnswers.compute(predict, streams, schedule, n)
        save_tensors(file, {"answers": made.answers})
    return StoredAnswers(streams, load_tensors(file)["answers"])


def make_anchors(
    config: TrainConfig, model: Model, theta: Params, predict: Predict, cache: Path
) -> tuple[dict, Params]:
    """(anchors by term, theta_star of the plain parameters in float32): where theta starts.

    The anchors are for the loss, theta_star for delta theta. No weight is copied twice: the Fisher
    term shares the L2 term's copy, and so does delta theta if that copy is in float32.
    """
    dtype, anchors, star = DTYPES[config.anchor_dtype], {}, None
    device = model.device if config.anchor_device == "train" else torch.device("cpu")
    if config.uses("l2"):
        layers = held_layers(config, model, theta)
        anchors = anchors_for(model, theta, config.reg_reduction, dtype, device, layers)
        star = _theta_star(anchors["l2"])
    if config.uses("fisher"):
        F = importance(config, model, theta, predict, cache)
        anchors["fisher"] = fisher_anchor(model, theta, F, star, dtype, device)
        star = _theta_star(anchors["fisher"])
    if star is None or dtype != torch.float32:
        star = copy_of(plain_parameters(theta), torch.float32, "cpu")
    return anchors, star


def held_layers(config: TrainConfig, model: Model, theta: Params) -> dict[str, float] | None:
    """--l2_layers as the weight of each effective weight; None where the flag is not given.

    Raises UserError for entries that fit no weight that trains, or contradict each other.
    """
    if not config.l2_layers:
        return None
    return layer_weights(config.l2_layers, effective_names(model, theta), LAYERS)


def _theta_star(anchor) -> Params | None:
    parts = anchor.parts if isinstance(anchor, AnchorSum) else (anchor,)
    return next((p.theta_star for p in parts if isinstance(p, Anchor)), None)
