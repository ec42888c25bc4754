"""Files that appear whole or not at all, and the two faults that a command reports in one line.

Imports nothing heavy.

Temporary name on the same file system, fsync, rename: whoever reads sees the old file or the new
one.
"""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
    """Something the user can mend: one line that says what, where and what to do. Exit code 2."""


class RunFailure(Exception):
    """Something the machine refused (disk, permission, divergence of everything): one line.

    Exit code 1.
    """


def readable(size: float) -> str:
    """Bytes in the largest unit that leaves at least 1: "60.0 kB", "1.2 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def cannot_write(path: Path, error: OSError, need: int | None = None) -> RunFailure:
    """The fault that says which file, why not, what a full disk lacks, and what to do.

    `need`: bytes.
    """
    path = Path(path)
    if error.errno in FULL:
        there = next((p for p in (path, *path.parents) if p.is_dir()), Path("."))
        missing = f"{readable(need)} are needed, " if need else ""
        reason = f"the disk of {there} is full ({missing}{readable(free_space(there))} are free)"
        return RunFailure(
            f"cannot write {path}: {reason}; free some space, and the same command goes on"
        )
    reason = error.strerror or str(error)
    remedy = "the same command goes on when that is mended"
    if error.errno in FORBIDDEN:
        remedy = "choose a folder that you may write to"
    return RunFailure(f"cannot write {path}: {reason}; {remedy}")


def free_space(folder: Path) -> int:
    """Bytes that a user may still write there."""
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; it becomes `path` when the body ends, and goes when the body
    raises.

    Raises RunFailure if the disk is full or the folder refuses.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        raise cannot_write(path, e) from e
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


MAX_TEXT = 16_000_000  # bytes of a text file that a command reads whole


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file that somebody else wrote. OSError beyond MAX_TEXT, e.g. for a device."""
    with open(path, "rb") as file:
        data = file.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise OSError(errno.EFBIG, f"larger than {readable(MAX_TEXT)}", str(path))
    return data.decode(encoding)


def read_record(path: Path) -> dict:
    """A JSON object of a run folder. UserError if it is none."""
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as e:
        raise UserError(f"{path} cannot be read ({e}); move {path.parent} away") from e
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a record; move {path.parent} away")
    return found


def is_torn(path: Path) -> bool:
    """Is this the temporary name of a file or folder (`appearing`, `whole_folder`)?"""
    return re.fullmatch(r"\..+\.(\d+|new|old)\.tmp", path.name) is not None


def clear_torn(folder: Path) -> None:
    """Remove what a killed process left half written below `folder`.

    Folders with a lock of their own are not entered.
    """
    for path in folder.iterdir():
        real_folder = path.is_dir() and not path.is_symlink()
        if is_torn(path):
            shutil.rmtree(path, ignore_errors=True) if real_folder else path.unlink(missing_ok=True)
        elif real_folder and not (path / ".lock").exists():
            clear_torn(path)


def write_atomic(path: Path, data: bytes | str) -> None:
    with appearing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def write_json(path: Path, value) -> None:
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_csv(path: Path, rows: list[dict]) -> None:
    """Rows that may have different columns; the header is their union in order of appearance."""
    columns = list(dict.fromkeys(c for row in rows for c in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def read_csv(path: Path) -> list[dict]:
    """Rows of `write_csv`, as they were: whole numbers int, others float, empty cells left out.

    So reading and writing again gives the same bytes.
    """

    def value(text):
        if text.removeprefix("-").isdecimal() and str(int(text)) == text:
            return int(text)
        try:
            return float(text)
        except ValueError:
            return text

    with open(path, newline="") as f:
        return [
            {k: value(v) for k, v in row.items() if v not in ("", None)}
            for row in csv.DictReader(f)
        ]


def header(path: Path) -> list[str]:
    """The columns of a CSV file, those without a value included."""
    with open(path, newline="") as f:
        return next(csv.reader(f), [])


# ---- is a folder as it was left?
def file_digest(path: Path) -> dict:
    with open(path, "rb") as f:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(f, "sha256").hexdigest(),
        }


def write_manifest(folder: Path, leave_out: tuple[str, ...] = ()) -> None:
    """manifest.json: size and SHA-256 of every file below `folder`, the mark that it is whole.

    `leave_out`: names at its top.
    """
    left = {"manifest.json", *leave_out}
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    named = {str(p.relative_to(folder)): p for p in files}
    kept = {name: p for name, p in named.items() if Path(name).parts[0] not in left}
    write_json(folder / "manifest.json", {name: file_digest(p) for name, p in kept.items()})


def verify_manifest(folder: Path) -> bool:
    """Is every file of the manifest there, unaltered?"""
    return damage(folder) is None


def damage(folder: Path) -> str | None:
    """The first thing that is wrong with a folder, e.g. "state.safetensors was cut (12 of 60
    bytes)"; None if it is whole.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if not manifest:
            return "manifest.json is empty"
        for name, digest in manifest.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            size = file.stat().st_size
            if size != digest["bytes"]:
                return f"{name} was cut ({size} of {digest['bytes']} bytes)"
            if file_digest(file) != digest:
                return f"{name} was altered"
    except FileNotFoundError:
        return "manifest.json is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        return f"manifest.json cannot be read ({type(e).__name__})"
    return None


def cut_or_missing(folder: Path) -> list[str]:
    """Names in the manifest whose file is gone or has another size: a glance that reads no
    contents. ["manifest.json"] if that is.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return ["manifest.json"]
    sizes = {n: (folder / n).stat().st_size for n in manifest if (folder / n).is_file()}
    return [n for n, digest in manifest.items() if sizes.get(n) != digest["bytes"]]
