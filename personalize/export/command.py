"""`personalize export`: a finished run, or the authors' delta.bin, in the format that another
program opens; opened again to be sure.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from personalize.config.commands import Export
from personalize.export.delta_bin import read_delta
from personalize.export.formats import FORMATS, checked, save_as
from personalize.export.write import load_run
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from toy2d.runs.files import RunFailure, UserError


def export_run(command: Export, say: Callable[[str], None] = print) -> Path:
    """Returns the folder.

    Raises UserError for what cannot be, RunFailure if the export does not answer as the run.
    """
    source = Path(command.source).expanduser()
    model, base = _of_file(command, source) if source.is_file() else _of_run(command, source)
    usual = source.with_suffix("") if source.is_file() else source / "export"
    out = Path(command.out).expanduser() if command.out else usual / command.format
    save_as(model, command.format, out)
    try:
        check = checked(model, command.format, out, base)
    except RunFailure:
        shutil.rmtree(out)
        raise
    say(
        f"{out}: {FORMATS[command.format].how}; opened so, its answer differs by "
        f"{check.difference:.1g} of the run's"
    )
    if not check.tells:
        say(
            f"training has moved that answer by {check.moved:.1g} of it, hardly more than "
            "rounding: the comparison would not see a part that is missing"
        )
    return out


def _of_run(command: Export, source: Path) -> tuple[Model, Callable[[], Model]]:
    if command.pretrained_model_name_or_path:
        raise UserError("--pretrained_model_name_or_path has no effect: a run names its own base")
    return load_run(source), lambda: load_run(source, base=True)


def _of_file(command: Export, source: Path) -> tuple[Model, Callable[[], Model]]:
    name = command.pretrained_model_name_or_path
    if not name:
        raise UserError(
            f"{source} needs --pretrained_model_name_or_path: the base it was trained from"
        )
    model = load(name)
    read_delta(model, source)
    return model, lambda: load(name)
