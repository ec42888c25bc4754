"""Named settings for `--preset`: each function returns the flags it sets and says where they come
from.

    personalize train --preset balanced --pretrained_model_name_or_path ... --instance_data_dir
    photos/ ...

A flag given beside --preset wins; config.json records both. Pictures, prompts and folders are yours
to name, and the word from which a new one starts (--initializer_token, say dog).

Sources. P&P: the code of "Preserve and Personalize" (rlgnswk/Preserve-and-Personalize, commit
2da3509), whose lambda is a mean per tensor: --reg_reduction tensor_mean. DF: the READMEs of
huggingface/diffusers examples/ (commit 58eb52c). DB: the DreamBooth report that this course starts
from, sections 4 to 6.
"""

from personalize.mini.shipped import FOLDER, GUIDANCE

Settings = dict[str, object]


# ---- the small model that comes with driftlab
MINI_LEARNING_RATES = {"full": 2e-4, "lora": 2e-3, "custom_diffusion": 2e-4}
MINI_SUBJECT = {
    "instance_data_dir": str(FOLDER / "subjects" / "polar_bear"),
    "instance_prompt": "a photo of sks bear",
    "class_prompt": "a photo of a bear",
}
MINI_CLASS_IMAGES = {"num_class_images": 32, "class_steps": 12, "class_guidance": GUIDANCE}


def mini() -> Settings:
    """The mini base and its polar bear, about a minute on two cores.

    Applied by itself where the base is mini.

    Learning rate and steps: lab log, 22 and 25 November 2026. Another --train has a learning rate
    of its own.
    """
    return MINI_SUBJECT | {
        "train": "full",
        "objective": "standard",
        "learning_rate": MINI_LEARNING_RATES["full"],
        "max_train_steps": 100,
        "train_batch_size": 2,
        "center_crop": True,
        "checkpointing_steps": 50,
        "unrelated_prompts": ("a photo of a panda", "a pig at night"),
        "validation_prompt": (MINI_SUBJECT["instance_prompt"], MINI_SUBJECT["class_prompt"]),
        "validation_guidance": GUIDANCE,
        "sample_batch_size": 16,
    }


# ---- the paper's, by backbone and kind of training
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


# ---- the usual recipes
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


# ---- the report's regimes: what too much, too little and enough look like
def overfit() -> Settings:
    """DB 4.1.1, "Overfit": no regularization at 256 pixels; the subject comes out, prompts are
    ignored.
    """
    return diffusers_full() | {"resolution": 256, "gradient_checkpointing": True}


def underfit() -> Settings:
    """DB 4.1.1, "Underfit": learning rate 5e-7 with a cosine and full prior weight; prompts are
    followed, the subject is not there.
    """
    return balanced() | {
        "learning_rate": 5e-7,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 500,
        "max_train_steps": 600,
        "prior_loss_weight": 1.0,
        "num_class_images": 200,
    }


def balanced() -> Settings:
    """DB 4.1.1, "Balanced": prior weight 0.6, learning rate 1e-6, 800 steps."""
    return {
        "train": "full",
        "train_text_encoder": True,
        "objective": "prior",
        "prior_loss_weight": 0.6,
        "num_class_images": 100,
        "resolution": 512,
        "train_batch_size": 1,
        "learning_rate": 1e-6,
        "max_train_steps": 800,
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "seed": 42,
    }


def face() -> Settings:
    """DB 5.1, a person on six photos: 1200 steps, looked at every 100."""
    return {
        "train": "full",
        "train_text_encoder": True,
        "objective": "prior",
        "prior_loss_weight": 1.0,
        "num_class_images": 150,
        "resolution": 512,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-6,
        "max_train_steps": 1200,
        "checkpointing_steps": 100,
        "gradient_checkpointing": True,
    }


def face_first_look() -> Settings:
    """DB 5.1, its first 300 steps: context is there, the face is not.

    Go on with --preset face --output_dir NEW --resume_from_checkpoint
    OLD/checkpoints/step-00000300: the same weights as 1200 steps at once.
    """
    return face() | {"max_train_steps": 300}


def monster_toy() -> Settings:
    """DB 6.3, an object without a strong prior: weight 0.5, so that its features are learnt."""
    return face() | {"prior_loss_weight": 0.5, "checkpointing_steps": 150}


PRESETS = {
    f.__name__: f
    for f in (
        mini,
        paper_sd15_full,
        paper_sd15_lora,
        paper_sd15_custom_diffusion,
        paper_sdxl_lora,
        paper_sdxl_custom_diffusion,
        paper_sd3_lora,
        paper_sd3_custom_diffusion,
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
        overfit,
        underfit,
        balanced,
        face,
        face_first_look,
        monster_toy,
    )
}


def show(command) -> None:
    """`personalize presets`: each name, and what its docstring says."""
    for name, settings in PRESETS.items():
        print(f"{name}\n    {' '.join(settings.__doc__.split())}")
