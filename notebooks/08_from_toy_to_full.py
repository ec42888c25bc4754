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
# # Notebook 8: from toy to full
#
# Beside [lecture 8](../lectures/08_from_toy_to_full.md). The file whose theorems you checked in the
# plane trains a pipeline of Stable Diffusion's classes: here a tiny one with random weights
# (offline, seconds), then the mini model.
#
# ![Pictures of the mini model after four objectives](../lectures/_static/figures/mini_gallery.png)
#
# *Recorded on the mini model: a polar bear as the subject `sks`, one training seed. The last sections
# of this notebook read the numbers of these runs; [notebook 8b](08b_your_photos.ipynb) draws
# pictures.*

# %%
from personalize.pipeline.libraries import quiet_libraries

quiet_libraries()  # before the others are imported: some of their notes come then

# %%
import tempfile
from pathlib import Path

import torch

import personalize.train.loop
import toy2d.core.objectives
from personalize.pipeline.load import load
from personalize.pipeline.random_pipeline import tiny

assert personalize.train.loop.Objective is toy2d.core.objectives.Objective  # not a copy

# %% [markdown]
# A pipeline has five parts. The tokenizer and the text encoder turn a prompt into vectors, the VAE
# turns a picture into a small array (its latent) and back, the UNet guesses the noise in a latent,
# and the scheduler holds the table alpha_bar. "Denoiser" below is the UNet.

# %%
scratch = Path(tempfile.mkdtemp(prefix="driftlab-"))  # what this notebook makes
pipeline = tiny("sd15", folder=scratch / "tiny")
for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
    part = getattr(pipeline, name)
    size = (
        f"{sum(p.numel() for p in part.parameters()) / 1e3:.0f} thousand weights"
        if hasattr(part, "parameters")
        else ""
    )
    print(f"{name:13s} {type(part).__name__:24s} {size}")

# %% [markdown]
# ## One schedule
#
# **Claim.** A `Schedule` read from a diffusers scheduler noises exactly as that scheduler does.

# %%
model = load(str(scratch / "tiny"))
schedule = model.schedule
x0, eps = (
    torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
    torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
)
t = torch.tensor([0, 500, 999])
gap = (schedule.add_noise(x0, t, eps) - pipeline.scheduler.add_noise(x0, eps, t)).abs().max()
print(f"{len(schedule)} steps; largest difference {float(gap):.1e}")
assert gap < 1e-6

# %% [markdown]
# ## One loss
#
# The term `denoising_loss` of the toy, fed with latents and a text prompt instead of points and a
# class number. An `Example` holds x_0, t, noise and prompts. A batch has one for each role: the new
# subject (`instance`), replayed samples (`prior`), samples on which the base's answers are kept
# (`output`). `predict_star` is the base's network. Here it is the same network, so `output` is 0.

# %%
from personalize.data.latents import PromptCache
from toy2d.core.objectives import OUTPUT, PRIOR, STANDARD, Example

prompts = PromptCache(model).add(["a photo of sks dog", "a photo of a dog"])
predict = lambda x_t, t, cond: model.predict(x_t, t, prompts(cond))  # noqa: E731
batch = {"instance": Example(x0, t, eps, ["a photo of sks dog"] * 3)}
batch |= dict.fromkeys(("prior", "output"), Example(x0, t, eps, ["a photo of a dog"] * 3))
with torch.no_grad():
    for objective in (STANDARD, PRIOR(1.0), OUTPUT(1.0)):
        terms = objective.terms(predict, schedule, batch, predict_star=predict)
        print({name: round(float(v), 4) for name, v in terms.items()})
assert float(terms["output"]) == 0  # the base differs from itself by nothing

# %% [markdown]
# ## One command, two runs
#
# Twelve steps of LoRA on four pictures made by code, standard against L2. The weights are random,
# so the pictures mean nothing; only the columns and the comparison matter here.
#
# LoRA trains two small matrices A and B for each weight matrix and adds s B A to it. In the settings
# below `unrelated_prompts` and `class_prompt` are the old prompts on which drift is measured, with
# `measure_chains` chains of `measure_nodes` steps each.

# %%
import numpy as np
from PIL import Image

from personalize.config.train_config import TrainConfig
from personalize.train.experiment import run

photos = scratch / "photos"
photos.mkdir()
rng = np.random.default_rng(0)
for i in range(4):
    pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(photos / f"{i}.png")
common = dict(
    pretrained_model_name_or_path=str(scratch / "tiny"),
    instance_data_dir=str(photos),
    instance_prompt="a photo of sks dog",
    train="lora",
    learning_rate=1e-2,
    max_train_steps=12,
    train_batch_size=2,
    log_every=4,
    probe_steps=4,
    path_kl_steps=4,
    measure_nodes=4,
    measure_chains=4,
    unrelated_prompts=("a red car",),
    class_prompt="a photo of a dog",
    checkpointing_steps=0,
)

# %%
folders = {
    name: run(TrainConfig(**common, **more, output_dir=str(scratch / name)))
    for name, more in (("standard", {}), ("l2", {"objective": "l2", "l2_reg_weight": 1.0}))
}

# %% [markdown]
# **Claim.** The rows have the toy's columns, so one reader and one plot serve both scales.
# `delta_theta` is the distance of the weights from the base's, `delta_eps` the root mean square
# change of the predicted noise, `path_kl` an upper bound on drift in nats ([lecture
# 6](../lectures/06_path_kl.md)).

# %%
from toy2d import experiment
from toy2d.config import course
from toy2d.runs.files import read_csv

toy = read_csv(experiment.run(course(), out="../runs") / "history.csv")[0]
rows = {name: read_csv(folder / "history.csv") for name, folder in folders.items()}
shared = [k for k in rows["l2"][-1] if k in toy]
print("in both:", ", ".join(shared))
assert {
    "step",
    "objective",
    "seed",
    "loss_instance",
    "delta_theta",
    "delta_eps",
    "path_kl",
    "path_kl_error",
} <= set(shared)

# %% [markdown]
# **Claim.** L2 keeps this run nearer to its base: less distance, and less path KL, than standard
# with the same pictures and noise.

# %%
last = {name: r[-1] for name, r in rows.items()}
for name, r in last.items():
    path = f"path KL {r['path_kl']:.3g} +- {r['path_kl_error']:.2g} nats"
    print(f"{name:9s} delta theta {r['delta_theta']:.3g}, {path}")
assert (
    last["l2"]["delta_theta"] < last["standard"]["delta_theta"]
    and last["l2"]["path_kl"] < last["standard"]["path_kl"]
)

# %%
from toy2d.figures.display import show
from toy2d.figures.style import plt, style

figure, axes = plt.subplots(1, 2, figsize=(7, 2.6))
for name, mine in rows.items():
    steps = [r["step"] for r in mine]
    for ax, column in zip(axes, ("delta_theta", "path_kl"), strict=True):
        ax.plot(steps, [r[column] for r in mine], label=name, **style(name))
        ax.set(xlabel="step", ylabel=column)
axes[0].legend(fontsize=7)
show(
    figure, "Twelve steps on a random network: distance and path KL from history.csv, as in the toy"
)

# %% [markdown]
# ## What class images cost
#
# Counted in forward passes of the denoiser (a training sample costs three: one forward, a backward
# worth two). 200 class images, 800 steps. Guidance asks the denoiser twice in each step of sampling,
# with the prompt and without it.

# %%
training = 800 * 3
for name, steps in (("default sampler, 51 evaluations", 51), ("20-step DPM-Solver++", 20)):
    made = 200 * steps * 2  # guidance asks twice
    trained = 800 * 2 * 3  # the prior term doubles the batch
    times = (made + trained) / training
    print(f"prior, {name:32s}: {made:5d} + {trained} forwards, {times:.1f} times standard or L2")
assert 10 < (200 * 51 * 2 + 4800) / training < 11

# %%
figure, ax = plt.subplots(figsize=(6, 2.2))
costs = {
    "standard, L2": (0, 2400),
    "prior, 51 evaluations": (20_400, 4800),
    "prior, 20": (8000, 4800),
    "prior, images kept": (0, 4800),
}
made, trained = zip(*costs.values(), strict=True)
ax.barh(list(costs), made, label="making class images")
ax.barh(list(costs), trained, left=made, label="training")
ax.set(xlabel="forward passes of the denoiser")
ax.legend(fontsize=7)
show(figure, "What 200 class images and 800 steps cost, in forward passes")

# %% [markdown]
# ## The mini model
#
# The same call opens a model that has learned something.

# %%
import mini_lab

if mini_lab.available():
    mini_model = mini_lab.load_mini()
    size = sum(p.numel() for p in mini_model.denoiser.parameters())
    print(f"{type(mini_model.denoiser).__name__}, {size / 1e6:.1f} million weights")
    print(f"latents of a picture: {mini_model.latent_shape(64)}")

# %% [markdown]
# Recorded on the mini model, one seed: path KL after each objective. The runs have not learned the
# subject equally well: `l2:1` moves least because it has not learned it. The lab log has three
# subjects and seeds.

# %%
for r in mini_lab.recorded():
    path = f"path KL {r['path_kl'][0]:8.3g} +- {r['path_kl'][1]:.2g} nats"
    print(f"{r['objective']:9s} {r['weight'] or '':>8} {path}, delta theta {r['delta_theta']:.3g}")

# %%
figure, ax = plt.subplots(figsize=(4.6, 3))
for name in dict.fromkeys(r["objective"] for r in mini_lab.recorded()):
    mine = [r for r in mini_lab.recorded() if r["objective"] == name]
    path, error = zip(*(r["path_kl"][:2] for r in mine), strict=True)
    ax.errorbar(
        [r["delta_theta"] for r in mine],
        path,
        error,
        label=name,
        **style(name) | {"linestyle": "none"},
    )
ax.set(yscale="log", xlabel="distance from the base", ylabel="path KL (nats)")
ax.legend(fontsize=7)
show(figure, "The mini model, one seed: distance does not order the objectives here either")

# %% [markdown]
# **Learning beside it.** Several subjects, along training: what was learnt (gain on held-out
# pictures, right) against what was lost (path KL of old prompts, up). The left panel is the toy. Gain
# is the fall of the squared error on pictures that training did not see, in nats ([lecture
# 6b](../lectures/06b_weights_and_gain.md), Proposition 6.11). A line is an objective at one weight,
# bold where this weight drifts least at equal learning. Dotted: 25, 50, 75 and 90 % of what standard
# learns at its best. Lower right is better.

# %%
mini_lab.frontier()

# %% [markdown]
# ## Task: noise from velocity
#
# SD-3 predicts a velocity u = eps - x_0 on the path x_t = (1 - s) x_0 + s eps. Write the noise eps
# from x_t (n, d), u (n, d) and the s of each sample (n,): with it everything of this course applies.

# %%
from toy2d.course import check as check_code


def eps_from_flow(x_t, u, s):
    return ...  # your code


check_code("eps_from_flow", eps_from_flow)


# %% tags=["hide-cell"]
# solution
def eps_from_flow(x_t, u, s):
    return x_t + (1 - s)[:, None] * u


check_code("eps_from_flow", eps_from_flow)

# %% [markdown]
# ## Exercises
#
# **8.1** The ratio of forwards spent on making 200 class images (51 evaluations, guided) to those
# of 800 training steps with the prior term.

# %%
from exercises import check

answer = ...
check("8.1", answer)

# %% [markdown]
# **8.2** The same with 20 evaluations.

# %%
answer = ...
check("8.2", answer)

# %% tags=["hide-cell"]
# solutions
check("8.1", 20400 / 4800)
check("8.2", 8000 / 4800)
