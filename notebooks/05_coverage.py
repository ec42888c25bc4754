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
# # Notebook 5: prior preservation and coverage
#
# Beside [lecture 5](../lectures/05_coverage.md). What is replayed is kept; what is not replayed is
# not protected; the number of pictures is not the cause.
#
# ![KL of each old class: prior keeps class 0, replay of all keeps every class](../lectures/_static/figures/kl_per_class.png)
#
# *Recorded with the course's run; the cells below compute and draw yours.*

# %%
from toy2d.verify.lab import open_lab

c = open_lab(seeds=(0, 1, 2))
records = c.metrics["runs"]

# %% [markdown]
# **Claim.** The same 200 samples: all of class 0 (`prior:10`), or spread over all five classes
# (`replay_all:1`). In every seed the worst class is kept better when they are spread.

# %%
kls = {
    (r["run"], r["seed"]): [r["kl_base"][c.world.names[p]] for p in c.world.old] for r in records
}
kept = {key: [kl for kl, *_ in of_classes] for key, of_classes in kls.items()}
for seed in c.seeds:
    one, all_five = kept["prior:10", seed], kept["replay_all:1", seed]
    print(f"seed {seed}, worst class: {max(one):.3g} nats with prior, {max(all_five):.3g} with all")
    assert max(all_five) < max(one)

# %% [markdown]
# **Claim.** Covering more classes has a price: class 0 itself is kept better when all samples are
# its own.

# %%
for seed in c.seeds:
    own, shared = kept["prior:10", seed][0], kept["replay_all:1", seed][0]
    print(f"seed {seed}: class 0 {own:.3f} nats with all samples its own, {shared:.3f} with 40")
    assert own < shared

# %%
from toy2d.figures.display import show
from toy2d.figures.style import plt, style

figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True)
for ax, seed in zip(axes, c.seeds, strict=True):
    for name in ("standard", "prior:10", "replay_all:1"):
        ax.plot(
            c.world.old,
            kept[name, seed],
            label=name,
            **style(name.split(":")[0]) | {"linestyle": "none"},
        )
    ax.set(yscale="log", title=f"seed {seed}", xlabel="old class")
axes[0].set_ylabel("KL(base || tuned) (nats)")
axes[2].legend(fontsize=7)
drawn = [kls[name, s] for name in ("standard", "prior:10", "replay_all:1") for s in c.seeds]
error = max(error / kl for of_classes in drawn for kl, error, _ in of_classes)
show(figure, f"Class by class: prior replays class 0 only; quadrature errors are below {error:.1%}")

# %% [markdown]
# ## The lower bound for what is not covered
#
# **Claim** (Corollary 5.1). With E the region that neither subject nor replay covers, KL >=
# kl(p*(E) ‖ q(E)). It holds in every row, and it is nearly empty where everything is replayed. The
# cell prints the law of the target prompt against the mixture of all old prompts.

# %%
models = c.models("standard", "prior:10", "replay_all:1")
rows = models.coverage()
assert all(row.holds for row in rows)
for row in rows:
    if "target prompt" in row.statement:
        print(
            f"{row.condition}, seed {row.seed}: KL {row.lhs:.3g} >= {row.rhs:.3g} nats ({row.note})"
        )

# %%
silent = [row.rhs for row in rows if row.curve["run"] == "replay_all:1"]
assert max(silent) < 0.2  # with everything replayed the bound has next to nothing to say

# %% [markdown]
# The bound beside the KL that it bounds, target prompt: it shrinks with what is replayed.

# %%
figure, ax = plt.subplots(figsize=(5.2, 2.6))
target = [row for row in rows if "target prompt" in row.statement]
labels = [f"{row.curve['run']}, seed {row.seed}" for row in target]
ax.barh(labels, [row.lhs for row in target], color="#BBBBBB", label="KL")
ax.barh(labels, [row.rhs for row in target], height=0.4, label="counted bound")
ax.set(xlabel="nats", xscale="symlog")
ax.legend(fontsize=7, loc="center right")
show(
    figure, "Corollary 5.1: what is not covered gives a bound; with all replayed it is nearly empty"
)

# %% [markdown]
# ## The upper bound for what is covered
#
# **Claim** (Proposition 5.2). Mixing the subject into the base's own law costs at most ln 1/(1 -
# w), whatever the subject is: five pictures among 205 cost at most 0.025 nats. The cell computes
# both sides for the exact Pentagon: the base has the five classes, the subject is the new class.

# %%
import math

import torch

w = 5 / 205
old = c.world.old
x = torch.cat([c.world.sample(i, 4000, torch.Generator().manual_seed(i), t=0) for i in old])
log_base = torch.stack([c.world.log_prob(x, i, 0) for i in old]).logsumexp(0) - math.log(len(old))
log_mixed = torch.logaddexp(
    math.log(w) + c.world.log_prob(x, c.world.new, 0), math.log(1 - w) + log_base
)
ratio = log_base - log_mixed
kl, error = float(ratio.mean()), float(ratio.std() / len(ratio) ** 0.5)
print(f"KL(base || mixture) = {kl:.4f} +- {error:.4f} nats; bound {math.log(1 / (1 - w)):.4f}")
assert kl <= math.log(1 / (1 - w)) + 4 * error

# %% [markdown]
# ## Task: the pairing of the prior term
#
# Each role has its own predictions and its own noise, and their numbers of examples differ. Write
# DreamBooth's loss: the mean squared error on the new examples plus `weight` times that on the
# replayed ones.

# %%
from toy2d.course import check as check_code


def prior_loss(new_hat, new_eps, old_hat, old_eps, weight):
    return ...  # your code


check_code("prior_loss", prior_loss)


# %% tags=["hide-cell"]
# solution
def prior_loss(new_hat, new_eps, old_hat, old_eps, weight):
    new = ((new_hat - new_eps) ** 2).mean()
    return new + weight * ((old_hat - old_eps) ** 2).mean()


check_code("prior_loss", prior_loss)

# %% [markdown]
# ## Exercises
#
# **5.1** M = 5 subject pictures, N = 200 replayed ones: what does Proposition 5.2 promise, in nats?

# %%
from exercises import check

answer = ...
check("5.1", answer)

# %% tags=["hide-cell"]
# solutions
check("5.1", 0.0247)
