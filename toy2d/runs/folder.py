"""A run folder that survives anything: lock, status, configuration, exact checkpoints. Used at both scales.

    runs/<scale>/<name>/   config.json  env.json  status.json  history.csv  metrics.json  figures/  checkpoints/

Files appear whole or not at all (temporary name, fsync, rename). A checkpoint is a folder whose manifest.json (size and SHA-256 of each
file) is written last; a torn or altered one is passed over for the one before it. Nothing is ever unpickled.
"""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor

from toy2d.runs.files import (
    RunFailure,
    UserError,
    appearing,
    cut_or_missing,
    verify_manifest,
    write_json,
    write_manifest,
)

# what may change after a run is done, or is of no use then
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
    """One safetensors file, atomically; written from where the tensors are, without a copy of those on the host."""
    own, whole = set(), {}
    for name, tensor in tensors.items():
        t, storage = tensor.detach().cpu().contiguous(), tensor.untyped_storage()
        if storage.data_ptr() in own or storage.nbytes() != t.nbytes:
            t = t.clone()  # the format knows no views: each name has bytes of its own
        own.add(storage.data_ptr())
        whole[name] = t
    with appearing(path) as temporary:
        save_file(whole, temporary, metadata)


def load_tensors(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def environment(packages: tuple[str, ...] = ("torch", "numpy")) -> dict:
    """What a reader needs to repeat the run: commit, versions, machine. No home paths, no environment variables."""
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


class RunFolder:
    """One run's folder. `with RunFolder(path, config).open() as folder:` holds its lock and keeps status.json true."""

    def __init__(self, path: Path, config: dict):
        self.path, self.config = Path(path), json.loads(json.dumps(config))

    @property
    def status(self) -> str:
        """ "new", "running" (or killed), "done" or "failed"."""
        try:
            return json.loads((self.path / "status.json").read_text())["status"]
        except FileNotFoundError:
            return "new"
        except (ValueError, KeyError, OSError) as e:
            raise UserError(
                f"{self.path}/status.json cannot be read ({e}); move the folder away"
            ) from e

    @contextlib.contextmanager
    def open(self) -> Iterator["RunFolder"]:
        """Lock, compare the configuration, mark as running; on leaving write the manifest and mark as done, or mark as failed.

        Raises UserError if another process holds the folder, if it was made with another configuration (the differing fields
        are listed), or if it is something else than a run folder; RunFailure if it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.path} is in use by process {self._owner()}; wait for it or choose another --out"
            ) from None
        except OSError as e:
            raise RunFailure(
                f"cannot write to {self.path}: {e.strerror}; choose another --out"
            ) from e
        try:
            self._check_config()
            if self.status == "done":
                self._check_whole()
                yield self
                return
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
        finally:
            lock.release()

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
            strangers = [
                p.name for p in self.path.iterdir() if p.name not in (".lock", "status.json")
            ]
            if strangers:
                raise UserError(
                    f"{self.path} is not a run folder (it holds {sorted(strangers)[0]!r}); choose another --out"
                )
            return
        try:
            old = json.loads(file.read_text())
        except (ValueError, OSError) as e:
            raise UserError(f"{file} cannot be read ({e}); move {self.path} away") from e
        differing = [k for k in {**old, **self.config} if old.get(k) != self.config.get(k)]
        if differing:
            shown = "; ".join(
                f"{k}: {old.get(k)} there, {self.config.get(k)} now" for k in differing[:6]
            )
            raise UserError(
                f"{self.path} holds a run with another configuration ({shown}); "
                "choose another --out, or move that folder away"
            )

    # ---- checkpoints
    def save_checkpoint(
        self, step: int, tensors: dict[str, Tensor], scalars: dict, keep: int = 2
    ) -> Path:
        """checkpoints/step-N/ with state.safetensors, state.json and, last, manifest.json; older ones beyond `keep` go."""
        root = self.path / "checkpoints"
        final, temporary = root / f"step-{step:08d}", root / f".step-{step:08d}.{os.getpid()}.tmp"
        need = sum(t.numel() * t.element_size() for t in tensors.values())
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
        if free < 1.1 * need + 2**20:
            raise RunFailure(
                f"checkpoint of step {step} needs {need / 2**20:.0f} MiB, {root} has {free / 2**20:.0f} MiB free; "
                "free some space and run the same command again"
            )
        shutil.rmtree(temporary, ignore_errors=True)
        save_tensors(temporary / "state.safetensors", tensors)
        write_json(temporary / "state.json", scalars)
        write_manifest(temporary)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("step-*"))

    def newest_checkpoint(self) -> tuple[dict[str, Tensor], dict] | None:
        """The newest checkpoint that is whole: (tensors, scalars); None if there is none."""
        for folder in self.checkpoints()[::-1]:
            if verify_manifest(folder):
                scalars = json.loads((folder / "state.json").read_text())
                return load_tensors(folder / "state.safetensors"), scalars
        return None

    def drop_checkpoints(self) -> None:
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
