"""What a preset becomes under the flags beside it: they win, and settings that then have no effect
are left out; and what flags of other scripts are called here.
"""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from personalize.config.effects import RULES
from personalize.config.presets import MINI_CLASS_IMAGES, MINI_LEARNING_RATES, MINI_SUBJECT, PRESETS
from personalize.config.train_config import TrainConfig
from personalize.mini.shipped import is_mini
from toy2d.runs.files import UserError


def preset(name: str, **given) -> TrainConfig:
    """The configuration of a preset, from Python: preset("balanced",
    pretrained_model_name_or_path=..., seed=1).
    """
    return with_preset(TrainConfig(preset=name, **given), set(given))


def with_preset(config: TrainConfig, given: set[str]) -> TrainConfig:
    """`config` with its preset's settings for every field that is not in `given`, unless they would
    do nothing.

    So `--preset paper_sd15_full --objective prior` is the same run with another objective.
    Raises UserError for a preset that does not exist.
    """
    if config.preset is None:
        return config
    if config.preset not in PRESETS:
        raise UserError(f"--preset {config.preset} is none of {', '.join(PRESETS)}")
    return _filled(config, PRESETS[config.preset](), given)


def _filled(config: TrainConfig, settings: Mapping[str, Any], given: set[str]) -> TrainConfig:
    settings = {k: v for k, v in settings.items() if k not in given}
    filled = replace(config, **settings)
    default = {f.name: f.default for f in fields(config)}
    idle = [r.field for r in RULES if r.field in settings and not r.when(filled)]
    return replace(filled, **{name: default[name] for name in idle})


def completed(config: TrainConfig, given: set[str]) -> tuple[TrainConfig, list[str]]:
    """(`config` with its preset's settings, notes).

    The mini base brings its own preset where none is named.

    Its learning rate is that of --train, its pictures and prompts are left out where you name
    yours.
    """
    if config.preset not in (None, "mini") or not is_mini(config.pretrained_model_name_or_path):
        return with_preset(config, given), []
    config = replace(config, preset="mini")
    yours = {"learning_rate": MINI_LEARNING_RATES.get(config.train)}
    prompt, classes = config.instance_prompt, config.class_prompt
    if {*MINI_SUBJECT, "concepts_list"} & given:
        shown = tuple(p for p in (prompt, classes) if p)
        yours |= {k: getattr(config, k) for k in MINI_SUBJECT} | {"validation_prompt": shown}
    settings = PRESETS["mini"]() | yours
    settings |= MINI_CLASS_IMAGES
    kind = re.sub(r"\W+", "-", settings["class_prompt"] or "class")
    size = f"{config.seed}-{config.resolution or 64}"
    settings["class_data_dir"] = f"runs/personalize/mini-class/{kind}-{size}"
    filled = _filled(
        config, settings, given | ({"class_data_dir"} if config.concepts_list else set())
    )
    applied = [k for k in settings if k not in given and getattr(filled, k) not in (None, ())]
    applied = [k for k in applied if getattr(filled, k) == settings[k]]
    shown = ", ".join(f"{k} {_shown(getattr(filled, k))}" for k in applied)
    return filled, [f"--preset mini, because the base is the mini: {shown}. A flag beside it wins"]


def _shown(value: Any) -> str:
    return " | ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def split_switches(arguments: list[str]) -> tuple[list[str], dict[str, bool]]:
    """(arguments without --FLAG and --no-FLAG of switches of `train`, what they say).

    So a switch that a preset or a file has turned on can be turned off, and the reverse.
    """
    switches = {f.name for f in fields(TrainConfig) if f.default is False}
    rest, said = [], {}
    for word in arguments:
        name = word[2:].replace("-", "_") if word.startswith("--") else ""
        if name in switches:
            said[name] = True
        elif name.startswith("no_") and name[3:] in switches:
            said[name[3:]] = False
        else:
            rest.append(word)
    return rest, said


# ---- flags of diffusers' scripts that do not exist here
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
    "max_sequence_length": "the pipeline's own length is used (T5 reads 256 tokens)",
    "pretrained_vae_model_name_or_path": "the VAE computes in float32: none safe in fp16 is needed",
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


def explain_foreign_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(arguments without diffusers' flags that are already so here, a note for each).

    Raises UserError for those not built.
    """
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
