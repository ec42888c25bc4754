"""Settings of "Preserve and Personalize", by backbone and kind of training.

P&P below is its code, rlgnswk/Preserve-and-Personalize, commit 2da3509. Its lambda is a mean per
tensor: --reg_reduction tensor_mean.
"""

from personalize.config.recipes.diffusers import (
    Settings,
    diffusers_sd3_lora,
    diffusers_sdxl_lora,
)


def paper_sd15_full() -> Settings:
    """P&P SD1.5/pnp_sd15_full.py: lambda 500, torch's plain Adam, no clipping. (It repeats each
    sample four times with one noise: the same mean.)
    """
    return {
        "train": "full",
        "objective": "l2",
        "l2_reg_weight": 500.0,
        "reg_reduction": "tensor_mean",
        "resolution": 512,
        "train_batch_size": 1,
        "learning_rate": 2e-6,
        "max_train_steps": 1000,
        "max_grad_norm": 0.0,
        "adam_weight_decay": 0.0,
        "gradient_checkpointing": True,
        "seed": 2025,
    }


def paper_sd15_lora() -> Settings:
    """P&P SD1.5/README.md, LoRA of rank 16 and alpha 27 on queries and values.

    Its penalty 1e-7 is on ||A||^2 + ||B||^2; here it is on ||s B A||^2.
    """
    return {
        "train": "lora",
        "rank": 16,
        "lora_alpha": 27.0,
        "lora_target_modules": ("to_q", "to_v"),
        "objective": "l2",
        "l2_reg_weight": 1e-7,
        "resolution": 512,
        "train_batch_size": 4,
        "learning_rate": 1e-4,
        "max_train_steps": 500,
        "adam_weight_decay": 0.0,
        "gradient_checkpointing": True,
        "seed": 0,
    }


def paper_sd15_custom_diffusion() -> Settings:
    """P&P SD1.5/README.md, Custom Diffusion: lambda 175, learning rate 3e-5 times the batch of 2.

    Its mean per tensor divides the new word's change by the whole embedding table's size, ours by
    the row's: here the word is held 49,409 times as hard. --reg_reduction sum with a weight of your
    own holds both alike.
    """
    return {
        "train": "custom_diffusion",
        "placeholder_token": "<new1>",
        "objective": "l2",
        "l2_reg_weight": 175.0,
        "reg_reduction": "tensor_mean",
        "resolution": 512,
        "random_flip": True,
        "train_batch_size": 2,
        "learning_rate": 3e-5,
        "scale_lr": True,
        "max_train_steps": 250,
        "gradient_checkpointing": True,
        "seed": 2025,
    }


def paper_sdxl_lora() -> Settings:
    """P&P SDXL/README.md, LoRA; its penalty 1e-6 is on the factors, ours on the weights."""
    return diffusers_sdxl_lora() | {"learning_rate": 5e-4, "objective": "l2", "l2_reg_weight": 1e-6}


def paper_sdxl_custom_diffusion() -> Settings:
    """P&P SDXL/README.md, Custom Diffusion at 512 pixels: lambda 50, learning rate 5e-5 times the
    batch of 2. The word as in SD-1.5's.
    """
    return paper_sd15_custom_diffusion() | {"l2_reg_weight": 50.0, "learning_rate": 5e-5}


def paper_sd3_lora() -> Settings:
    """P&P SD3/README.md, LoRA, lambda 15.

    Their script computes this penalty and never adds it to the loss; here it is added.
    """
    return diffusers_sd3_lora() | {"objective": "l2", "l2_reg_weight": 15.0}


def paper_sd3_custom_diffusion() -> Settings:
    """P&P SD3/README.md, Custom Diffusion without a new word: lambda 10.1.

    Its script trains keys and values of the picture's stream (every to_k, to_v); here those of the
    text's (add_k_proj, add_v_proj) train.
    """
    return diffusers_sd3_lora() | {
        "train": "custom_diffusion",
        "learning_rate": 1e-4,
        "objective": "l2",
        "l2_reg_weight": 10.1,
        "reg_reduction": "tensor_mean",
    }


PAPER = (
    paper_sd15_full,
    paper_sd15_lora,
    paper_sd15_custom_diffusion,
    paper_sdxl_lora,
    paper_sdxl_custom_diffusion,
    paper_sd3_lora,
    paper_sd3_custom_diffusion,
)
