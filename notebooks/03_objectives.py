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
# # Notebook 3: three objectives and two more
#
# Beside [lecture 3](../lectures/03_objectives.md). One file,
# [`toy2d/core/objectives.py`](../toy2d/core/objectives.py): four weights beside the instance loss.
#
# ![Drift, adaptation and distance of every objective over its weight](../lectures/_static/figures/weights.png)
#
# *Recorded with the course's run; the cells below compute and draw yours.*

# %%
from toy2d.core.objectives import FISHER, L2, OUTPUT, PRIOR, STANDARD

for objective in (STANDARD, PRIOR(1.0), L2(0.1), OUTPUT(1.0), FISHER(10.0), PRIOR(1.0) + L2(1e-3)):
    print(objective)

# %% [markdown]
# **Claim.** The trainer for Stable Diffusion imports this file; it has no loss of its own.

# %%
import personalize.train.loop
import toy2d.core.objectives

assert personalize.train.loop.Objective is toy2d.core.objectives.Objective
assert personalize.train.loop.L2 is toy2d.core.objectives.L2

# %% [markdown]
# ## A batch, and its terms
#
# The course's base of seed 0, six shots, one batch. Every role has its own generator.

# %%
import torch

from toy2d.config import course
from toy2d.core.rng import generator
from toy2d.data import ExamplePool, draw
from toy2d.experiment import run
from toy2d.verify.course import Course

c = Course(run(course(), out="../runs"), seeds=(0,))
star, schedule = c.base(0), c.schedule
shots = ExamplePool(c.shots(0)[None], torch.full((1, 6), c.world.new))
replayed = ExamplePool(
    c.chain(0)[0][None], c.cond[None]
)  # the base's own chains at t = 0's noise level
batch = {
    role: draw(pool, [generator(0, role)], 256, 100)
    for role, pool in (("instance", shots), ("prior", replayed), ("output", replayed))
}

# %%
predict = c.net.bind(star)
for objective in (STANDARD, PRIOR(1.0), OUTPUT(1.0)):
    terms = objective.terms(predict, schedule, batch, predict_star=predict)
    print({name: round(float(value), 4) for name, value in terms.items()})

# %% [markdown]
# **Claim.** A weight of zero is the standard objective to the bit.

# %%
zero = (PRIOR(0.0) + L2(0.0) + OUTPUT(0.0)).terms(predict, schedule, batch, predict_star=predict)
standard = STANDARD.terms(predict, schedule, batch)
assert zero.keys() == standard.keys() and torch.equal(zero["instance"], standard["instance"])

# %% [markdown]
# **Claim** (Proposition 3.2). The L2 term needs no autograd graph: its gradient, added in place,
# equals that of automatic differentiation.

# %%
from toy2d.core.objectives import Anchor

theta = {k: (p + 0.1).requires_grad_() for k, p in star.items()}
anchor = Anchor(theta, star)
wanted = torch.autograd.grad(0.3 * anchor.squared_distance(), list(theta.values()))
for p in theta.values():
    p.grad = torch.zeros_like(p)
anchor.add_gradient_(0.3)
worst = max(float((p.grad - g).abs().max()) for p, g in zip(theta.values(), wanted, strict=True))
print(f"largest difference {worst:.1e}")
assert worst < 1e-6

# %% [markdown]
# **Claim** (Proposition 3.4 d). At the base nothing has drifted, so output preservation has
# gradient zero. Prior preservation has a gradient even there, from the noise in its targets.


# %%
def gradient_norm(objective, term):
    theta = {k: p.clone().requires_grad_() for k, p in star.items()}
    loss = objective.terms(c.net.bind(theta), schedule, batch, predict_star=predict)[term]
    return float(
        sum((g**2).sum() for g in torch.autograd.grad(loss.sum(), list(theta.values()))) ** 0.5
    )


output, prior = gradient_norm(OUTPUT(1.0), "output"), gradient_norm(PRIOR(1.0), "prior")
print(f"output {output:.2g}, prior {prior:.2g}")
assert output == 0 and prior > 0.01

# %% [markdown]
# ## Which distance, for LoRA?
#
# **Claim** (Proposition 3.5). The norm of B A comes from two r x r matrices; the factors' own
# penalty is another number, and changes when the same product is split differently.

# %%
A, B = (
    torch.randn(4, 64, generator=generator(0, "A")),
    torch.randn(64, 4, generator=generator(0, "B")),
)
small = float(((B.mT @ B) * (A @ A.mT)).sum())
dense = float((B @ A).square().sum())
factors = [float((s * B).square().sum() + (A / s).square().sum()) for s in (1, 10)]
print(f"squared norm of B A: from r x r {small:.1f}, dense {dense:.1f}")
print(f"factors' penalty of one product, split two ways: {factors[0]:.0f}, {factors[1]:.0f}")
assert abs(small / dense - 1) < 1e-4 and factors[1] > 10 * factors[0]

# %% [markdown]
# ## All five, over their weights
#
# The course's run: geometric means over its seeds; bands are one standard error.

# %%
from toy2d.figures.display import show
from toy2d.figures.drift import draw_tradeoff, draw_weights

show(draw_weights(c.metrics, {"seeds": c.config.seeds}))

# %%
show(draw_tradeoff(c.metrics, {"seeds": c.config.seeds}))

# %% [markdown]
# ## Task: the L2 gradient
#
# Write the gradient of weight * ||theta - theta_star||^2 with respect to theta. The package compares it
# with the one that it adds in training.

# %%
from toy2d.course import check as check_code


def l2_gradient(theta, theta_star, weight):
    return ...  # your code


check_code("l2_gradient", l2_gradient)


# %% tags=["hide-cell"]
# solution
def l2_gradient(theta, theta_star, weight):
    return 2 * weight * (theta - theta_star)


check_code("l2_gradient", l2_gradient)

# %% [markdown]
# ## A sixth
#
# [How to add an objective](../lectures/adding_an_objective.md) does it in fourteen lines and trains
# it at both scales.
#
# ## Exercises
#
# **3.1** A weight of 10^6 entries under `tensor_mean` and lambda = 500: what lambda (sum) acts on
# it?

# %%
from exercises import check

answer = ...
check("3.1", answer)

# %% [markdown]
# **3.2** Rank 1, B'B = 2, AA' = 9, scale s = 2: what is the squared norm of the weight's change?

# %%
answer = ...
check("3.2", answer)

# %% tags=["hide-cell"]
# solutions
check("3.1", 5e-4)
check("3.2", 4 * 2 * 9)
