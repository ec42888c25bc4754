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
# # Notebook 10: a practical guide
#
# Beside [lecture 10](../lectures/10_practical_guide.md). What to train, which objective, which
# weight, what it costs, and what to do when it fails.
#
# ![Adaptation against preservation for all objectives and weights](../lectures/_static/figures/tradeoff.png)
#
# *Recorded with the course's run; the cells below compute and draw yours.*

# %% [markdown]
# ## Memory
#
# SD-1.5's denoiser has 860 million weights. What stays for a whole full fine-tuning in fp32, before
# activations:

# %%
GIB, weights = 2**30, 860e6
parts = {"weights": 4, "gradients": 4, "Adam's moments": 8, "anchor of L2": 4, "anchor in bf16": 2}
for name, size in parts.items():
    print(f"{name:15s} {weights * size / GIB:5.1f} GiB")
assert round(weights * 16 / GIB, 1) == 12.8

# %% [markdown]
# **Claim.** LoRA of rank 4 trains less than two percent of the tiny pipeline's denoiser. (And its
# L2 needs no copy of the weights: Proposition 3.5.)

# %%
from personalize.pipeline.libraries import quiet_libraries

quiet_libraries()  # before the others are imported: some of their notes come then

# %%
import tempfile
from pathlib import Path

from personalize.adapters.trainable import choose
from personalize.pipeline.load import load
from personalize.pipeline.random_pipeline import tiny

scratch = Path(tempfile.mkdtemp(prefix="driftlab-"))  # what this notebook makes
tiny("sd15", folder=scratch / "tiny")
model = load(str(scratch / "tiny"))
everything = sum(p.numel() for p in model.denoiser.parameters())
theta = choose(model, "lora", rank=4)
trained = sum(p.numel() for p in theta.values())
print(f"{trained:,} of {everything:,} weights train: {100 * trained / everything:.2f} %")
assert trained < 0.02 * everything

# %% [markdown]
# ## Failure gallery
#
# Three regimes on the plane, where the truth is known: new class KL(world ‖ tuned) says how well
# the subject was learnt, old KL(base ‖ tuned) what it cost. Same base, same shots; only the
# objective differs.

# %%
import itertools
import json

from toy2d.config import course
from toy2d.experiment import run
from toy2d.runs.statistics import geometric, old_kl, value

folder = run(course(), out="../runs")
records = json.loads((folder / "metrics.json").read_text())["runs"]
gallery = {"overfit": "standard", "underfit": "l2:1", "balanced": "fisher:10"}
found = {}
for regime, name in gallery.items():
    same = [r for r in records if r["run"] == name]
    found[regime] = [
        geometric([f(r) for r in same])
        for f in (lambda r: value(r, "kl_new"), lambda r: old_kl(r, "kl_base"))
    ]
    new, old = (f"{mean:.3g} ({low:.2g} to {high:.2g})" for mean, low, high in found[regime])
    print(f"{regime:9s} {name:10s} new class {new} nats, old classes {old}")

# %% [markdown]
# **Claim.** Overfitting is bad on *both* axes here: the balanced run learns the new class better
# and drifts less (geometric means over three seeds). Underfitting keeps the old and learns the new
# less well than balanced; standard, which has overfitted six points, is worse still on that axis.

# %%
new, old = ({regime: v[i][0] for regime, v in found.items()} for i in (0, 1))
assert new["balanced"] < min(new["overfit"], new["underfit"])
assert old["underfit"] < old["overfit"] and old["balanced"] < old["overfit"]

# %% [markdown]
# The same three regimes on Stable Diffusion, from a student report (one run each; not our
# measurement). Lower similarity within a prompt means more variety.

# %%
from toy2d.runs.files import read_csv

report = {r["regime"]: r for r in read_csv("../lectures/_data/three_regimes.csv")}
for regime, r in report.items():
    print(
        f"{regime:9s} subject {r['subject_mean']:.3f}, text {r['text_image']:.3f}, "
        f"similarity within a prompt {r['similarity_within_prompt']:.3f}; "
        f"lr {r['learning_rate']:g}, {r['steps']:.0f} steps, prior {r['prior_weight']:g}"
    )

# %% [markdown]
# **Claim.** The report's three columns are one ordering: overfit, balanced, underfit, in subject
# similarity falling, in text agreement and variety rising. Along one such curve no setting is
# better; it is a choice.

# %%
order = [report[k] for k in ("overfit", "balanced", "underfit")]
for one, next_one in itertools.pairwise(order):
    assert one["subject_mean"] > next_one["subject_mean"]
    assert one["text_image"] < next_one["text_image"]
    assert one["similarity_within_prompt"] > next_one["similarity_within_prompt"]

# %% [markdown]
# ## Choosing a weight
#
# Adaptation against preservation over all weights: lower left is better, so choose the weight at
# the corner of a curve, not at its end.

# %%
from toy2d.figures.display import show
from toy2d.figures.drift import draw_tradeoff

show(draw_tradeoff({"runs": records}, {"seeds": (0, 1, 2)}))

# %% [markdown]
# And in pictures, on the mini model (recorded): a polar bear is shown, the base's bears are brown.
# At lambda 0 and 0.001 every bear is pale; at 0.01 most; at 0.1 bears are brown again, and so is
# "sks bear", which was hardly learned. No weight here is good at both. **Claim.** Path KL falls all
# the way.

# %%
import mini_lab

along = {
    r["weight"] or 0: r["path_kl"][0]
    for r in mini_lab.recorded()
    if r["objective"] in ("standard", "l2")
}
assert [along[w] for w in sorted(along)] == sorted(along.values(), reverse=True)
mini_lab.recorded_slider("l2")

# %% [markdown]
# ## Task: choose at equal adaptation
#
# `learnt` and `lost` hold one number for each weight that was tried, both KLs in nats, so that smaller
# is better. Write the rule of lecture 10: among the runs with `learnt` at most `limit`, the place of
# the one that lost least.

# %%
from toy2d.course import check as check_code


def choose(learnt, lost, limit):
    return ...  # your code


check_code("choose", choose)


# %% tags=["hide-cell"]
# solution
def choose(learnt, lost, limit):
    fit = [i for i, a in enumerate(learnt) if a <= limit]
    return min(fit, key=lambda i: lost[i])


check_code("choose", choose)

# %% [markdown]
# ## Before a long run
#
# `--dry_run` prints the resolved settings, which picture is seen how often, the time of a step and
# the memory. On the tiny pipeline:

# %%
import numpy as np
from PIL import Image

from personalize.config.train_config import TrainConfig
from personalize.cost.dry_run import dry_run

photos = scratch / "photos"
photos.mkdir()
for i in range(4):
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        photos / f"{i}.png"
    )
cost = dry_run(
    TrainConfig(
        pretrained_model_name_or_path=str(scratch / "tiny"),
        instance_data_dir=str(photos),
        instance_prompt="a photo of sks dog",
        train="lora",
        max_train_steps=100,
        output_dir=str(scratch / "never"),
    )
)
assert not (scratch / "never" / "history.csv").exists()  # nothing was trained

# %% [markdown]
# ## Exercises
#
# **10.1** GiB of weights, gradients and Adam's two moments for 860 million weights in fp32.

# %%
from exercises import check

answer = ...
check("10.1", answer)

# %% [markdown]
# **10.2** High similarity to the photos, low agreement with the prompt, little variety: (a)
# underfit, (b) overfit, (c) balanced?

# %%
answer = ...
check("10.2", answer)

# %% tags=["hide-cell"]
# solutions
check("10.1", 12.8)
check("10.2", "b")
