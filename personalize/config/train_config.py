"""TrainConfig: every choice of one run, with the flag names and defaults of diffusers' DreamBooth scripts.

Nothing heavy is imported here. `rules.resolve` fills in what was left open (None) and refuses flags that would do nothing.
"""

import shlex
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import tyro

from personalize.config.concepts import Concept, read_concepts
from personalize.config.kinds import KINDS, Kind, Word, words_of
from personalize.config.presets import PRESETS

UNRELATED = ("a photo of a red car", "a bowl of fruit on a table", "a painting of a house", "a city at night")  # fmt: skip


def alias(name: str):
    return tyro.conf.arg(aliases=[name])


@dataclass(frozen=True)
class TrainConfig:
    """Personalize a Stable Diffusion model with your own photos.

    Change only --objective and everything else, down to the noise, stays equal:

    $ personalize train --pretrained_model_name_or_path sd15/ --instance_data_dir photos/
        --instance_prompt "a photo of sks dog" --class_prompt "a photo of a dog" --objective l2 --train lora --output_dir runs/rex
    """

    # ---- model
    pretrained_model_name_or_path: str  # a diffusers pipeline folder, or a hub id
    preset: str | None = None  # named settings (`personalize presets`); a flag beside it wins
    # ---- pictures

    # folder of jpg / png / webp files, each perhaps with a .txt caption
    instance_data_dir: str | None = None
    instance_prompt: str | None = None  # the prompt of every picture without a caption
    revision: str | None = None  # branch, tag or commit of the hub id
    variant: str | None = None  # e.g. fp16: which of the published weight files to read
    without_t5: bool = False  # SD-3 without its third and largest text encoder
    class_data_dir: str | None = None  # where the base's own pictures of the class are kept
    class_prompt: str | None = None  # e.g. "a photo of a dog": no identifier in it
    concepts_list: str | None = (
        None  # JSON of several subjects, instead of the four flags instance_* and class_* (concepts.py)
    )
    resolution: int | None = None  # pixels; default: the model's own (512 for SD-1.5)
    center_crop: bool = False  # cut the middle square instead of a random one
    pad: bool = False  # pad to a square instead of cutting
    random_flip: bool = False  # mirror every second picture, at random
    repeats: int = 1  # an epoch shows each picture this often
    ignore_captions: bool = False  # NAME.txt beside NAME.jpg is its prompt, unless you say this
    # ---- what trains

    # every weight of the denoiser, adapters, keys and values with new words, or new words alone (kinds.py)
    train: Literal["full", "lora", "loha", "lokr", "oft", "boft", "custom_diffusion", "token"] = (
        "full"
    )
    train_text_encoder: bool = False  # the text encoder too, in the same way
    rank: int = 4  # of the factors of LoRA, LoHa, LoKr
    lora_alpha: float | None = None  # scale = alpha / rank; default: rank, so scale 1
    lora_dropout: float = 0.0  # share of LoRA's inputs left out
    lora_target_modules: tuple[str, ...] = ()  # default: the attention's to_q to_k to_v to_out.0
    decompose_factor: int = -1  # LoKr: size of the smaller half; -1: near the root
    oft_block_size: int = 8  # OFT and BOFT: inputs that are rotated together
    boft_n_butterfly_factor: int = 1  # BOFT: rotations one after another; more than 1 needs a GPU
    placeholder_token: Annotated[str | None, alias("--modifier_token")] = (
        None  # the new word to learn, such as "<new1>"; several: "<new1>+<new2>"
    )
    initializer_token: str | None = None  # the known word it starts from; several: "cat+dog"
    num_vectors: int = 1  # rows of the embedding table for each new word
    freeze_model: Literal["crossattn_kv", "crossattn"] = (
        "crossattn_kv"  # custom_diffusion: what trains, keys and values or queries and outputs too
    )
    # ---- objective
    objective: str = "standard"  # standard, prior, l2, output, fisher, or a sum such as prior+l2
    with_prior_preservation: bool = False  # diffusers' name for adding the prior term
    prior_loss_weight: float = 1.0  # of the loss on the base's own class images
    l2_reg_weight: Annotated[float, alias("--l2_weight")] = (
        1e-3  # loss per squared distance, in the unit of --reg_reduction
    )
    output_weight: float = 1.0  # of the squared difference from the base's answers
    fisher_weight: float = 1e-3  # loss per nat of the base's local path KL, times 2
    reg_reduction: Literal["sum", "tensor_mean"] = (
        "sum"  # tensor_mean: the paper's code, e.g. 500 for SD-1.5
    )
    reg_decoupled: bool = False  # a proximal step after Adam's instead of a gradient
    anchor_dtype: Literal["fp32", "bf16"] = "fp32"  # of the stored base weights
    anchor_device: Literal["train", "cpu"] = "train"  # cpu: base weights wait on the host
    snr_gamma: float | None = None  # min-SNR weighting, usually 5.0; not for SD-3
    weighting_scheme: Literal["none", "logit_normal", "mode", "sigma_sqrt", "cosmap"] | None = (
        None  # SD-3: which timesteps are drawn, or how much they count; default: logit_normal
    )
    logit_mean: float = 0.0  # of logit_normal; above 0: less noise
    logit_std: float = 1.0  # of logit_normal
    mode_scale: float = 1.29  # of mode, between -1 and 1.75; above 0: more draws in the middle
    precondition_outputs: bool = False  # SD-3: compare clean pictures instead of flows
    offset_noise: bool = False  # add 0.1 * one normal number per channel to the noise
    output_source: Literal["class", "instance"] = (
        "class"  # what --objective output noises: the base's pictures, or yours
    )
    # full training: answers of the base that are stored, one a sample; longer runs take turns
    output_draws: int = 4000
    fisher_samples: int = 64  # draws from the base's own chains
    # ---- class images
    num_class_images: int = 100  # at least so many; existing ones count
    sample_batch_size: int = 4  # pictures made at once (class images, validation, measuring)
    class_sampler: Literal["dpmsolver++", "unipc", "ddim", "euler", "pndm"] = (
        "dpmsolver++"  # who makes the class images
    )
    class_steps: int = 20  # of that sampler
    class_guidance: float = 7.5  # classifier-free guidance; 1: none
    class_keep: Literal["png", "latents"] = "png"  # latents: smaller, no pictures to look at
    prior_generation_precision: Literal["no", "fp32", "bf16", "fp16"] = "no"  # of the class images
    # ---- engine
    output_dir: str = "runs/personalize/dreambooth-model"  # the run folder
    seed: int = 0  # of every draw; one stream for each role
    train_batch_size: int = 4  # pictures of each role in a minibatch
    num_train_epochs: int = 1  # used when --max_train_steps is not given
    max_train_steps: int | None = None  # optimizer steps
    gradient_accumulation_steps: int = 1  # minibatches of one optimizer step
    gradient_checkpointing: bool = False  # recompute activations: less memory, more time
    mixed_precision: Literal["no", "fp16", "bf16"] = (
        "no"  # of what is frozen and computed; trained weights stay fp32
    )
    allow_tf32: bool = False  # faster float32 products on Ampere and later
    learning_rate: float | None = None  # default: that of the kind, e.g. 5e-6 full, 5e-4 LoRA
    text_encoder_lr: float | None = None  # default: the learning rate
    scale_lr: bool = False  # learning rate times batch size times accumulation
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = "constant"  # diffusers' own schedules
    lr_warmup_steps: int | None = (
        None  # default where there is a warmup: a tenth of the steps, at most 500
    )
    lr_num_cycles: int = 1  # of cosine_with_restarts
    lr_power: float = 1.0  # of polynomial
    use_8bit_adam: bool = False  # moments in 8 bits, by bitsandbytes
    adam_beta1: float = 0.9  # decay of the first moment
    adam_beta2: float = 0.999  # decay of the second moment
    adam_weight_decay: float = 1e-2  # toward zero, decoupled
    adam_epsilon: float = 1e-8  # added to the root of the second moment
    max_grad_norm: float = 1.0  # 0: no clipping
    use_ema: bool = False  # export the running average of the trained weights
    ema_decay: float = 0.9999  # of that average
    # ---- checkpoints
    checkpointing_steps: int = 500  # 0: none but the last
    checkpoints_total_limit: int = 2  # how many stay; 0: all
    checkpoint_weights_only: bool = False  # a third of the size, but resuming is then not bit-equal
    resume_from_checkpoint: str | None = (
        None  # by itself a run resumes; or: latest, or a checkpoint folder of any run
    )
    # ---- what is seen while it runs
    log_every: int = 10  # steps between rows of history.csv; terms are means since the row before
    probe_steps: int = 50  # steps between measurements of delta eps (a multiple of log_every)
    path_kl_steps: int = 0  # steps between measurements of path KL; 0: at start and end only
    measure_chains: int = 4  # base chains for each prompt
    measure_nodes: int = 10  # ancestral steps of those chains
    context_prompts: tuple[str, ...] = ()  # default: the class prompt in three places
    unrelated_prompts: tuple[str, ...] = (
        UNRELATED  # measured for drift; should have nothing to do with the class
    )
    validation_prompt: Annotated[
        tuple[str, ...], alias("--validation_prompts")
    ] = ()  # drawn as grids, base beside tuned
    num_validation_images: int = 4  # for each prompt
    validation_steps: int = 100  # steps between grids
    validation_inference_steps: int = 25  # of dpmsolver++
    validation_guidance: float = 7.5  # classifier-free guidance; 1: none
    report_to: str | None = None  # tensorboard, wandb, ...: besides history.csv
    dry_run: bool = False  # say what would happen, measure one step, and stop

    def command(self) -> str:
        """The command line that gives this configuration: what differs from the defaults, or from the preset."""
        words = ["personalize", "train"]
        default = {f.name: f.default for f in fields(self)}
        default |= PRESETS[self.preset]() if self.preset else {}
        for name, usual in default.items():
            value = getattr(self, name)
            if value is False and usual is True:
                words.append(f"--no-{name}")
            elif value not in (usual, None) and name != "dry_run":
                values = value if isinstance(value, tuple) else () if value is True else (value,)
                words += [f"--{name}", *(shlex.quote(str(v)) for v in values)]
        return " ".join(words)

    @property
    def parts(self) -> tuple[str, ...]:
        """The objectives added up, without "standard"."""
        names = dict.fromkeys(self.objective.lower().replace(" ", "").split("+"))
        if self.with_prior_preservation:
            names["prior"] = None
        return tuple(n for n in names if n != "standard")

    @property
    def weight(self) -> float | str | None:
        """The objective's weight; of a sum, all of them joined by +; None for standard."""
        of = {"prior": self.prior_loss_weight, "l2": self.l2_reg_weight, "output": self.output_weight, "fisher": self.fisher_weight}  # fmt: skip
        weights = [of[p] for p in self.parts]
        return weights[0] if len(weights) == 1 else "+".join(map(str, weights)) or None

    @property
    def kind(self) -> Kind:
        return KINDS[self.train]

    @property
    def words(self) -> tuple[Word, ...]:
        return words_of(self.placeholder_token, self.initializer_token, self.num_vectors)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The subjects: those of --concepts_list, or the one that the flags describe."""
        if self.concepts_list:
            return read_concepts(self.concepts_list)
        flags = (
            self.instance_data_dir or "",
            self.instance_prompt,
            self.class_prompt,
            self.class_data_dir,
        )
        return (Concept(*flags),)

    @property
    def class_prompts(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(c.class_prompt for c in self.concepts if c.class_prompt))

    @property
    def text_trains(self) -> bool:
        """Does an embedding of the live model change while it trains?"""
        return self.train_text_encoder or bool(self.placeholder_token)

    @property
    def needs_class_images(self) -> bool:
        return "prior" in self.parts or ("output" in self.parts and self.output_source == "class")

    def uses(self, *names: str) -> bool:
        return any(n in self.parts for n in names)
