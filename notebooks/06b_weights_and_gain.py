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
standard = c.model("standard", seed=0)
scales = (0.02, 0.01, 0.005)
found = [c.path_kl_of(standard.towards(scale), seed=0)[0] for scale in scales]
ratios = [found[0] / found[1], found[1] / found[2]]
print(
    f"path KL {', '.join(f'{v:.3g}' for v in found)} nats; ratios {ratios[0]:.3f}, {ratios[1]:.3f}"
)
assert all(abs(r - 4) < 0.1 for r in ratios)

# %% [markdown]
# The same as a picture: on logarithmic axes the points lie on a line of slope 2. Here they do so
# nearly all the way to the trained model; the theorem promises it near the base only.

# %%
from toy2d.figures.style import plt, style

shares = [0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0]
along = [c.path_kl_of(standard.towards(share), seed=0)[0] for share in shares]
figure, ax = plt.subplots(figsize=(4.4, 3))
ax.plot(shares, along, "o", label="path KL")
ax.plot(shares, [along[0] * (s / shares[0]) ** 2 for s in shares], color="#999999", label="slope 2")
ax.set(xscale="log", yscale="log", xlabel="share of the way to the standard run", ylabel="nats")
ax.legend(fontsize=7)
show(figure, "Path KL from the base towards the standard run, seed 0")

# %% [markdown]
# ## What lambda guarantees
#
# **Claim** (Theorem 6.9). The certificate C loss(theta*) / lambda is true and far too large: at
# lambda = 1 it promises more than ten nats where less than a tenth was measured.

# %%
from toy2d.core.drift import squared_distance
from toy2d.core.rng import generator
from toy2d.theorems.certificate import instance_losses
from toy2d.theorems.lipschitz import lipschitz_constant

model = c.model("l2:1", seed=0)
star, theta = model.theta_star, model.theta
few = (
    c.cond.argsort(stable=True).reshape(len(c.world.old), -1)[:, :12].flatten()
)  # 12 chains a prompt
constant, _ = lipschitz_constant(c.net, star, theta, c.schedule, c.chain(0)[:, few], c.cond[few])
start, now = (
    float(
        instance_losses(c.net, p, c.schedule, c.shots(0), c.world.new, generator(0, "loss")).mean()
    )
    for p in (star, theta)
)
assert (
    now + 1.0 * squared_distance(theta, star) <= start
)  # the condition: the total loss has not risen
promised, measured = constant * start, model.record["path_kl"][0]
print(f"constant {constant:.0f} nats per squared distance")
print(f"promised {promised:.1f} nats, measured {measured:.3f}")
assert promised > 10 > 0.1 > measured

# %% [markdown]
# ## Gain: what has been learnt
#
# **Claim** (Proposition 6.11). On 200 new points of the new class, which no run has seen, every run
# has learnt: the gain is positive, in the unit in which drift is measured.

# %%
points = c.world.sample(c.world.new, 200, generator(0, "held out"))
learnt = {}
for name in ("standard", "l2:1", "l2:0.1", "output:10", "fisher:100"):
    learnt[name] = [c.gain_of(c.model(name, seed).theta, seed, points) for seed in c.seeds]
    print(
        f"{name:10s}",
        ", ".join(f"{mean:.2f} +- {error:.2f}" for mean, error in learnt[name]),
        "nats",
    )
assert all(mean > 4 * error for values in learnt.values() for mean, error in values)

# %%
figure, ax = plt.subplots(figsize=(4.8, 3.2))
for name, values in learnt.items():
    drifts = [c.model(name, seed).record["path_kl"][0] for seed in c.seeds]
    ax.plot(
        [mean for mean, _ in values],
        drifts,
        label=name,
        **style(name.split(":")[0]) | {"linestyle": "none"},
    )
ax.set(
    yscale="log", xlabel="gain on held-out points (nats)", ylabel="path KL of old classes (nats)"
)
ax.legend(fontsize=7)
show(figure, "Learning to the right, forgetting upwards, in one unit; a marker a seed")

# %% [markdown]
# ## Task: gain
#
# `eps` is the noise that was really mixed in; `eps_star` and `eps_tuned` are the two models' answers,
# all (T, N, D); `weights` are the T weights w_t. Write the gain: a mean over the N examples.

# %%
from toy2d.course import check as check_code


def gain(eps, eps_star, eps_tuned, weights):
    return ...  # your code


check_code("gain", gain)


# %% tags=["hide-cell"]
# solution
def gain(eps, eps_star, eps_tuned, weights):
    less = ((eps - eps_star) ** 2 - (eps - eps_tuned) ** 2).sum(-1)
    return (weights[:, None] * less).sum(0).mean()


check_code("gain", gain)

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
