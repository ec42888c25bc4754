"""Measure drift at full scale: delta theta, delta eps, and path KL of each group of prompts.

The base's answers on its own chains are kept (chains.py), so a measurement evaluates the live
model only: no second network, for full training as for adapters. Of each chain it evaluates
`nodes_per_chain` nodes, drawn once by importance (allocation.py): that costs a fraction of the full
sum and is unbiased. Measuring never trains.

Shapes: N chains of a group, T nodes, K nodes evaluated of each chain, E = N K pairs, D data.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from personalize.adapters.anchors import effective_delta_theta
from personalize.adapters.layers import LAYERS
from personalize.config.train_config import TrainConfig
from personalize.drift.allocation import (
    even_starts,
    in_proportion,
    inclusion,
    standard_error,
    systematic,
)
from personalize.drift.chains import Chains, in_chunks, prompt_groups
from personalize.pipeline.model import Model
from toy2d.core.drift import Params, Predict, path_kl, squared_error
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.runs.folder import load_tensors, save_tensors

FEW = 2  # pairs evaluated for delta eps between full measurements
Paths = dict[str, tuple[float, float, int]]  # group -> (mean, standard error, chains), in nats


@dataclass(frozen=True)
class Probes:
    """The (chain, node) pairs at which the live model is compared with its base: fixed for a run.

    E pairs, K of each chain, group by group. `share`: 1 / pi of each pair (allocation.py).
    """

    schedule: Schedule
    sizes: dict[str, int]  # group -> N chains
    starts: dict[str, Tensor]  # group -> N
    each: int  # K
    x: Tensor  # E D
    node: Tensor  # E
    prompts: list[str]  # E
    answers: Tensor  # E D, the base's
    share: Tensor  # E

    @classmethod
    def of(cls, groups: dict[str, Chains], each: int, seed: int) -> "Probes":
        """Draw `each` nodes of every chain; all of them if there are not more."""
        schedule = next(iter(groups.values())).schedule
        pi = inclusion(schedule, each)
        parts, starts = [], {}
        for name, c in groups.items():
            n = len(c.prompts)
            starts[name] = even_starts(n, generator(seed, f"probe/{name}/nodes"))
            node = systematic(pi, starts[name])
            chain = torch.arange(n)[:, None].expand_as(node).flatten()
            node = node.flatten().to(c.x.device)
            at = node, chain.to(node.device)
            prompts = [c.prompts[i] for i in chain.tolist()]
            parts.append((c.x[at], node, prompts, c.answers[at], 1 / pi[node]))
        x, node, prompts, answers, share = zip(*parts, strict=True)
        return cls(
            schedule,
            {name: len(c.prompts) for name, c in groups.items()},
            starts,
            len(prompts[0]) // len(next(iter(groups.values())).prompts),
            torch.cat(x),
            torch.cat(node),
            [p for part in prompts for p in part],
            torch.cat(answers),
            torch.cat(share),
        )

    @torch.no_grad()
    def squares(self, predict: Predict, chunk: int, pairs: Tensor | None = None) -> Tensor:
        """||eps_theta - eps_star||^2 of these pairs (default: all), float64."""
        pairs = torch.arange(len(self.node)) if pairs is None else pairs
        found = []
        for some in pairs.split(chunk):
            i = some.to(self.node.device)
            asked = self.x[i], self.node[i], [self.prompts[k] for k in some.tolist()]

            def base(x_t, t, cond, i=i):
                return self.answers[i]

            found.append(squared_error(predict, base, self.schedule, *asked))
        return torch.cat(found).double()

    def path_kl(self, squares: Tensor) -> Paths:
        """Path KL of each group, in nats, from the squares of all pairs."""
        paths, first = {}, 0
        weighted = self.schedule.path_weights()[self.node] * self.share * squares
        everywhere = self.each == len(self.schedule) - 1
        for name, n in self.sizes.items():
            sums = weighted[first : first + n * self.each].reshape(n, self.each).sum(1)
            first += n * self.each
            if everywhere:
                error = float(sums.std()) / n**0.5
            else:
                error = standard_error(sums, self.starts[name])
            paths[name] = (float(sums.mean()), error, n)
        return paths

    def at_the_base(self) -> Paths:
        """Path KL of a model that has not moved: 0, without evaluating anything."""
        return {name: (0.0, 0.0, n) for name, n in self.sizes.items()}

    def some(self) -> Tensor:
        """Indices of the pairs of every 2 K-th chain: half as many as there are chains.

        Whole chains: the nodes of one are drawn in order, so the first of each are its noisier
        ones.
        """
        i = torch.arange(len(self.node))
        return i[i // self.each % (2 * self.each) == 0]

    def terms(self) -> Tensor:
        """Weight of each pair's square in delta eps squared: all nodes and chains count alike."""
        return self.share / ((len(self.schedule) - 1) * sum(self.sizes.values()))


def path_drift(predict: Predict, groups: dict[str, Chains], chunk: int) -> Paths:
    """Path KL of each group, in nats, every node of every chain evaluated."""
    predict, out = in_chunks(predict, chunk), {}
    for name, c in groups.items():
        mean, error = path_kl(predict, c.base, c.schedule, c.x, c.prompts)
        out[name] = (float(mean), float(error), len(c.prompts))
    return out


def evaluations(config: TrainConfig) -> int:
    """How many samples a whole run evaluates to measure drift, the base's chains not counted."""
    c = config
    chains = c.measure_chains * sum(len(g) for g in prompt_groups(c).values())
    each = min(c.nodes_per_chain, c.measure_nodes - 1)
    pairs = chains * each
    steps = range(c.probe_steps, c.max_train_steps, c.probe_steps)
    full = [s for s in steps if c.path_kl_steps and s % c.path_kl_steps == 0]
    more = 0 if not c.path_kl_steps else (c.max_train_steps - 1) // c.path_kl_steps
    between = len(steps) - len(full)
    first = each * -(-chains // (2 * each)) + FEW * (between - 1) if between else 0
    layers = len(LAYERS) if c.measure_layers else 0
    return pairs * (1 + more + layers) + first


def path_columns(paths: Paths) -> dict[str, float]:
    """Columns of a row, named as the toy's: path_kl over all chains, path_kl/GROUP, and errors."""
    total = sum(n for _, _, n in paths.values())
    row = {
        "path_kl": sum(mean * n for mean, _, n in paths.values()) / total,
        "path_kl_error": sum((error * n) ** 2 for _, error, n in paths.values()) ** 0.5 / total,
    }
    for name, (mean, error, _) in paths.items():
        row |= {f"path_kl/{name}": mean, f"path_kl_error/{name}": error}
    return row


@dataclass
class DriftMeter:
    """Measures how far the live model is from its base: delta theta, delta eps and path KL.

    theta_star: the base's values of the parameters that train themselves (not adapters).
    file: of the first probed step's squares, so that a resumed run measures as it began.
    """

    model: Model
    theta: Params
    theta_star: Params
    predict: Predict
    probes: Probes
    chunk: int  # samples at once
    file: Path
    seed: int = 0
    writes: bool = True  # of several processes one
    _squares: Tensor | None = field(default=None, init=False)
    _first_step: int = field(default=0, init=False)

    def delta_theta(self) -> dict[str, float]:
        """Of the effective weights: "total", and each block."""
        return effective_delta_theta(self.model, self.theta, self.theta_star)

    def everything(self, step: int) -> tuple[float, Paths]:
        """(delta eps, path KL), from all pairs. At step 0 both are 0, and nothing is evaluated."""
        if step == 0:
            return 0.0, self.probes.at_the_base()
        squares = self.probes.squares(self.predict, self.chunk)
        return float((self.probes.terms() * squares).sum()) ** 0.5, self.probes.path_kl(squares)

    def delta_eps(self, step: int) -> float:
        """delta eps between two full measurements, at a fraction of their cost.

        The first call evaluates `Probes.some` and keeps the squares. Later ones evaluate FEW of
        those, drawn in proportion to what each contributed then, and multiply that first sum by
        the mean growth of their squares: unbiased for the sum over the same pairs.
        """
        some = self.probes.some()
        terms = self.probes.terms()[some.to(self.probes.node.device)]
        first = self._first(step, some)
        total = terms * first
        growth = 1.0
        if step != self._first_step:
            few = in_proportion(total, FEW, generator(self.seed, "probe/few"))
            now = self.probes.squares(self.predict, self.chunk, some[few])
            growth = float((now / first[few.to(first.device)]).mean())
        return (float(total.sum()) * growth * len(self.probes.node) / len(some)) ** 0.5

    def _first(self, step: int, some: Tensor) -> Tensor:
        """The squares at the first probed step: measured there, read from the file after it."""
        if self._squares is None and self.file.exists():
            kept = load_tensors(self.file)
            if int(kept["step"]) < step:
                self._squares, self._first_step = kept["squares"], int(kept["step"])
        if self._squares is None or step <= self._first_step:
            self._squares = self.probes.squares(self.predict, self.chunk, some)
            self._first_step = step
            if self.writes:
                save_tensors(self.file, {"squares": self._squares, "step": torch.tensor(step)})
        return self._squares.to(self.probes.node.device)
