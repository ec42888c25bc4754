"""Which flags make sense together: `resolve` fills in what was left open and refuses what would do nothing, all in one message.

RULES says when each flag has an effect. Flags of diffusers that TrainConfig does not have are explained in ALREADY_SO and NOT_HERE.
"""

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from personalize.config.concepts import as_json
from personalize.config.kinds import wrong_words
from personalize.config.train_config import TrainConfig
from personalize.mini.shipped import WEIGHTS, is_mini
from toy2d.runs.files import UserError

OBJECTIVES = ("standard", "prior", "l2", "output", "fisher")
CONTEXTS = ("in the snow", "on the beach", "in the jungle")


class Rule(NamedTuple):
    """`field` may differ from its default only where `when` holds."""

    field: str
    when: Callable[[TrainConfig], bool]
    why: str


def _reads(field: str):
    """Does the adapter of --train read this flag?"""
    return lambda c: field in c.kind.flags.values()


def _anchored(c):
    return c.uses("l2", "fisher")


def _warms_up(c):
    return c.lr_scheduler != "constant"


def _validates(c):
    return bool(c.validation_prompt)


RULES = (
    Rule("rank", _reads("rank"), "this kind of training has no rank"),
    Rule("lora_alpha", _reads("lora_alpha"), "this kind of training has no scale"),
    Rule("lora_dropout", _reads("lora_dropout"), "only --train lora has dropout"),
    Rule("lora_target_modules", lambda c: c.kind.adapter, "only adapters have target modules"),
    Rule(
        "decompose_factor", _reads("decompose_factor"), "only --train lokr splits a weight in two"
    ),
    Rule("oft_block_size", _reads("oft_block_size"), "only --train oft and boft rotate blocks"),
    Rule(
        "boft_n_butterfly_factor",
        _reads("boft_n_butterfly_factor"),
        "only --train boft has butterflies",
    ),
    Rule(
        "placeholder_token",
        lambda c: c.kind.words,
        "only --train custom_diffusion and token learn new words",
    ),
    Rule(
        "initializer_token",
        lambda c: c.placeholder_token,
        "there is no --placeholder_token to start from it",
    ),
    Rule(
        "num_vectors", lambda c: c.placeholder_token, "there is no --placeholder_token to hold them"
    ),
    Rule(
        "freeze_model",
        lambda c: c.kind.weights == "cross_attention",
        "only --train custom_diffusion trains the cross-attention alone",
    ),
    Rule(
        "prior_loss_weight",
        lambda c: c.uses("prior"),
        "the objective has no prior term; add --objective prior",
    ),
    Rule(
        "l2_reg_weight", lambda c: c.uses("l2"), "the objective has no l2 term; add --objective l2"
    ),
    Rule(
        "output_weight",
        lambda c: c.uses("output"),
        "the objective has no output term; add --objective output",
    ),
    Rule(
        "fisher_weight",
        lambda c: c.uses("fisher"),
        "the objective has no fisher term; add --objective fisher",
    ),
    Rule(
        "reg_reduction",
        lambda c: c.uses("l2"),
        "it is the unit of --l2_reg_weight; add --objective l2",
    ),
    Rule("reg_decoupled", _anchored, "there is no distance term; add --objective l2 or fisher"),
    Rule(
        "anchor_dtype",
        lambda c: _anchored(c) and not c.kind.adapter,
        "adapters store no base weights, and only l2 and fisher have an anchor",
    ),
    Rule(
        "anchor_device",
        lambda c: _anchored(c) and not c.kind.adapter,
        "adapters store no base weights, and only l2 and fisher have an anchor",
    ),
    Rule("output_source", lambda c: c.uses("output"), "the objective has no output term"),
    Rule(
        "output_draws",
        lambda c: c.uses("output") and not c.kind.keeps_base,
        "only --objective output with --train full stores the base's answers",
    ),
    Rule("fisher_samples", lambda c: c.uses("fisher"), "the objective has no fisher term"),
    Rule(
        "class_data_dir",
        lambda c: c.needs_class_images,
        "the objective uses no class images; add --objective prior",
    ),
    Rule("num_class_images", lambda c: c.needs_class_images, "the objective uses no class images"),
    Rule("class_sampler", lambda c: c.needs_class_images, "the objective uses no class images"),
    Rule("class_steps", lambda c: c.needs_class_images, "the objective uses no class images"),
    Rule("class_guidance", lambda c: c.needs_class_images, "the objective uses no class images"),
    Rule("class_keep", lambda c: c.needs_class_images, "the objective uses no class images"),
    Rule(
        "prior_generation_precision",
        lambda c: c.needs_class_images,
        "the objective uses no class images",
    ),
    Rule(
        "logit_mean",
        lambda c: c.weighting_scheme in (None, "logit_normal"),
        "only --weighting_scheme logit_normal has a mean",
    ),
    Rule(
        "logit_std",
        lambda c: c.weighting_scheme in (None, "logit_normal"),
        "only --weighting_scheme logit_normal has a width",
    ),
    Rule(
        "mode_scale",
        lambda c: c.weighting_scheme == "mode",
        "only --weighting_scheme mode has a scale",
    ),
    Rule(
        "repeats",
        lambda c: c.max_train_steps is None,
        "--max_train_steps decides the length; pictures always take turns",
    ),
    Rule(
        "num_train_epochs",
        lambda c: c.max_train_steps is None,
        "--max_train_steps decides the length",
    ),
    Rule(
        "text_encoder_lr",
        lambda c: c.text_trains,
        "the text encoder is frozen; add --train_text_encoder",
    ),
    Rule(
        "lr_warmup_steps",
        _warms_up,
        "--lr_scheduler constant has no warmup; use constant_with_warmup",
    ),
    Rule(
        "lr_num_cycles",
        lambda c: c.lr_scheduler == "cosine_with_restarts",
        "only --lr_scheduler cosine_with_restarts has cycles",
    ),
    Rule(
        "lr_power",
        lambda c: c.lr_scheduler == "polynomial",
        "only --lr_scheduler polynomial has a power",
    ),
    Rule("ema_decay", lambda c: c.use_ema, "there is no average without --use_ema"),
    Rule(
        "pad", lambda c: not c.center_crop, "--center_crop cuts where --pad would keep; choose one"
    ),
    Rule(
        "revision", lambda c: not _is_folder(c), "the model is a local folder; it has no revisions"
    ),
    Rule("num_validation_images", _validates, "there is no --validation_prompt"),
    Rule("validation_steps", _validates, "there is no --validation_prompt"),
    Rule("validation_inference_steps", _validates, "there is no --validation_prompt"),
    Rule("validation_guidance", _validates, "there is no --validation_prompt"),
    Rule(
        "checkpoint_weights_only",
        lambda c: c.checkpointing_steps > 0,
        "--checkpointing_steps 0 writes no checkpoints",
    ),
    Rule(
        "checkpoints_total_limit",
        lambda c: c.checkpointing_steps > 0,
        "--checkpointing_steps 0 writes no checkpoints",
    ),
)

FLOW_ONLY = ("weighting_scheme", "logit_mean", "logit_std", "mode_scale", "precondition_outputs")

POSITIVE = (
    "repeats",
    "rank",
    "output_draws",
    "fisher_samples",
    "num_class_images",
    "sample_batch_size",
    "class_steps",
    "train_batch_size",
    "num_train_epochs",
    "gradient_accumulation_steps",
    "lr_num_cycles",
    "adam_epsilon",
    "log_every",
    "num_validation_images",
    "validation_steps",
    "validation_inference_steps",
    "probe_steps",
    "resolution",
    "max_train_steps",
    "oft_block_size",
    "boft_n_butterfly_factor",
    "num_vectors",
    "lora_alpha",
    "snr_gamma",
    "logit_std",
    "learning_rate",
    "text_encoder_lr",
)
AT_LEAST_TWO = ("measure_chains",)
AT_LEAST_THREE = (
    "measure_nodes",
)  # of two, the only one asked is pure noise, where a flow's eps depends on nothing
NOT_NEGATIVE = (
    "prior_loss_weight",
    "l2_reg_weight",
    "output_weight",
    "fisher_weight",
    "max_grad_norm",
    "adam_weight_decay",
    "checkpointing_steps",
    "checkpoints_total_limit",
    "path_kl_steps",
    "lr_warmup_steps",
    "lr_power",
)
AT_LEAST_ONE = ("class_guidance", "validation_guidance")
FRACTIONS = ("adam_beta1", "adam_beta2", "lora_dropout", "ema_decay")  # [0, 1)

ALREADY_SO = {
    "set_grads_to_none": "gradients are always freed between steps",
    "pre_compute_text_embeddings": "prompts of a frozen text encoder are always encoded once",
    "cache_latents": "latents are always cached where cropping allows it",
    "noaug": "pictures are cut and mirrored as asked, never scaled at random",
    "enable_xformers_memory_efficient_attention": "torch's own fused attention is used",
}
NOT_HERE = {
    "push_to_hub": "upload the finished folder with `hf upload`",
    "hub_token": "log in with `hf auth login`",
    "hub_model_id": "upload the finished folder with `hf upload`",
    "tokenizer_name": "the tokenizer belongs to the model folder",
    "dataloader_num_workers": "pictures are encoded once, before the first step",
    "logging_dir": "logs go into the run folder",
    "local_rank": "the launcher says it (accelerate launch, personalize/configs)",
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
    "use_dora": "of the adapters, lora, loha, lokr, oft and boft are built",
    "hflip": "use --random_flip",
    "real_prior": "class images are the base's own: use --objective prior",
    "no_safe_serialization": "weights are written as safetensors only",
    "train_data_dir": "use --instance_data_dir",
    "learnable_property": "--instance_prompt or captions say what is learnt",
    "optimizer": "AdamW, or --use_8bit_adam",
}


def resolve(config: TrainConfig, processes: int = 1) -> TrainConfig:
    """The configuration with nothing left open, for so many processes. Raises UserError naming every flag that is wrong or would do nothing."""
    problems = [
        *_wrong_values(config),
        *_missing(config),
        *_without_effect(config),
        *_useless_for_kind(config),
    ]
    if problems:
        raise UserError("; ".join(problems))
    lr = config.learning_rate or config.kind.learning_rate
    if config.scale_lr:
        lr *= processes * config.train_batch_size * config.gradient_accumulation_steps
    contexts = config.context_prompts
    if not contexts:
        contexts = tuple(
            f"{prompt} {where}" for prompt in config.class_prompts for where in CONTEXTS
        )
    return replace(
        config,
        objective="+".join(config.parts) or "standard",
        with_prior_preservation=False,
        learning_rate=lr,
        scale_lr=False,
        text_encoder_lr=config.text_encoder_lr or (lr if config.text_trains else None),
        lora_alpha=config.lora_alpha
        or (float(config.rank) if _reads("lora_alpha")(config) else None),
        concepts_list=as_json(config.concepts) if config.concepts_list else None,
        context_prompts=contexts,
    )


def _wrong_values(c: TrainConfig) -> list[str]:
    bad = []
    for names, ok, rule in (
        (POSITIVE, lambda v: v > 0, "must be above 0"),
        (AT_LEAST_TWO, lambda v: v >= 2, "must be at least 2"),
        (AT_LEAST_THREE, lambda v: v >= 3, "must be at least 3"),
        (AT_LEAST_ONE, lambda v: v >= 1, "must be at least 1 (1: none)"),
        (NOT_NEGATIVE, lambda v: v >= 0, "must not be negative"),
        (FRACTIONS, lambda v: 0 <= v < 1, "must be in [0, 1)"),
    ):
        for name in names:
            value = getattr(c, name)
            if value is not None and not math.isfinite(value):
                bad.append(f"--{name} {value} is not a finite number")
            elif value is not None and not ok(value):
                bad.append(f"--{name} {value} {rule}")
    if (widest := widest_layer(c.pretrained_model_name_or_path)) and c.rank > widest:
        bad.append(
            f"--rank {c.rank} is larger than the widest layer of this model ({widest}); "
            f"use at most {widest}"
        )
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
    need = wrong_words(c.placeholder_token, c.initializer_token)
    if c.train == "token" and not c.placeholder_token:
        need.append('--train token needs --placeholder_token, the new word, e.g. "<new1>"')
    if c.concepts_list:
        flags = ("instance_data_dir", "instance_prompt", "class_prompt", "class_data_dir")
        need += [
            f"--{f} has no effect: --concepts_list says it for each subject"
            for f in flags
            if getattr(c, f)
        ]
    elif not c.instance_data_dir:
        need.append("--instance_data_dir is missing: the folder that holds the pictures")
    for concept in c.concepts:
        if c.uses("prior", "output", "fisher") and not concept.class_prompt:
            need.append(f'--objective {c.objective} needs --class_prompt, e.g. "a photo of a dog"')
        if c.needs_class_images and not concept.class_data_dir:
            need.append(
                f"--objective {c.objective} needs --class_data_dir, where class images are kept"
            )
        if concept.class_prompt and concept.class_prompt == concept.instance_prompt:
            need.append("--class_prompt equals --instance_prompt; leave the identifier out of it")
    return need


def _useless_for_kind(c: TrainConfig) -> list[str]:
    """Terms and steps that could not act on what trains."""
    reach = OBJECTIVES if c.train_text_encoder else c.kind.objectives
    terms = [p for p in c.parts if p in OBJECTIVES and p not in reach]
    said = [
        f"--objective {t} has no effect with --train {c.train}: no prompt of the class holds the new word"
        for t in terms
    ]
    steps = [
        p
        for p in c.parts
        if c.reg_decoupled and p in ("l2", "fisher") and p not in (*c.kind.decoupled, *terms)
    ]
    said += [
        f"--reg_decoupled is not built for {p} with --train {c.train}: no factor carries its change linearly"
        for p in steps
    ]
    moves_denoiser = c.kind.adapter or c.kind.weights != "none"
    if (
        not moves_denoiser
        and c.text_encoder_lr
        and (c.scale_lr or c.text_encoder_lr != c.learning_rate)
    ):
        said += [
            f"--text_encoder_lr has no effect: --train {c.train} moves text encoders alone, at --learning_rate"
        ]
    return said


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


WIDEST = 2**16  # no layer of the networks that are trained here is wider


def widest_layer(name: str) -> int:
    """Inputs of the widest attention layer, from a pipeline folder's configuration files; WIDEST where there are none."""
    folder = WEIGHTS / "model" if is_mini(name) else Path(name).expanduser()
    widths = []
    for file in (folder / "unet/config.json", folder / "transformer/config.json"):
        try:
            config = json.loads(file.read_text())
            widths += config.get("block_out_channels") or []
            widths.append(
                config.get("num_attention_heads", 0) * config.get("attention_head_dim", 0)
            )
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            continue  # not there, or `load` says what is wrong with it
    return max((w for w in widths if isinstance(w, int) and w > 0), default=WIDEST)


def refuse_missing_folders(c: TrainConfig) -> None:
    """Raises UserError for a folder of pictures that is not there."""
    for concept in c.concepts:
        if not Path(concept.instance_data_dir).expanduser().is_dir():
            raise UserError(
                f"{concept.instance_data_dir} is not a folder; pass the folder that holds the pictures"
            )


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
