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

# %%

# %% [markdown]
# # Your own photos: the mini now, Stable Diffusion after
#
# Beside [lecture 8](../lectures/08_from_toy_to_full.md). This notebook also runs alone, on Colab or
# any machine: upload it with the wheel beside it (`python -m build` in the checkout makes
# `dist/driftlab-*.whl`), choose a GPU if there is one, and run the cells. First half: the mini model,
# in class time, without a GPU or a hub. Second half: Stable Diffusion 1.5 with LoRA and L2 on five
# photos of yours, which needs both.
#
# ## Install
#
# Nothing to do in the course's environment. Elsewhere: the newest wheel beside this notebook, or what
# DRIFTLAB_SOURCE names (a checkout or a wheel, as a path or an address).

# %%
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

wheels = sorted(Path().glob("driftlab-*.whl"))
source = os.environ.get("DRIFTLAB_SOURCE") or (str(wheels[-1]) if wheels else "")
if importlib.util.find_spec("personalize") is None:
    assert source, "upload driftlab-*.whl beside this notebook, or set DRIFTLAB_SOURCE"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", f"{source}[personalize]"]
    subprocess.run(pip, check=True)
print("driftlab is installed")

# %%
from personalize.pipeline.libraries import quiet_libraries

quiet_libraries()  # before the others are imported: some of their notes come then

import torch

GPU = torch.cuda.is_available()
STEPS = 200 if GPU or os.environ.get("DRIFTLAB_FULL") else 20  # 200: a minute on two quiet cores
print(torch.cuda.get_device_name() if GPU else "no GPU: fewer steps", f"({STEPS} steps)")

# %% [markdown]
# ## The mini model and a polar bear
#
# Two runs of the command line, standard and with L2: five pictures of a polar bear, the word `sks`.
# With a GPU or DRIFTLAB_FULL=1 they take the 200 steps of the preset; here fewer, to be quick. The
# measurements are coarser than usual for the same reason.

# %%
import tempfile

from personalize.__main__ import main

runs = Path(tempfile.mkdtemp(prefix="driftlab-"))
common = f"--pretrained_model_name_or_path mini --max_train_steps {STEPS} --checkpointing_steps 0"
common += f" --log_every {STEPS // 2} --path_kl_steps {STEPS} --measure_nodes 6"
for name, objective in (("standard", "standard"), ("l2", "l2 --l2_reg_weight 0.1")):
    command = f"train {common} --objective {objective} --output_dir {runs / name}"
    print("personalize", command.replace(str(runs), "runs"))
    assert main(command.split()) == 0

# %% [markdown]
# **Claim.** With L2 the old prompts have moved less: path KL in nats, each with its standard error.

# %%
import csv

last = {
    name: list(csv.DictReader((runs / name / "history.csv").open()))[-1]
    for name in ("standard", "l2")
}
path = {name: (float(r["path_kl"]), float(r["path_kl_error"])) for name, r in last.items()}
for name, (mean, error) in path.items():
    print(f"{name:9s} path KL {mean:.3g} +- {error:.2g} nats")
assert path["l2"][0] < path["standard"][0]

# %%
from IPython.display import Image, display

asked = ["--prompt", "a photo of sks bear", "a photo of a bear"]
for name in ("standard", "l2"):
    out = runs / f"{name}.png"
    words = [
        "generate",
        str(runs / name),
        *asked,
        "--images",
        "4",
        "--steps",
        "8",
        "--out",
        str(out),
    ]
    assert main(words) == 0
    display(Image(str(out)))

# %% [markdown]
# Above standard, below L2. In the base "a photo of a bear" is brown. How white has the bear become
# under the prompt without `sks`?
#
# ## Your photos
#
# Four to six pictures of one thing: your mug, your dog. On Colab the cell opens an upload; elsewhere
# put them into a folder and set DRIFTLAB_PHOTOS. `personalize check` looks at them first: size,
# duplicates, what would be cut away.

# %%
photos = Path(os.environ.get("DRIFTLAB_PHOTOS", "photos"))
if "google.colab" in sys.modules and not photos.is_dir():
    from google.colab import files

    photos.mkdir()
    for name, content in files.upload().items():
        (photos / name).write_bytes(content)
if photos.is_dir():
    main(["check", str(photos)])
else:
    print(f"no folder {photos} here: the commands below are shown, not run")

# %% [markdown]
# ## Stable Diffusion 1.5, LoRA and L2
#
# Two commands that differ by the objective only. About 12 GB of GPU memory at 512 pixels (our guess;
# `--dry_run` says). The weights come from the hub on first use, or from the folder DRIFTLAB_MODEL.

# %%
MODEL = os.environ.get("DRIFTLAB_MODEL", "stable-diffusion-v1-5/stable-diffusion-v1-5")
THING = "mug"  # the word for what your photos show
lora = ["--pretrained_model_name_or_path", MODEL, "--instance_data_dir", str(photos)]
lora += ["--instance_prompt", f"a photo of sks {THING}", "--class_prompt", f"a photo of a {THING}"]
lora += ["--train", "lora", "--rank", "16", "--learning_rate", "1e-4", "--max_train_steps", "500"]
lora += ["--train_batch_size", "1", "--mixed_precision", "bf16" if GPU else "no"]
objectives = {"standard": ["standard"], "l2": ["l2", "--l2_reg_weight", "0.001"]}
commands = {
    name: ["train", *lora, "--objective", *words, "--output_dir", f"runs/photos-{name}"]
    for name, words in objectives.items()
}
import shlex

for words in commands.values():
    print(shlex.join(["personalize", *words]), "\n")

# %%
can_run = GPU and photos.is_dir()
if can_run:
    for name, words in commands.items():
        assert main(words) == 0
        main(
            [
                "generate",
                f"runs/photos-{name}",
                "--prompt",
                f"a photo of sks {THING} on the beach",
                f"a photo of a {THING}",
                "--images",
                "4",
            ]
        )
else:
    absent = [
        what for what, there in (("a GPU", GPU), ("your photos", photos.is_dir())) if not there
    ]
    print("not run here:", " and ".join(absent), "missing")

# %% [markdown]
# **Claim.** The two commands differ by the objective and the folder only; model, photos and noise are
# the same.

# %%
one, two = (set(words) for words in commands.values())
print("only in the first:", sorted(one - two))
print("only in the second:", sorted(two - one))
assert one - two == {"standard", "runs/photos-standard"}
assert two - one == {"l2", "--l2_reg_weight", "0.001", "runs/photos-l2"}
