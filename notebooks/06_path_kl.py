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
# # Notebook 6: path KL
#
# Beside [lecture 6](../lectures/06_path_kl.md). An upper bound on drift, with its constant, that
# needs no density: the number that the course computes at both scales.
#
# ![Left: the counted lower bound; right: path KL above the KL of the ancestral law](../lectures/_static/figures/bounds.png)
#
# *Recorded with the course's run; the cells below compute and draw yours.*

# %%
from toy2d.core.schedule import Schedule

for name, schedule in (
    ("linear, T = 1000", Schedule.linear(1000)),
    ("log-SNR, T = 100", Schedule.log_snr(100, 5, -15)),
    ("cosine, T = 100, clipped", Schedule.cosine(100)),
):
    w = schedule.path_weights()[1:]
    print(f"{name:26s} largest weight {float(w.max()):8.3f} at t = {1 + int(w.argmax())}")

# %% [markdown]
# **Claim** (the trap). The clipped last step of the cosine schedule weighs 499.5, a thousand times
# what the linear schedule's heaviest step weighs.

# %%
heavy = float(Schedule.cosine(100).path_weights().max())
linear = float(Schedule.linear(1000).path_weights()[1:].max())
print(f"{heavy:.1f} against {linear:.3f}: {heavy / linear:.0f} times")
assert abs(heavy - 499.5) < 0.1 and heavy > 1000 * linear

# %% [markdown]
# ## A pair with a closed form
#
# **Claim** (Proposition 6.6). Two Gaussians, std 0.5, means 3 apart: path KL lies above the
# sampler's own KL, and tends to 18 with the number of steps (`==` is up to the extrapolation's
# error, which the row states).

# %%
from toy2d.theorems.path_bound import gaussian_pair

rows = gaussian_pair()
for row in rows:
    print(f"{row.condition}: {row.lhs:.4f} {row.relation} {row.rhs:.4f}")
assert all(row.holds for row in rows)

# %% [markdown]
# ## Trained models: the bound, and what it is about
#
# The bases' own ancestral chains were sampled once. The cell prints path KL of standard and L2 for
# each seed, beside the KL of the *ODE's* law.

# %%
from toy2d.runs.statistics import old_kl
from toy2d.verify.lab import open_lab

c = open_lab(seeds=(0, 1, 2))
for name in ("standard", "l2:0.1"):
    for seed, ode in c.drift(name).items():
        mean, error = c.model(name, seed).path_kl
        path = f"path KL {mean:.3f} +- {error:.3f}"
        print(f"{name}, seed {seed}: {path}; KL of the ODE's law {ode:.3f}")

# %% [markdown]
# **Claim.** Path KL does not bound the KL of the ODE's law: in most seeds of standard
# fine-tuning the ODE's KL is larger.

# %%
above = [
    r["seed"]
    for r in c.metrics["runs"]
    if r["run"] == "standard" and old_kl(r, "kl_base") > r["path_kl"][0]
]
print("seeds in which the ODE's KL is above path KL:", above)
assert len(above) > len(c.metrics["base"]) / 2

# %% [markdown]
# **Claim** (Theorem 6.2). For the ancestral law, which the theorem is about, the bound holds. In the
# plane that law's density can be followed step by step on a grid, so both sides are computed to a
# few 1e-3 nats. Most of the bound is used: the whole chain forgets some of the difference, the last
# 12 steps from a point a few percent. The cell checks one run and two classes;
# `toy2d verify --only path_bound` checks more.

# %%
from toy2d.theorems import path_bound

pair = c.pair(c.model("standard", seed=1).place)
rows = [path_bound.path_bound(pair, path_bound.base_law(pair, cond)) for cond in (0, 2)]
rows += path_bound.from_a_point(pair, c.chain(pair.seed)[:, 0], int(c.cond[0]))[:1]
for row in rows:
    used = f"{row.lhs / row.rhs:.3f} of the bound"
    print(f"{row.condition}: {row.lhs:.4f} <= {row.rhs:.4f} nats, {used}")
assert all(row.holds for row in rows)
assert all(row.lhs > 0.5 * row.rhs for row in rows) and rows[-1].lhs > 0.9 * rows[-1].rhs

# %% [markdown]
# Where along the chain does path KL arise? The cell draws the terms of the sum, node by node, for
# standard and for `output:1`, seed 1.

# %%
from toy2d.figures.display import show
from toy2d.figures.style import plt, style

figure, ax = plt.subplots(figsize=(5.2, 2.8))
for name in ("standard", "output:1"):
    terms = c.path_kl_terms(c.model(name, seed=1).theta, seed=1)
    ax.plot(
        range(1, len(terms)),
        terms[1:],
        label=f"{name}: {float(terms.sum()):.3g} nats",
        **style(name.split(":")[0]) | {"marker": ""},
    )
ax.set(yscale="log", xlabel="node t (0: least noise)", ylabel="w_t E |eps_star - eps|^2 (nats)")
ax.legend(fontsize=7)
show(figure, "The terms of path KL along the base's chains")

# %% [markdown]
# ## Task: the sum of path KL
#
# `eps` and `eps_star` hold two predictors' answers along the base's chains, with shape (T, N, D), and
# `weights` the T weights w_t. Write path KL: a mean over the N chains.

# %%
from toy2d.course import check as check_code


def path_kl_sum(eps, eps_star, weights):
    return ...  # your code


check_code("path_kl", path_kl_sum)


# %% tags=["hide-cell"]
# solution
def path_kl_sum(eps, eps_star, weights):
    squares = ((eps - eps_star) ** 2).sum(-1)
    return (weights[:, None] * squares).sum(0).mean()


check_code("path_kl", path_kl_sum)

# %% [markdown]
# ## Exercises
#
# **6.1** The largest path weight of DDPM's linear schedule with T = 1000 (t >= 1).

# %%
from exercises import check

answer = ...
check("6.1", answer)

# %% tags=["hide-cell"]
# solutions
check("6.1", 0.273)
