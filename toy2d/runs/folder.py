"""A run folder that survives anything: lock, status, configuration, exact checkpoints.

Used at both scales.

    runs/<scale>/<name>/   config.json  env.json  status.json  history.csv  metrics.json
                           figures/  checkpoints/

Files appear whole or not at all (temporary name, fsync, rename). A checkpoint is a folder whose
manifest.json (size and SHA-256 of each file) is written last; a torn or altered one is passed over
for the one before it. Nothing is ever unpickled.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from toy2d.runs.files import (
    RunFailure,
    UserError,
    appearing,
    cannot_write,
    clear_torn,
    cut_or_missing,
    damage,
    free_space,
    is_torn,
    read_record,
    read_text,
    write_json,
    write_manifest,
)

# what may change after a run is done, or is of no use then
HEADROOM = 200_000  # bytes a checkpoint needs beside its tensors: header, state.json, manifest
NOT_IN_MANIFEST = (".lock", "status.json", "checkpoints", "cache", "figures")


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 (16 hex digits) of names, types, shapes and bytes, in name order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """One safetensors file, atomically; written from where the tensors are, without a copy of those
    on the host.
    """
    own, whole = set(), {}
    for name, tensor in tensors.items():
        t, storage = tensor.detach().cpu().contiguous(), tensor.untyped_storage()
        if storage.data_ptr() in own or storage.nbytes() != t.nbytes:
            t = t.clone()  # the format knows no views: each name has bytes of its own
        own.add(storage.data_ptr())
        whole[name] = t
    with appearing(path) as temporary:
        try:
            save_file(whole, temporary, metadata)
            sort_metadata(temporary)
        except SafetensorError as e:
            raise as_os_error(e) from e


def as_os_error(e: SafetensorError) -> OSError:
    """The fault of the disk that safetensors reports as text: "I/O error: No space left on device
    (os error 28)".
    """
    number = re.search(r"os error (\d+)", str(e))
    code = int(number[1]) if number else errno.EIO
    return OSError(code, os.strerror(code) if number else str(e))


@contextlib.contextmanager
def whole_folder(folder: str | Path, need: int | None = None) -> Iterator[Path]:
    """A temporary folder to fill; on leaving it gets its manifest and becomes `folder`.

    It replaces an older one of ours. A kill leaves the old folder or the new one, or, between
    the two renames of a replacement,
    neither; what it leaves besides is hidden and cleared the next time. `need`: bytes, for the
    message about a full disk. Raises UserError if `folder` holds something without a manifest,
    RunFailure if the disk refuses.
    """
    folder = Path(folder)
    if folder.exists() and not _ours(folder):
        raise UserError(f"{folder} holds files that are not ours; choose another folder")
    new, old = (folder.with_name(f".{folder.name}.{word}.tmp") for word in ("new", "old"))
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
        _settle(new)
        write_manifest(new)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except SafetensorError as e:
        raise cannot_write(folder, as_os_error(e), need) from e
    except OSError as e:
        raise cannot_write(folder, e, need) from e
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def _ours(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return (folder / "manifest.json").exists() or not any(folder.iterdir())


def _settle(folder: Path) -> None:
    """Equal tensors become equal bytes, and every file is on the disk."""
    for path in folder.rglob("*"):
        if path.suffix == ".safetensors":
            sort_metadata(path)
        if path.is_file():
            with open(path, "rb") as f:
                os.fsync(f.fileno())


def sort_metadata(file: Path) -> None:
    """Sort the metadata in the header of a safetensors file, in place: the library writes it in an
    order that differs from run to run.
    """
    with open(file, "rb+") as f:
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
        if len(metadata := header.get("__metadata__", {})) < 2:
            return
        header = header | {"__metadata__": dict(sorted(metadata.items()))}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # padded with spaces, as the format does; never longer
            f.seek(8)
            f.write(text.ljust(size))


def load_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def environment(packages: tuple[str, ...] = ("torch", "numpy")) -> dict:
    """What a reader needs to repeat the run: commit, versions, machine.

    No home paths, no environment variables.
    """
    here = Path(__file__).resolve().parent

    def git(*words):
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    def of(package):
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    return {
        "commit": git("rev-parse", "--short=12", "HEAD") or "unknown",
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {p: of(p) for p in ("driftlab", *packages)},
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
    }


def same_setting(name: str, old: Any, new: Any) -> bool:
    """Equal values; folders and paths (by the setting's name) are compared as the places that they
    name.

    Where a run folder itself lies (output_dir) is no part of its configuration: it may be moved.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return all(same_setting(k, old.get(k), new.get(k)) for k in {**old, **new})
    if name == "output_dir" or old == new:
        return True
    if name.endswith(("_dir", "_path")) and isinstance(old, str) and isinstance(new, str):
        return Path(old).expanduser().resolve() == Path(new).expanduser().resolve()
    return False


class RunFolder:
    """One run's folder.

    `with RunFolder(path, config).open() as folder:` holds its lock and keeps status.json true.

    `flag`: the flag with which a user chooses another folder, for messages.
    """

    def __init__(self, path: Path, config: dict, flag: str = "--out"):
        self.path, self.config = Path(path), json.loads(json.dumps(config))
        self.flag = flag

    @property
    def status(self) -> str:
        """ "new", "running" (or killed), "done" or "failed"."""
        try:
            return json.loads(read_text(self.path / "status.json"))["status"]
        except FileNotFoundError:
            return "new"
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as e:
            raise UserError(
                f"{self.path}/status.json cannot be read ({e}); move the folder away"
            ) from e

    @contextlib.contextmanager
    def open(self) -> Iterator["RunFolder"]:
        """Lock, compare the configuration, mark as running; on leaving write the manifest and mark
        as done, or mark as failed.

        Raises UserError if another process holds the folder, if it was made with another
        configuration (the differing fields are listed), or if it is something else than a run
        folder; RunFailure if it cannot be written. A run that is refused (UserError) before its
        first row or checkpoint leaves nothing behind.
        """
        absent = [p for p in (self.path, *self.path.parents) if not p.exists()]
        unlocked = not (self.path / ".lock").exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.path} is in use by process {self._owner()}; wait for it or choose "
                f"another {self.flag}"
            ) from None
        except OSError as e:
            raise cannot_write(self.path, e) from e
        try:
            yield from self._opened()
        except UserError:
            if self._may_be_forgotten(unlocked):
                self._forget(absent)
            raise
        finally:
            lock.release()

    def _opened(self) -> Iterator["RunFolder"]:
        self._check_config()
        if self.status == "done":
            self._check_whole()
            yield self
            return
        try:
            clear_torn(self.path)
        except OSError as e:
            raise cannot_write(self.path, e) from e
        write_json(self.path / "config.json", self.config)
        self._mark("running")
        try:
            yield self
        except BaseException as e:
            with contextlib.suppress(RunFailure):
                self._mark("failed", reason=f"{type(e).__name__}: {e}"[:500])
            raise
        write_manifest(self.path, NOT_IN_MANIFEST)
        self._mark("done")

    # ---- a refused run leaves nothing
    def _may_be_forgotten(self, was_unlocked: bool) -> bool:
        """Was there no run before, and is there nothing yet that took time to make?"""
        made = [self.path / "history.csv", *self.checkpoints()]
        return was_unlocked and not any(p.exists() for p in made)

    def _forget(self, absent: list[Path]) -> None:
        """Take away what this opening has made: all of a folder that was not there, else our own
        files.
        """
        with contextlib.suppress(OSError):
            if self.path in absent:
                shutil.rmtree(self.path)
                for folder in absent[1:]:
                    folder.rmdir()
            else:
                (self.path / ".lock").unlink()

    def _mark(self, status: str, **more) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = {
            "status": status,
            "pid": os.getpid(),
            "host": platform.node(),
            "time": now,
            **more,
        }
        write_json(self.path / "status.json", record)

    def _owner(self) -> str:
        """ "PID on HOST" of whoever holds the lock, as far as it has said so."""
        record = json.loads((self.path / "status.json").read_text()) if self.status != "new" else {}
        return f"{record.get('pid', '?')} on {record.get('host', 'this machine')}"

    def _check_whole(self) -> None:
        if harmed := cut_or_missing(self.path):
            raise UserError(
                f"{self.path} was done, but {harmed[0]!r} is gone or was cut since; "
                "move the folder away and run the same command again"
            )

    def _check_config(self) -> None:
        file = self.path / "config.json"
        if not file.exists():
            ours = (".lock", "status.json")
            strangers = [
                p.name for p in self.path.iterdir() if p.name not in ours and not is_torn(p)
            ]
            if strangers:
                raise UserError(
                    f"{self.path} is not a run folder (it holds {sorted(strangers)[0]!r}); "
                    f"choose another {self.flag}"
                )
            return
        old = read_record(file)
        now = self.config
        differing = [k for k in {**old, **now} if not same_setting(k, old.get(k), now.get(k))]
        if differing:
            shown = "; ".join(f"{k}: {old.get(k)} there, {now.get(k)} now" for k in differing[:6])
            raise UserError(
                f"{self.path} holds a run with another configuration ({shown}); "
                f"choose another {self.flag}, or move that folder away"
            )

    # ---- checkpoints
    def save_checkpoint(
        self, step: int, tensors: dict[str, Tensor], scalars: dict, keep: int = 2
    ) -> Path:
        """checkpoints/step-N/ with state.safetensors, state.json and, last, manifest.json; older
        ones beyond `keep` go.
        """
        root = self.path / "checkpoints"
        final = root / f"step-{step:08d}"
        need = HEADROOM + sum(t.numel() * t.element_size() for t in tensors.values())
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise cannot_write(root, e, need) from e
        if free_space(root) < need:
            raise cannot_write(final, OSError(errno.ENOSPC, ""), need)
        if not (final / "manifest.json").exists():  # torn by something else: not worth keeping
            shutil.rmtree(final, ignore_errors=True)
        with whole_folder(final, need) as folder:
            save_tensors(folder / "state.safetensors", tensors)
            write_json(folder / "state.json", scalars)
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("step-*"))

    def newest_checkpoint(
        self, say: Callable[[str], None] = print
    ) -> tuple[dict[str, Tensor], dict] | None:
        """The newest checkpoint that is whole: (tensors, scalars); None if there is none.

        Says which it skips, and why.
        """
        skipped = []
        for folder in self.checkpoints()[::-1]:
            harm = damage(folder)
            if harm is None:
                for line in skipped:
                    say(f"{line}; going on from {folder.name}")
                scalars = json.loads((folder / "state.json").read_text())
                return load_tensors(folder / "state.safetensors"), scalars
            skipped.append(f"skipped the checkpoint {folder}: {harm}")
        for line in skipped:
            say(f"{line}; there is no older one, so the run begins at step 0")
        return None

    def drop_checkpoints(self) -> None:
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
