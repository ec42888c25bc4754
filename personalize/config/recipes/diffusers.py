"""Settings of huggingface/diffusers examples/ (commit 58eb52c); DF below is that folder."""

Settings = dict[str, object]


def diffusers_full() -> Settings:
    """DF dreambooth/README.md, "Dog toy example": nothing preserved, so only 400 steps."""
    return {
        "train": "full",
        "objective": "standard",
        "resolution": 512,
        "train_batch_size": 1,
        "learning_rate": 5e-6,
        "max_train_steps": 400,
    }


def diffusers_prior() -> Settings:
    """DF dreambooth/README.md, "Training with prior-preservation loss": 200 class images."""
    return diffusers_full() | {
        "objective": "prior",
        "prior_loss_weight": 1.0,
        "num_class_images": 200,
        "max_train_steps": 800,
    }


def diffusers_prior_16gb() -> Settings:
    """DF dreambooth/README.md, "Training on a 16GB GPU": checkpointing and Adam's moments in 8
    bits.
    """
    return diffusers_prior() | {
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "use_8bit_adam": True,
    }


def diffusers_prior_text_encoder() -> Settings:
    """DF dreambooth/README.md, "Fine-tune text encoder with the UNet": best on faces, 24 GB."""
    return diffusers_prior() | {
        "train_text_encoder": True,
        "learning_rate": 2e-6,
        "gradient_checkpointing": True,
        "use_8bit_adam": True,
    }


def diffusers_lora() -> Settings:
    """DF dreambooth/README.md, "Training with LoRA": rank 4, a learning rate fifty times that of
    full training.
    """
    return {
        "train": "lora",
        "rank": 4,
        "objective": "standard",
        "resolution": 512,
        "train_batch_size": 1,
        "learning_rate": 1e-4,
        "max_train_steps": 500,
        "checkpointing_steps": 100,
        "seed": 0,
    }


def diffusers_sdxl_lora() -> Settings:
    """DF dreambooth/README_sdxl.md, "Dog toy example"; the base needs a VAE that is safe in fp16,
    or runs it in fp32 as we do.
    """
    return {
        "train": "lora",
        "rank": 4,
        "objective": "standard",
        "resolution": 1024,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "learning_rate": 1e-4,
        "adam_weight_decay": 1e-4,
        "max_train_steps": 500,
        "mixed_precision": "fp16",
        "seed": 0,
    }


def diffusers_sdxl_lora_16gb() -> Settings:
    """DF dreambooth/README_sdxl.md, "Dog toy example with < 16GB VRAM"."""
    return diffusers_sdxl_lora() | {"gradient_checkpointing": True, "use_8bit_adam": True}


def diffusers_sd3_full() -> Settings:
    """DF dreambooth/README_sd3.md, "Dog toy example": 1024 pixels, learning rate 1e-4."""
    return diffusers_sdxl_lora() | {"train": "full"}


def diffusers_sd3_lora() -> Settings:
    """DF dreambooth/README_sd3.md, "LoRA + DreamBooth"."""
    return diffusers_sdxl_lora() | {"resolution": 512, "learning_rate": 4e-4}


def diffusers_custom_diffusion() -> Settings:
    """DF custom_diffusion/README.md, "Cat example"; the 200 class images are the base's own here,
    not retrieved ones.

    2e-5 for its 1e-5, because its script doubles a scaled rate where class images train beside the
    subject's.
    """
    return {
        "train": "custom_diffusion",
        "placeholder_token": "<new1>",
        "objective": "prior",
        "prior_loss_weight": 1.0,
        "num_class_images": 200,
        "resolution": 512,
        "random_flip": True,
        "train_batch_size": 2,
        "learning_rate": 2e-5,
        "scale_lr": True,
        "max_train_steps": 250,
    }


def diffusers_custom_diffusion_face() -> Settings:
    """DF custom_diffusion/README.md, "Training on human faces": queries and outputs train too, 15
    to 20 pictures; 1e-5 for its 5e-6, as above.
    """
    return diffusers_custom_diffusion() | {
        "learning_rate": 1e-5,
        "max_train_steps": 1000,
        "freeze_model": "crossattn",
    }


def diffusers_textual_inversion() -> Settings:
    """DF textual_inversion/README.md, "Cat toy example": one new word, nothing else moves."""
    return {
        "train": "token",
        "placeholder_token": "<cat-toy>",
        "initializer_token": "toy",
        "objective": "standard",
        "resolution": 512,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "learning_rate": 5e-4,
        "scale_lr": True,
        "max_train_steps": 3000,
    }


DIFFUSERS = (
    diffusers_full,
    diffusers_prior,
    diffusers_prior_16gb,
    diffusers_prior_text_encoder,
    diffusers_lora,
    diffusers_sdxl_lora,
    diffusers_sdxl_lora_16gb,
    diffusers_sd3_full,
    diffusers_sd3_lora,
    diffusers_custom_diffusion,
    diffusers_custom_diffusion_face,
    diffusers_textual_inversion,
)
