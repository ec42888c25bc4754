"""Named settings for `--preset`: functions that return the flags they set and name their source.

    personalize train --preset balanced --instance_data_dir photos/ ...

A flag given beside --preset wins; config.json records both. Pictures, prompts and folders are yours
to name, and the word from which a new one starts (--initializer_token, say dog).

The preset `mini` is here; recipes/ has the published ones, one module for each source.
"""

from personalize.config.recipes.diffusers import DIFFUSERS, Settings
from personalize.config.recipes.paper import PAPER
from personalize.config.recipes.regimes import REGIMES
from personalize.mini.shipped import FOLDER, GUIDANCE

MINI_LEARNING_RATES = {"full": 5e-5, "lora": 2e-3, "custom_diffusion": 2e-4}
MINI_SUBJECT = {
    "instance_data_dir": str(FOLDER / "subjects" / "polar_bear"),
    "instance_prompt": "a photo of sks bear",
    "class_prompt": "a photo of a bear",
}
MINI_CLASS_IMAGES = {"num_class_images": 32, "class_steps": 12, "class_guidance": GUIDANCE}


def mini() -> Settings:
    """The mini base and its polar bear, a minute or two on two cores.

    Applied by itself where the base is mini.

    Learning rate and steps: lab log, 22 and 25 November 2026. Another --train has a learning rate
    of its own.
    """
    return MINI_SUBJECT | {
        "train": "full",
        "objective": "standard",
        "learning_rate": MINI_LEARNING_RATES["full"],
        "max_train_steps": 200,
        "train_batch_size": 2,
        "center_crop": True,
        "checkpointing_steps": 100,
        "unrelated_prompts": ("a photo of a panda", "a pig at night"),
        "validation_prompt": (MINI_SUBJECT["instance_prompt"], MINI_SUBJECT["class_prompt"]),
        "validation_guidance": GUIDANCE,
        "sample_batch_size": 16,
    }


PRESETS = {f.__name__: f for f in (mini, *PAPER, *DIFFUSERS, *REGIMES)}


def show(command) -> None:
    """`personalize presets`: each name, and what its docstring says."""
    for name, settings in PRESETS.items():
        print(f"{name}\n    {' '.join(settings.__doc__.split())}")
