"""Faults for any command that writes files: a disk that fills up, a short write, a kill, a signal.

The command runs in a forked child. An audit hook counts its file-system operations below one
folder (opening to write, making, renaming, syncing) and lets the fault happen at one of them. The
kernel itself cuts writes at a byte: RLIMIT_FSIZE makes a write short, and with SIGXFSZ at its
default the process dies inside it.
"""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

WRITES = os.O_WRONLY | os.O_RDWR
OPERATIONS = {"os.mkdir": 0, "os.rename": 1, "os.fsync": 0, "os.truncate": 0}
REMOVALS = {"os.remove": 0, "os.rmdir": 0}


class Fault(NamedTuple):
    """What goes wrong. `at`: the number of the operation, from 1; `byte`: of the file then written;
    `moment`: share of the undisturbed run's time.
    """

    kind: str
    at: int = 0
    byte: int = 0
    moment: float = 0.0


class Ended(NamedTuple):
    """How a child ended: its exit code (negative: the signal that killed it), what it said on
    stderr, seconds, and its number of file-system operations if it ended by itself.
    """

    code: int
    err: str
    seconds: float
    operations: int


KILLED = {
    "kill": signal.SIGKILL,
    "kill in a write": signal.SIGXFSZ,
    "kill anywhere": signal.SIGKILL,
}
SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP}
REFUSED = {"full": errno.ENOSPC, "read-only": errno.EROFS}
KINDS = (
    *(*REFUSED, "short write", "full tmpfs", *KILLED, *SIGNALS, "SIGINT twice"),
    *(f"{name} anywhere" for name in SIGNALS),
)


# ---- in the child
class Operations:
    """Counts file-system operations below `folder`; lets `fault` happen at its operation."""

    def __init__(self, folder: Path, fault: Fault | None):
        self.folder, self.fault, self.count, self.armed = str(folder), fault, 0, True

    def __call__(self, event: str, args: tuple) -> None:
        if not self.armed or not (path := self.path_of(event, args)).startswith(self.folder):
            return
        refuses = self.fault and self.fault.kind in REFUSED and self.count + 1 >= self.fault.at
        if event in REMOVALS:
            if refuses and self.fault.kind == "read-only":
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
            return
        self.count += 1
        if refuses:
            number = REFUSED[self.fault.kind]
            raise OSError(number, os.strerror(number), path)
        if self.fault and self.count == self.fault.at:
            self.happen()

    def path_of(self, event: str, args: tuple) -> str:
        if event == "open":
            path, _, flags = args
            return os.fsdecode(path) if flags & WRITES and isinstance(path, str | bytes) else ""
        which = (OPERATIONS | REMOVALS).get(event)
        if which is None or isinstance(args[which], int):
            return ""
        return os.fsdecode(args[which])

    def happen(self) -> None:
        kind = self.fault.kind
        if kind in ("short write", "kill in a write"):
            if kind == "kill in a write":
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.fault.byte, self.fault.byte))
        elif kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind in SIGNALS:
            os.kill(os.getpid(), SIGNALS[kind])
        elif kind == "SIGINT twice":
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            os.kill(os.getpid(), signal.SIGINT)


def watch(operations: Operations) -> None:
    """fsync is no audit event: it is counted by the name of its file."""
    fsync = os.fsync

    def counted(fd: int) -> None:
        operations("os.fsync", (os.readlink(f"/proc/self/fd/{fd}"),))
        fsync(fd)

    os.fsync = counted
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    sys.addaudithook(operations)


def child(command: Callable[[], int], operations: Operations, err: int, count: int) -> None:
    """Never returns."""
    code = 1
    with open(os.devnull, "r+b", buffering=0) as nowhere:
        for fd in (0, 1):
            os.dup2(nowhere.fileno(), fd)
    os.dup2(err, 2)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), line_buffering=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), line_buffering=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        watch(operations)
        code = command()
    except BaseException:
        traceback.print_exc()
    finally:
        operations.armed = False
        os.write(count, str(operations.count).encode())
        os._exit(code)


# ---- in the test
def fork(command: Callable[[], int], folder: Path, fault: Fault | None = None):
    """(the child's process number, what reads its stderr, what reads its count)"""
    err, count = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        child(command, Operations(folder, fault), err[1], count[1])
    os.close(err[1])
    os.close(count[1])
    return pid, err[0], count[0]


def run(
    command: Callable[[], int], folder: Path, fault: Fault | None = None, usual: float = 0.0
) -> Ended:
    """Run `command` in a child and let `fault` happen. `usual`: seconds of an undisturbed run."""
    begun = time.monotonic()
    pid, err, count = fork(command, folder, fault)
    if fault and fault.kind.endswith(" anywhere"):
        time.sleep(fault.moment * usual)
        name = fault.kind.removesuffix(" anywhere")
        os.kill(pid, SIGNALS.get(name, signal.SIGKILL))
    return wait(pid, err, count, begun)


def wait(pid: int, err: int, count: int, begun: float) -> Ended:
    with open(err, "rb") as said, open(count, "rb") as counted:
        text, operations = said.read().decode(), counted.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, text, time.monotonic() - begun, int(operations or 0))


def keeps_the_contract(fault: Fault, ended: Ended, prog: str) -> str:
    """What is wrong with how a faulted command ended, in words; "" if nothing is."""
    if fault.kind in KILLED:
        allowed = (-KILLED[fault.kind], 0)
    elif (name := fault.kind.split()[0]) in SIGNALS:
        allowed = (128 + SIGNALS[name], 0)
    else:
        allowed = (1, 0)
    if ended.code not in allowed:
        return f"exit code {ended.code}, not {allowed[0]}"
    if ended.code <= 0:
        return f"said on stderr, with exit code {ended.code}" if ended.err else ""
    if not ended.err.startswith(f"{prog}: ") or ended.err.count("\n") != 1:
        return "not one line"
    return ""


TIMES = ("seconds", "pid", "host", "time", "peak_memory", "commit", "uncommitted")


def timeless(value):
    """JSON without what depends on the clock, the machine or the state of the sources."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not any(t in k for t in TIMES)}
        return {k: timeless(v) for k, v in kept.items()}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def ending(folder: Path, leave_out: tuple[str, ...] = ("cache",)) -> dict[str, str]:
    """Every file below a folder -> a hash of its bytes, less clock times in JSON and CSV.

    Manifests hold hashes of such files, so they are left out; temporary files are not.
    """
    found = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(file.relative_to(folder))
        if file.name in ("manifest.json", ".lock") or any(w in file.parts for w in leave_out):
            continue
        data = file.read_bytes()
        if file.suffix == ".json":
            data = json.dumps(timeless(json.loads(data))).encode()
        elif file.suffix == ".csv":
            rows = list(csv.reader(io.StringIO(data.decode())))
            kept = [i for i, c in enumerate(rows[0]) if "seconds" not in c]
            data = json.dumps([[row[i] for i in kept] for row in rows]).encode()
        found[name] = hashlib.sha256(data).hexdigest()[:16]
    return found


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """`folder` as a disk of `size` bytes while the body runs; yields what enlarges it.

    Needs root.
    """
    folder.mkdir(parents=True, exist_ok=True)
    option = f"size={max(4096, size)}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", option, "none", folder], check=True)
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=1G", folder], check=True)
    finally:
        subprocess.run(["umount", folder], check=True)


def can_mount() -> bool:
    return os.geteuid() == 0 and shutil.which("mount") is not None
