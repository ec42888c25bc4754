"""The command line `personalize COMMAND`.

A fault is one line on stderr: exit code 2 if the user can mend it, 1 if not.
"""

import importlib
import sys
from collections.abc import Sequence

from personalize.config.command_line import judge, parse
from personalize.config.commands import (
    Bench,
    Check,
    Evaluate,
    Export,
    Generate,
    Presets,
    Pretrain,
    Report,
    Validate,
)
from personalize.config.compare_config import CompareConfig
from personalize.config.recipes.benchmark import Benchmark
from personalize.config.recipes.studies import Study
from personalize.config.train_config import TrainConfig
from personalize.pipeline.libraries import quiet_libraries
from toy2d.runs.cli import guard

# command -> (its flags, "module:function" that gets them); the module is imported only to run it
COMMANDS = {
    "train": (TrainConfig, "personalize.train.experiment:run"),
    "presets": (Presets, "personalize.config.presets:show"),
    "check": (Check, "personalize.data.photos:check"),
    "generate": (Generate, "personalize.evaluate.generate:pictures_of_run"),
    "evaluate": (Evaluate, "personalize.evaluate.command:evaluate"),
    "export": (Export, "personalize.export.command:export_run"),
    "compare": (CompareConfig, "personalize.compare.run:compare"),
    "benchmark": (Benchmark, "personalize.compare.benchmark:benchmark"),
    "study": (Study, "personalize.study.run:study"),
    "report": (Report, "personalize.report.write:report"),
    "validate": (Validate, "personalize.compare.validation:validate"),
    "pretrain": (Pretrain, "personalize.mini.pretrain.command:pretrain"),
    "bench": (Bench, "personalize.cost.speed:bench"),
}
DRY_RUN = "personalize.cost.dry_run:dry_run"
LIGHT = ("presets", "check", "report", "validate")  # these open no model


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 refused by the machine, 2 wrong command,
    130, 143).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    return guard(lambda: _run(arguments), "personalize")


def _run(arguments: Sequence[str]) -> None:
    name, config, notes = parse({name: kind for name, (kind, _) in COMMANDS.items()}, arguments)
    judge(config)
    for note in notes:
        print(f"note: {note}")
    if name not in LIGHT:
        quiet_libraries()
    dry = isinstance(config, TrainConfig) and config.dry_run
    place = DRY_RUN if dry else COMMANDS[name][1]
    module, _, function = place.partition(":")
    getattr(importlib.import_module(module), function)(config)


if __name__ == "__main__":
    sys.exit(main())
