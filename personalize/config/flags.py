"""What a preset becomes under the flags that were given beside it: they win, and what then has no effect is left out."""

from dataclasses import fields, replace
from typing import get_type_hints

from personalize.config.presets import PRESETS
from personalize.config.rules import RULES
from personalize.config.train_config import TrainConfig
from toy2d.runs.files import UserError


def preset(name: str, **given) -> TrainConfig:
    """The configuration of a preset, from Python: preset("balanced", pretrained_model_name_or_path=..., seed=1)."""
    return with_preset(TrainConfig(preset=name, **given), set(given))


def with_preset(config: TrainConfig, given: set[str]) -> TrainConfig:
    """`config` with its preset's settings for every field that is not in `given`, unless they would do nothing.

    So `--preset paper_sd15_full --objective prior` is the same run with another objective. Raises UserError for a preset that does not exist.
    """
    if config.preset is None:
        return config
    if config.preset not in PRESETS:
        raise UserError(f"--preset {config.preset} is none of {', '.join(PRESETS)}")
    settings = {k: v for k, v in PRESETS[config.preset]().items() if k not in given}
    filled = replace(config, **settings)
    default = {f.name: f.default for f in fields(config)}
    idle = [r.field for r in RULES if r.field in settings and not r.when(filled)]
    return replace(filled, **{name: default[name] for name in idle})


def given_flags(arguments: list[str]) -> set[str]:
    """The fields that a command line names, by whichever of their names."""
    hints = get_type_hints(TrainConfig, include_extras=True)
    other = {
        alias.lstrip("-"): name
        for name, hint in hints.items()
        for mark in getattr(hint, "__metadata__", ())
        for alias in getattr(mark, "aliases", None) or ()
    }
    words = [a.split("=")[0].lstrip("-").replace("-", "_") for a in arguments if a.startswith("--")]
    return {other.get(w, w) for w in words}


def split_negations(arguments: list[str]) -> tuple[list[str], set[str]]:
    """(arguments without --no-FLAG, those FLAGs): how a preset's switch is turned off."""
    switches = {f.name for f in fields(TrainConfig) if f.default is False}
    negated = {a: a[5:].replace("-", "_") for a in arguments if a.startswith(("--no-", "--no_"))}
    off = {a: name for a, name in negated.items() if name in switches}
    return [a for a in arguments if a not in off], set(off.values())
