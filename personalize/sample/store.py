"""A folder of generated pictures with a manifest that says how they were made.

    folder/   manifest.json   {"settings": {...}, "files": {name: {"seed", "bytes", "sha256", ...}}}

Each picture is a file of its own, with its own seed: a set can be completed, and one broken file
made again, without touching the others. A folder whose settings differ is refused, and so is one
that holds other people's files. One process writes at a time; the next one waits and finds the
pictures made.
"""

import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from toy2d.runs.files import RunFailure, UserError, file_digest, write_atomic, write_json

MANIFEST = "manifest.json"


class PictureStore:
    """`with PictureStore(folder, settings, remedy) as store:` holds the folder's lock.

    `remedy` ends every message about the folder, e.g. "choose another --out".
    Raises UserError for a folder made with other settings or without a manifest, RunFailure for one
    that cannot be written.
    """

    def __init__(self, folder: Path, settings: dict, remedy: str):
        self.folder, self.settings, self.remedy = folder, settings, remedy
        self.files: dict[str, dict] = {}  # of the manifest
        self._lock = FileLock(folder / ".lock")

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._acquire()
        except OSError as e:
            raise RunFailure(f"cannot write to {self.folder}: {e.strerror}; {self.remedy}") from e
        try:
            for torn in self.folder.glob(".*.tmp"):
                torn.unlink()
            self.files = self._read()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._lock.release()
        if isinstance(error, OSError):
            why = error.strerror
            raise RunFailure(f"cannot write to {self.folder}: {why}; {self.remedy}") from error

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those that are not there, or differ from what the manifest says of them."""
        return [name for name in names if not self._intact(name)]

    def put(self, pictures: Iterable[tuple[str, bytes, dict]]) -> None:
        """Write (name, content, entry) each; the manifest names a file only once it is there.

        It is there before the first of them: pictures without a manifest are taken for others'.
        """
        if not (self.folder / MANIFEST).exists():
            self._keep()
        for name, data, entry in pictures:
            write_atomic(self.folder / name, data)
            self.files[name] = {**entry, **file_digest(self.folder / name)}
        self._keep()

    def _keep(self) -> None:
        write_json(self.folder / MANIFEST, {"settings": self.settings, "files": self.files})

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            tqdm.write(
                f"waiting for another process that makes pictures in {self.folder}", sys.stderr
            )
            self._lock.acquire()

    def _read(self) -> dict[str, dict]:
        file = self.folder / MANIFEST
        if not file.exists():
            if strangers := sorted(p.name for p in self.folder.glob("[!.]*")):
                raise UserError(
                    f"{self.folder} holds {strangers[0]!r} but no {MANIFEST}, "
                    f"so how its pictures were made is unknown; {self.remedy}"
                )
            return {}
        try:
            kept = json.loads(file.read_text())
            old, files = dict(kept["settings"]), dict(kept["files"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"{file} cannot be read ({e}); {self.remedy}") from e
        new = self.settings
        if differing := [k for k in {**old, **new} if old.get(k) != new.get(k)]:
            shown = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in differing)
            raise UserError(f"{self.folder} was made differently ({shown}); {self.remedy}")
        return files

    def _intact(self, name: str) -> bool:
        path, entry = self.folder / name, self.files.get(name)
        if not isinstance(entry, dict) or not path.is_file():
            return False
        return file_digest(path) == {k: entry.get(k) for k in ("bytes", "sha256")}


def png(image: Image.Image) -> bytes:
    """A picture as the content of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
