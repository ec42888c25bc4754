"""Progress of long loops: a bar on a terminal, in a log file a line now and then.

`TQDM_DISABLE=1` silences both.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized

from tqdm import tqdm

DELAY = 1.0  # seconds before a bar appears: what is shorter needs none
SHORT, LONG = 10.0, 60.0  # seconds: no line earlier, none later than that after the last
SHARE = 0.1  # of the way, between two lines that are less than LONG apart


class Lines:
    """An iterable that prints how far it is, for streams that cannot draw a bar."""

    def __init__(self, items: Iterable, label: str, total: int, initial: int):
        self.items, self.label, self.total, self.initial = items, label, total, initial
        self.note = ""

    def set_postfix(self, values: dict[str, str]) -> None:
        self.note = "".join(f", {k} {v}" for k, v in values.items())

    def __iter__(self) -> Iterator:
        began = said = time.monotonic()
        last = self.initial
        for n, item in enumerate(self.items, self.initial):
            now = time.monotonic()
            far = n - last >= SHARE * self.total or now - said >= LONG
            if n > last and far and now - said >= SHORT:
                left = (now - began) / (n - self.initial) * (self.total - n)
                words = f"{self.label}: {n} of {self.total}, about {left:.0f} s left{self.note}"
                print(words, file=sys.stderr, flush=True)
                said, last = now, n
            yield item


def progress(
    items: Iterable,
    label: str,
    total: int | None = None,
    initial: int = 0,
    *,
    leave: bool = True,
    silent: bool = False,
) -> "tqdm | Lines":
    """`items`, shown as they are taken; `set_postfix(values)` adds what is measured.

    `total` counts the items that were taken before too (`initial`); default: all there are.
    """
    if total is None:
        total = initial + len(items) if isinstance(items, Sized) else 0
    silent = silent or bool(os.environ.get("TQDM_DISABLE"))
    if silent or (sys.stderr is not None and sys.stderr.isatty()):
        how = {"initial": initial, "leave": leave, "disable": silent, "delay": DELAY}
        return tqdm(items, label, total, **how)
    return Lines(items, label, total, initial)
