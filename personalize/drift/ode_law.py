"""KL(base || tuned) of the two ODEs' laws at full scale, by likelihoods: how tight is path KL?

Path KL bounds the law of the *ancestral* sampler. The deterministic sampler has a law of its own,
with a density (toy2d/core/trace.py): dear, because each node costs a backward pass a probe, but no
bound. Points are the base's own, the same points and the same probes serve both models.
"""

import torch

from personalize.drift.chains import ChainSampling, in_chunks
from toy2d.core.drift import Predict
from toy2d.core.likelihood import flow_sample, ode_schedule
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.core.trace import KL, ode_kl, rademacher


def ode_kl_of_groups(
    predict: Predict,
    predict_star: Predict,
    schedule: Schedule,
    sampling: ChainSampling,
    probes: int = 2,
) -> dict[str, KL]:
    """Nats for each group of prompts, at t = 0's noise level.

    `sampling.chains` points for each prompt, on `sampling.nodes` nodes of the schedule.
    """
    nodes, found = ode_schedule(schedule, sampling.nodes), {}
    for name in sampling.groups:
        prompts = sampling.prompts(name)
        rng = generator(sampling.seed, f"ode/{name}")
        x_T = torch.randn(len(prompts), *sampling.shape, generator=rng)
        x_T = x_T.to(schedule.alpha_bar.device)
        x0 = flow_sample(in_chunks(predict_star, sampling.batch_size), nodes, x_T, prompts)
        signs = rademacher(probes, x0, rng)
        asked = predict, predict_star, nodes, x0, prompts, signs
        found[name] = ode_kl(*asked, chunk=sampling.batch_size)
    return found
