"""One training loop for every objective and every kind of training.

No loss is defined here: the objectives are imported from toy2d.core.objectives. A condition is a
list of prompts: a batch carries B prompts beside B latents, and the predictor looks up their
embeddings (or computes them, where the text encoder trains).
"""

import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from personalize.config.train_config import TrainConfig
from personalize.parallel.processes import average_, largest
from personalize.parallel.sharding import whole
from personalize.train.guard import Guard, Stopped, finish_step_on_signal
from personalize.train.state import State
from personalize.train.streams import StoredAnswers, Streams
from toy2d.core.drift import Predict
from toy2d.core.objectives import FISHER, L2, OUTPUT, PRIOR, STANDARD, Distance, Example, Objective
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.runs.progress import progress


def objective_of(config: TrainConfig) -> Objective:
    """The objective that --objective names: the sum of its parts."""
    parts = {
        "prior": PRIOR(config.prior_loss_weight),
        "l2": L2(config.l2_reg_weight, config.reg_reduction, config.reg_decoupled),
        "output": OUTPUT(config.output_weight),
        "fisher": FISHER(config.fisher_weight, config.reg_decoupled),
    }
    return sum((parts[p] for p in config.parts), STANDARD)


@dataclass
class TrainingLoop:
    """What `fit` reads: the objective, and where its examples, base and distances come from."""

    config: TrainConfig
    schedule: Schedule
    predict: Predict  # the live model; its condition is a list of prompts
    objective: Objective
    anchors: Mapping[str, Distance]  # "l2", "fisher"
    streams: Streams
    base: Predict | StoredAnswers | None = None  # whose outputs the term "output" imitates
    weights: Tensor | None = None  # of the nodes t (timesteps.py)

    def batch(self, tick: int) -> tuple[dict[str, Example], Predict | None]:
        """One minibatch of every role, and the base as a predictor on it."""
        if not isinstance(self.base, StoredAnswers):
            return self.streams.batch(tick), self.base
        roles = [r for r in self.streams.pools if r != "output"]
        batch = {r: self.streams.example(r, tick) for r in roles}
        return batch | {"output": self.base.example(tick)}, self.base.at(tick)

    def pulls(self, groups: list[dict]) -> list[Mapping[str, Distance]]:
        """For each parameter group the distances that pull it, if they are decoupled.

        A group has a learning rate of its own, so it is pulled at that rate. A distance needs the
        method `of` (see `Anchor`) only where there are several groups.
        """
        if not self.objective.decoupled:
            return [{} for _ in groups]
        if len(groups) == 1:
            return [self.anchors]
        own = [{id(p) for p in group["params"]} for group in groups]
        return [{k: a.of(ids) for k, a in self.anchors.items()} for ids in own]


class TrainingStep:
    """One optimizer step. `step(k)` takes the k-th (from 0) and returns the gradient's norm."""

    def __init__(self, loop: TrainingLoop, state: State, accelerator: Accelerator, guard: Guard):
        self.loop, self.state, self.accelerator, self.guard = loop, state, accelerator, guard
        self.optimizer = accelerator.prepare_optimizer(state.optimizer)
        self.pulls = loop.pulls(state.optimizer.param_groups)
        self.theta = list(state.theta.values())

    def __call__(self, step: int) -> Tensor:
        loop, state, accelerator = self.loop, self.state, self.accelerator
        config, objective = loop.config, loop.objective
        if config.lora_dropout:
            seed_dropout(config.seed, step, loop.streams.rank)
        total = 0.0
        for micro in range(config.gradient_accumulation_steps):
            batch, base = loop.batch(step * config.gradient_accumulation_steps + micro)
            with accelerator.accumulate():
                terms = objective.terms(loop.predict, loop.schedule, batch, base, loop.weights)
                loss = self.guard.poison(sum(terms.values()))
                accelerator.backward(loss)
            state.add_to_log(terms)
            total = total + loss.detach()
        average_([p.grad for p in self.theta if p.grad is not None])
        accelerator.unscale_gradients(self.optimizer)
        objective.add_anchor_gradients_(loop.anchors)  # before clipping: it is part of the gradient
        limit = config.max_grad_norm or torch.inf
        grad_norm = whole(torch.nn.utils.clip_grad_norm_(self.theta, limit))
        self.guard.watch(step + 1, total, grad_norm)
        self.optimizer.step()
        for group, anchors in zip(state.optimizer.param_groups, self.pulls, strict=True):
            objective.pull_to_anchors_(anchors, group["lr"] * (1 - self.guard.found))
        state.lr_scheduler.step()
        if state.ema is not None:
            state.ema.step(self.theta)
        self.optimizer.zero_grad(set_to_none=True)
        return grad_norm


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generator for one step: dropout can draw from no other."""
    process = f"/{rank}" if rank else ""
    torch.manual_seed(generator(seed, f"dropout/{step}{process}").initial_seed())


def fit(
    loop: TrainingLoop,
    state: State,
    accelerator: Accelerator,
    observe: Callable[[dict[str, float]], dict[str, float] | None],
    save: Callable[[State], None],
) -> None:
    """Take `state` from its step to config.max_train_steps.

    observe(mean terms since the last call, and grad_norm) is called every `log_every` steps and at
    the end; it may return what the progress bar shows. save(state) is called every
    `checkpointing_steps` steps, and when a signal asks to stop, once the step is complete. The host
    waits for the device at those calls only. Raises Diverged for a loss that is not finite (the
    weights are then those before that step), Stopped after SIGINT or SIGTERM.
    """
    config, last = loop.config, loop.config.max_train_steps
    guard = Guard(state.optimizer, next(iter(state.theta.values())).device, state.scaler)
    take_step = TrainingStep(loop, state, accelerator, guard)
    silent = not accelerator.is_main_process
    bar = progress(range(state.step, last), "train", last, state.step, silent=silent)
    with finish_step_on_signal() as signals:
        for step in bar:
            started = time.perf_counter()
            grad_norm = take_step(step)
            state.step = step + 1
            state.seconds += time.perf_counter() - started
            logged = state.step % config.log_every == 0 or state.step == last
            if logged:
                guard.check()
                average_(list(state.sums.values()))
                row = {**state.take_log(), "grad_norm": float(grad_norm)}
                bar.set_postfix({k: f"{v:.3g}" for k, v in (observe(row) or row).items()})
            received = 0  # several processes agree on the signal where they wait anyway
            if logged or loop.streams.world == 1:
                received = largest(signals[0] if signals else 0, accelerator.device)
            if received or _due(config.checkpointing_steps, state.step):
                guard.check()
                average_(list(state.sums.values()))
                save(state)
            if received and state.step < last:
                raise stopped_by(received, state.step)


def _due(every: int, step: int) -> bool:
    return bool(every) and step % every == 0


def stopped_by(number: int, step: int) -> Stopped:
    name = signal.Signals(number).name
    message = f"{name}: stopped after step {step}, which is saved; the same command goes on"
    return Stopped(message, number)
