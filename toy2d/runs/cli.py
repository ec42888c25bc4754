"""What every command of driftlab shares: one line for a fault, and the exit codes.

0     done
1     the machine refused: disk, memory, numbers that are not finite
2     the command was wrong: the line says what to write instead
130   interrupted (Ctrl-C); 143 ended by SIGTERM; the same command goes on
141   whoever read the output has gone (`| head`): nothing is said, as the shell expects
"""

import contextlib
import functools
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import tyro

from toy2d.runs.files import RunFailure, UserError

BROKEN_PIPE = 128 + signal.SIGPIPE


def parse(
    prog: str, commands: dict[str, Callable], description: str, args: list[str] | None = None
):
    """tyro's subcommands, run; tyro's boxed complaint becomes one line `prog: what; what to do`
    with exit code 2.
    """
    with complaints_in_one_line():
        chosen = tyro.extras.subcommand_cli_from_dict(
            {name: _deferred(f) for name, f in commands.items()},
            prog=prog,
            description=description,
            args=args,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    return chosen()


@contextlib.contextmanager
def complaints_in_one_line(help_command: str = "--help"):
    """Inside, a command line that tyro refuses raises UserError with tyro's complaint in one line.

    SystemExit of --help passes through.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            yield
    except SystemExit as e:
        if e.code != 2:
            raise
        raise UserError(one_line(complaint.getvalue(), help_command)) from None


def _deferred(command: Callable) -> Callable:
    """The same signature, but calling it only binds the arguments: the work must not run while
    stderr is captured.
    """

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any):
        return lambda: command(*args, **kwargs)

    bind.__annotations__ = {k: v for k, v in command.__annotations__.items() if k != "return"}
    return bind


def one_line(box: str, help_command: str = "--help") -> str:
    """tyro's box without its frame: the complaint and the first suggestion or list of choices."""
    text = [re.sub(r"[│╭╮╰╯─|+]|--+(?![a-z])", "", line).strip() for line in box.splitlines()]
    lines = [line for line in text if line]
    if not lines:
        return f"the command line was not understood; see {help_command}"
    title, body = lines[0], lines[1:] or lines[:1]
    body = [b for b in body if not b.startswith(("in ", "(default"))]
    kept = body[: 3 if any(b.startswith(("Perhaps", "Available")) for b in body) else 1]
    kept = [k for k in kept if not k.startswith("For full")]
    if kept and kept[0].startswith("Missing from"):
        missing = [b.split()[0] for b in body if b.startswith("--")]
        verb = "are" if len(missing) > 1 else "is"
        return f"{' and '.join(missing)} {verb} missing; see {help_command}"
    said = " ".join(kept)
    return f"{said if title in kept[0] else f'{title}: {said}'}; see {help_command}"


class Signalled(KeyboardInterrupt):
    """SIGTERM or SIGHUP, raised where SIGINT raises KeyboardInterrupt, so that a run records it
    alike.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def raised_signals():
    """Inside, SIGTERM and SIGHUP raise Signalled.

    A signal that is ignored (nohup) stays ignored.
    """

    def raise_it(number, frame):
        raise Signalled(number)

    before = {}
    with contextlib.suppress(ValueError):  # not the main thread: signals are its business
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, raise_it)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def guard(main: Callable[[], Any], prog: str) -> int:
    """Run `main`; a fault that a person can mend is one line on stderr, not a traceback.

    Returns the exit code.
    """
    with_open_streams()
    try:
        code, reason = _ended(main)
        with uninterrupted():
            if code:
                with contextlib.suppress(BrokenPipeError):
                    print(f"{prog}: {on_one_line(reason)}", file=sys.stderr, flush=True)
            sys.stdout.flush()
    except BrokenPipeError:
        nobody_reads()
        return BROKEN_PIPE
    return code


def _ended(main: Callable[[], Any]) -> tuple[int, str]:
    """(exit code, why it is not 0)."""
    try:
        with raised_signals():
            main()
    except UserError as e:
        return 2, str(e)
    except RunFailure as e:  # a signal that was obeyed ends as the shell expects
        return 128 + e.number if hasattr(e, "number") else 1, str(e)
    except MemoryError:
        return 1, "the memory of this machine does not suffice"
    except KeyboardInterrupt as e:
        number = getattr(e, "number", signal.SIGINT)
        said = "interrupted" if number == signal.SIGINT else f"ended by {e}"
        return 128 + number, f"{said}; the same command goes on from the last checkpoint"
    return 0, ""


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A second Ctrl-C is ignored while the last line is written."""
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread: signals are its business
        before = None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGINT, before)


def on_one_line(text: str) -> str:
    """The words of `text`; an escape sequence in a file's name does not reach the terminal."""
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def to_stderr(text: str) -> None:
    """What a command says while --json keeps stdout for the result."""
    print(text, file=sys.stderr)


def with_open_streams() -> None:
    """Stand in for streams that were closed before we began (`>&-`): what is said then goes
    nowhere.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def nobody_reads() -> None:
    """Point stdout to nowhere: Python would complain once more when it flushes it at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    with contextlib.suppress(OSError, ValueError):
        os.dup2(null, sys.stdout.fileno())
