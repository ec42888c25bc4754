"""One training loop for every objective and every kind of training. No loss is defined here: see the import from toy2d.

A condition is a list of prompts, at both scales: the batch carries B prompts beside B latents, and the predictor looks their
embeddings up (or computes them, where the text encoder trains). Every draw is a function of (seed, role, number of the sample): nothing
that is logged, validated, measured or resumed can shift the noise of another step or of another objective.
Shapes: B batch, D data (4, 64, 64 latents for SD-1.5 at 512 px).
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from personalize.config.train_config import TrainConfig
from personalize.parallel.processes import average_, largest
from personalize.parallel.sharding import whole
from personalize.train.state import State
from personalize.train.timesteps import timestep_law
from toy2d.core.drift import Predict
from toy2d.core.objectives import FISHER, L2, OUTPUT, PRIOR, STANDARD, Distance, Example, Objective
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.runs.files import RunFailure


def objective_of(config: TrainConfig) -> Objective:
    """The sum that --objective names. An objective is four numbers, so adding them is all there is to combining."""
    parts = {
        "prior": PRIOR(config.prior_loss_weight),
        "l2": L2(config.l2_reg_weight, config.reg_reduction, config.reg_decoupled),
        "output": OUTPUT(config.output_weight),
        "fisher": FISHER(config.fisher_weight, config.reg_decoupled),
    }
    return sum((parts[p] for p in config.parts), STANDARD)


class Pool(Protocol):
    """Pictures with prompts (personalize/data/latents.py)."""

    def __len__(self) -> int: ...

    def draw(self, indices: list[int], rng: torch.Generator) -> tuple[Tensor, list[str]]:
        """(x0 (B, D) scaled latents, B prompts): image i beside its own prompt."""


class Streams:
    """Minibatches by (role, tick). A pool is walked in an endless sequence of permutations, so every picture is seen equally often.

    Sample i of a role has a generator of its own, so how samples are cut into batches, and among processes, changes none of them.
    """

    def __init__(
        self,
        pools: Mapping[str, Pool],
        config: TrainConfig,
        num_timesteps: int,
        scheme: str = "none",  # the law of t (timesteps.py)
        rank: int = 0,  # this process, of `world`
        world: int = 1,
    ):
        self.rank, self.world = rank, world
        self.pools, self.draw_t = pools, timestep_law(config, scheme, num_timesteps)
        self.seed, self.batch_size = config.seed, config.train_batch_size
        self.offset = 0.1 if config.offset_noise else 0.0

    def batch(self, tick: int) -> dict[str, Example]:
        return {role: self.example(role, tick) for role in self.pools}

    def example(self, role: str, tick: int) -> Example:
        return self.collate(role, self.numbers(tick))

    def numbers(self, tick: int) -> range:
        """This process's samples: the minibatches of one tick lie side by side, process by process."""
        first = (tick * self.world + self.rank) * self.batch_size
        return range(first, first + self.batch_size)

    def collate(self, role: str, numbers: Iterable[int]) -> Example:
        x0, t, eps, prompts = zip(*(self.sample(role, i) for i in numbers), strict=True)
        x0 = torch.cat(x0)
        t, eps = (torch.cat(v).to(x0.device, non_blocking=True) for v in (t, eps))
        return Example(x0, t, eps, list(prompts))

    def sample(self, role: str, i: int) -> tuple[Tensor, Tensor, Tensor, str]:
        """(x0 (1 D), t (1), eps (1 D), prompt) of the role's i-th sample."""
        rng, n = generator(self.seed, f"{role}/{i}"), len(self.pools[role])
        picture = permutation(self.seed, role, n, i // n)[i % n]
        x0, (prompt,) = self.pools[role].draw([picture], rng)
        t = self.draw_t(rng)
        eps = torch.randn(x0.shape, generator=rng)
        if self.offset:  # https://www.crosslabs.org/blog/diffusion-with-offset-noise
            eps += self.offset * torch.randn(1, eps.shape[1], 1, 1, generator=rng)
        return x0, t, eps, prompt


@lru_cache(maxsize=64)
def permutation(seed: int, role: str, n: int, epoch: int) -> tuple[int, ...]:
    return tuple(torch.randperm(n, generator=generator(seed, f"{role}/order/{epoch}")).tolist())


class StoredAnswers:
    """The base's outputs for the first n samples of the "output" role, made before training: no second network is kept.

    Samples are functions of the seed, so with n >= all samples this is exactly what asking the base at each step would give; with
    fewer, sample i repeats sample i mod n. Latents of SD-1.5 take 64 KiB each.
    """

    def __init__(self, streams: Streams, answers: Tensor):
        self.streams, self.answers = streams, answers  # n D, on the host

    @classmethod
    @torch.no_grad()
    def ask(cls, predict: Predict, streams: Streams, schedule: Schedule, n: int) -> "StoredAnswers":
        """n samples, however minibatches and processes share them out: the same ones under another number of processes."""
        answers, size = [], streams.batch_size
        for first in tqdm(range(0, n, size), "base answers", disable=None):
            x0, t, eps, cond = streams.collate("output", range(first, min(first + size, n)))
            x_t = schedule.add_noise(x0, t, eps)
            answers.append(predict(x_t, schedule.timesteps[t], cond).cpu())
        return cls(streams, torch.cat(answers))

    def example(self, tick: int) -> Example:
        return self.streams.collate("output", self._numbers(tick))

    def at(self, tick: int) -> Predict:
        answer = self.answers[self._numbers(tick)]
        return lambda x_t, t, cond: answer.to(x_t.device)

    def _numbers(self, tick: int) -> list[int]:
        return [i % len(self.answers) for i in self.streams.numbers(tick)]


class Guard:
    """Keeps a non-finite loss or gradient away from the weights without asking the device at every step.

    `found` is the flag that torch's fused optimizers read on the device: while it is 1 they change neither weights nor moments.
    Once set it stays set (`poison` sees to it under fp16, where GradScaler owns the flag), and `check`, called where the host waits
    anyway (log rows, checkpoints, the end), raises. An optimizer without that flag (8-bit Adam) is checked at every step.
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
        if self.scaler is None:  # GradScaler meets infinite gradients in good health and skips them
            bad |= ~torch.isfinite(grad_norm)
            self.optimizer.found_inf = self.found
        self.first += bad * (self.found == 0) * step
        self.found += bad * (1 - self.found)
        if self.every_step:
            self.check()

    def check(self) -> None:
        if self.found.item():
            raise Diverged(
                f"the loss or its gradient is no longer finite at step {int(self.first)}; the weights were left as they were before it. "
                "Lower --learning_rate or the objective's weight, or use --mixed_precision bf16 or no"
            )


class Diverged(RunFailure):
    """The loss or its gradient left the finite numbers."""


class Stopped(RunFailure):
    """A signal ended the run after a whole, saved step."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number

    def __reduce__(self):  # comes back whole from a worker process
        return type(self), (str(self), self.number)


@contextlib.contextmanager
def finish_step_on_signal():
    """Yields a list that receives the number of a SIGINT or SIGTERM; a second signal acts as it would without us."""
    received, before = [], {}

    def note(number, frame):
        received.append(number)
        for n, handler in before.items():
            signal.signal(n, handler)

    with contextlib.suppress(ValueError):  # not the main thread: signals are its business
        for n in (signal.SIGINT, signal.SIGTERM):
            before[n] = signal.signal(n, note)
    try:
        yield received
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)


@dataclass
class Run:
    """What the loop reads: the objective, and where its examples, its base and its anchors come from."""

    config: TrainConfig
    schedule: Schedule
    predict: Predict  # the live model; its condition is a list of prompts
    objective: Objective
    anchors: Mapping[str, Distance]
    streams: Streams
    base: Predict | StoredAnswers | None = None  # who "output" imitates
    weights: Tensor | None = None  # of the nodes t (timesteps.py)

    def pulls(self, groups: list[dict]) -> list[Mapping[str, Distance]]:
        """For each group of parameters what pulls it, since it learns at a rate of its own; nothing if distances are gradients.

        A distance needs the method `of` (Anchor's) only where there are several groups.
        """
        if not self.objective.decoupled:
            return [{} for _ in groups]
        if len(groups) == 1:
            return [self.anchors]
        own = [{id(p) for p in group["params"]} for group in groups]
        return [{k: a.of(ids) for k, a in self.anchors.items()} for ids in own]

    def batch(self, tick: int) -> tuple[dict[str, Example], Predict | None]:
        if not isinstance(self.base, StoredAnswers):
            return self.streams.batch(tick), self.base
        roles = [r for r in self.streams.pools if r != "output"]
        batch = {r: self.streams.example(r, tick) for r in roles}
        return batch | {"output": self.base.example(tick)}, self.base.at(tick)


def fit(
    run: Run,
    state: State,
    accelerator: Accelerator,
    observe: Callable[[dict[str, float]], dict[str, float] | None],
    save: Callable[[State], None],
) -> None:
    """Take `state` from its step to config.max_train_steps.

    observe(mean terms since the last call, and grad_norm) is called every `log_every` steps and at the end, and may return what the
    progress bar shows; save(state) is called every `checkpointing_steps` steps, and when a signal asks to stop, once the step is whole.
    The host waits for the device at those calls only. Raises RunFailure for a loss that is not finite (the weights are then
    those before that step), Stopped after SIGINT or SIGTERM.
    """
    config, objective, theta = run.config, run.objective, list(state.theta.values())
    last, accumulation = config.max_train_steps, config.gradient_accumulation_steps
    optimizer, guard = state.optimizer, Guard(state.optimizer, theta[0].device, state.scaler)
    prepared = accelerator.prepare_optimizer(optimizer)
    pulled = run.pulls(optimizer.param_groups)
    silent = None if accelerator.is_main_process else True
    bar = tqdm(range(state.step, last), "train", last, initial=state.step, disable=silent)
    with finish_step_on_signal() as signals:
        for step in bar:
            started = time.perf_counter()
            if config.lora_dropout:  # the one draw that takes no generator
                who = f"/{run.streams.rank}" if run.streams.rank else ""
                torch.manual_seed(generator(config.seed, f"dropout/{step}{who}").initial_seed())
            total = 0.0
            for micro in range(accumulation):
                batch, base = run.batch(step * accumulation + micro)
                with accelerator.accumulate():
                    terms = objective.terms(run.predict, run.schedule, batch, base, run.weights)
                    loss = guard.poison(sum(terms.values()))
                    accelerator.backward(loss)
                state.add_to_log(terms)
                total = total + loss.detach()
            average_([p.grad for p in theta if p.grad is not None])
            accelerator.unscale_gradients(prepared)
            objective.add_anchor_gradients_(run.anchors)
            grad_norm = whole(torch.nn.utils.clip_grad_norm_(theta, config.max_grad_norm or torch.inf))  # fmt: skip
            guard.watch(step + 1, total, grad_norm)
            prepared.step()
            for group, anchors in zip(optimizer.param_groups, pulled, strict=True):
                objective.pull_to_anchors_(anchors, group["lr"] * (1 - guard.found))
            state.lr_scheduler.step()
            if state.ema is not None:
                state.ema.step(theta)
            prepared.zero_grad(set_to_none=True)
            state.step = step + 1
            state.seconds += time.perf_counter() - started

            logged = state.step % config.log_every == 0 or state.step == last
            if logged:
                guard.check()
                average_(list(state.sums.values()))
                row = {**state.take_log(), "grad_norm": float(grad_norm)}
                bar.set_postfix({k: f"{v:.3g}" for k, v in (observe(row) or row).items()})
            asked = 0  # the signal's number; several processes agree on it where they wait anyway
            if logged or run.streams.world == 1:
                asked = largest(signals[0] if signals else 0, accelerator.device)
            if asked or _due(config.checkpointing_steps, state.step):
                guard.check()
                average_(list(state.sums.values()))
                save(state)
            if asked and state.step < last:
                name = signal.Signals(asked).name
                raise Stopped(f"{name}: stopped after step {state.step}, which is saved; the same command goes on", asked)  # fmt: skip


def _due(every: int, step: int) -> bool:
    return bool(every) and step % every == 0
