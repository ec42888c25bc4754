"""What a model has learnt of a subject: gain in nats on held-out pictures, after the fact.

The same numbers that `personalize train` writes along the way (drift/gain.py): same samples for the
same seed, whoever is measured.
"""

from dataclasses import replace
from pathlib import Path

from personalize.config.train_config import TrainConfig
from personalize.data.latents import PromptCache
from personalize.data.photos import scan
from personalize.drift.gain import HeldOut, encode_held_out
from personalize.pipeline.model import Model
from toy2d.core.drift import Predict


def gain_of(model: Model, base: Model | None, config: TrainConfig) -> dict[str, float]:
    """gain, gain/BAND, binding, leak and their errors, in nats per picture of the held-out folder.

    `base`: a model of its own; None where the model's adapters can be switched off.
    `config`: held_out_data_dir, the prompts, and what the samples depend on (seed, measure_nodes,
    gain_samples, cropping, batch sizes). Raises UserError for pictures that cannot be read.
    """
    records = scan(config.held_out_data_dir, captions=False).require()
    resolution = config.resolution or model.default_resolution
    pictures = encode_held_out(model, config, records, resolution)
    drawn = HeldOut.draw(pictures, model.schedule, config)
    with (base or model).evaluating(), model.evaluating():
        asked = drawn.asking(predictor(base or model, is_base=base is None))
        return replace(drawn, base=asked).columns(predictor(model), step=1)


def predictor(model: Model, is_base: bool = False) -> Predict:
    """Answers to prompts; with `is_base` those of the model with its adapters off."""
    encode = PromptCache(model)

    def predict(x_t, t, texts):
        if not is_base:
            return model.predict(x_t, t, encode(texts))
        with model.base():
            return model.predict(x_t, t, encode(texts))

    return predict


def held_out_config(
    folder: str | Path, instance_prompt: str, class_prompt: str, **more
) -> TrainConfig:
    """A configuration that says how held-out pictures are asked about; nothing trains by it."""
    return TrainConfig(
        pretrained_model_name_or_path="",
        instance_data_dir="",
        output_dir="",
        instance_prompt=instance_prompt,
        class_prompt=class_prompt,
        held_out_data_dir=str(folder),
        **more,
    )
