"""Which flags make sense together: `resolve` fills in what was left open and refuses what would do
nothing, all in one message.
"""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

from personalize.config.concepts import as_json
from personalize.config.effects import RULES, reads
from personalize.config.kinds import wrong_words
from personalize.config.train_config import TrainConfig
from personalize.mini.shipped import WEIGHTS, is_mini
from toy2d.runs.files import UserError
from toy2d.runs.layers import parse_layers
from toy2d.runs.target import wrong_target

OBJECTIVES = ("standard", "prior", "l2", "output", "fisher")
CONTEXTS = ("in the snow", "on the beach", "in the jungle")


FLOW_ONLY = ("weighting_scheme", "logit_mean", "logit_std", "mode_scale", "precondition_outputs")
# names, what must hold, in words
LIMITS = (
    (
        "repeats rank output_draws fisher_samples num_class_images sample_batch_size class_steps "
        "train_batch_size num_train_epochs gradient_accumulation_steps lr_num_cycles adam_epsilon "
        "log_every num_validation_images validation_steps validation_inference_steps probe_steps "
        "resolution max_train_steps oft_block_size boft_n_butterfly_factor num_vectors lora_alpha "
        "snr_gamma logit_std learning_rate text_encoder_lr nodes_per_chain",
        lambda v: v > 0,
        "must be above 0",
    ),
    ("measure_chains", lambda v: v >= 2, "must be at least 2"),
    # of two nodes only one counts, and there a flow's eps depends on nothing: it is pure noise
    ("measure_nodes", lambda v: v >= 3, "must be at least 3"),
    ("class_guidance validation_guidance", lambda v: v >= 1, "must be at least 1 (1: none)"),
    (
        "prior_loss_weight l2_reg_weight output_weight fisher_weight max_grad_norm "
        "adam_weight_decay checkpointing_steps checkpoints_total_limit path_kl_steps held_out "
        "lr_warmup_steps lr_power",
        lambda v: v >= 0,
        "must not be negative",
    ),
    ("adam_beta1 adam_beta2 lora_dropout ema_decay", lambda v: 0 <= v < 1, "must be in [0, 1)"),
)
WIDEST = 2**16  # no layer of the networks that are trained here is wider


def resolve(config: TrainConfig, processes: int = 1) -> TrainConfig:
    """The configuration with nothing left open, for so many processes.

    Raises UserError naming every flag that is wrong or would do nothing.
    """
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
        or (float(config.rank) if reads("lora_alpha")(config) else None),
        concepts_list=as_json(config.concepts) if config.concepts_list else None,
        context_prompts=contexts,
        nodes_per_chain=config.nodes_per_chain or usual_nodes(config),
    )


def usual_nodes(c: TrainConfig) -> int:
    """Nodes of a chain that a measurement evaluates: as many as keep it below 5 % of 500 steps at
    batch 1, of 3.0 forward passes with LoRA and 4.5 with full training, twice that with pictures of
    the base (lab log, 2026-11-26); at most three.
    """
    if c.uses("prior", "output"):
        return 3
    return 2 if c.train == "full" else 1


def _wrong_values(c: TrainConfig) -> list[str]:
    bad = wrong_numbers(c)
    unknown = [p for p in c.parts if p not in OBJECTIVES]
    if unknown:
        bad.append(f"--objective {c.objective}: {unknown[0]!r} is none of {', '.join(OBJECTIVES)}")
    bad += _wrong_target(c)
    try:
        parse_layers(c.l2_layers)
    except UserError as e:
        bad.append(str(e))
    if c.uses("l2") and c.uses("fisher") and c.reg_reduction != "sum":
        bad.append(
            "--reg_reduction tensor_mean cannot be combined with fisher, whose unit is the sum"
        )
    least = 2 * (c.measure_nodes - 1)
    if c.holds_out and c.gain_samples < least:
        bad.append(
            f"--gain_samples {c.gain_samples} must be at least {least}: "
            "two for each node of --measure_nodes but the first"
        )
    if c.probe_steps % c.log_every or c.path_kl_steps % c.log_every:
        bad.append(
            f"--probe_steps and --path_kl_steps must be multiples of --log_every {c.log_every}"
        )
    return bad


def _wrong_target(c: TrainConfig) -> list[str]:
    if c.max_path_kl is None:
        return []
    bad = [wrong] if (wrong := wrong_target(c.max_path_kl)) else []
    last = c.parts[-1] if c.parts else None
    if not 0 < c.path_kl_steps < (c.max_train_steps or math.inf):
        bad.append(
            f"--max_path_kl adapts the weight where path KL is measured, but --path_kl_steps "
            f"{c.path_kl_steps} measures none before the end: use a tenth of the steps, for example"
        )
    if last in c.weights and c.weights[last] == 0:
        bad.append(f"--max_path_kl multiplies the weight of {last}, which is 0: begin above 0")
    return bad


def wrong_numbers(c: TrainConfig) -> list[str]:
    """One sentence for each flag whose number cannot be."""
    bad = []
    for names, holds, rule in LIMITS:
        for name in names.split():
            value = getattr(c, name)
            if value is not None and not math.isfinite(value):
                bad.append(f"--{name} {value} is not a finite number")
            elif value is not None and not holds(value):
                bad.append(f"--{name} {value} {rule}")
    if not (math.isfinite(c.logit_mean) and -1 <= c.mode_scale <= 1.75):
        bad.append("--logit_mean must be a number and --mode_scale must lie between -1 and 1.75")
    return bad + _too_wide(c)


def _too_wide(c: TrainConfig) -> list[str]:
    widest = widest_layer(c.pretrained_model_name_or_path)
    if c.rank <= widest:
        return []
    return [
        f"--rank {c.rank} is larger than the widest layer of this model ({widest}); "
        f"use at most {widest}"
    ]


def widest_layer(name: str) -> int:
    """Inputs of the widest attention layer, from the configuration files of a pipeline folder.

    WIDEST where there are none.
    """
    folder = WEIGHTS / "model" if is_mini(name) else Path(name).expanduser()
    widths = []
    for file in (folder / "unet/config.json", folder / "transformer/config.json"):
        try:
            config = json.loads(file.read_text())
            widths += config.get("block_out_channels") or []
            heads, head = (
                config.get(f"{k}", 0) for k in ("num_attention_heads", "attention_head_dim")
            )
            widths.append((heads or 0) * head)
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            continue  # not there, or `load` says what is wrong with it
    return max((w for w in widths if isinstance(w, int) and w > 0), default=WIDEST)


def _missing(c: TrainConfig) -> list[str]:
    need = wrong_words(c.placeholder_token, c.initializer_token)
    if c.train == "token" and not c.placeholder_token:
        need.append('--train token needs --placeholder_token, the new word, e.g. "<new1>"')
    if c.concepts_list:
        flags = ("instance_data_dir", "instance_prompt", "class_prompt", "class_data_dir")
        if c.held_out_data_dir:
            need.append(
                "--held_out_data_dir does not say whose pictures they are: "
                "with --concepts_list use --held_out"
            )
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
        f"--objective {t} has no effect with --train {c.train}: no prompt of the class holds "
        "the new word"
        for t in terms
    ]
    steps = [
        p
        for p in c.parts
        if c.reg_decoupled and p in ("l2", "fisher") and p not in (*c.kind.decoupled, *terms)
    ]
    said += [
        f"--reg_decoupled is not built for {p} with --train {c.train}: no factor carries its "
        "change linearly"
        for p in steps
    ]
    moves_denoiser = c.kind.adapter or c.kind.weights != "none"
    if (
        not moves_denoiser
        and c.text_encoder_lr
        and (c.scale_lr or c.text_encoder_lr != c.learning_rate)
    ):
        said += [
            f"--text_encoder_lr has no effect: --train {c.train} moves text encoders alone, at "
            "--learning_rate"
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
    """What only the opened model can tell.

    Raises UserError for flags of flow matching on another model, and the reverse.
    """
    default = {f.name: f.default for f in fields(c)}
    why = "this model is trained by flow matching" if flow else "this model knows no flow matching"
    names = [n for n in (("snr_gamma",) if flow else FLOW_ONLY) if getattr(c, n) != default[n]]
    if names:
        raise UserError("; ".join(f"--{n} has no effect: {why}" for n in names))


def refuse_missing_folders(c: TrainConfig) -> None:
    """Raises UserError for a folder of pictures that is not there."""
    for concept in c.concepts:
        if not Path(concept.instance_data_dir).expanduser().is_dir():
            raise UserError(
                f"{concept.instance_data_dir} is not a folder; pass the folder that holds the "
                "pictures"
            )
