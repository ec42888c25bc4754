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
def test_the_chain_is_diffusers_ddpm(variance, name):
    """From the same noise; theirs computes each mean through x0, so equality is to rounding."""
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
    w, x, rng = Pentagon(schedule), normal(20).float(), generator(4, "sample")
    cond = torch.tensor(1)
    ours = ancestral(w.eps, schedule, x, cond, generator(4, "sample"), variance, chain=True)
    torch.testing.assert_close(ours[-1], x)
    for t in range(49, 0, -1):
        x = theirs.step(w.eps(x, t, cond), t, x, generator=rng).prev_sample
        torch.testing.assert_close(ours[t - 1], x, rtol=1e-3, atol=1e-3)


def test_flow_samplers_are_those_of_the_twin_in_eps():
    """DDIM: Euler steps of dx/ds = network. Ancestral: the chain of the twin, divided by k."""
    eps_s, flow = (Schedule.log_snr(30, prediction=p) for p in ("eps", "flow"))
    w, k, cond = Pentagon(eps_s), flow.vp_scale, torch.tensor(1)
    s = (1 - flow.alpha_bar).sqrt() / k

    def velocity(x, t, cond):
        n = int(t.flatten()[0])
        eps = w.eps(k[n] * x, t, cond)
        return (eps - x) / (1 - s[n])

    x = normal(20)
    ours = ddim(velocity, flow, x, cond)
    for n in range(29, 0, -1):
        x = x + (s[n - 1] - s[n]) * velocity(x, torch.tensor(n), cond)
    torch.testing.assert_close(ours, x)
    x = normal(20)
    ours = ancestral(velocity, flow, x / k[-1], cond, generator(1, "sample"))
    twin = ancestral(w.eps, eps_s, x, cond, generator(1, "sample"))
    torch.testing.assert_close(ours, twin / k[0])


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
    asked = []

    def of_a_stack(x, t, cond):
        asked.append(tuple(t.shape))
        return x

    for sampler in (ddim, denoise):
        assert sampler(of_a_stack, schedule, stack, None, runs=1).shape == stack.shape
    rng = torch.Generator()
    assert ancestral(of_a_stack, schedule, stack, None, rng, runs=1).shape == stack.shape
    assert set(asked) == {(2, 5)}


def test_denoise_is_the_posterior_mean():
    w = Pentagon()
    x = w.sample(2, 100, generator(0, "data"), t=0).double()
    ab = w.schedule.alpha_bar[0]
    gain = ab.sqrt() * 0.25 / (ab * 0.25 + 1 - ab)
    wanted = w.means[2, 0] + gain * (x - ab.sqrt() * w.means[2, 0])
    torch.testing.assert_close(denoise(w.eps, w.schedule, x, torch.tensor(2)), wanted)
