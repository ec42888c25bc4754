"""What measuring drift costs a default run, as a share of its training: `personalize bench`.

    share = samples that the run evaluates x seconds of one forward pass / seconds of its steps

The base's chains are not counted: a base's first run pays them, its later runs find them.
"""

from collections.abc import Callable

import torch

from personalize.config.rules import resolve
from personalize.config.train_config import TrainConfig
from personalize.cost.fixture import PROMPTS, BenchFixture
from personalize.drift.chains import at_once
from personalize.drift.measure import evaluations

STEPS = 500  # of the default run


def default_run(objective: str, kind: str) -> TrainConfig:
    """Everything measured as it is without any flag."""
    drawn = {"prior", "output"} & set(objective.split("+"))
    return resolve(
        TrainConfig(
            pretrained_model_name_or_path="random",
            instance_data_dir="photos",
            instance_prompt=PROMPTS["instance"],
            class_prompt=PROMPTS["prior"],
            class_data_dir="classes" if drawn else None,
            objective=objective,
            train=kind,
            max_train_steps=STEPS,
        )
    )


def share(objective: str, kind: str, step: float, forward: float) -> float:
    """Of the seconds of all steps. `forward`: seconds of one sample without a gradient."""
    return evaluations(default_run(objective, kind)) * forward / (STEPS * step)


def forward_seconds(fixture: BenchFixture, seconds: Callable[[Callable], float]) -> float:
    """Of one sample, in batches as measuring asks them; the faster of two after one untimed.

    `seconds(work)`: the clock.
    """
    model, command = fixture.model, fixture.command
    n = at_once(default_run("standard", fixture.kind))
    x_t = torch.randn(n, *model.latent_shape(command.resolution)).to(model.device)
    t = model.schedule.timesteps[torch.zeros(n, dtype=torch.long, device=model.device)]
    prompts = [PROMPTS["instance"]] * n
    with torch.no_grad(), model.evaluating():
        took = [seconds(lambda: fixture.predictors.live(x_t, t, prompts)) for _ in range(3)]
    return min(took[1:]) / n
