"""The settings of a toy run as one frozen dataclass, its presets as functions, and the sweep's."""

import itertools
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

from toy2d.runs.files import UserError
from toy2d.runs.layers import parse_layers
from toy2d.runs.spec import RunSpec, grid, parse_run
from toy2d.runs.target import wrong_target

if TYPE_CHECKING:  # a configuration is judged before torch is imported
    from toy2d.core.schedule import Schedule
    from toy2d.data import World
    from toy2d.model import EpsMLP


@dataclass(frozen=True)
class ToyConfig:
    """Every setting of a toy run; presets below. Counts are per seed unless stated otherwise."""

    name: str = "course"
    """name of the run folder: <out>/toy2d/<name>"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """each seed has its own base model, few-shot points and noise"""
    runs: tuple[str, ...] = ("standard",)
    """objectives to compare, written kind:weight (see `toy2d run --help`)"""

    world: Literal["pentagon", "prompts"] = "pentagon"
    """pentagon: five Gaussian classes and a new one; prompts: class x context x identifier"""
    schedule: Literal["log_snr", "cosine", "linear"] = "log_snr"
    """noise schedule"""
    num_timesteps: int = 100
    """number of timesteps T"""

    width: int = 64
    """units of a hidden layer"""
    depth: int = 2
    """hidden layers"""
    activation: Literal["silu", "relu"] = "silu"
    """activation between layers"""
    time: Literal["cosine", "table"] = "cosine"
    """input for t: fixed cosine features, or a learned table as in the paper's toy"""
    preconditioned: bool = True
    """eps_hat = b (x + a * layers); False: eps_hat = layers, as in the paper's toy"""

    pretrain_samples: int = 2000
    """true points of each old class"""
    pretrain_steps: int = 2500
    """Adam steps that train the base"""
    pretrain_batch_size: int = 256
    """points in a step"""
    pretrain_learning_rate: float = 3e-3
    """Adam's learning rate for the base"""
    pretrain_decay: bool = True
    """let that learning rate fall linearly to 0"""

    shots: int = 6
    """points of the new class"""
    steps: int = 600
    """Adam steps of fine-tuning"""
    batch_size: int = 24
    """points in a step, new and replayed each, drawn with replacement"""
    learning_rate: float = 5e-4
    """Adam's learning rate in fine-tuning, constant"""
    l2_layers: tuple[str, ...] = ()
    """where l2 holds, e.g. layer0:1 other:0.1; layers: words, time, layer0, layer1, ..., or regular
    expressions for names of parameters; a layer not named has weight 0; default: all alike"""
    max_path_kl: float | None = None
    """drift that is allowed, in nats: the weight of each run's last term is adapted to it at every
    measurement of path KL, and begins at the weight written in the run"""
    path_kl_steps: int = 20
    """steps between these measurements"""
    carry_moments: bool = False
    """start from pretraining's Adam moments, as the paper's toy does"""
    prior_from: Literal["base", "world"] = "base"
    """source of the replayed samples: the frozen base (DreamBooth) or the world (paper's toy)"""
    prior_samples: int = 200
    """replayed points: of one class for prior, over all old prompts for replay_all and output"""
    fisher_samples: int = 1200
    """points of the base's chains from which the Fisher diagonal is estimated"""

    snapshots: tuple[int, ...] = (15, 30, 60, 100, 180, 300)
    """steps at which KLs are measured, more coarsely than after the last step"""
    quadrature: int = 6
    """Gauss-Hermite points per axis; a KL below 1 nat with an error above 0.01 is repeated"""
    ode_nodes: int = 33
    """nodes of the likelihood's ODE"""
    chains: int = 32
    """ancestral chains per old prompt for path KL"""
    chunk: int = 8192
    """points evaluated at once: bounds memory, and keeps the work in cache"""

    device: str = "cpu"
    """device of the networks, e.g. cpu or cuda"""

    def __post_init__(self):
        for field in COUNTS:
            if getattr(self, field) < 1:
                raise UserError(f"--{field} must be at least 1, not {getattr(self, field)}")
        for field in ("pretrain_learning_rate", "learning_rate"):
            if not 0 < getattr(self, field) < math.inf:
                raise UserError(f"--{field} must be a positive number, not {getattr(self, field)}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise UserError(f"--seeds must be different numbers >= 0, not {self.seeds}")
        if not self.runs or len(set(self.runs)) != len(self.runs):
            raise UserError("--runs needs at least one objective, each written once")
        if self.quadrature < 4 or self.chains < 2:
            raise UserError(
                "--quadrature must be at least 4 and --chains at least 2: errors need them"
            )
        if not 3 <= self.ode_nodes <= self.num_timesteps:
            raise UserError(
                f"--ode_nodes must be between 3 and num_timesteps = {self.num_timesteps}"
            )
        if not self.name or set(self.name) - set(NAME_CHARACTERS) or self.name[0] == ".":
            raise UserError(f"--name {self.name!r}: use letters, digits, '.', '_' and '-' only")
        specs = [parse_run(spec) for spec in self.runs]
        self._refuse_target(specs)
        if parse_layers(self.l2_layers) and not any("l2" in s.active for s in specs):
            raise UserError("--l2_layers has no effect: no run has an l2 term, such as l2:0.03")

    def _refuse_target(self, specs: list[RunSpec]) -> None:
        if self.max_path_kl is None:
            if self.path_kl_steps != ToyConfig.path_kl_steps:
                raise UserError("--path_kl_steps has no effect without --max_path_kl")
            return
        if wrong := wrong_target(self.max_path_kl):
            raise UserError(wrong)
        if not any(s.active for s in specs):
            raise UserError("--max_path_kl has no effect: no run has a term beside standard's")
        if self.path_kl_steps >= self.steps:
            raise UserError(
                f"--path_kl_steps {self.path_kl_steps} measures nothing within {self.steps} steps"
            )

    def as_dict(self) -> dict:
        """Fields newer than 0.1 are left out at their defaults: older run folders hold the same
        configuration.
        """
        default = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in asdict(self).items() if k not in NEWER or v != default[k]}

    def make_schedule(self) -> "Schedule":
        from toy2d.core.schedule import Schedule

        if self.schedule == "log_snr":
            return Schedule.log_snr(self.num_timesteps, 5.0, -15.0)
        return getattr(Schedule, self.schedule)(self.num_timesteps)

    def make_world(self) -> "World":
        from toy2d.data import WORLDS

        return WORLDS[self.world](self.make_schedule())

    def make_net(self, world: "World") -> "EpsMLP":
        from toy2d.model import EpsMLP

        ab = tuple(world.schedule.alpha_bar.tolist()) if self.preconditioned else None
        return EpsMLP(
            tokens=world.tokens,
            num_timesteps=self.num_timesteps,
            width=self.width,
            depth=self.depth,
            activation=self.activation,
            time=self.time,
            alpha_bar=ab,
        )


NEWER = ("l2_layers", "max_path_kl", "path_kl_steps")
COUNTS = (
    *("num_timesteps", "width", "depth", "pretrain_samples", "pretrain_steps"),
    *("pretrain_batch_size", "shots", "steps", "batch_size", "prior_samples", "fisher_samples"),
    *("chunk", "path_kl_steps"),
)
NAME_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
FIVE_WEIGHTS = {
    "prior": (0.1, 0.3, 1, 3, 10),
    "l2": (0.001, 0.01, 0.03, 0.1, 1),
    "output": (0.1, 0.3, 1, 3, 10),
    "fisher": (0.01, 0.1, 1, 10, 100),
}


def smoke() -> ToyConfig:
    """Seconds: every objective once, two seeds, little of everything. Its numbers mean nothing."""
    return ToyConfig(
        name="smoke",
        seeds=(0, 1),
        runs=("standard", "prior:1", "replay_all:1", "l2:0.1", "output:1", "fisher:1"),
        num_timesteps=40,
        width=24,
        pretrain_samples=200,
        pretrain_steps=120,
        pretrain_batch_size=64,
        steps=40,
        batch_size=12,
        prior_samples=50,
        fisher_samples=60,
        snapshots=(20,),
        quadrature=4,
        ode_nodes=25,
        chains=8,
    )


def course() -> ToyConfig:
    """The course's experiment: five objectives, five weights each, eight seeds, six shots.

    It takes about 2 minutes on two quiet cores.
    """
    return ToyConfig(
        name="course",
        seeds=tuple(range(8)),
        runs=("standard", *grid(**FIVE_WEIGHTS), "replay_all:1", "l2_tensor_mean:50"),
    )


def paper() -> ToyConfig:
    """The paper's toy: network, data, optimizer and weights of the authors' scripts.

    github.com/rlgnswk/Preserve-and-Personalize, folder toy.

    ReLU network 96 wide on concatenated embeddings of 8, learned time table. Cosine schedule,
    T = 100, betas clipped at 0.999 (theirs are not, and the first reverse step is infinite). Adam
    2e-3, moments carried over; 1,000 points a class, batch 512, 10,000 + 10,000 steps. prior: 1,000
    *real* points of class 0, weight 100; L2: 50, averaged per tensor. Added by us: output, fisher
    and three seeds. It takes about an hour on two shared cores. The clipped step dominates path KL
    (`Schedule.cosine`).
    """
    return ToyConfig(
        name="paper",
        runs=(
            "standard",
            *grid(
                prior=(100,), l2_tensor_mean=(5, 50, 500), replay_all=(1,), output=(1,), fisher=(1,)
            ),
        ),
        schedule="cosine",
        width=96,
        activation="relu",
        time="table",
        preconditioned=False,
        pretrain_samples=1000,
        pretrain_steps=10_000,
        pretrain_batch_size=512,
        pretrain_learning_rate=2e-3,
        pretrain_decay=False,
        shots=1000,
        steps=10_000,
        batch_size=512,
        learning_rate=2e-3,
        carry_moments=True,
        prior_from="world",
        prior_samples=1000,
        snapshots=(10, 100, 1000),
        quadrature=10,
        ode_nodes=100,
    )


def prompts() -> ToyConfig:
    """The prompt world: does prior preservation keep the class but lose its contexts?

    It takes about 3 minutes on two cores.

    16 old prompts (4 classes, alone and in 3 contexts), five shots of "V dog", three seeds.
    Measured afterwards: the class, its contexts, the other classes, "V dog" in contexts never seen
    with V, and whether the class keeps its modes.
    """
    weights = {"prior": (0.3, 1, 3), "l2": (0.01, 0.1), "output": (1,), "fisher": (1, 10)}
    return ToyConfig(
        name="prompts",
        world="prompts",
        runs=("standard", *grid(**weights), "replay_all:1"),
        depth=3,
        pretrain_samples=1000,
        pretrain_steps=6000,
        pretrain_batch_size=384,
        pretrain_learning_rate=1e-2,
        shots=5,
        snapshots=(30, 100, 300),
        quadrature=4,
        ode_nodes=65,
        chains=12,
    )


PRESETS = {"smoke": smoke, "course": course, "paper": paper, "prompts": prompts}


@dataclass(frozen=True)
class Sweep:
    """What is varied. The number of fine-tunings is the product of the lengths of the lists."""

    name: str = "sweep"
    """the summary goes to OUT/toy2d/NAME, each cell to OUT/toy2d/NAME-..."""
    runs: tuple[str, ...] = (
        "standard",
        *grid(
            prior=(1, 3, 10, 30, 100),
            l2=(0.003, 0.01, 0.03, 0.1, 0.3),
            l2_decoupled=(0.1, 1, 10, 100, 1000),
            output=(0.3, 1, 3, 10),
            fisher=(0.3, 1, 3, 10, 30),
            replay_all=(0.3, 1, 3),
        ),
    )
    """objectives and weights, written kind:weight"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """each seed has its own base, shots and noise"""
    learning_rates: tuple[float, ...] = (3e-4, 1e-3)
    """Adam's learning rates"""
    steps: tuple[int, ...] = (150, 600)
    """fine-tuning steps"""
    widths: tuple[int, ...] = (64,)
    """units of the hidden layers; every width has its own bases"""
    levels: tuple[float, ...] = (0.3, 0.5, 1.0)
    """new-class KL (nats) at which preservation is compared"""
    chunk: int = 8192
    """points evaluated at once: bounds memory"""

    def cells(self) -> list[ToyConfig]:
        """One configuration a cell, in the order in which they are run."""
        if not (self.learning_rates and self.steps and self.widths and self.levels):
            raise UserError(
                "sweep: --learning-rates, --steps, --widths and --levels "
                "need at least one value each"
            )
        return [
            replace(
                course(),
                name=f"{self.name}-lr{lr:g}-steps{n}-width{w}",
                runs=self.runs,
                seeds=self.seeds,
                learning_rate=lr,
                steps=n,
                width=w,
                snapshots=(),
                chunk=self.chunk,
            )
            for w, lr, n in itertools.product(self.widths, self.learning_rates, self.steps)
        ]
