"""Exact KL divergences between laws: a stack of models against the world, or against their bases.

    KL(p || q) = E_p[log p - log q], in nats

q is the law of each model's probability-flow ODE at t = 0's noise level (core/likelihood.py). The
expectation over p is one over N(0, I) pushed through the exact map to p (a Gaussian's affine map;
the base's own ODE), taken by a rule of quadrature.py.

Shapes: K truths, M models, P prompts, N points of the rule.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from toy2d.core.drift import Params
from toy2d.core.likelihood import LogProb, flow_sample, log_prob, log_prob_with_error
from toy2d.core.schedule import Schedule
from toy2d.data import World
from toy2d.model import Bound, EpsMLP
from toy2d.quadrature import Rule


def kl(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Plain Monte Carlo KL(p || q): (mean, standard error) of log_p - log_q, in nats.

    The last dimension holds independent samples of p. Raises ValueError for fewer than 2 samples.
    """
    ratio = (log_p - log_q).double()
    if ratio.shape[-1] < 2:
        raise ValueError("kl: a standard error needs at least 2 samples")
    return ratio.mean(-1), ratio.std(-1) / ratio.shape[-1] ** 0.5


def world_points(world: World, cond: int, normal: Tensor) -> Tensor:
    """Standard normal points (N, 2) mapped to every component of `cond`: (C N, 2), float64.

    The components are those at t = 0's noise level.
    """
    ab = world.schedule.alpha_bar[0]
    cov = ab * world.covs[cond] + (1 - ab) * torch.eye(2, dtype=torch.float64)
    root = torch.linalg.cholesky(cov)
    return (ab.sqrt() * world.means[cond][:, None] + normal @ root.mT).flatten(0, 1)


@dataclass(frozen=True)
class Points:
    """Where densities are compared: x (K, P, N, 2) float32, with the law's log densities there.

    K is 1 for the world (one truth for all seeds) or S for the bases. `log_p` (K, P, N) is prompt
    i's law at prompt i's points, `log_mix` (K, P, N) the equal mixture of all P prompts at them, or
    None: it costs P^2 laws. `coarse` is the ODE's coarser value of `log_p`: the same numbers for
    the world, whose density is exact.
    """

    conds: tuple[int, ...]
    rule: Rule
    x: Tensor
    log_p: Tensor
    coarse: Tensor
    log_mix: Tensor | None


def truth_points(world: World, conds: tuple[int, ...], rule: Rule, mixture: bool = False) -> Points:
    """Points of the world's own prompts, with its exact densities."""
    x = torch.stack([world_points(world, c, rule.points) for c in conds]).float()
    rule = rule.per_component(world.num_components)
    log_p = torch.stack([world.log_prob(x[i], c, 0) for i, c in enumerate(conds)])
    log_mix = None
    if mixture:
        log_mix = _log_mixture(torch.stack([world.log_prob(x, c, 0) for c in conds]))[None]
    return Points(conds, rule, x[None], log_p[None], log_p[None], log_mix)


def base_points(
    net: EpsMLP,
    theta: Params,
    ode: Schedule,
    conds: tuple[int, ...],
    rule: Rule,
    mixture: bool = False,
    flow: Schedule | None = None,
) -> Points:
    """Points of S base models' own laws: the rule pushed through their ODEs; log densities.

    `flow` has the nodes that push the points (default: those of `ode`). Points off the law they
    stand for are an error that no error estimate of the densities sees, so they deserve more nodes.
    """
    flow = ode if flow is None else flow
    seeds = theta["bias0"].shape[0]
    normal = rule.points.float().to(ode.alpha_bar.device).expand(seeds, -1, -1)
    predict = net.bind(theta)
    x = torch.stack([flow_sample(predict, flow, normal, torch.tensor(c), runs=1) for c in conds], 1)
    laws = laws_at(predict, ode, x, conds, mixture)
    return Points(conds, rule, x.cpu(), *laws.own, laws.mixture)


def _log_mixture(log_all: Tensor) -> Tensor:
    """log of the equal mixture; the laws are the first dimension."""
    return torch.logsumexp(log_all.double(), 0) - math.log(len(log_all))


class Laws(NamedTuple):
    """Log densities of a stack's laws at every prompt's points, (M, P, N) each.

    `own` is prompt i's law at prompt i's points, with its coarser value; `mixture` the equal
    mixture of all prompts' laws (None where it was not asked for), and `mixture_error` its ODE
    error.
    """

    own: LogProb
    mixture: Tensor | None = None
    mixture_error: Tensor | None = None


def laws_at(
    predict: Bound, ode: Schedule, x: Tensor, conds: tuple[int, ...], mixture: bool = False
) -> Laws:
    """The laws of `conds` at their points x (M, P, N, 2).

    A mixture takes the other prompts' laws, which matter where laws overlap, on every second node.
    """
    P = len(conds)
    own = own_log_prob(predict, ode, x, conds)
    if not mixture:
        return Laws(own)
    table = log_prob_table(predict, ode, x, conds, every=2)  # M law P N
    coarse = torch.stack([table[:, i, i] for i in range(P)], 1)
    same = torch.eye(P, dtype=torch.bool)[None, :, :, None]
    log_mix = _log_mixture(torch.where(same, own.value[:, None], table).movedim(1, 0))
    share = (own.value.double() - log_mix).exp() / P  # of the point's own law in the mixture
    others = (own.value - coarse).abs().double().mean((1, 2), keepdim=True)  # other laws' errors
    return Laws(own, log_mix, share * own.error + (1 - share) * others)


def log_prob_table(
    predict: Bound, ode: Schedule, x: Tensor, conds: tuple[int, ...], every: int = 1
) -> Tensor:
    """log q(x | c) of every law c at every prompt's points: (M, law, P, N) for x (M, P, N, 2)."""
    flat = x.flatten(1, -2)
    cond = torch.tensor(conds).repeat_interleave(flat.shape[1])
    table = log_prob(predict, ode, flat.repeat(1, len(conds), 1), cond, 1, every).cpu()
    return table.reshape(x.shape[0], len(conds), *x.shape[1:-1])


def own_log_prob(predict: Bound, ode: Schedule, x: Tensor, conds: tuple[int, ...]) -> LogProb:
    """log q(x | c) of prompt c at its own points only: (M, P, N) for x (M, P, N, 2)."""
    cond = torch.tensor(conds).repeat_interleave(x.shape[2])
    found = log_prob_with_error(predict, ode, x.flatten(1, 2), cond, runs=1)
    return LogProb(*(v.cpu().reshape(x.shape[:-1]) for v in found))


def compare(predict: Bound, ode: Schedule, points: Points, k: Tensor, world: World) -> list[dict]:
    """{prompt name: [mean, error, n]} per run; also "mixture" where its density was asked for."""
    return [kls for kls, _ in compare_in_parts(predict, ode, points, k, world)]


def compare_in_parts(
    predict: Bound, ode: Schedule, points: Points, k: Tensor, world: World
) -> list[tuple[dict, dict]]:
    """Per run, {prompt: [mean, error, n]} and {prompt: [ODE, quadrature, rounding]}.

    The error is the sum of the three: the mean ODE error of the log ratio, the rule's own, and
    that of float32 sums over the nodes.
    """
    conds, x = points.conds, points.x[k].to(ode.alpha_bar.device)
    laws = laws_at(predict, ode, x, conds, points.log_mix is not None)
    ratio = LogProb(points.log_p[k] - laws.own.value, points.coarse[k] - laws.own.coarse)
    ratios = {"": (ratio.value, ratio.error.double())}
    if points.log_mix is not None:
        mixture = (points.log_mix[k] - laws.mixture).mean(1, keepdim=True)
        ratios["mixture"] = mixture, laws.mixture_error.mean(1, keepdim=True)
    rounding = torch.finfo(x.dtype).eps * len(ode) ** 0.5 * laws.own.value.abs().double()
    rounding, _ = points.rule.expect(rounding)
    found = [({}, {}) for _ in x]
    for what, (ratio, gap) in ratios.items():
        mean, quadrature = points.rule.expect(ratio)
        of_ode, _ = points.rule.expect(gap)
        names = [world.names[c] for c in conds] if not what else [what]
        n = x.shape[2] * (len(conds) if what else 1)
        for i, name in enumerate(names):
            for m, (kls, parts) in enumerate(found):
                three = [float(v[m, i]) for v in (of_ode, quadrature, rounding)]
                kls[name] = [float(mean[m, i]), sum(three), n]
                parts[name] = three
    return found
