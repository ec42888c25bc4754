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
# # Notebook 9: evaluating personalization
#
# Beside [lecture 9](../lectures/09_evaluation.md). What the metrics measure, how sure one may be,
# and how to read a table of them.
#
# ![Differences of the published table, L2 minus baseline](../lectures/_static/figures/differences.png)
#
# *Recorded with the course's run; the cells below compute and draw yours.*

# %%
import torch

from personalize.evaluate import metrics

for name in ("cosine", "pairwise_perceptual", "mmd2", "interval", "over_seeds"):
    print(f"{name:20s} {getattr(metrics, name).__doc__.splitlines()[0]}")

# %% [markdown]
# ## Fidelity and memorization cannot be told apart by fidelity
#
# Features of pictures as unit vectors: a subject is a direction. The cell compares a model that
# draws the subject in many ways with one that copies a training picture.
#
# **Claim.** The copier has the higher subject score (what DINO and CLIP-I measure), and no variety:
# judged by fidelity alone it wins.

# %%
rng = torch.Generator().manual_seed(0)


def near(direction, spread, n):
    return direction + spread * torch.randn(n, 64, generator=rng)


subject = torch.nn.functional.normalize(torch.randn(64, generator=rng), dim=0)
photos = near(subject, 0.06, 5)
varied, copied = near(subject, 0.09, 40), near(photos[0], 0.005, 40)
for name, made in (("varied", varied), ("copied", copied)):
    fidelity = float(metrics.cosine(made, photos).mean())
    variety = 1 - float(metrics.mean_to_others(metrics.cosine(made, made)).mean())
    nearest = float(metrics.cosine(made, photos).max())
    print(
        f"{name}: subject score {fidelity:.3f}, variety {variety:.3f}, nearest photo {nearest:.3f}"
    )

# %%
scores = {
    name: float(metrics.cosine(made, photos).mean())
    for name, made in (("varied", varied), ("copied", copied))
}
assert scores["copied"] > scores["varied"]
assert metrics.mean_to_others(metrics.cosine(copied, copied)).mean() > 0.99

# %%
from toy2d.figures.display import show
from toy2d.figures.style import plt, style

figure, ax = plt.subplots(figsize=(4.4, 2.8))
for name, made in (("varied", varied), ("copied", copied)):
    to_photos = metrics.cosine(made, photos).mean(1)
    to_others = metrics.mean_to_others(metrics.cosine(made, made))
    ax.plot(to_photos, to_others, "o", label=name, markersize=4)
ax.set(xlabel="similarity to the photos (fidelity)", ylabel="similarity to each other")
ax.legend(fontsize=7)
show(figure, "Fidelity alone prefers the copies; the second axis tells them apart")

# %% [markdown]
# ## How many seeds?
#
# The toy's truth is exact, so the spread over training seeds is pure training noise: standard
# fine-tuning, KL(base ‖ tuned).
#
# **Claim.** Over eight seeds the largest drift is more than ten times the smallest. One run gives
# the order of magnitude at best.

# %%
from toy2d.verify.lab import open_lab

c = open_lab(seeds=tuple(range(8)))
drift = {name: list(c.drift(name).values()) for name in ("standard", "prior:10", "l2:0.1")}
for name, values in drift.items():
    ratio = max(values) / min(values)
    print(f"{name:9s} {', '.join(f'{v:.3g}' for v in values)} nats; largest / smallest {ratio:.1f}")
assert max(drift["standard"]) > 10 * min(drift["standard"])

# %%
figure, ax = plt.subplots(figsize=(4.6, 2.8))
for name, values in drift.items():
    ax.plot(c.seeds, values, label=name, **style(name.split(":")[0]))
ax.set(yscale="log", xlabel="training seed", ylabel="KL(base || tuned) (nats)")
ax.legend(fontsize=7)
show(figure, "Seeds differ by decades, and the objectives differ alike in each: pair by seed")

# %% [markdown]
# **Claim.** Paired by seed (same base, same shots, same noise) the comparison is sharper than
# unpaired: the standard error of the mean log ratio is smaller than that of independent seeds.

# %%
import numpy as np

a, b = (np.log(drift[name]) for name in ("standard", "l2:0.1"))
paired = (a - b).std(ddof=1) / len(a) ** 0.5
unpaired = ((a.var(ddof=1) + b.var(ddof=1)) / len(a)) ** 0.5
print(f"mean log ratio {np.mean(a - b):.2f}")
print(f"its standard error: paired {paired:.2f}, unpaired {unpaired:.2f}")
assert paired < unpaired

# %% [markdown]
# ## Pictures are not seeds
#
# **Claim.** An interval over pictures is too narrow. Take 100 pictures of 4 seeds, with a seed
# effect as large as the spread of the pictures. In 200 repetitions the 95 % interval over pictures
# contains the truth in less than 60 %; the interval over seeds contains it more often, though still
# in less than 95 %, because four values are few for a bootstrap. `n` is therefore printed beside
# every interval.

# %%
noise = np.random.default_rng(0)
caught = {"over pictures": 0, "over seeds": 0}
for _ in range(200):
    seeds = np.repeat(np.arange(4), 25)
    values = noise.normal(size=4)[seeds] + noise.normal(size=100)  # truth: 0
    for name, found in (
        ("over pictures", metrics.interval(values)),
        ("over seeds", metrics.over_seeds(values, seeds)),
    ):
        caught[name] += found["low"] <= 0 <= found["high"]
print({name: f"{100 * n / 200:.0f} %" for name, n in caught.items()})
assert caught["over pictures"] < 120 < caught["over seeds"] < 190

# %%
figure, ax = plt.subplots(figsize=(5, 1.6))
ax.barh(list(caught), [100 * n / 200 for n in caught.values()])
ax.axvline(95, color="black", linewidth=1)
ax.set(xlabel="repetitions in which the 95 % interval holds the truth (%)", xlim=(0, 100))
show(figure, "An interval over pictures is too narrow; the line is what it promises")

# %% [markdown]
# ## Reading a table
#
# The published main table (one run a row, no errors). Differences, L2 minus their baseline:

# %%
from toy2d.runs.files import read_csv

table = read_csv("../lectures/_data/published_main_table.csv")
pairs = list(zip(table[::2], table[1::2], strict=True))
for base, ours in pairs:
    print(
        f"{base['backbone']:7s} {base['method']:17s}",
        "  ".join(f"{k} {ours[k] - base[k]:+.4f}" for k in ("dino", "clip_t", "clip_i")),
    )

# %%
figure, ax = plt.subplots(figsize=(6, 2.8))
for marker, key in (("o", "dino"), ("s", "clip_t"), ("^", "clip_i")):
    ax.plot([ours[key] - base[key] for base, ours in pairs], range(len(pairs)), marker, label=key)
ax.axvline(0, color="#999999", linewidth=1)
ax.set_yticks(range(len(pairs)), [f"{base['backbone']} {base['method']}" for base, _ in pairs])
ax.set(xlabel="L2 minus baseline (no errors published)")
ax.legend(fontsize=7)
show(figure, "The published differences, one run a row")

# %% [markdown]
# **Claim.** DINO and CLIP-I rise in every row; CLIP-T falls in three of seven. In those three the
# change is a trade, not an improvement.

# %%
fell = [f"{b['backbone']} {b['method']}" for b, o in pairs if o["clip_t"] < b["clip_t"]]
print("CLIP-T fell:", ", ".join(fell))
assert all(o["dino"] > b["dino"] and o["clip_i"] > b["clip_i"] for b, o in pairs) and len(fell) == 3

# %% [markdown]
# **Claim.** How large a DINO difference would be noise? With a between-subject standard deviation
# of 0.1 (an assumption; the benchmark has 30 subjects) an *unpaired* difference below 0.05 is
# within two standard errors: all seven published differences are that small. Paired by subject the
# errors may be much smaller; the table does not say.

# %%
error = 0.1 * (2 / 30) ** 0.5
small = [o["dino"] - b["dino"] for b, o in pairs]
print(f"two standard errors {2 * error:.3f}; differences {', '.join(f'{d:.4f}' for d in small)}")
assert all(d < 2 * error for d in small)

# %% [markdown]
# ## A picture score and a law
#
# **Claim.** A squared MMD between two samples of one law is zero in the mean, so single values may
# be negative; with a shift it is not.

# %%
same = [metrics.mmd2(near(subject, 0.1, 24), near(subject, 0.1, 24)) for _ in range(50)]
shifted = [metrics.mmd2(near(subject, 0.1, 24), near(subject, 0.1, 24) + 0.05) for _ in range(50)]
for name, values in (("same law", same), ("shifted", shifted)):
    print(f"{name:8s} {np.mean(values):+.4f} +- {np.std(values) / 50**0.5:.4f}")
assert abs(np.mean(same)) < 4 * np.std(same) / 50**0.5 and min(same) < 0
assert np.mean(shifted) > 10 * abs(np.mean(same))

# %%
figure, ax = plt.subplots(figsize=(4.4, 2.6))
for name, values in (("same law", same), ("shifted", shifted)):
    ax.hist(values, bins=15, alpha=0.6, label=name)
ax.axvline(0, color="black", linewidth=1)
ax.set(xlabel="unbiased squared MMD", ylabel="of 50 repetitions")
ax.legend(fontsize=7)
show(figure, "An unbiased estimate of zero is negative about half of the time")

# %% [markdown]
# ## Task: an interval over few seeds
#
# Write Student's 95 % interval (low, high) of the mean of a few values, one for each seed.

# %%
from scipy import stats

from toy2d.course import check as check_code


def interval(values):
    return ...  # your code


check_code("interval", interval)


# %% tags=["hide-cell"]
# solution
def interval(values):
    x = np.array(values)
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
    return x.mean() - half, x.mean() + half


check_code("interval", interval)

# %% [markdown]
# ## Exercises
#
# **9.1** Thirty subjects, standard deviation 0.1 between them: half the width of a 95 % interval
# for a mean.

# %%
from exercises import check

answer = ...
check("9.1", answer)

# %% [markdown]
# **9.2** To halve that width, how many times the subjects?

# %%
answer = ...
check("9.2", answer)

# %% tags=["hide-cell"]
# solutions
check("9.1", 0.0358)
check("9.2", 4)
