"""Put the training loop of a run together: `train` and `bench` use the same functions.

predictors = make_predictors(...)    the live model and its base, as functions of prompts
streams    = make_streams(...)       minibatches
base       = base_outputs(...)       what the objective needs from the base, before training
loop       = make_loop(...)          all of it
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from torch import Tensor

from personalize.config.train_config import TrainConfig
from personalize.data.latents import PromptCache
from personalize.pipeline.model import Model
from personalize.train.from_base import importance, stored_answers
from personalize.train.loop import TrainingLoop, objective_of
from personalize.train.streams import Pool, StoredAnswers, Streams
from personalize.train.timesteps import node_weights
from toy2d.core.drift import Params, Predict


@dataclass(frozen=True)
class Predictors:
    """The live model and its base as functions of (x_t, t, prompts), in training's precision."""

    model: Model
    accelerator: Accelerator
    prompts: PromptCache  # embeddings of the live text encoder
    base_prompts: PromptCache  # embeddings of the base's text encoder

    def live(self, x_t: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        with self.accelerator.autocast():
            return self.model.predict(x_t, t, self.prompts(prompts))

    def base(self, x_t: Tensor, t: Tensor, prompts: list[str]) -> Tensor:
        """The base: adapters off, and the embeddings of its own text encoder."""
        with self.accelerator.autocast(), self.model.base():
            return self.model.predict(x_t, t, self.base_prompts(prompts))


def make_predictors(
    config: TrainConfig, model: Model, accelerator: Accelerator, prompts: Iterable[str]
) -> Predictors:
    """Encode all prompts once with the base's text encoder; then free what training does not use.

    Where the text encoder trains, live prompts are encoded at every step instead.
    """
    base_prompts = PromptCache(model).add(list(prompts))
    model.unload("vae")
    if config.text_trains:
        return Predictors(model, accelerator, PromptCache(model, cache=False), base_prompts)
    model.unload("text_encoders")
    return Predictors(model, accelerator, base_prompts, base_prompts)


def make_streams(
    config: TrainConfig, model: Model, pools: dict[str, Pool], rank: int = 0, world: int = 1
) -> Streams:
    return Streams(pools, config, len(model.schedule), scheme_of(config, model), rank, world)


def scheme_of(config: TrainConfig, model: Model) -> str:
    """How timesteps are drawn and weighted: as asked for, or as the model was pretrained."""
    return config.weighting_scheme or model.family.weighting


def base_outputs(
    config: TrainConfig, predictors: Predictors, theta: Params, streams: Streams, cache: Path
) -> Predict | StoredAnswers | None:
    """Compute what the objective needs from the base, while the live model still equals it.

    Returns whose outputs the term "output" imitates: the base itself where it can still be
    evaluated beside the trained weights, else its stored outputs. The Fisher diagonal goes into
    `cache`, where `make_anchors` reads it.
    """
    model = predictors.model
    if config.uses("fisher"):
        importance(config, model, theta, predictors.live, cache)
    if not config.uses("output"):
        return None
    if config.kind.keeps_base:
        return predictors.base
    return stored_answers(config, streams, predictors.live, model.schedule, cache)


def make_loop(
    config: TrainConfig,
    predictors: Predictors,
    streams: Streams,
    anchors: dict,
    base: Predict | StoredAnswers | None,
) -> TrainingLoop:
    model = predictors.model
    weights = node_weights(config, scheme_of(config, model), model.schedule)
    objective = objective_of(config)
    live, schedule = predictors.live, model.schedule
    return TrainingLoop(config, schedule, live, objective, anchors, streams, base, weights)
