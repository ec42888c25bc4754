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
# # Notebook 4: a lower bound that anyone can count
#
# Beside [lecture 4](../lectures/04_lower_bound.md). For every set D: KL(p* ‖ q) >= kl(p*(D) ‖
# q(D)). Here p* is the law (distribution) of the world, q that of a model, p*(D) the share of p* that
# lies in D, and kl of two numbers is the KL of two coins: kl(a ‖ b) = a ln(a/b) + (1 - a)
# ln((1 - a)/(1 - b)). The left side can be computed exactly here; the right side needs two counts.
#
# ![Exact KL against the counted lower bound, and path KL against an estimated KL](../lectures/_static/figures/bounds.png)
#
# *Recorded with the course's run; the cells below compute and draw yours of the left panel. The right
# panel belongs to lecture 6.*

# %%
from toy2d.theorems.estimators import binary_kl

print(
    f"kl(0.1 || 0.9) = {binary_kl(0.1, 0.9):.3f}, kl(0.01 || 0.99) = {binary_kl(0.01, 0.99):.3f} nats"
)

# %% [markdown]
# **Claim** (Example 4.5). The paper's Theorem 1 asks that the adapted law's mass gamma in D be "much
# larger" than the world's mass delta. That is not enough: with delta = 0.0001 and gamma = 0.01 the
# ratio is 100, but the bound is a hundredth of a nat.

# %%
adapted, base = binary_kl(1e-4, 0.01), binary_kl(1e-4, 0.02)
print(
    f"kl(0.0001 || 0.01) = {adapted:.4f}; a base with mass 0.02 is {base:.4f} away, and began further"
)
assert adapted < 0.01 < base

# %% [markdown]
# ## Both sides, on trained models
#
# The course's run: exact KL of the ODE's law by quadrature, samples of the same law counted. Two sets
# D for each prompt: the smallest ball about the mean of the six points that holds them, and the best
# half-plane, chosen on one half of the samples and counted on the other.
#
# A row is one inequality, checked: `lhs` and `rhs` are its sides (here KL and bound), `rhs_error` is
# a standard error, `holds` says whether it stands, `curve` says of which run, prompt and set.

# %%
from toy2d.verify.lab import open_lab

lab = open_lab(seeds=(0, 1, 2))
models = lab.models("standard", "l2:0.1", "output:1")
rows = models.lower_bound()

# %% [markdown]
# **Claim** (Theorem 4.3). No row of 90 (three runs, three seeds, five prompts, two sets) breaks the
# bound beyond four standard errors, and for standard fine-tuning the half-plane's bound is more
# than a third of the KL on average.

# %%
assert len(rows) == 90 and all(row.holds for row in rows)
shares = [
    row.rhs / row.lhs
    for row in rows
    if row.curve["run"] == "standard" and row.curve["set"] == "a half-plane"
]
print(f"{len(rows)} rows hold")
print(f"standard: the half-plane gives {min(shares):.2f} to {max(shares):.2f} of the KL")
assert sum(shares) / len(shares) > 1 / 3

# %% [markdown]
# The figure shows one case: class 1, seed 1, standard fine-tuning. On which side of the line a
# point lies is one bit, and this bit alone proves the number of nats in the title, kl(share of the
# world beyond the line ‖ share of the model).

# %%
from toy2d.figures.display import show
from toy2d.figures.theorems import draw_half_plane

case = models.half_plane("standard", seed=1, prompt=1)
assert case.bound <= case.kl
show(draw_half_plane(case))

# %% [markdown]
# All rows at once: the counted bound against the KL. Points below the line are where one bit says
# less than the whole law; none lies above it by more than its error.

# %%
from toy2d.figures.style import plt, style

figure, ax = plt.subplots(figsize=(4.6, 3.4))
for name in dict.fromkeys(models.names):
    mine = [r for r in rows if r.curve["run"] == name and r.curve["set"] == "a half-plane"]
    look = style(name.split(":")[0]) | {"linestyle": "none"}
    ax.errorbar(
        [r.lhs for r in mine],
        [r.rhs for r in mine],
        [r.rhs_error for r in mine],
        label=name,
        **look,
    )
ends = [1e-3, 30]
ax.plot(ends, ends, color="#999999", linewidth=1)
ax.set(
    xscale="log", yscale="log", xlabel="KL(world || model) (nats)", ylabel="counted bound (nats)"
)
ax.legend(fontsize=7)
show(figure, "Theorem 4.3: the counted bound of the best half-plane lies below the KL")

# %% [markdown]
# ## What this means for Theorem 1
#
# **Claim.** As printed ("fine-tuning ends further from the reference than the base was") the
# conclusion is false for some old prompts. Where condition (4.1) is met, KL(p* ‖ base) <
# kl(p*(D) ‖ tuned(D)), it holds without exception. D is the ball of the six points.
#
# A case is a run, a seed and a law: that of an old prompt, of the mixture of old prompts, or of the
# new ("target") prompt. In these rows `lhs` is the base's KL, `rhs` the tuned model's, and `applies`
# says that the condition is met by more than three standard errors.

# %%
rows = models.theorem_1()
claimed = [row for row in rows if row.kind == "claim of the paper"]
proved = [row for row in rows if row.kind == "proved" and row.applies]
broken = [row for row in claimed if row.lhs > row.rhs + 4 * row.error]
print(f"as claimed: false in {len(broken)} of {len(claimed)} cases")
print(f"with the condition: {len(proved)} cases, all hold")
for row in broken:
    print(f"   {row.condition}, seed {row.seed}: base {row.lhs:.4f} nats, tuned {row.rhs:.4f}")
assert broken and proved and all(row.holds for row in proved)

# %% [markdown]
# Every case of the claim: before on one axis, after on the other. Below the line fine-tuning has
# brought the law *nearer* to the world.

# %%
figure, ax = plt.subplots(figsize=(4.2, 3.4))
for kind, marker, of in (("condition met", "o", True), ("not met", "x", False)):
    met = {(r.condition, r.seed) for r in proved}
    part = [r for r in claimed if ((r.condition, r.seed) in met) == of]
    ax.plot([r.lhs for r in part], [r.rhs for r in part], marker, linestyle="none", label=kind)
ax.plot([1e-3, 1], [1e-3, 1], color="#999999", linewidth=1)
ax.set(
    xscale="log",
    yscale="log",
    xlabel="KL(world || base) (nats)",
    ylabel="KL(world || tuned) (nats)",
)
ax.legend(fontsize=7)
show(figure, "The paper's Theorem 1, case by case: above the line it is true")

# %% [markdown]
# ## Task: count a bound yourself
#
# Two tensors of booleans say which samples of the world and of the model lie in D. Write the bound
# of Theorem 4.3 in nats, world first. If k of n samples lie in D take (k + 1/2) / (n + 1) as the
# share, so that no logarithm meets 0.

# %%
from toy2d.course import check as check_code


def counted_bound(inside_true, inside_tuned):
    return ...  # your code


check_code("counted_bound", counted_bound)


# %% tags=["hide-cell"]
# solution
def counted_bound(inside_true, inside_tuned):
    p, q = ((x.sum() + 0.5) / (len(x) + 1) for x in (inside_true, inside_tuned))
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


check_code("counted_bound", counted_bound)

# %% [markdown]
# ## Exercises
#
# **4.1** Compute kl(0.1 ‖ 0.9) by hand.

# %%
from exercises import check

answer = ...
check("4.1", answer)

# %% [markdown]
# **4.2** The world is a mixture of five classes in equal shares. One is replayed; the tuned law gives
# the other four together mass 0.01. How many nats is its mixture from the world's, at least?

# %%
answer = ...
check("4.2", answer)

# %% tags=["hide-cell"]
# solutions
check("4.1", 0.8 * 2.1972)
check("4.2", 3.19)
