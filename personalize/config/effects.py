"""When a flag has an effect: RULES, one for each flag that has none under other flags."""

from collections.abc import Callable
from typing import NamedTuple

from personalize.config.train_config import TrainConfig
from personalize.mini.shipped import is_folder

Condition = Callable[[TrainConfig], bool]


class Rule(NamedTuple):
    """`field` may differ from its default only where `when` holds."""

    field: str
    when: Condition
    why: str


def _each(names: str, when: Condition, why: str) -> tuple[Rule, ...]:
    return tuple(Rule(name, when, why) for name in names.split())


def reads(field: str) -> Condition:
    """Does the adapter of --train read this flag?"""
    return lambda c: field in c.kind.flags.values()


def _uses(*parts: str) -> Condition:
    return lambda c: c.uses(*parts)


def _logit_normal(c):
    return c.weighting_scheme in (None, "logit_normal")


RULES = (
    # ---- what trains
    Rule("rank", reads("rank"), "this kind of training has no rank"),
    Rule("lora_alpha", reads("lora_alpha"), "this kind of training has no scale"),
    Rule("lora_dropout", reads("lora_dropout"), "only --train lora has dropout"),
    Rule("lora_target_modules", lambda c: c.kind.adapter, "only adapters have target modules"),
    Rule("decompose_factor", reads("decompose_factor"), "only --train lokr splits a weight in two"),
    Rule("oft_block_size", reads("oft_block_size"), "only --train oft and boft rotate blocks"),
    Rule(
        "boft_n_butterfly_factor",
        reads("boft_n_butterfly_factor"),
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
        "num_vectors",
        lambda c: c.placeholder_token,
        "there is no --placeholder_token to hold them",
    ),
    Rule(
        "freeze_model",
        lambda c: c.kind.weights == "cross_attention",
        "only --train custom_diffusion trains the cross-attention alone",
    ),
    # ---- the loss
    Rule(
        "prior_loss_weight",
        _uses("prior"),
        "the objective has no prior term; add --objective prior",
    ),
    Rule("l2_reg_weight", _uses("l2"), "the objective has no l2 term; add --objective l2"),
    Rule(
        "output_weight",
        _uses("output"),
        "the objective has no output term; add --objective output",
    ),
    Rule(
        "fisher_weight",
        _uses("fisher"),
        "the objective has no fisher term; add --objective fisher",
    ),
    Rule("reg_reduction", _uses("l2"), "it is the unit of --l2_reg_weight; add --objective l2"),
    Rule(
        "max_path_kl",
        lambda c: bool(c.parts),
        "standard has no weight to adapt; add --objective l2, output, fisher or prior",
    ),
    Rule("l2_layers", _uses("l2"), "it says where l2 holds; add --objective l2"),
    Rule(
        "reg_decoupled",
        _uses("l2", "fisher"),
        "there is no distance term; add --objective l2 or fisher",
    ),
    *_each(
        "anchor_dtype anchor_device",
        lambda c: c.uses("l2", "fisher") and not c.kind.adapter,
        "adapters store no base weights, and only l2 and fisher have an anchor",
    ),
    Rule("output_source", _uses("output"), "the objective has no output term"),
    Rule(
        "output_draws",
        lambda c: c.uses("output") and not c.kind.keeps_base,
        "only --objective output with --train full stores the base's answers",
    ),
    Rule("fisher_samples", _uses("fisher"), "the objective has no fisher term"),
    *_each(
        "logit_mean logit_std",
        _logit_normal,
        "it shapes only --weighting_scheme logit_normal",
    ),
    Rule(
        "mode_scale",
        lambda c: c.weighting_scheme == "mode",
        "only --weighting_scheme mode has a scale",
    ),
    # ---- class images
    Rule(
        "class_data_dir",
        lambda c: c.needs_class_images,
        "the objective uses no class images; add --objective prior",
    ),
    *_each(
        "num_class_images class_sampler class_steps class_guidance class_keep "
        "prior_generation_precision",
        lambda c: c.needs_class_images,
        "the objective uses no class images",
    ),
    # ---- steps and pictures
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
        lambda c: c.lr_scheduler != "constant",
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
    Rule(
        "held_out_data_dir",
        lambda c: not c.held_out,
        "--held_out takes the pictures from the subject's own folder; choose one",
    ),
    Rule("gain_samples", lambda c: c.holds_out, "no picture is held out; add --held_out 1"),
    Rule("ema_decay", lambda c: c.use_ema, "there is no average without --use_ema"),
    Rule(
        "pad",
        lambda c: not c.center_crop,
        "--center_crop cuts where --pad would keep; choose one",
    ),
    Rule(
        "revision",
        lambda c: not is_folder(c.pretrained_model_name_or_path),
        "the model is a local folder; it has no revisions",
    ),
    *_each(
        "num_validation_images validation_steps validation_inference_steps validation_guidance",
        lambda c: bool(c.validation_prompt),
        "there is no --validation_prompt",
    ),
    *_each(
        "checkpoint_weights_only checkpoints_total_limit",
        lambda c: c.checkpointing_steps > 0,
        "--checkpointing_steps 0 writes no checkpoints",
    ),
)
