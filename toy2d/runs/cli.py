"""What every command of driftlab shares: one line for a fault, exit code 2 for the user's, 1 for the machine's."""

import contextlib
import functools
import io
import re
import sys
from collections.abc import Callable
from typing import Any

import tyro

from toy2d.runs.files import RunFailure, UserError


def parse(
    prog: str, commands: dict[str, Callable], description: str, args: list[str] | None = None
):
    """tyro's subcommands, run; tyro's boxed complaint becomes one line `prog: what; what to do` with exit code 2."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            chosen = tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(f) for name, f in commands.items()},
                prog=prog,
                description=description,
                args=args,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as e:
        if e.code != 2:
            raise
        raise UserError(one_line(complaint.getvalue())) from None
    return chosen()


def _deferred(command: Callable) -> Callable:
    """The same signature, but calling it only binds the arguments: the work must not run while stderr is captured."""

    @functools.wraps(command)
    def bind(*args: Any, **kwargs: Any):
        return lambda: command(*args, **kwargs)

    bind.__annotations__ = {k: v for k, v in command.__annotations__.items() if k != "return"}
    return bind


def one_line(box: str) -> str:
    """tyro's box without its frame: the complaint and the first suggestion or list of choices."""
    text = [re.sub(r"[│╭╮╰╯─|+]|--+(?![a-z])", "", line).strip() for line in box.splitlines()]
    lines = [line for line in text if line]
    if not lines:
        return "the command line was not understood; see --help"
    title, body = lines[0], lines[1:] or lines[:1]
    body = [b for b in body if not b.startswith(("in ", "(default"))]
    kept = body[: 3 if any(b.startswith(("Perhaps", "Available")) for b in body) else 1]
    kept = [k for k in kept if not k.startswith("For full")]
    return (
        f"{title}: {' '.join(kept)}; see --help"
        if title not in kept[0]
        else f"{' '.join(kept)}; see --help"
    )


def guard(main: Callable[[], Any], prog: str) -> int:
    """Run `main`; a fault that a person can mend is one line on stderr, not a traceback. Returns the exit code."""
    try:
        main()
    except UserError as e:
        print(f"{prog}: {e}", file=sys.stderr)
        return 2
    except RunFailure as e:
        print(f"{prog}: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"{prog}: interrupted; the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        return 130
    return 0
