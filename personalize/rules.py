"""Which flags make sense together: `resolve` fills in what was left open and refuses what would do nothing, all in one message.

RULES says when each flag has an effect. Flags of diffusers that TrainConfig does not have are explained in ALREADY_SO and NOT_HERE.
"""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from personalize.config import TrainConfig
from toy2d.files import UserError

OBJECTIVES = ("standard", "prior", "l2", "output", "fisher")
CONTEXTS = ("in the snow", "on the beach", "in the jungle")


class Rule(NamedTuple):
    """`field` may differ from its default only where `when` holds."""

    field: str
    when: Callable[[TrainConfig], bool]
    why: str


def _lora(c):
    return c.train == "lora"


def _anchored(c):
    return c.uses("l2", "fisher")


def _warms_up(c):
    return c.lr_scheduler != "constant"


def _validates(c):
    return bool(c.validation_prompt)


RULES = (
    Rule("rank", _lora, "only --train lora has a rank"),
    Rule("lora_alpha", _lora, "only --train lora has a scale"),
    Rule("lora_dropout", _lora, "only --train lora has adapters to drop"),
    Rule("lora_target_modules", _lora, "only --train lora has target modules"),
    Rule("prior_loss_weight", lambda c: c.uses("prior"), "the objective has no prior term; add --objective prior"),
    Rule("l2_reg_weight", lambda c: c.uses("l2"), "the objective has no l2 term; add --objective l2"),
    Rule("output_weight", lambda c: c.uses("output"), "the objective has no output term; add --objective output"),
    Rule("fisher_weight", lambda c: c.uses("fisher"), "the objective has no fisher term; add --objective fisher"),
    Rule("reg_reduction", lambda c: c.uses("l2"), "it is the unit of --l2_reg_weight; add --objective l2"),
    Rule("reg_decoupled", _anchored, "there is no distance term; add --objective l2 or fisher"),
    Rule("anchor_dtype", lambda c: _anchored(c) and not _lora(c), "only full training with l2 or fisher stores base weights"),
    Rule("anchor_device", lambda c: _anchored(c) and not _lora(c), "only full training with l2 or fisher stores base weights"),
    Rule("output_source", lambda c: c.uses("output"), "the objective has no output term"),
    Rule("output_draws", lambda c: c.uses("output") and not _lora(c), "only --objective output with --train full stores the base's answers"),
    Rule("fisher_samples", lambda c: c.uses("fisher"), "the objective has no fisher term"),
    Rule("class_data_dir", lambda c: c.needs_class_images, "the objective uses no class images; add --objective prior"),
    Rule("num_class_images", lambda c: c.needs_class_images, "the objective uses no class images"),
    Rule("class_sampler", lambda c: c.needs_class_images, "the objective uses no class images"),
    Rule("class_steps", lambda c: c.needs_class_images, "the objective uses no class images"),
    Rule("class_guidance", lambda c: c.needs_class_images, "the objective uses no class images"),
    Rule("class_keep", lambda c: c.needs_class_images, "the objective uses no class images"),
    Rule("prior_generation_precision", lambda c: c.needs_class_images, "the objective uses no class images"),
    Rule("logit_mean", lambda c: c.weighting_scheme in (None, "logit_normal"), "only --weighting_scheme logit_normal has a mean"),
    Rule("logit_std", lambda c: c.weighting_scheme in (None, "logit_normal"), "only --weighting_scheme logit_normal has a width"),
    Rule("mode_scale", lambda c: c.weighting_scheme == "mode", "only --weighting_scheme mode has a scale"),
    Rule("repeats", lambda c: c.max_train_steps is None, "--max_train_steps decides the length; pictures always take turns"),
    Rule("num_train_epochs", lambda c: c.max_train_steps is None, "--max_train_steps decides the length"),
    Rule("text_encoder_lr", lambda c: c.train_text_encoder, "the text encoder is frozen; add --train_text_encoder"),
    Rule("lr_warmup_steps", _warms_up, "--lr_scheduler constant has no warmup; use constant_with_warmup"),
    Rule("lr_num_cycles", lambda c: c.lr_scheduler == "cosine_with_restarts", "only --lr_scheduler cosine_with_restarts has cycles"),
    Rule("lr_power", lambda c: c.lr_scheduler == "polynomial", "only --lr_scheduler polynomial has a power"),
    Rule("ema_decay", lambda c: c.use_ema, "there is no average without --use_ema"),
    Rule("pad", lambda c: not c.center_crop, "--center_crop cuts where --pad would keep; choose one"),
    Rule("revision", lambda c: not _is_folder(c), "the model is a local folder; it has no revisions"),
    Rule("num_validation_images", _validates, "there is no --validation_prompt"),
    Rule("validation_steps", _validates, "there is no --validation_prompt"),
    Rule("validation_inference_steps", _validates, "there is no --validation_prompt"),
    Rule("validation_guidance", _validates, "there is no --validation_prompt"),
    Rule("checkpoint_weights_only", lambda c: c.checkpointing_steps > 0, "--checkpointing_steps 0 writes no checkpoints"),
    Rule("checkpoints_total_limit", lambda c: c.checkpointing_steps > 0, "--checkpointing_steps 0 writes no checkpoints"),
)  # fmt: skip

FLOW_ONLY = ("weighting_scheme", "logit_mean", "logit_std", "mode_scale", "precondition_outputs")

POSITIVE = (
    "repeats", "rank", "output_draws", "fisher_samples", "num_class_images", "sample_batch_size", "class_steps",
    "train_batch_size", "num_train_epochs", "gradient_accumulation_steps", "lr_num_cycles", "adam_epsilon", "log_every",
    "num_validation_images", "validation_steps", "validation_inference_steps", "probe_steps", "resolution", "max_train_steps",
    "lora_alpha", "snr_gamma", "logit_std", "learning_rate", "text_encoder_lr",
)  # fmt: skip
AT_LEAST_TWO = ("measure_chains", "measure_nodes")
NOT_NEGATIVE = (
    "prior_loss_weight", "l2_reg_weight", "output_weight", "fisher_weight", "max_grad_norm", "adam_weight_decay",
    "checkpointing_steps", "checkpoints_total_limit", "path_kl_steps", "lr_warmup_steps", "lr_power",
)  # fmt: skip
AT_LEAST_ONE = ("class_guidance", "validation_guidance")
FRACTIONS = ("adam_beta1", "adam_beta2", "lora_dropout", "ema_decay")  # [0, 1)

ALREADY_SO = {
    "set_grads_to_none": "gradients are always freed between steps",
    "pre_compute_text_embeddings": "prompts of a frozen text encoder are always encoded once",
    "cache_latents": "latents are always cached where cropping allows it",
    "enable_xformers_memory_efficient_attention": "torch's own fused attention is used",
}
NOT_HERE = {
    "push_to_hub": "upload the finished folder with `hf upload`",
    "hub_token": "log in with `hf auth login`",
    "hub_model_id": "upload the finished folder with `hf upload`",
    "tokenizer_name": "the tokenizer belongs to the model folder",
    "dataloader_num_workers": "pictures are encoded once, before the first step",
    "logging_dir": "logs go into the run folder",
    "local_rank": "one process trains",
    "tokenizer_max_length": "the tokenizer's own length is used",
    "max_sequence_length": "the pipeline's own length (T5 reads 256 tokens) is used, in training as in sampling",
    "pretrained_vae_model_name_or_path": "the VAE computes in float32, so no fp16-safe replacement is needed",
    "do_edm_style_training": "only schedulers with a table of betas, or flow matching",
    "lora_layers": "use --lora_target_modules",
    "text_encoder_use_attention_mask": "SD-1.x and 2.x use none",
    "class_labels_conditioning": "SD-1.x and 2.x use none",
    "validation_images": "only prompts are validated",
    "validation_scheduler": "validation samples with dpmsolver++",
    "skip_save_text_encoder": "the exported folder is always complete",
    "validation_epochs": "use --validation_steps",
    "use_dora": "only LoRA is built yet",
    "optimizer": "AdamW, or --use_8bit_adam",
}


def resolve(config: TrainConfig) -> TrainConfig:
    """The configuration with nothing left open. Raises UserError naming every flag that is wrong or would do nothing."""
    problems = [*_wrong_values(config), *_missing(config), *_without_effect(config)]
    if problems:
        raise UserError("; ".join(problems))
    lr = config.learning_rate or (5e-4 if config.train == "lora" else 5e-6)
    if config.scale_lr:
        lr *= config.train_batch_size * config.gradient_accumulation_steps
    contexts = config.context_prompts
    if config.class_prompt and not contexts:
        contexts = tuple(f"{config.class_prompt} {where}" for where in CONTEXTS)
    return replace(
        config,
        objective="+".join(config.parts) or "standard",
        with_prior_preservation=False,
        learning_rate=lr,
        scale_lr=False,
        text_encoder_lr=config.text_encoder_lr or (lr if config.train_text_encoder else None),
        lora_alpha=config.lora_alpha or (float(config.rank) if config.train == "lora" else None),
        context_prompts=contexts,
    )


def _wrong_values(c: TrainConfig) -> list[str]:
    bad = []
    for names, ok, rule in (
        (POSITIVE, lambda v: v > 0, "must be above 0"),
        (AT_LEAST_TWO, lambda v: v >= 2, "must be at least 2"),
        (AT_LEAST_ONE, lambda v: v >= 1, "must be at least 1 (1: none)"),
        (NOT_NEGATIVE, lambda v: v >= 0, "must not be negative"),
        (FRACTIONS, lambda v: 0 <= v < 1, "must be in [0, 1)"),
    ):
        for name in names:
            value = getattr(c, name)
            if value is not None and not (math.isfinite(value) and ok(value)):
                bad.append(f"--{name} {value} {rule}")
    unknown = [p for p in c.parts if p not in OBJECTIVES]
    if unknown:
        bad.append(f"--objective {c.objective}: {unknown[0]!r} is none of {', '.join(OBJECTIVES)}")
    if c.uses("l2") and c.uses("fisher") and c.reg_reduction != "sum":
        bad.append(
            "--reg_reduction tensor_mean cannot be combined with fisher, whose unit is the sum"
        )
    if not (math.isfinite(c.logit_mean) and -1 <= c.mode_scale <= 1.75):
        bad.append("--logit_mean must be a number and --mode_scale must lie between -1 and 1.75")
    if c.probe_steps % c.log_every or c.path_kl_steps % c.log_every:
        bad.append(
            f"--probe_steps and --path_kl_steps must be multiples of --log_every {c.log_every}"
        )
    return bad


def _missing(c: TrainConfig) -> list[str]:
    need = []
    if c.uses("prior", "output", "fisher") and not c.class_prompt:
        need.append(f'--objective {c.objective} needs --class_prompt, e.g. "a photo of a dog"')
    if c.needs_class_images and not c.class_data_dir:
        need.append(
            f"--objective {c.objective} needs --class_data_dir, where class images are kept"
        )
    if c.class_prompt and c.class_prompt == c.instance_prompt:
        need.append("--class_prompt equals --instance_prompt; leave the identifier out of it")
    return need


def _without_effect(c: TrainConfig) -> list[str]:
    default = {f.name: f.default for f in fields(c)}
    return [
        f"--{r.field} has no effect: {r.why}"
        for r in RULES
        if getattr(c, r.field) != default[r.field] and not r.when(c)
    ]


def refuse_for_model(c: TrainConfig, flow: bool) -> None:
    """What only the opened model can tell. Raises UserError for flags of flow matching on another model, and the reverse."""
    default = {f.name: f.default for f in fields(c)}
    why = "this model is trained by flow matching" if flow else "this model knows no flow matching"
    names = [n for n in (("snr_gamma",) if flow else FLOW_ONLY) if getattr(c, n) != default[n]]
    if names:
        raise UserError("; ".join(f"--{n} has no effect: {why}" for n in names))


def _is_folder(c: TrainConfig) -> bool:
    return Path(c.pretrained_model_name_or_path).is_dir()


def explain_foreign_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(arguments without diffusers' flags that are already so here, a note for each). Raises UserError for those not built."""
    kept, notes = [], []
    for a in arguments:
        name = a.split("=")[0].lstrip("-").replace("-", "_") if a.startswith("--") else ""
        if name in NOT_HERE:
            raise UserError(f"--{name} is not a flag here: {NOT_HERE[name]}")
        if name in ALREADY_SO:
            notes.append(f"--{name}: {ALREADY_SO[name]}")
        else:
            kept.append(a)
    return kept, notes
