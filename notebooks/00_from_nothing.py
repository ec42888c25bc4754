# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Notebook 0: a diffusion model from nothing
#
# Beside [lecture 0](../lectures/00_from_nothing.md). In about 60 lines of PyTorch: points, noise, a
# network that predicts the noise, and new points. You write the first step yourself; the package
# checks it.
#
# The table `alpha_bar` sets how much noise a step has. alpha_bar / (1 - alpha_bar) is the signal's
# share over the noise's, and its logarithm (log-SNR) falls in equal steps from 5 to -15. The
# sigmoid turns the logarithm back into alpha_bar.

# %%
import math

import torch
from torch import nn

T = 100  # steps; t = 0 has the least noise
rng = torch.Generator().manual_seed(0)
alpha_bar = torch.sigmoid(torch.linspace(5, -15, T))  # how much of the signal's square is left

# %% [markdown]
# ## Points to learn
#
# Five clouds on a circle. The model will never see this formula, only the points.


# %%
def data(n):
    angle = 2 * math.pi * torch.randint(5, (n,), generator=rng) / 5
    centre = 3 * torch.stack([angle.cos(), angle.sin()], 1)
    return centre + 0.5 * torch.randn(n, 2, generator=rng)


# %% [markdown]
# ## Task: add noise
#
# Mix each point with noise: x_t = sqrt(alpha_bar[t]) x_0 + sqrt(1 - alpha_bar[t]) eps. Every point
# has its own step t: `x0` and `eps` are (n, 2), `t` is (n,), `alpha_bar` is the table. Write it; as
# long as it returns nothing, the check prints a hint.

# %%
from toy2d.course import check


def add_noise(x0, t, eps, alpha_bar):
    return ...  # your code


check("add_noise", add_noise)


# %% tags=["hide-cell"]
# solution
def add_noise(x0, t, eps, alpha_bar):
    ab = alpha_bar[t][:, None]
    return ab.sqrt() * x0 + (1 - ab).sqrt() * eps


check("add_noise", add_noise)

# %% [markdown]
# Four noise levels: at t = 0 the clouds, at the end one cloud that says nothing about where it came
# from. Of the signal's square 0.99, 0.49, 0.016 and 0.0000003 are left.

# %%
import matplotlib.pyplot as plt

from toy2d.figures.display import show

figure, axes = plt.subplots(1, 4, figsize=(9, 2.4), sharex=True, sharey=True)
x0 = data(500)
for ax, step in zip(axes, (0, 25, 45, 99), strict=True):
    noisy = add_noise(x0, torch.full((500,), step), torch.randn(500, 2, generator=rng), alpha_bar)
    ax.scatter(*noisy.T, s=2)
    ax.set(title=f"t = {step}", xlim=(-5, 5), ylim=(-5, 5))
show(figure, "500 points at four noise levels")

# %% [markdown]
# ## A network that predicts the noise
#
# It sees the noisy point and the step, and answers with a guess of the noise. The step enters as
# eight waves, because a network learns better from waves than from one number.


# %%
class EpsNet(nn.Module):
    def __init__(self, width=64, waves=8):
        super().__init__()
        self.waves = torch.arange(waves) * math.pi / T
        layers = [nn.Linear(2 + waves, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x_t, t):
        return self.layers(torch.cat([x_t, torch.cos(t[:, None] * self.waves)], 1))


# %% [markdown]
# ## Training
#
# Draw points, steps and noise; mix; ask for the noise; take a step down the gradient. That is all
# of it. A network that always answers 0 has loss 1, the mean of eps^2.

# %%
torch.manual_seed(0)
net = EpsNet()
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
losses = []
for _ in range(3000):
    x0, t = data(256), torch.randint(T, (256,), generator=rng)
    eps = torch.randn(256, 2, generator=rng)
    loss = (net(add_noise(x0, t, eps, alpha_bar), t) - eps).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
early, late = sum(losses[:100]) / 100, sum(losses[-100:]) / 100
print(f"loss {early:.3f} in the first 100 steps, {late:.3f} in the last 100")
assert late < 0.7 * early

# %% [markdown]
# **Claim.** The loss does not go to zero, and should not: from a noisy point nobody can tell the
# noise exactly ([lecture 2](../lectures/02_diffusion.md), Proposition 2.3). Here it stays above 0.1.

# %%
assert late > 0.1

# %% [markdown]
# ## New points
#
# Begin with pure noise and walk back: at each step subtract some of the predicted noise and add a
# little fresh noise (the ancestral sampler). In the code `alpha` is the share of the signal's square
# that step t keeps of step t - 1. Why these factors: lecture 2, Proposition 2.5.


# %%
@torch.no_grad()
def step_back(x, t):
    alpha = alpha_bar[t] / alpha_bar[t - 1]
    eps = net(x, torch.full((len(x),), t))
    mean = (x - (1 - alpha) / (1 - alpha_bar[t]).sqrt() * eps) / alpha.sqrt()
    return mean + (1 - alpha).sqrt() * torch.randn(x.shape, generator=rng)


x = torch.randn(2000, 2, generator=rng)
for t in range(T - 1, 0, -1):
    x = step_back(x, t)

# %%
figure, axes = plt.subplots(1, 2, figsize=(5.4, 2.8), sharex=True, sharey=True)
for ax, points, title in zip(axes, (data(2000), x), ("data", "samples"), strict=True):
    ax.scatter(*points.T, s=2)
    ax.set(title=title, aspect="equal", xlim=(-5, 5), ylim=(-5, 5))
show(figure, "2,000 points of the data and 2,000 samples of the network")

# %% [markdown]
# **Claim.** Nine samples of ten lie within three standard deviations of a centre, and every cloud
# gets between a tenth and a third of them (a fifth would be exact).

# %%
angle = 2 * math.pi * torch.arange(5) / 5
centres = 3 * torch.stack([angle.cos(), angle.sin()], 1)
distance, nearest = torch.cdist(x, centres).min(1)
near = (distance < 3 * 0.5).float().mean()
shares = torch.bincount(nearest, minlength=5) / len(x)
print(f"near a centre: {near:.1%}; shares {[round(s, 3) for s in shares.tolist()]}")
assert near > 0.9 and shares.min() > 0.1 and shares.max() < 1 / 3

# %% [markdown]
# ## This is `toy2d`
#
# **Claim.** The package does the same: its schedule is your table, and its sampler makes the same
# points from the same noise with your network. `Schedule` holds the table, `ancestral` is your loop;
# `None` stands for the prompt, which this network does not have.

# %%
from toy2d.core.sample import ancestral
from toy2d.core.schedule import Schedule

schedule = Schedule.log_snr(T, 5.0, -15.0)
assert (schedule.alpha_bar - alpha_bar).abs().max() < 1e-6

start = torch.randn(100, 2, generator=rng)
rng = torch.Generator().manual_seed(1)
mine = start
for t in range(T - 1, 0, -1):
    mine = step_back(mine, t)
again = torch.Generator().manual_seed(1)
with torch.no_grad():
    theirs = ancestral(lambda x, t, cond: net(x, t), schedule, start, None, again)
print(f"largest difference of 100 samples: {float((mine - theirs).abs().max()):.1e}")
assert (mine - theirs).abs().max() < 1e-3

# %% [markdown]
# What the package adds: a prompt beside t, many networks trained as one stack, exact densities. What
# this course asks: what happens to the other prompts when you go on training on six points of a new
# one? That is [notebook 1](01_drift.ipynb).
#
# ## Task: another sampler
#
# DDIM takes the same network and adds no fresh noise. `ab` is alpha_bar at this step, `ab_before` at
# the step before, which has less noise. From x_t and the predicted noise eps, find x_0 and noise it
# again to the level `ab_before`, with the same eps.


# %%
def ddim_step(x_t, eps, ab, ab_before):
    return ...  # your code


check("ddim_step", ddim_step)


# %% tags=["hide-cell"]
# solution
def ddim_step(x_t, eps, ab, ab_before):
    x0 = (x_t - (1 - ab).sqrt() * eps) / ab.sqrt()
    return ab_before.sqrt() * x0 + (1 - ab_before).sqrt() * eps


check("ddim_step", ddim_step)
