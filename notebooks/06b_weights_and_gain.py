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
# # Notebook 6b: from path KL to weights, and to learning
#
# Beside [lecture 6b](../lectures/06b_weights_and_gain.md). How far the weights went, how far the
# answers went, path KL, KL: which implies which, and what has been learnt in the same unit.
#
# ![Distance, output change, path KL and KL of every run](../lectures/_static/figures/chain.png)
#
# *Recorded with the course's run; the cells below compute and draw yours.*

# %%
from toy2d.core.drift import path_kl
from toy2d.verify.lab import open_lab

c = open_lab(seeds=(0, 1, 2))

# %% [markdown]
# ## The chain of quantities
#
# Distance, output change, path KL and KL of every run of the course, on logarithmic axes. The first
# pair has slope 1 and the second slope 2; the line in the last panel bounds another sampler's KL.

# %%
from toy2d.figures.display import show
from toy2d.figures.drift import draw_chain

show(draw_chain(c.metrics, {"seeds": c.config.seeds}))

# %% [markdown]
# ## Near the base
#
# **Claim** (Theorem 6.8). Path KL is quadratic from the start: halving the distance quarters it.
# Along the direction of the standard run, seed 0:

# %%
star, i = c.base(0), c.which("standard")[0][0]
towards = {k: p - star[k] for k, p in c.run(i).items()}
found = []
for scale in (0.02, 0.01, 0.005):
    theta = {k: p + scale * towards[k] for k, p in star.items()}
    found.append(
        float(
            path_kl(
                c.net.bind(theta), c.net.bind(star), c.schedule, c.chain(0)[:, None], c.cond, runs=1
            )[0]
        )
    )
ratios = [found[0] / found[1], found[1] / found[2]]
print(
    f"path KL {', '.join(f'{v:.3g}' for v in found)} nats; ratios {ratios[0]:.3f}, {ratios[1]:.3f}"
)
assert all(abs(r - 4) < 0.1 for r in ratios)

# %% [markdown]
# ## What lambda guarantees
#
# **Claim** (Theorem 6.9). The certificate C loss(theta*) / lambda is true and far too large: at
# lambda = 1 it promises more than ten nats where less than a tenth was measured.

# %%
from toy2d.core.rng import generator
from toy2d.theorems.certificate import instance_losses
from toy2d.theorems.lipschitz import lipschitz_constant

i, name, seed = c.which("l2:1")[0]
theta = c.run(i)
few = [j for p in c.world.old for j in (c.cond == p).nonzero().flatten()[:12].tolist()]
constant, _ = lipschitz_constant(c.net, star, theta, c.schedule, c.chain(0)[:, few], c.cond[few])
start, now = (
    instance_losses(c.net, p, c.schedule, c.shots(0), c.world.new, generator(0, "loss")).mean()
    for p in (star, theta)
)
square = sum(float(((p - star[k]) ** 2).sum()) for k, p in theta.items())
assert float(now) + 1.0 * square <= float(start)  # the condition: the total loss has not risen
promised, measured = constant * float(start), c.metrics["runs"][i]["path_kl"][0]
print(f"constant {constant:.0f} nats per squared distance")
print(f"promised {promised:.1f} nats, measured {measured:.3f}")
assert promised > 10 > 0.1 > measured

# %% [markdown]
# ## Exercises
#
# **6.2** The distance halves, the constant stays. The bound becomes what fraction of itself?

# %%
from exercises import check

answer = ...
check("6.2", answer)

# %% tags=["hide-cell"]
# solutions
check("6.2", 1 / 4)
