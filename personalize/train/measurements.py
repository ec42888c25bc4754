"""The columns of history.csv, and the observer that writes them while a run trains."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from personalize.config.train_config import TrainConfig
from personalize.drift import gain, measure
from personalize.drift.by_layer import layers_table
from personalize.drift.chains import prompt_groups
from personalize.parallel.sharding import whole
from personalize.sample.validate import Validation
from personalize.train.loop import TrainingLoop
from personalize.train.setup import Clock
from personalize.train.state import State
from personalize.train.target import target_summary
from toy2d.runs.files import header, read_csv, write_csv

OLD_NAMES = {"loss_anchor": "loss_l2"}  # columns of runs made before version 0.2.0
Row = dict[str, object]
OnRow = Callable[[Row], None]


@dataclass
class Measurements:
    """One row of history.csv: a method for each group of columns, in the order of the file.

    A group that is not due at this step is empty. Nothing here draws from training's generators.
    """

    config: TrainConfig
    loop: TrainingLoop
    drift: measure.DriftMeter
    learning: gain.HeldOut | None = None  # None: there are no held-out pictures
    # path KL of each group as last measured: (mean, standard error, chains)
    paths: dict[str, tuple[float, float, int]] | None = None

    def row(self, state: State, terms: dict[str, float]) -> Row:
        """`terms`: means since the row before. All else is of the weights as they are now."""
        step = state.step
        return (
            self.settings(step)
            | ({} if state.weight is None else {"adapted_weight": state.weight})
            | self.terms(terms)
            | self.distances(step)
            | self.gain(step)
            | self.optimizer(state, terms)
            | {"seconds": round(state.seconds, 2)}
        )

    def settings(self, step: int) -> Row:
        c = self.config
        return {"step": step, "objective": c.objective, "weight": c.weight, "seed": c.seed}

    def terms(self, terms: dict[str, float]) -> Row:
        """The loss terms, weighted: the denoising terms' means, and the distance terms now."""
        distance = self.loop.objective.anchor_terms(self.loop.anchors)
        values = {k: v for k, v in terms.items() if k != "grad_norm"}
        values |= {k: float(whole(v)) for k, v in distance.items()}
        return {f"loss_{k}": v for k, v in values.items()}

    def distances(self, step: int) -> Row:
        """Of parameters and outputs at probed steps, and path KL where it is due.

        One evaluation serves delta eps and path KL.
        """
        row = {}
        if self._probed(step):
            row["delta_theta"] = self.drift.delta_theta()["total"]
        if self._path_kl_is_due(step):
            row["delta_eps"], self.paths = self.drift.everything(step)
            row |= measure.path_columns(self.paths)
        elif self._probed(step):
            row["delta_eps"] = self.drift.delta_eps(step)
        return row

    def gain(self, step: int) -> Row:
        """What the model has learnt about held-out pictures of the subject, in nats."""
        if self.learning is None or not (self._probed(step) or self._path_kl_is_due(step)):
            return {}
        return self.learning.columns(self.loop.predict, step)

    def optimizer(self, state: State, terms: dict[str, float]) -> Row:
        if "grad_norm" not in terms:  # no step was taken yet
            return {}
        return {"lr": state.learning_rate, "grad_norm": terms["grad_norm"]}

    def _probed(self, step: int) -> bool:
        return self._edge(step) or step % self.config.probe_steps == 0

    def _path_kl_is_due(self, step: int) -> bool:
        every = self.config.path_kl_steps
        return self._edge(step) or bool(every and step % every == 0)

    def _edge(self, step: int) -> bool:
        return step in (0, self.config.max_train_steps)

    def summary(self, state: State, rows: list[Row]) -> dict:
        """metrics.json: the drift of the exported weights, those of the last row or EMA's."""
        c, blocks = self.config, self.drift.delta_theta()
        eps, paths = rows[-1]["delta_eps"], self.paths
        if c.use_ema or paths is None:
            eps, paths = self.drift.everything(state.step)
        return {
            "objective": c.objective,
            "weight": c.weight,
            "reg_reduction": c.reg_reduction if c.uses("l2") else None,
            "steps": state.step,
            "weights": "ema" if c.use_ema else "last",
            "base_hash": self.drift.model.hash(),
            "delta_theta": blocks.pop("total"),
            "delta_theta_blocks": blocks,
            "layers": layers_table(self.drift, state.step, c.measure_layers),
            "delta_eps": eps,
            "path_kl": measure.path_columns(paths)["path_kl"],
            "path_kl_groups": paths,
            **gain.peak(rows),
            **target_summary(c, state, rows, measure.path_columns(paths)),
            "path_kl_sampler": f"ancestral, variance beta, {c.measure_nodes} nodes, no guidance",
            "prompts": prompt_groups(c),
        }


@dataclass
class Observer:
    """What `fit` calls at every logged step: adds a row to history.csv, draws a grid where due.

    `on_row` sees each row before it is written.
    """

    file: Path
    measurements: Measurements
    validation: Validation
    state: State
    accelerator: Accelerator
    clock: Clock
    on_row: OnRow | None = None
    rows: list[Row] = field(default_factory=list)

    def __call__(self, terms: dict[str, float]) -> dict[str, float]:
        """Returns what the progress bar shows: the loss terms and the newest distances."""
        step, model = self.state.step, self.validation.model
        with model.evaluating(), torch.no_grad():
            with self.clock("measuring"):
                self._add(self.measurements.row(self.state, terms))
            if self.validation.due(step):
                with self.clock("validation"), self.accelerator.autocast():
                    self.validation(step)
        if self.measurements.config.report_to:
            numbers = {k: v for k, v in self.rows[-1].items() if isinstance(v, float)}
            self.accelerator.log(numbers, step=step)
        newest = {k: v for row in self.rows for k, v in row.items()}
        return {k: v for k, v in newest.items() if k.startswith(("loss_", "delta_"))}

    def _add(self, row: Row) -> None:
        if self.on_row is not None:
            self.on_row(row)
        self.rows.append(row)
        if self.accelerator.is_main_process:  # of several processes one writes
            write_csv(self.file, self.rows)

    def resume(self) -> None:
        """Take up the rows of history.csv up to the state's step; later ones are measured again."""
        if not self.file.exists():
            return
        rows = [{OLD_NAMES.get(k, k): v for k, v in row.items()} for row in read_csv(self.file)]
        # a column without any value, such as standard's weight, is no part of the rows that were
        # read
        columns = [OLD_NAMES.get(k, k) for k in header(self.file)]
        empty = set(columns).difference(*rows)
        first, *more = rows
        rows = [{k: first.get(k) for k in columns if k in first or k in empty}, *more]
        self.rows = [row for row in rows if row["step"] <= self.state.step]
