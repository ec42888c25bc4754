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
# # Notebook 1: the drift problem
#
# Beside [lecture 1](../lectures/01_drift.md). A model of five classes is taught a sixth from six
# points. What becomes of the five?
#
# Run the cells in order. The first makes the course's experiment (two minutes, once); everything
# after it reads that run. To place the six points yourself, open the
# [playground](01b_playground.ipynb).
#
# A run's name is kind:weight. `prior:10` adds ten times the loss on replayed samples; `l2:0.1` adds
# a tenth of the squared distance from the base's parameters. [Lecture
# 3](../lectures/03_objectives.md) has all kinds. `kl_truth` is KL(world ‖ model), `kl_base` is
# KL(base ‖ model), in nats (units of the natural logarithm). The world is the true distribution,
# the base is the model before the six points. `old_kl(record, "kl_base")` is the mean over the five
# old classes.
#
# ![Samples of the base and after fine-tuning with each objective](../lectures/_static/figures/samples.png)
#
# *Recorded with the course's run; the cells below compute and draw yours.*

# %%
import json

from toy2d.config import course
from toy2d.experiment import run
from toy2d.figures.display import Slider, show
from toy2d.figures.drift import draw_kl_per_class
from toy2d.figures.samples import draw_samples
from toy2d.runs.folder import load_tensors
from toy2d.runs.statistics import old_kl

folder = run(course(), out="../runs")
metrics, config = (
    json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "config")
)

# %% [markdown]
# After the first two panels only the objective differs: base model, six points and noise are the
# same to the bit. For each objective the figure shows the weight with the least drift among those
# that learned the new class at least as well as standard did. This is seed 0, the mildest of eight.

# %%
show(draw_samples(load_tensors(folder / "samples.safetensors"), metrics, config))

# %% [markdown]
# **Claim.** Standard fine-tuning never sees an old prompt, and in every seed the old classes end
# more than five times further from the world than the base was (KL in nats of the probability-flow
# ODE's law, mean over the five classes). This ODE is a sampler without fresh noise: DDIM of notebook
# 0, with ever smaller steps. A sampler's law is the distribution of its samples.

# %%
standard = {r["seed"]: old_kl(r, "kl_truth") for r in metrics["runs"] if r["run"] == "standard"}
base = {seed: old_kl(r, "kl_truth") for seed, r in enumerate(metrics["base"])}
for seed, after in standard.items():
    print(f"seed {seed}: base {base[seed]:.4f} nats, after standard fine-tuning {after:.3g} nats")
    assert after > 5 * base[seed]

# %% [markdown]
# **Claim.** Prior preservation replays class 0 and keeps it better than the mean of the others, in
# every seed. (`kl_base` has a list for each class; its first number is the KL.)

# %%
for r in metrics["runs"]:
    if r["run"] == "prior:10":
        kept, *others = (v[0] for name, v in r["kl_base"].items() if name != "mixture")
        lost = ", ".join(f"{v:.3f}" for v in others)
        print(f"seed {r['seed']}: class 0 {kept:.3f} nats; the others {lost}")
        assert kept < sum(others) / len(others)

# %% [markdown]
# The figure has the KL of each old class and of their mixture, at left from the base, at right from
# the world: geometric mean over the seeds, bars of one standard error. Look for the squares of
# `prior:10`: low at class 0, the class that it replays.

# %%
show(draw_kl_per_class(metrics, config))

# %% [markdown]
# ## The knob lambda
#
# L2 adds lambda times the squared distance from the base's parameters. Move the slider. It shows
# contours of the exact density of every prompt (seed 1), in grey where the base had it; + marks the
# shots (the six points). Lambda 0 is standard fine-tuning. The number is KL(base ‖ tuned), the mean
# over the old classes. The densities are computed once, in ten seconds, and the slider chooses among
# them. `Lab` opens the run; `lab.models(...)` are its models by name.

# %%
from toy2d.figures.density import draw_densities, total_mass
from toy2d.verify.lab import Lab

lab = Lab(folder, seeds=(1,))
lambdas = ("standard", "l2:0.001", "l2:0.01", "l2:0.03", "l2:0.1", "l2:1")
models = lab.models(*lambdas)
density, before = lab.density(models.theta), lab.density(lab.base(1))[0]
assert (total_mass(density) - 1).abs().max() < 0.01  # densities, so each integrates to one

# %%
frames = {}
for p, r in zip(density, models.records, strict=True):
    lam, kl = r["weight"] or 0, old_kl(r, "kl_base")
    title = f"lambda {lam:g}: KL(base || tuned) {kl:.3f} nats"
    frames[f"{lam:g}"] = show(draw_densities(p, title, lab.shots(1), before), title)
Slider("lambda", frames)

# %% [markdown]
# **Claim.** In this run the drift falls at every step up in lambda, in every seed (lecture 7 says
# why that is not a theorem).

# %%
drift = {(r["run"], r["seed"]): old_kl(r, "kl_base") for r in metrics["runs"]}
for seed in config["seeds"]:
    falling = [drift[name, seed] for name in lambdas]
    print(f"seed {seed}:", " > ".join(f"{v:.3g}" for v in falling))
    assert falling == sorted(falling, reverse=True)

# %% [markdown]
# ## The same in pictures
#
# The mini model is a real text-to-image model of Stable Diffusion's classes, 64 x 64, that runs on
# a laptop. `sks` is a word that it never saw: its bears are brown.

# %%
import mini_lab

if mini_lab.available():
    model = mini_lab.load_mini()
    prompts = ["a photo of a sks bear", "a photo of a bear", "a photo of a panda in the snow"]
    display(mini_lab.draw(model, prompts, mini_lab.SEEDS, steps=15))

# %% [markdown]
# The next slider shows the pictures after personalization with five pictures of a polar bear, along
# lambda. They were recorded from the same picture seeds; the caption has commit, steps and training
# seed.

# %%
display(mini_lab.recorded_slider("l2"))

# %% [markdown]
# ## Task: how far has it moved?
#
# KL(base ‖ tuned) above was computed by quadrature. Write the estimate that samples would give: from
# the log densities of both models at n samples of the base, the mean and its standard error. (KL is
# the mean of ln base - ln tuned over the base's samples.) `check_code` grades a function; `check`,
# below, grades a short answer.

# %%
from toy2d.course import check as check_code


def kl_estimate(log_base, log_tuned):
    return ...  # your code


check_code("kl_estimate", kl_estimate)


# %% tags=["hide-cell"]
# solution
def kl_estimate(log_base, log_tuned):
    ratio = log_base - log_tuned
    return ratio.mean(), ratio.std() / len(ratio) ** 0.5


check_code("kl_estimate", kl_estimate)

# %% [markdown]
# ## Exercises
#
# **1.1** Why do the old classes move, although no example of theirs is in the loss? (a) the sampler
# is random; (b) the prompts share parameters; (c) Adam's moments are carried over.

# %%
from exercises import check

answer = ...  # "a", "b" or "c"
check("1.1", answer)

# %% [markdown]
# **1.2** How many bits is one nat?

# %%
answer = ...
check("1.2", answer)

# %% tags=["hide-cell"]
# solutions
check("1.1", "b")
check("1.2", 1.4427)
