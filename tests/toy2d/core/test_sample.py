"""The samplers: right law, right limits, equal to diffusers' steps."""

import pytest
import torch

from toy2d.core.rng import generator
from toy2d.core.sample import ancestral, ddim, denoise
from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon


def normal(n, seed=0):
    return torch.randn(n, 2, generator=generator(seed, "sample"), dtype=torch.float64)


@pytest.mark.parametrize(
    "schedule", [Schedule.cosine(100), Schedule.log_snr(100, 5, -15), Schedule.linear(200)]
)
def test_the_chain_starts_with_unit_variance_and_ends_at_the_class(schedule):
    """The paper's toy collapses to (+-1, +-1) after its infinite first step; with betas clipped
    every x_t has the exact variance.
    """
    w = Pentagon(schedule)
    cond = torch.zeros(4000, dtype=torch.long)
    chain = ancestral(w.eps, schedule, normal(4000), cond, generator(1, "sample"), chain=True)
    a, b = schedule.coefficients(torch.arange(len(schedule)), torch.ones(len(schedule), 1).double())
    for n in (len(schedule) - 1, len(schedule) - 2, len(schedule) // 2):
        wanted = float(a[n] ** 2 * 0.25 + b[n] ** 2)
        assert float(chain[n].var(0).mean()) == pytest.approx(wanted, rel=5 / 4000**0.5)
    assert all(torch.isfinite(x).all() for x in chain)
    # final mean: 5 standard errors and the sampler's discretization
    torch.testing.assert_close(chain[0].mean(0), a[0] * w.means[0, 0], atol=0.05, rtol=0)


def test_ddim_is_diffusers_ddim():
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(
        50,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="leading",
    )
    theirs.set_timesteps(50)
    schedule = Schedule(theirs.alphas_cumprod)
    w = Pentagon(schedule)
    x = normal(20).float()
    ours = ddim(w.eps, schedule, x, torch.tensor(1))
    for t in theirs.timesteps[:-1]:
        x = theirs.step(w.eps(x, int(t), 1), t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("variance", "name"), [("beta", "fixed_large"), ("posterior", "fixed_small")]
)
def test_an_ancestral_step_is_diffusers_ddpm_step(variance, name):
    """One reverse step from the same noise; theirs computes the mean through x0, so equality is to
    rounding.
    """
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(
        50,
        beta_schedule="linear",
        beta_start=0.002,
        beta_end=0.4,
        clip_sample=False,
        variance_type=name,
    )
    schedule = Schedule(theirs.alphas_cumprod)
    t, x = 30, normal(20).float()
    eps = torch.randn(20, 2, generator=generator(3, "sample"))
    beta, alpha, s2 = schedule.reverse_chain(variance)
    z = torch.randn(20, 2, generator=generator(4, "sample"))
    ours = (x - float(beta[t] / (1 - schedule.alpha_bar[t]).sqrt()) * eps) / float(alpha[t]) ** 0.5
    ours = ours + float(s2[t]) ** 0.5 * z
    step = theirs.step(eps, t, x, generator=generator(4, "sample")).prev_sample
    torch.testing.assert_close(ours, step, rtol=1e-4, atol=1e-4)


def test_samplers_work_on_latents_and_on_stacks():
    schedule = Schedule.linear(100).strided(4)
    latents = torch.randn(3, 4, 8, 8)
    seen = []

    def predict(x, t, cond):
        seen.append(t.tolist())
        return 0.1 * x

    assert ancestral(predict, schedule, latents, None, torch.Generator()).shape == latents.shape
    assert ddim(predict, schedule, latents, None).shape == latents.shape
    assert seen[0] == [99, 99, 99]  # the network's own step numbers
    stack = torch.randn(2, 5, 2)
    assert ddim(lambda x, t, c: x * t.shape[1], schedule, stack, None, runs=1).shape == stack.shape


def test_denoise_is_the_posterior_mean():
    w = Pentagon()
    x = w.sample(2, 100, generator(0, "data"), t=0).double()
    ab = w.schedule.alpha_bar[0]
    gain = ab.sqrt() * 0.25 / (ab * 0.25 + 1 - ab)
    wanted = w.means[2, 0] + gain * (x - ab.sqrt() * w.means[2, 0])
    torch.testing.assert_close(denoise(w.eps, w.schedule, x, torch.tensor(2)), wanted)
