"""Everything that changes while training, and its exact copy for a checkpoint. Nothing is pickled.

    theta, optimizer moments, EMA, GradScaler, sums of the log  ->  flat tensors + JSON scalars

Random numbers need no copy: every draw is a function of (seed, role, step) (streams.Streams). Nor
does the learning rate: it is a function of the step and of the run's own flags.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from personalize.config.train_config import TrainConfig
from personalize.parallel.sharding import cut
from toy2d.core.drift import Params
from toy2d.runs.files import UserError, verify_manifest
from toy2d.runs.folder import RunFolder, load_tensors


@dataclass
class State:
    """The state after `step` optimizer steps, `seconds` after the first began.

    `sums` holds the terms since the last log row, on the device; `count` how many were added.
    """

    theta: Params
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LambdaLR
    ema: EMAModel | None = None
    scaler: Any = None
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0
    weight: float | None = None  # of the term that --max_path_kl adapts

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def add_to_log(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.count += 1

    def take_log(self) -> dict[str, float]:
        """Means since the last call; the only place where they are copied to the host."""
        means = {k: float(v) / self.count for k, v in self.sums.items()} if self.count else {}
        self.sums, self.count = {}, 0
        return means

    def weights_only(self) -> tuple[dict[str, Tensor], dict]:
        """The trained weights: enough to look at, not enough to continue bit for bit."""
        tensors = {f"theta/{k}": p.detach() for k, p in self.theta.items()}
        scalars = {"step": self.step, "seconds": self.seconds, "exact": False}
        return tensors, scalars | ({} if self.weight is None else {"weight": self.weight})

    def exact(self) -> tuple[dict[str, Tensor], dict]:
        tensors, scalars = self.weights_only()
        moments = {}
        for name, p in self.theta.items():
            for key, value in self.optimizer.state[p].items():
                kind = tensors if isinstance(value, Tensor) else moments
                kind[f"adam/{key}/{name}"] = value
        tensors |= {f"sums/{k}": torch.as_tensor(v) for k, v in self.sums.items()}
        scalars |= {"exact": True, "count": self.count, "adam": moments}
        if self.ema is not None:
            shadow = zip(self.theta, self.ema.shadow_params, strict=True)
            tensors |= {f"ema/{k}": v for k, v in shadow}
        if self.scaler is not None:
            scalars["scaler"] = self.scaler.state_dict()
        return tensors, scalars

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], scalars: dict) -> None:
        """The inverse of `exact`; of `weights_only` with fresh moments and the average at theta."""
        for name, p in self.theta.items():
            p.copy_(cut(tensors[f"theta/{name}"], p))
        self.step, self.seconds = scalars["step"], scalars["seconds"]
        if self.weight is not None:  # a checkpoint of a run without a target holds none
            self.weight = scalars.get("weight", self.weight)
        self._set_rates()
        if self.ema is not None:
            for (name, p), shadow in zip(self.theta.items(), self.ema.shadow_params, strict=True):
                shadow.copy_(cut(tensors[f"ema/{name}"], shadow) if scalars["exact"] else p)
            self.ema.optimization_step = self.step
        if not scalars["exact"]:
            return
        for p in self.theta.values():
            self.optimizer.state[p] = {}
        flat = tensors | scalars["adam"]
        for key, value in flat.items():
            kind, _, rest = key.partition("/")
            if kind == "adam":
                moment, _, name = rest.partition("/")
                self.optimizer.state[self.theta[name]][moment] = self._like(value, name)
            elif kind == "sums":
                self.sums[rest] = value.to(next(iter(self.theta.values())).device)
        self.count = scalars["count"]
        if self.scaler is not None:
            self.scaler.load_state_dict(scalars["scaler"])

    def _set_rates(self) -> None:
        """Put torch's LambdaLR where `step` calls would have: these are this run's own rates, also
        if another run made the checkpoint."""
        schedule = self.lr_scheduler
        schedule.last_epoch = self.step
        factors = [factor(self.step) for factor in schedule.lr_lambdas]
        rates = [base * f for base, f in zip(schedule.base_lrs, factors, strict=True)]
        schedule._last_lr = rates
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr

    def _like(self, value, name: str):
        if not isinstance(value, Tensor):
            return value
        return cut(value, self.theta[name]).to(self.theta[name].device, copy=True)


# what a checkpoint of another run must share with this one: the meaning of its weights ...
MEANING = (
    "train",
    "train_text_encoder",
    "lora_alpha",
    "placeholder_token",
    "initializer_token",
    "num_vectors",
    "mixed_precision",
)
# ... and of its moments
MOMENTS = ("use_8bit_adam", "use_ema")


def read_checkpoint(
    folder: RunFolder, theta: Params, config: TrainConfig
) -> tuple[dict[str, Tensor], dict] | None:
    """(tensors, scalars) of the folder's newest whole checkpoint; None means step 0.

    Only if the folder has none, the checkpoint that --resume_from_checkpoint names is read. Raises
    UserError if that one is missing, damaged, of another base, of other parameters or another kind
    of state, or already at the last step.
    """
    own, wanted = folder.newest_checkpoint(), config.resume_from_checkpoint
    if own is not None or wanted is None:
        return own
    if wanted == "latest":
        raise UserError(
            f"--resume_from_checkpoint latest: {folder.path} has no whole checkpoint; "
            "leave the flag out to start anew"
        )
    flag, path = f"--resume_from_checkpoint {wanted}", Path(wanted).expanduser()
    if not verify_manifest(path):
        raise UserError(f"{flag} is no whole checkpoint folder: pass .../checkpoints/step-N")
    tensors = load_tensors(path / "state.safetensors")
    scalars = json.loads((path / "state.json").read_text())
    _refuse_another(flag, path.resolve().parent.parent, folder, scalars["exact"])
    shapes = {n: t.shape for n, t in tensors.items() if n.startswith("theta/")}
    if shapes != {f"theta/{n}": p.shape for n, p in theta.items()}:
        raise UserError(f"{flag} holds other weights than this run trains")
    if scalars["step"] >= config.max_train_steps:
        raise UserError(
            f"{flag} is of step {scalars['step']}: "
            f"--max_train_steps {config.max_train_steps} leaves nothing to do"
        )
    return tensors, scalars


def _refuse_another(flag: str, origin: Path, folder: RunFolder, exact: bool) -> None:
    """Raises UserError unless the run in `origin` trained the same parameters of the same base."""
    try:
        old = json.loads((origin / "config.json").read_text())
        bases = [
            json.loads((f / "env.json").read_text())["base_hash"] for f in (origin, folder.path)
        ]
    except (OSError, ValueError, KeyError) as e:
        raise UserError(
            f"{flag}: {origin} does not say what it trained (config.json, env.json: {e}); "
            "pass .../checkpoints/step-N inside its run folder"
        ) from e
    new, names = folder.config, MEANING + (MOMENTS if exact else ())
    differ = [f"--{n} {old.get(n)} there, {new[n]} here" for n in names if old.get(n) != new[n]]
    if not differ and bases[0] != bases[1]:  # another precision is another hash too
        differ = [f"base model {bases[0]} there, {bases[1]} here"]
    if differ:
        raise UserError(
            f"{flag} is of a run that differs from this one: {'; '.join(differ)}. "
            "Use the same there and here, or leave --resume_from_checkpoint out"
        )
