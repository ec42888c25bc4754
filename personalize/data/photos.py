"""A folder of photographs and captions: what is usable, what is not and why, all at once.

Content decides what a file is, never its extension (decode.py). Nothing here needs a model.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from personalize.config.commands import Check
from personalize.data.decode import Unusable, open_picture, to_rgb
from toy2d.runs.files import UserError, file_digest

PICTURE_SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".heic", ".heif", ".avif", ".jxl"),
}
# CLIP's own splitting of text; each piece is one token or more
PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_")
CLIP_READS = 75  # of CLIP's 77 tokens, without its marks of start and end
MAX_CAPTION_BYTES = 4096


# ---- what is in the folder
@dataclass(frozen=True)
class Record:
    """One usable picture. Sizes after orientation; `sha256` of the file's bytes; `notes` for the
    table.
    """

    path: Path
    width: int
    height: int
    format: str
    mode: str
    sha256: str
    caption: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scan:
    """What `scan` found: records in name order, problems as (file, reason and remedy), and the
    files it left alone.

    `held_out`: pictures that are measured and not trained on (held_out.py).
    """

    folder: Path
    records: list[Record]
    problems: list[tuple[str, str]]
    skipped: list[str]
    held_out: tuple[Record, ...] = ()

    def require(self) -> list[Record]:
        """The records, or UserError listing every problem."""
        if self.problems:
            lines = "; ".join(f"{name} {why}" for name, why in self.problems)
            raise UserError(f"{self.folder}: {len(self.problems)} problem(s): {lines}")
        return self.records

    def hash(self) -> str:
        """16 hex digits of the pictures' bytes and captions, in order: changes when the data
        does.
        """
        return hash_of(self.records)

    def as_dict(self) -> dict:
        """The same as the table, for scripts."""
        shown = ("width", "height", "format", "mode", "caption", "notes")
        pictures = [{"file": r.path.name} | {k: getattr(r, k) for k in shown} for r in self.records]
        problems = [{"file": name, "why": why} for name, why in self.problems]
        return {"pictures": pictures, "problems": problems, "skipped": self.skipped}

    def table(self) -> Table:
        """Every picture and every problem, for people."""
        table = Table(title=_cell(str(self.folder)), title_justify="left")
        for column in ("file", "size", "format", "caption", "remark"):
            table.add_column(column, overflow="fold")
        for r in self.records:
            size, kind = f"{r.width} x {r.height}", f"{r.format} {r.mode}"
            cells = (r.path.name, size, kind, r.caption or "-", ", ".join(r.notes))
            table.add_row(*map(_cell, cells))
        for name, why in self.problems:
            table.add_row(_cell(name), "", "", "", _cell(why, "bold red"))
        skipped = f"; skipped: {', '.join(self.skipped)}" if self.skipped else ""
        found = f"{len(self.records)} pictures, {len(self.problems)} problems"
        table.caption = _cell(f"{found}, {len(self.skipped)} other files{skipped}"[:1000])
        return table


def hash_of(records: Sequence[Record]) -> str:
    """16 hex digits of names, bytes and captions, in order."""
    digest = hashlib.sha256()
    for r in records:
        digest.update(json.dumps([r.path.name, r.sha256, r.caption]).encode())
    return digest.hexdigest()[:16]


def scan(folder: str | Path, resolution: int | None = None, captions: bool = True) -> Scan:
    """Open every file of `folder` (not below it), sorted by name; decode each picture in full.

    Hidden files, folders and files that are no pictures are skipped and listed; a file that has a
    picture's name but cannot be used is a problem, because its owner believes it is used. Raises
    UserError if there is no folder.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; pass the folder that holds the pictures")
    try:
        files = sorted(folder.iterdir(), key=lambda p: p.name)
    except OSError as e:
        raise UserError(f"{folder} cannot be read: {e.strerror}") from e
    records, problems, skipped = [], [], []
    for path in files:
        try:
            record = _read_record(path, resolution, captions)
        except Unusable as e:
            problems.append((path.name, str(e)))
        else:
            (skipped if record is None else records).append(record or path.name)
    records = _with_twins_noted(records)
    used = {r.path.with_suffix(".txt").name for r in records if r.caption}
    skipped = [name for name in skipped if name not in used]
    if not records and not problems:
        problems.append((folder.name, _why_empty(files)))
    return Scan(folder, records, problems, skipped)


def _why_empty(files: list[Path]) -> str:
    folders = [p.name for p in files if p.is_dir() and not p.name.startswith(".")]
    hint = f"; its folders ({', '.join(folders[:3])}) are not searched: pass one" if folders else ""
    return f"holds no pictures (JPEG, PNG or WebP){hint}"


def _cell(text: str, style: str = "") -> Text:
    """Names and captions are data: no markup, no escape sequences, no half characters."""
    return Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text), style)


def print_scan(found: Scan) -> None:
    """The table on standard output; plain when that is no terminal."""
    Console().print(found.table())


def check(command: Check) -> None:
    """`personalize check`. Raises UserError if a picture cannot be used."""
    found = scan(command.folder, command.resolution, not command.ignore_captions)
    if command.json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        print_scan(found)
    if found.problems:
        raise UserError(f"{command.folder}: {len(found.problems)} problem(s), listed above")


def _read_record(path: Path, resolution: int | None, captions: bool) -> Record | None:
    """None for a file that is no picture and does not claim to be."""
    if path.name.startswith(".") or path.is_dir():
        return None
    try:
        if not path.is_file():  # a pipe would be waited for
            raise Unusable("is a broken link or no file; take it away")
        if path.stat().st_size == 0:
            raise Unusable("is empty; copy it again")
        image = open_picture(path)
    except Unusable as e:
        return _foreign(path, e)
    except Image.UnidentifiedImageError:
        why = Unusable("is no JPEG, PNG or WebP inside; convert it or take it away")
        return _foreign(path, why)
    except OSError as e:
        why = Unusable(f"cannot be read ({e.strerror or e}); mend it or take it away")
        return _foreign(path, why)
    with image:
        rgb, notes = to_rgb(image)
        notes += _size_notes(*rgb.size, resolution)
        caption = _caption(path) if captions else None
        notes += _caption_notes(caption)
        digest = file_digest(path)["sha256"]
        return Record(path, *rgb.size, image.format, image.mode, digest, caption, tuple(notes))


def _foreign(path: Path, why: Unusable) -> None:
    """Other people's files are left alone, unless they have a picture's name."""
    if path.suffix.lower() in PICTURE_SUFFIXES:
        raise why


def _size_notes(width, height, resolution):
    if resolution is None or (short := min(width, height)) >= resolution:
        return []
    if short * 4 < resolution:
        raise Unusable(
            f"is {width} x {height}, too small for resolution {resolution}; use a larger picture"
        )
    return [f"enlarged x{resolution / short:.1f}"]


def _with_twins_noted(records: list[Record]) -> list[Record]:
    first = {}
    for i, r in enumerate(records):
        twin = first.setdefault(r.sha256, r.path.name)
        if twin != r.path.name:
            records[i] = replace(r, notes=(*r.notes, f"same picture as {twin}"))
    return records


def _caption(path: Path) -> str | None:
    """The text of the .txt beside a picture, on one line; None if there is none."""
    file = path.with_suffix(".txt")
    if not file.is_file():
        return None
    try:
        with open(file, "rb") as f:
            data = f.read(MAX_CAPTION_BYTES + 1)
        if len(data) > MAX_CAPTION_BYTES:
            raise _no_caption(file)
        text = " ".join(data.decode("utf-8-sig").split())
    except OSError as e:
        raise Unusable(f"has a caption {file.name} that cannot be read ({e.strerror})") from e
    except UnicodeDecodeError as e:
        raise Unusable(f"has a caption {file.name} that is not UTF-8; save it as UTF-8") from e
    if not text:
        raise Unusable(f"has an empty caption {file.name}; write one or delete that file")
    if "\0" in text:
        raise _no_caption(file)
    return text


def _no_caption(file: Path) -> Unusable:
    return Unusable(f"has no caption in {file.name} but something long or binary; mend that file")


def _caption_notes(caption: str | None) -> list[str]:
    """Said where a caption is certainly longer than CLIP reads; `train` says it to the token."""
    pieces = len(PIECES.findall((caption or "").lower()))
    if pieces <= CLIP_READS:
        return []
    return [f"caption of at least {pieces} tokens: CLIP reads {CLIP_READS}, its end is lost"]
