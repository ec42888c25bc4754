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
# # Notebook 11: the full thing: Stable Diffusion
#
# Beside [lecture 11](../lectures/11_full_scale.md). This notebook prints the commands, runs them
# where a GPU and weights are present, and otherwise shows what was recorded, or says "not run
# here". Set `PHOTOS` (or DRIFTLAB_PHOTOS in the environment) to a folder of four to six pictures of
# one thing, `MODEL` (DRIFTLAB_MODEL) to a pipeline folder.

# %%
import os

MODEL = os.environ.get("DRIFTLAB_MODEL", "stable-diffusion-v1-5/stable-diffusion-v1-5")
PHOTOS = os.environ.get("DRIFTLAB_PHOTOS", "photos")

# %%
from personalize.config.train_config import TrainConfig

common = dict(
    pretrained_model_name_or_path=MODEL,
    instance_data_dir=PHOTOS,
    instance_prompt="a photo of sks dog",
    class_prompt="a photo of a dog",
    train_batch_size=1,
    mixed_precision="bf16",
    path_kl_steps=100,
    validation_prompt=(
        "a photo of sks dog on the beach",
        "a photo of a dog",
        "a photo of a cat on the beach",
    ),
)
lora = dict(train="lora", rank=16, learning_rate=1e-4, max_train_steps=500)
full = dict(train="full", learning_rate=2e-6, max_train_steps=1000, gradient_checkpointing=True)
runs = {
    "lora-standard": TrainConfig(
        **common, **lora, output_dir="../runs/personalize/dog-lora-standard"
    ),
    "lora-prior": TrainConfig(
        **common,
        **lora,
        objective="prior",
        class_data_dir="../runs/classes/dog",
        num_class_images=200,
        output_dir="../runs/personalize/dog-lora-prior",
    ),
    "lora-l2": TrainConfig(
        **common,
        **lora,
        objective="l2",
        l2_reg_weight=1e-3,
        output_dir="../runs/personalize/dog-lora-l2",
    ),
    "full-l2 (paper's weight)": TrainConfig(
        **common,
        **full,
        objective="l2",
        l2_reg_weight=500.0,
        reg_reduction="tensor_mean",
        output_dir="../runs/personalize/dog-full-l2",
    ),
}
for name, config in runs.items():
    print(f"# {name}\n{config.command()}\n")

# %% [markdown]
# (Paths are as seen from notebooks/.) **Claim.** The LoRA commands differ by the objective and its
# settings only; model, pictures and noise are the same.

# %%
from dataclasses import asdict

one, two = asdict(runs["lora-standard"]), asdict(runs["lora-l2"])
differing = {k for k in one if one[k] != two[k]}
print(sorted(differing))
assert differing <= {"objective", "l2_reg_weight", "output_dir"}

# %% [markdown]
# ## Run, if this machine can

# %%
from pathlib import Path

import torch

missing = [
    what
    for what, there in (
        ("a GPU", torch.cuda.is_available()),
        (f"the weights {MODEL} as a local folder", Path(MODEL).is_dir()),
        (f"the pictures {PHOTOS}", Path(PHOTOS).is_dir()),
    )
    if not there
]
if missing:
    print(f"not run here: {', '.join(missing)} missing")
else:
    from personalize.train.experiment import run

    for config in runs.values():
        run(config)

# %% [markdown]
# ## Task: compare two methods over seeds
#
# Before the GPU is warm, write what will judge its numbers. `ours` and `theirs` are {seed: path KL}.
# Return (low, high) of Student's 95 % interval of the geometric mean of ours / theirs, paired by
# seed.

# %%
import numpy as np
from scipy import stats

from toy2d.course import check as check_code


def paired_ratio(ours, theirs):
    return ...  # your code


check_code("paired_ratio", paired_ratio)


# %% tags=["hide-cell"]
# solution
def paired_ratio(ours, theirs):
    x = np.log([ours[seed] / theirs[seed] for seed in ours])
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
    return np.exp(x.mean() - half), np.exp(x.mean() + half)


check_code("paired_ratio", paired_ratio)

# %% [markdown]
# ## What was recorded
#
# Results of such runs belong into `lectures/_data/full_scale.csv` (columns: run, seed, dino,
# clip_i, clip_t, path_kl, path_kl_error, seconds, gpu, commit, date).

# %%
from toy2d.runs.files import read_csv

file = Path("../lectures/_data/full_scale.csv")
for row in read_csv(file) if file.exists() else []:
    print(row)
if not file.exists():
    print("not run yet: no run of Stable Diffusion's own weights is recorded in this repository")

# %% [markdown]
# Afterwards, for each run:

# %%
asked = '"a photo of sks dog in the snow" "a photo of a dog"'
for config in runs.values():
    print(f"personalize generate {config.output_dir} --prompt {asked} --base")
    print(
        f"personalize evaluate --model {config.output_dir} --reference {config.instance_data_dir} --prompts dreambooth"
    )
