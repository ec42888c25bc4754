"""What too much, too little and enough training look like; a face, and a toy.

DB below is the DreamBooth report that this course starts from, sections 4 to 6.
"""

from personalize.config.recipes.diffusers import Settings, diffusers_full


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


REGIMES = (
    overfit,
    underfit,
    balanced,
    face,
    face_first_look,
    monster_toy,
)
