"""The flags of `personalize train`, one dataclass for each topic; TrainConfig puts them together.

A comment above or beside a field is its help text; a test checks that every flag has one.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

UNRELATED = (
    "a photo of a red car",
    "a bowl of fruit on a table",
    "a painting of a house",
    "a city at night",
)
Flow = Literal["none", "logit_normal", "mode", "sigma_sqrt", "cosmap"]
LearningRates = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]


def also(name: str):
    """Another name of the flag, e.g. one that a script of diffusers uses."""
    return tyro.conf.arg(aliases=[name])


@dataclass(frozen=True)
class BaseModel:
    """The model that is personalized."""

    title: ClassVar = "model"

    # a diffusers pipeline folder, a hub id, or mini: the small model that comes with driftlab
    pretrained_model_name_or_path: str
    # named settings (`personalize presets` lists them); a flag beside it overrides them
    preset: str | None = None
    revision: str | None = None  # branch, tag or commit of the hub id
    variant: str | None = None  # which of the published weight files to read, e.g. fp16
    without_t5: bool = False  # load SD-3 without its third and largest text encoder


@dataclass(frozen=True)
class Pictures:
    """Your pictures and their prompts."""

    title: ClassVar = "pictures"

    # folder of JPEG, PNG or WebP files; NAME.txt beside NAME.jpg is the prompt of that picture
    instance_data_dir: str | None = None
    instance_prompt: str | None = None  # the prompt of every picture without a .txt file
    # folder for pictures of the class, drawn by the base; pictures already there are used
    class_data_dir: str | None = None
    # the prompt of the class, without the identifier, e.g. "a photo of a dog"
    class_prompt: str | None = None
    # JSON file with several subjects, instead of the instance_* and class_* flags
    concepts_list: str | None = None
    resolution: int | None = None  # side in pixels; default: the model's own (512 for SD-1.5)
    center_crop: bool = False  # on: cut the middle square; off: a random one
    pad: bool = False  # pad to a square instead of cutting
    random_flip: bool = False  # mirror each picture with probability 1/2
    repeats: int = 1  # how often an epoch shows each picture
    ignore_captions: bool = False  # do not read .txt files


@dataclass(frozen=True)
class WhatTrains:
    """Which weights train."""

    title: ClassVar = "weights"

    # full: every weight of the denoiser; lora to svdiff: an adapter; custom_diffusion: keys and
    # values of the cross-attention, and new words; token: new words alone
    train: Literal[
        "full", "lora", "loha", "lokr", "oft", "boft", "svdiff", "custom_diffusion", "token"
    ] = "full"
    train_text_encoder: bool = False  # train the text encoder too, in the same way
    rank: int = 4  # rank of the factors of LoRA, LoHa and LoKr
    lora_alpha: float | None = None  # scale = alpha / rank; default: rank, so scale 1
    lora_dropout: float = 0.0  # share of LoRA's inputs that is set to 0 at random
    # names of the adapted layers; default: to_q to_k to_v to_out.0 of the attention
    lora_target_modules: tuple[str, ...] = ()
    decompose_factor: int = -1  # LoKr: size of the smaller factor; -1: near the square root
    oft_block_size: int = 8  # OFT and BOFT: number of inputs that are rotated together
    boft_n_butterfly_factor: int = 1  # BOFT: rotations in a row; more than 1 needs a GPU
    # the new word to learn, e.g. "<new1>"; several: "<new1>+<new2>"
    placeholder_token: Annotated[str | None, also("--modifier_token")] = None
    # the known word from which the new one starts; for several: "cat+dog"
    initializer_token: str | None = None
    num_vectors: int = 1  # number of rows of the embedding table for each new word
    # custom_diffusion: train keys and values, or (crossattn) queries and outputs too
    freeze_model: Literal["crossattn_kv", "crossattn"] = "crossattn_kv"


@dataclass(frozen=True)
class Loss:
    """The loss that is minimized."""

    title: ClassVar = "loss"

    # standard: the denoising loss alone; prior, l2, output, fisher or a sum such as prior+l2: with
    # these terms added, whose weights follow
    objective: str = "standard"
    with_prior_preservation: bool = False  # add prior to --objective (diffusers' name for it)
    # weight of prior: the loss on the base's own pictures of the class
    prior_loss_weight: float = 1.0
    # weight of l2: loss for each unit of squared distance from the base's weights (unit:
    # --reg_reduction)
    l2_reg_weight: Annotated[float, also("--l2_weight")] = 1e-3
    output_weight: float = 1.0  # weight of output: the squared difference from the base's outputs
    # weight of fisher: the squared distance, weighted by the base's Fisher information
    fisher_weight: float = 1e-3
    # l2: a sum over all weights, or the paper's mean per tensor, summed (weight 500 for SD-1.5)
    reg_reduction: Literal["sum", "tensor_mean"] = "sum"
    # where l2 holds, each with a weight, e.g. cross_attn:1 conv:0.1: kinds of layers (cross_attn
    # self_attn feed_forward conv norm time text_encoder; other: the rest) or regular expressions
    # for names; a layer that no entry names has weight 0. Default: all alike
    l2_layers: tuple[str, ...] = ()
    # drift that is allowed, in nats: the weight of the objective's last term is adapted at every
    # measurement of path KL (--path_kl_steps), and begins at the weight given
    max_path_kl: float | None = None
    # l2, fisher: take a proximal step toward the base after Adam's instead of adding to the loss
    reg_decoupled: bool = False
    anchor_dtype: Literal["fp32", "bf16"] = "fp32"  # precision of the stored base weights
    anchor_device: Literal["train", "cpu"] = "train"  # where these are stored; cpu saves GPU memory
    snr_gamma: float | None = None  # min-SNR weighting, usually 5.0; not for SD-3
    # SD-3: which timesteps are drawn, or how much they count; default: logit_normal
    weighting_scheme: Flow | None = None
    logit_mean: float = 0.0  # mean of logit_normal; above 0: less noise
    logit_std: float = 1.0  # standard deviation of logit_normal
    mode_scale: float = 1.29  # scale of mode, -1 to 1.75; above 0: more draws in the middle
    precondition_outputs: bool = False  # SD-3: the loss compares clean pictures instead of flows
    offset_noise: bool = False  # add 0.1 times one normal number per channel to the noise
    # whose pictures --objective output noises: the base's pictures of the class, or yours
    output_source: Literal["class", "instance"] = "class"
    # full training with output: number of stored base outputs; a longer run uses them again
    output_draws: int = 4000
    fisher_samples: int = 64  # draws from which the Fisher information is estimated


@dataclass(frozen=True)
class ClassImages:
    """The base's own pictures of the class, for --objective prior and output."""

    title: ClassVar = "class_images"

    num_class_images: int = 100  # draw pictures until there are this many
    sample_batch_size: int = 4  # pictures drawn at once (class images, validation, measuring)
    # the sampler that draws them
    class_sampler: Literal["dpmsolver++", "unipc", "ddim", "euler", "pndm"] = "dpmsolver++"
    class_steps: int = 20  # steps of that sampler
    class_guidance: float = 7.5  # classifier-free guidance of the class images; 1: none
    class_keep: Literal["png", "latents"] = "png"  # latents are smaller, but cannot be looked at
    # precision in which the class images are drawn
    prior_generation_precision: Literal["no", "fp32", "bf16", "fp16"] = "no"


@dataclass(frozen=True)
class Optimization:
    """Steps, batches and the optimizer."""

    title: ClassVar = "optimization"

    output_dir: str = "runs/personalize/dreambooth-model"  # the run folder
    seed: int = 0  # seed of all random numbers; each use of them has its own stream
    train_batch_size: int = 4  # pictures in a minibatch, of yours and of the class each
    num_train_epochs: int = 1  # length of the run if --max_train_steps is not given
    max_train_steps: int | None = None  # optimizer steps
    gradient_accumulation_steps: int = 1  # minibatches in one optimizer step
    gradient_checkpointing: bool = False  # recompute activations: less memory, more time
    # precision of frozen weights and of the computation; trained weights stay fp32
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    allow_tf32: bool = False  # faster float32 products on Ampere GPUs and later
    # default: that of the kind of training, e.g. 5e-6 for full, 5e-4 for lora
    learning_rate: float | None = None
    text_encoder_lr: float | None = None  # default: --learning_rate
    scale_lr: bool = False  # multiply the learning rate by batch size and accumulation
    lr_scheduler: LearningRates = "constant"  # diffusers' learning rate schedules
    # default: a tenth of the steps, at most 500, where the schedule has a warmup
    lr_warmup_steps: int | None = None
    lr_num_cycles: int = 1  # number of cycles of cosine_with_restarts
    lr_power: float = 1.0  # power of polynomial
    use_8bit_adam: bool = False  # store Adam's moments in 8 bits (needs bitsandbytes)
    adam_beta1: float = 0.9  # decay of the first moment
    adam_beta2: float = 0.999  # decay of the second moment
    adam_weight_decay: float = 1e-2  # decoupled weight decay toward zero
    adam_epsilon: float = 1e-8  # added to the root of the second moment
    max_grad_norm: float = 1.0  # larger gradients are scaled down to this norm; 0: never
    use_ema: bool = False  # export the running average of the trained weights
    ema_decay: float = 0.9999  # decay of that average


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints. The same command continues from the newest one."""

    title: ClassVar = "checkpoint"

    checkpointing_steps: int = 500  # steps between checkpoints; 0: none but the last
    checkpoints_total_limit: int = 2  # how many checkpoints are kept; 0: all
    # a third of the size, but a run continued from it does not give the same bits
    checkpoint_weights_only: bool = False
    # start from a checkpoint folder of another run; latest: this folder must hold one
    resume_from_checkpoint: str | None = None


@dataclass(frozen=True)
class Measuring:
    """Measurements and pictures during training."""

    title: ClassVar = "measuring"

    # steps between rows of history.csv; each loss term is a mean since the row before
    log_every: int = 10
    # steps between measurements of delta_eps, the change of the outputs (a multiple of --log_every)
    probe_steps: int = 50
    path_kl_steps: int = 0  # steps between measurements of path KL; 0: at start and end only
    measure_chains: int = 4  # sampling chains of the base for each prompt, for path KL
    measure_nodes: int = 10  # ancestral steps of each chain
    # how many of these steps a measurement evaluates, drawn by importance; all of them: exact sum;
    # default: 1; 2 with --train full; 3 with prior or output: their training steps cost more
    nodes_per_chain: int | None = None
    # at the end, measure path KL of each kind of layer's change alone, the rest as in the base
    measure_layers: bool = False
    # number of each subject's pictures kept from training, to measure in nats what is learnt (gain)
    held_out: int = 0
    held_out_data_dir: str | None = None  # folder of such pictures, instead of --held_out
    gain_samples: int = 64  # noisy versions of the held-out pictures, for gain under each prompt
    # prompts of the class in other places; default: the class prompt in three places
    context_prompts: tuple[str, ...] = ()
    # prompts that have nothing to do with the class
    unrelated_prompts: tuple[str, ...] = UNRELATED
    # prompts to draw as grids, the base's pictures above the trained model's
    validation_prompt: Annotated[tuple[str, ...], also("--validation_prompts")] = ()
    num_validation_images: int = 4  # pictures for each of those prompts
    validation_steps: int = 100  # steps between grids
    validation_inference_steps: int = 25  # steps of the sampler dpmsolver++
    validation_guidance: float = 7.5  # classifier-free guidance; 1: none
    report_to: str | None = None  # tensorboard, wandb, ...; history.csv is written anyway
    dry_run: bool = False  # print settings, time and memory, measured on three steps; stop


TOPICS = (
    BaseModel,
    Pictures,
    WhatTrains,
    Loss,
    ClassImages,
    Optimization,
    Checkpoints,
    Measuring,
)
