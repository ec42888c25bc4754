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
# # Notebook 2: diffusion in one page
#
# Beside [lecture 2](../lectures/02_diffusion.md): noise, score, samplers, and an exact likelihood,
# each checked against a closed form.
#
# ![Points of five classes at four noise levels](../lectures/_static/figures/noising.png)
#
# *Recorded with the course's run; the cells below compute and draw yours.*

# %%
import torch

from toy2d.core.likelihood import flow_sample, log_prob
from toy2d.core.rng import generator
from toy2d.core.sample import ancestral, ddim
from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon
from toy2d.figures.display import show
from toy2d.figures.samples import draw_noising

world = Pentagon(Schedule.log_snr(100, 5.0, -15.0))
schedule = world.schedule
rng = generator(0, "notebook 02")

# %% [markdown]
# ## Noise
#
# A schedule is one table. A table with which a sampler would divide by zero is refused, and the
# message says where.

# %%
try:
    Schedule.from_betas([0.1, 0.5, 1.0])
except ValueError as refused:
    print(refused)

# %% [markdown]
# Five classes at four noise levels: at t = 0 the world, at the end a standard normal.

# %%
show(draw_noising(world, (0, 25, 45, 99), rng), "300 points a class at four steps of the schedule")

# %% [markdown]
# **Claim** (Proposition 2.4). The exact noise prediction is minus the score times b: eps* = -b grad
# log p. The cell computes the right side by automatic differentiation of the density.

# %%
x = (3 * torch.randn(500, 2, generator=rng, dtype=torch.float64)).requires_grad_()
t = torch.full((500,), 30)
(score,) = torch.autograd.grad(world.log_prob(x, 2, t).sum(), x)
gap = (world.eps(x, t, 2) + (1 - schedule.alpha_bar[30]).sqrt() * score).abs().max()
print(f"largest difference {float(gap.detach()):.1e}")
assert gap < 1e-10

# %% [markdown]
# **Claim** (Proposition 2.3). The least denoising loss is not zero: even the exact predictor leaves
# the variance of the noise given x_t.

# %%
from toy2d.core.objectives import Example, denoising_loss

x0 = world.sample(0, 20_000, rng)
t = torch.randint(100, (20_000,), generator=rng)
example = Example(x0, t, torch.randn(x0.shape, generator=rng), torch.zeros_like(t))
least = denoising_loss(world.eps, schedule, example)
shifted = denoising_loss(lambda x, t, c: world.eps(x, t, c) + 0.1, schedule, example)
more = float(shifted - least)
print(f"exact predictor {float(least):.4f}; shifted by 0.1 {float(shifted):.4f}: {more:.4f} more")
assert least > 0.1
assert abs(more - 0.1**2) < 2e-3  # by the proposition's Pythagoras

# %% [markdown]
# ## Likelihood
#
# **Claim** (Theorem 2.7). The probability-flow ODE gives the log density of the exact predictor's
# law: off by less than 0.01 nats at each of 2,000 points, by about 0.001 on average (100 nodes;
# more nodes, less error).

# %%
x = world.sample(1, 2000, rng, t=0).double()
ode = log_prob(world.eps, schedule, x, torch.tensor(1))
off = (ode - world.log_prob(x, 1, 0)).abs()
gap = off.max()
print(f"largest error {float(gap):.1e} nats over 2,000 points, mean {float(off.mean()):.1e}")
assert gap < 1e-2

# %% [markdown]
# ## Samplers
#
# **Claim.** With the exact predictor, three samplers draw from nearly one law: their means agree
# with the world's within Monte Carlo error, their standard deviations within a tenth, because a
# hundred steps are not infinitely many. They agree with each other only because the predictor is
# exact.

# %%
n, c = 4000, torch.tensor(1)
x_T = torch.randn(n, 2, generator=rng)
draws = {
    "ancestral": ancestral(world.eps, schedule, x_T, c, rng),
    "ddim": ddim(world.eps, schedule, x_T, c),
    "flow (Heun)": flow_sample(world.eps, schedule, x_T, c),
}
truth = world.sample(1, n, rng, t=0)
for name, x in draws.items():
    off = ((x.mean(0) - truth.mean(0)) / (truth.std(0) * (2 / n) ** 0.5)).abs().max()
    print(f"{name:12s} mean {x.mean(0).numpy().round(3)}, std {x.std(0).numpy().round(3)}")
    assert off < 4  # standard errors
    assert (x.std(0) / truth.std(0) - 1).abs().max() < 0.1

# %% [markdown]
# **Claim. Two samplers of one network have two laws.** A trained network is not an exact predictor,
# so its ancestral samples and its ODE samples follow different laws. The cell draws class 4 with
# both samplers after standard fine-tuning (seed 1):

# %%
from toy2d.verify.lab import open_lab

lab = open_lab(seeds=(1,))
predict = lab.model("standard", seed=1).predict
x_T = torch.randn(1, 4000, 2, generator=rng)
flow = flow_sample(predict, lab.probe.ode, x_T, torch.tensor(4), runs=1)
chain = ancestral(predict, lab.schedule, x_T, torch.tensor(4), rng, runs=1)
for name, x in (("ODE", flow), ("ancestral", chain)):
    print(f"{name:9s} mean of the points {x[0].mean(0).numpy().round(3)}")
gap = float((flow.mean(1) - chain.mean(1)).norm())
error = float((flow.var(1).sum() / 4000 + chain.var(1).sum() / 4000) ** 0.5)
print(f"distance {gap:.3f}, standard error {error:.3f}")
assert gap > 4 * error

# %% [markdown]
# Both samplers on their way, from the same noise to class 1 of the world with its exact prediction:
# the ODE glides, the ancestral sampler staggers.

# %%
from toy2d.figures.samples import draw_paths

show(draw_paths(world, 1, 5, generator(0, "paths")), "Left the ODE, right the ancestral sampler")

# %% [markdown]
# ## Task: a density that you can write down
#
# A Gaussian stays Gaussian when it is noised, so every class of the world has a density at every noise
# level. Write the log density at points x (n, 2) of N(mean, std^2 I) noised to the level ab.

# %%
from toy2d.course import check as check_code


def noised_log_density(x, mean, std, ab):
    return ...  # your code


check_code("noised_log_density", noised_log_density)


# %% tags=["hide-cell"]
# solution
def noised_log_density(x, mean, std, ab):
    v = ab * std**2 + 1 - ab
    return -((x - ab.sqrt() * mean) ** 2).sum(-1) / (2 * v) - torch.log(2 * torch.pi * v)


check_code("noised_log_density", noised_log_density)

# %% [markdown]
# ## Exercises
#
# **2.1** At log-SNR 0, what is b^2?

# %%
from exercises import check

answer = ...
check("2.1", answer)

# %% [markdown]
# **2.2** For x0 ~ N(m, 1), what is eps* at noise ratio r = 2, one unit right of m (z - m = 1)?

# %%
answer = ...
check("2.2", answer)

# %% tags=["hide-cell"]
# solutions
check("2.1", 0.5)
check("2.2", 2 / 5)
