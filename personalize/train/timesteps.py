"""Which noise levels are drawn, and how much each counts in the loss.

    none                 eps and v models: every node equally often
    logit_normal, mode   flow models: more draws in the middle     Esser et al. 2024, section 3.1
    sigma_sqrt, cosmap   flow models: every node equally often, weighted loss
    --snr_gamma          eps and v models: min-SNR weights         Hang et al. 2023

Distributions and weights are those of diffusers.training_utils, under diffusers' flags. SD-3 was
trained with logit_normal. Shapes: T nodes, t = 0 the least noise.
"""

from collections.abc import Callable

import torch
from diffusers.training_utils import (
    compute_density_for_timestep_sampling,
    compute_loss_weighting_for_sd3,
)
from torch import Tensor

from personalize.config.train_config import TrainConfig
from toy2d.core.schedule import Schedule

DrawTimestep = Callable[[torch.Generator], Tensor]  # -> t (1)
BY_DENSITY = ("logit_normal", "mode")
BY_WEIGHT = ("sigma_sqrt", "cosmap")


def timestep_law(config: TrainConfig, scheme: str, num_timesteps: int) -> DrawTimestep:
    """A function that draws t.

    u in [0, 1] runs from noise to picture as in diffusers' scripts, whose tables begin with pure
    noise: a positive --logit_mean means *less* noise (in the paper's own formula, more).
    """
    if scheme not in BY_DENSITY:
        return lambda rng: torch.randint(num_timesteps, (1,), generator=rng)
    shape = (config.logit_mean, config.logit_std, config.mode_scale)

    def draw(rng):
        u = compute_density_for_timestep_sampling(scheme, 1, *shape, generator=rng)
        return num_timesteps - 1 - (u * num_timesteps).long().clamp(0, num_timesteps - 1)

    return draw


def node_weights(config: TrainConfig, scheme: str, schedule: Schedule) -> Tensor | None:
    """The weight of each node's squared error (T), on the schedule's device; None: all equal.

    --precondition_outputs compares clean pictures instead of flows: x0_hat - x0 = -s (output -
    target), so the weight is s^2.
    """
    if config.snr_gamma is not None:
        return schedule.min_snr_weights(config.snr_gamma)
    if scheme not in BY_WEIGHT and not config.precondition_outputs:
        return None
    t = torch.arange(len(schedule), device=schedule.alpha_bar.device)
    s = schedule.coefficients(t, torch.ones_like(t, dtype=torch.float32))[1]
    weights = compute_loss_weighting_for_sd3(scheme, s)
    return weights * s**2 if config.precondition_outputs else weights
