"""Read the two folders that a report shows."""

import json
from pathlib import Path

from toy2d.runs.files import UserError


class FinishedRun:
    """The files of a finished run folder: metrics, config, env.

    Raises UserError for a folder that has none; `remedy` is the command that makes one.
    """

    def __init__(self, path: Path | str, remedy: str):
        self.path = Path(path).expanduser()
        try:
            self.metrics, self.config, self.env = (
                json.loads((self.path / f"{name}.json").read_text())
                for name in ("metrics", "config", "env")
            )
        except (OSError, ValueError) as e:
            raise UserError(f"{self.path} is no finished run ({e}); make it with `{remedy}`") from e


def open_both(toy: Path | str, full: Path | str) -> tuple[FinishedRun, FinishedRun]:
    toy, full = FinishedRun(toy, "toy2d course"), FinishedRun(full, "personalize compare")
    if "runs" not in full.metrics or "equal_fidelity" not in full.metrics:
        raise UserError(f"{full.path} is no comparison; make it with `personalize compare`")
    return toy, full
