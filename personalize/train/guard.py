"""What stops a run: a loss that is no longer finite, or a signal. Neither leaves a broken state."""

import contextlib
import signal

import torch
from torch import Tensor

from toy2d.runs.files import RunFailure


class Diverged(RunFailure):
    """The loss or its gradient is no longer finite."""


class Stopped(RunFailure):
    """A signal ended the run after a whole, saved step."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number

    def __reduce__(self):  # so that it can be pickled by a worker process
        return type(self), (str(self), self.number)


class Guard:
    """Keeps a non-finite loss or gradient away from the weights without a host sync at each step.

    `found` is the flag that torch's fused optimizers read on the device: while it is 1 they change
    neither weights nor moments. Once set it stays set (under fp16, where GradScaler owns the flag,
    `poison` makes every later loss NaN instead). `check` raises; it is called where the host waits
    for the device anyway (log rows, checkpoints, the end). An optimizer without that flag (8-bit
    Adam) is checked at every step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device, scaler=None):
        self.optimizer, self.scaler = optimizer, scaler
        self.found = torch.zeros((), device=device)
        self.first = torch.zeros((), dtype=torch.long, device=device)
        self.every_step = not optimizer.defaults.get("fused")

    def poison(self, loss: Tensor) -> Tensor:
        return torch.where(self.found > 0, torch.nan, loss)

    def watch(self, step: int, loss: Tensor, grad_norm: Tensor) -> None:
        bad = ~torch.isfinite(loss)
        if self.scaler is None:  # GradScaler expects infinite gradients now and then: it skips them
            bad |= ~torch.isfinite(grad_norm)
            self.optimizer.found_inf = self.found
        self.first += bad * (self.found == 0) * step
        self.found += bad * (1 - self.found)
        if self.every_step:
            self.check()

    def check(self) -> None:
        """Raises Diverged if a loss or gradient was not finite."""
        if self.found.item():
            raise Diverged(
                f"the loss or its gradient is no longer finite at step {int(self.first)}; the "
                "weights were left as they were before it. Lower --learning_rate or the "
                "objective's weight, or use --mixed_precision bf16 or no"
            )


@contextlib.contextmanager
def finish_step_on_signal():
    """Yields a list that receives the number of a SIGINT or SIGTERM.

    A second signal acts as it would without this context.
    """
    received, before = [], {}

    def note(number, frame):
        received.append(number)
        for n, handler in before.items():
            signal.signal(n, handler)

    with contextlib.suppress(ValueError):  # only the main thread may set handlers
        for n in (signal.SIGINT, signal.SIGTERM):
            before[n] = signal.signal(n, note)
    try:
        yield received
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
