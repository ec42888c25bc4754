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
# # Notebook 7: what the bounds do not say
#
# Beside [lecture 7](../lectures/07_what_bounds_do_not_say.md). Every counter-example runs in a
# cell.
#
# ![KL against distance of all trained models](../lectures/_static/figures/paper_theorem_2.png)
#
# *Recorded with the course's run; the cells below compute and draw yours.*

# %%
import torch

from toy2d.figures.display import show
from toy2d.figures.style import plt, style
from toy2d.theorems import counterexamples
from toy2d.verify.lab import open_lab

c = open_lab(seeds=(0, 1, 2))

# %% [markdown]
# ## Far away without drift
#
# **Claim** (Proposition 7.1). Train only the new word's row: the old prompts do not drift at all,
# whatever the distance.

# %%
new_row = {seed: c.train_new_row(seed) for seed in c.seeds}
for seed, theta in new_row.items():
    path, _ = c.path_kl_of(theta, seed)
    print(f"seed {seed}: distance {c.distance(theta, seed):.3g}, path KL {path:g} nats")
    assert path == 0.0

# %%
from toy2d.figures.density import draw_densities

before = c.density(c.base(1))[0]
now = c.density(new_row[1])[0]
show(
    draw_densities(now, "only the new word's row, seed 1", c.shots(1), before),
    "Every old class covers its grey contour exactly; the new class (pink) sits on the six points",
)

# %% [markdown]
# **Claim.** And it learns the new class, here better than standard fine-tuning of everything, in
# every seed.

# %%
row_only = {seed: c.new_class_kl(theta) for seed, theta in new_row.items()}
standard = {seed: c.model("standard", seed).record["kl_new"][0] for seed in c.seeds}
for seed in c.seeds:
    print(f"seed {seed}: new class {row_only[seed]:.3f} nats; standard {standard[seed]:.3f}")
    assert row_only[seed] < standard[seed]

# %%
figure, ax = plt.subplots(figsize=(4.6, 2.6))
for name, values, place in (("standard", standard, -0.2), ("new row only", row_only, 0.2)):
    ax.bar([s + place for s in values], values.values(), width=0.4, label=name)
ax.set(xticks=c.seeds, xlabel="seed", ylabel="KL(world || model), new class (nats)")
ax.legend(fontsize=7)
show(figure, "The new class is learnt better by its own row alone; drift of that row: exactly zero")

# %% [markdown]
# **Claim** (Proposition 7.2). Symmetries move the parameters far and the function not at all.

# %%
rows = counterexamples.same_function(c.world, c.net, c.base(0), c.chain(0), c.cond, 0)
for row in rows:
    print(f"{row.condition}: path KL {row.lhs:.1e} nats")
assert all(row.holds for row in rows)

# %% [markdown]
# **Claim.** Distance does not rank: `output:0.1` moved further than standard in seeds 0 and 1 and
# drifted at least ten times less in all three.

# %%
for seed in c.seeds:
    standard, output = (c.model(name, seed).record for name in ("standard", "output:0.1"))
    ratio = c.drift("standard")[seed] / c.drift("output:0.1")[seed]
    moved, before = output["delta_theta"], standard["delta_theta"]
    print(f"seed {seed}: distance {moved:.2f} against {before:.2f}, drift {ratio:.0f} times less")
    assert ratio > 10 and (moved > before or seed == 2)

# %%
figure, ax = plt.subplots(figsize=(4.8, 3.2))
for name in ("standard", "output:0.1", "output:1", "fisher:10", "l2:0.1"):
    distances = [c.model(name, seed).record["delta_theta"] for seed in c.seeds]
    drifts = [c.drift(name)[seed] for seed in c.seeds]
    ax.plot(distances, drifts, label=name, **style(name.split(":")[0]) | {"linestyle": "none"})
ax.set(yscale="log", xlabel="distance from the base", ylabel="KL(base || tuned) (nats)")
ax.legend(fontsize=7)
show(figure, "One distance, drifts decades apart; a marker a seed")

# %% [markdown]
# ## LoRA's factors
#
# **Claim.** Penalizing the factors is not penalizing the change: the penalty bounds the change from
# above (the first two rows, the second with equality), but one change that is split in two ways has
# two penalties, and at the start of training the change is zero while the penalty is not (the rows
# that fail).

# %%
rows = counterexamples.lora_factors()
for row in rows:
    verdict = "holds" if row.holds else "fails"
    sides = f"{row.lhs:.4g} {row.relation} {row.rhs:.4g}"
    print(f"{verdict}: {row.statement} [{row.condition}]: {sides}")
assert [row.holds for row in rows] == [True, True, False, False]

# %% [markdown]
# ## The ODE needs more
#
# **Claim** (Proposition 7.4). eps = theta sin(omega x): Lipschitz in theta with constant 1, and yet
# the ODE's log density at 0 changes by theta times a factor that grows with omega without bound.

# %%
from toy2d.core.likelihood import log_prob
from toy2d.core.schedule import Schedule

schedule, origin, size = (
    Schedule.log_snr(101, 2.0, -6.0),
    torch.zeros(1, 2, dtype=torch.float64),
    0.01,
)
found = {}
for omega in (1.0, 4.0, 16.0):
    tuned = log_prob(
        lambda x, t, c, w=omega: size * torch.stack([(w * x[..., 0]).sin(), 0 * x[..., 1]], -1),
        schedule,
        origin,
        None,
    )
    still = log_prob(lambda x, t, c: 0 * x, schedule, origin, None)
    found[omega] = float(tuned - still) / size
    print(f"omega = {omega:g}: change of ln p(0) per unit of theta {found[omega]:.3f}")
assert abs(found[16.0] / found[1.0] - 16) < 0.1

# %%
figure, ax = plt.subplots(figsize=(4.2, 2.6))
ax.plot(list(found), [abs(v) for v in found.values()], "o-")
ax.set(xlabel="omega", ylabel="|change of ln p(0)| per unit of theta")
show(
    figure,
    "The Lipschitz constant in theta is 1 for every omega; the ODE's log density changes in proportion to omega",
)

# %% [markdown]
# ## The published lambda sweep
#
# Read off the authors' figure (+-0.0005; SD-1.5, full fine-tuning, tensor mean), one run a row;
# lecture 7 draws it. **Claim.** At lambda = 0, with neither penalty nor prior, both scores already
# beat the prior-preservation row of the main table, and L2 only trades one for the other.

# %%
import itertools

from toy2d.runs.files import read_csv

sweep = read_csv("../lectures/_data/published_lambda_sweep.csv")
prior, l2, *_ = read_csv("../lectures/_data/published_main_table.csv")
print(f"prior preservation: DINO {prior['dino']:.4f}, CLIP-T {prior['clip_t']:.4f}")
for r in sweep:
    print(f"lambda {r['lambda']:5g}:       DINO {r['dino']:.3f},  CLIP-T {r['clip_t']:.4f}")
none = sweep[0]
assert none["lambda"] == 0 and none["dino"] > prior["dino"] and none["clip_t"] > prior["clip_t"]
for one, more in itertools.pairwise(sweep):
    assert more["dino"] < one["dino"] and more["clip_t"] > one["clip_t"]

# %%
gain, without = l2["clip_t"] - prior["clip_t"], none["clip_t"] - prior["clip_t"]
print(f"of the main table's CLIP-T gain of {gain:.4f}, {without:.4f} is there without L2")
assert without > 0.75 * gain

# %%
figure, ax = plt.subplots(figsize=(4.6, 3.2))
ax.plot([r["dino"] for r in sweep], [r["clip_t"] for r in sweep], "^-", label="L2 along lambda")
ax.plot(prior["dino"], prior["clip_t"], "s", label="prior preservation")
ax.set(xlabel="DINO (subject)", ylabel="CLIP-T (prompt)")
ax.legend(fontsize=7)
show(
    figure,
    "The sweep is one curve; its start, without any objective, lies above and right of the prior row",
)

# %% [markdown]
# ## Task: the distance that a LoRA update really goes
#
# The cells above say that the factors' penalty is not a distance. Write the squared norm of
# scale * B A, for B (o, r) and A (r, i), from r by r matrices.

# %%
from toy2d.course import check as check_code


def lora_distance(B, A, scale):
    return ...  # your code


check_code("lora_distance", lora_distance)


# %% tags=["hide-cell"]
# solution
def lora_distance(B, A, scale):
    return scale**2 * ((B.mT @ B) * (A @ A.mT)).sum()


check_code("lora_distance", lora_distance)

# %% [markdown]
# ## Exercises
#
# **7.1** Prompt world, "V dog" = (dog, no context, V). Which rows may be trained with zero drift on
# all old prompts? (a) dog; (b) dog and V; (c) V.

# %%
from exercises import check

answer = ...
check("7.1", answer)

# %% tags=["hide-cell"]
# solutions
check("7.1", "c")
