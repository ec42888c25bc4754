"""The command line: personalize train | presets | check | generate | evaluate | export | compare | report | bench. Faults of the user: one line, exit 2; of the machine: one line, exit 1."""

import sys
from collections.abc import Callable, Sequence

import tyro

from personalize.config.commands import (
    Bench,
    Check,
    Evaluate,
    Export,
    Generate,
    Presets,
    Pretrain,
    Report,
)
from personalize.config.compare_config import CompareConfig, completed, mini_compare
from personalize.config.flags import given_flags, split_negations, with_preset
from personalize.config.presets import PRESETS
from personalize.config.rules import explain_foreign_flags
from personalize.config.train_config import TrainConfig
from personalize.pipeline.libraries import quiet_libraries
from toy2d.runs.files import RunFailure, UserError

MINI = mini_compare()


def compare_command(config: tyro.conf.OmitArgPrefixes[CompareConfig] = MINI) -> CompareConfig:
    """Its help is CompareConfig's, its defaults the mini's."""
    return config


compare_command.__doc__ = CompareConfig.__doc__


COMMANDS = {
    "train": TrainConfig,
    "presets": Presets,
    "check": Check,
    "generate": Generate,
    "evaluate": Evaluate,
    "export": Export,
    "compare": compare_command,
    "report": Report,
    "pretrain": Pretrain,
    "bench": Bench,
}


def in_short(command) -> Callable[[], None]:
    """What `personalize --help` lists of a command: its first sentence. Never called: without a command there is nothing to parse."""

    def listed() -> None: ...

    listed.__doc__ = command.__doc__.split("\n\n")[0]
    return listed


IN_SHORT = {name: in_short(command) for name, command in COMMANDS.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        kept, notes = explain_foreign_flags(list(sys.argv[1:] if arguments is None else arguments))
        kept, switched_off = split_negations(kept)
        asked = tyro.extras.subcommand_cli_from_dict(
            COMMANDS if set(kept[:1]) & set(COMMANDS) else IN_SHORT,
            prog="personalize",
            description="Personalize Stable Diffusion with your photos, and measure what that does to the rest.",
            args=kept,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        for note in notes:
            print(f"note: {note}")
        if isinstance(asked, CompareConfig):
            asked = completed(asked, given_flags(kept) | switched_off)
        if isinstance(asked, TrainConfig):
            asked = with_preset(asked, given_flags(kept) | switched_off)
        act(asked)
    except UserError as e:
        return _end(e, 2)
    except RunFailure as e:  # a signal that was obeyed ends as the shell expects
        return _end(e, 128 + e.number if hasattr(e, "number") else 1)
    except KeyboardInterrupt:
        return _end("interrupted; the same command goes on from the newest checkpoint", 130)
    return 0


def _end(reason, code: int) -> int:
    print(f"personalize: {' '.join(str(reason).split())}", file=sys.stderr)
    return code


def act(asked) -> None:
    """Heavy imports happen here, so that --help and a wrong flag answer at once."""
    if isinstance(asked, Check):
        check(asked)
        return
    if isinstance(asked, Presets):
        print_presets()
        return
    if isinstance(asked, Report):
        from personalize.report.write import write

        print(f"report: {write(asked.toy, asked.full, asked.out)}")
        return
    quiet_libraries()
    if isinstance(asked, Generate):
        from personalize.evaluate.generate import pictures_of_run

        print(pictures_of_run(asked))
    elif isinstance(asked, Evaluate):
        from personalize.evaluate.command import evaluate

        evaluate(asked)
    elif isinstance(asked, Export):
        from personalize.export.command import export_run

        export_run(asked)
    elif isinstance(asked, CompareConfig):
        from personalize.compare.run import run as compare
        from personalize.compare.run import show

        show(compare(asked))
    elif isinstance(asked, Pretrain):
        from personalize.mini.pretrain.command import pretrain

        pretrain(asked)
    elif isinstance(asked, Bench):
        from personalize.cost.speed import bench

        bench(asked)
    elif asked.dry_run:
        from personalize.cost.dry_run import dry_run

        dry_run(asked)
    else:
        from personalize.train.experiment import run

        run(asked)


def print_presets() -> None:
    for name, settings in PRESETS.items():
        print(f"{name}\n    {' '.join(settings.__doc__.split())}")


def check(asked: Check) -> None:
    from personalize.data.photos import print_scan, scan

    found = scan(asked.folder, asked.resolution, not asked.ignore_captions)
    print_scan(found)
    if found.problems:
        raise UserError(f"{asked.folder}: {len(found.problems)} problem(s), listed above")


if __name__ == "__main__":
    sys.exit(main())
