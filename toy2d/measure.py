"""Measuring a stack of runs: exact KL per prompt in both directions, and drift. No training here.

    kl_truth[c] = KL(p*(. | c) || p_theta(. | c))         against the world
    kl_base[c]  = KL(p_theta*(. | c) || p_theta(. | c))   against the model before fine-tuning
    "mixture"   = the same for the equal mixture of the old prompts, in worlds of one component:
                  it needs every prompt's law at every point
    kl_new      = KL(p*(. | new) || p_theta(. | new))
    kl_composed = the same for the prompts composed with the new word
    coverage[c] = sum over modes of min(share of samples in the mode, 1 / modes):
                  1 if all modes are kept, 1 / modes if one is

All in nats, of the probability-flow ODE's law at t = 0's noise level (core/likelihood.py). An
expectation over a law is one over N(0, I) pushed through the exact map to it (a Gaussian's affine
map; the base's own ODE), taken by a rule of quadrature.py.

Shapes: M runs, S seeds, P prompts, N points of the rule.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from toy2d.core.drift import Params, delta_eps, delta_theta, path_kl
from toy2d.core.likelihood import flow_sample, log_prob, ode_schedule
from toy2d.core.rng import generator
from toy2d.core.sample import ancestral
from toy2d.core.schedule import Schedule
from toy2d.data import World
from toy2d.model import Bound, EpsMLP, members
from toy2d.quadrature import Rule, sobol
from toy2d.train import Group


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
    """Where densities are compared: x (K, P, N, 2) float32, with the law's log density there.

    K is 1 for the world (one truth for all seeds) or S for the bases. `log_p` (K, P, N) is prompt
    i's law at prompt i's points, `log_mix` (K, P, N) the equal mixture of all P prompts at them, or
    None: it costs P^2 laws.
    """

    conds: tuple[int, ...]
    rule: Rule
    x: Tensor
    log_p: Tensor
    log_mix: Tensor | None


def truth_points(world: World, conds: tuple[int, ...], rule: Rule, mixture: bool = False) -> Points:
    """Points of the world's own prompts, with its exact densities."""
    x = torch.stack([world_points(world, c, rule.points) for c in conds]).float()
    rule = rule.per_component(world.num_components)
    if not mixture:
        log_p = torch.stack([world.log_prob(x[i], c, 0) for i, c in enumerate(conds)])
        return Points(conds, rule, x[None], log_p[None], None)
    log_all = torch.stack([world.log_prob(x, c, 0) for c in conds])  # law, point's prompt, N
    log_p = torch.stack([log_all[i, i] for i in range(len(conds))])
    return Points(conds, rule, x[None], log_p[None], _log_mixture(log_all)[None])


def base_points(
    net: EpsMLP,
    theta: Params,
    schedule: Schedule,
    conds: tuple[int, ...],
    rule: Rule,
    mixture: bool = False,
) -> Points:
    """Points of S base models' own laws: the rule pushed through their ODEs; log densities."""
    seeds = theta["bias0"].shape[0]
    normal = rule.points.float().to(schedule.alpha_bar.device).expand(seeds, -1, -1)
    predict = net.bind(theta)
    x = torch.stack(
        [flow_sample(predict, schedule, normal, torch.tensor(c), runs=1) for c in conds], 1
    )
    if not mixture:
        return Points(conds, rule, x.cpu(), own_log_prob(predict, schedule, x, conds), None)
    log_all = log_prob_table(predict, schedule, x, conds).movedim(1, 0)
    log_p = torch.stack([log_all[i, :, i] for i in range(len(conds))], 1)
    return Points(conds, rule, x.cpu(), log_p, _log_mixture(log_all))


def _log_mixture(log_all: Tensor) -> Tensor:
    """log of the equal mixture; the laws are the first dimension."""
    return torch.logsumexp(log_all.double(), 0) - math.log(len(log_all))


def log_prob_table(predict: Bound, schedule: Schedule, x: Tensor, conds: tuple[int, ...]) -> Tensor:
    """log q(x | c) of every law c at every prompt's points: (M, law, P, N) for x (M, P, N, 2)."""
    flat = x.flatten(1, -2)
    cond = torch.tensor(conds).repeat_interleave(flat.shape[1])
    table = log_prob(predict, schedule, flat.repeat(1, len(conds), 1), cond, runs=1).cpu()
    return table.reshape(x.shape[0], len(conds), *x.shape[1:-1])


def own_log_prob(predict: Bound, schedule: Schedule, x: Tensor, conds: tuple[int, ...]) -> Tensor:
    """log q(x | c) of prompt c at its own points only: (M, P, N) for x (M, P, N, 2)."""
    cond = torch.tensor(conds).repeat_interleave(x.shape[2])
    return log_prob(predict, schedule, x.flatten(1, 2), cond, runs=1).cpu().reshape(x.shape[:-1])


@dataclass(frozen=True)
class Probe:
    """Everything measurements need, made once from the world and the bases; saved with the run."""

    truth: Points
    new: Points
    base: Points
    chain: Tensor  # T S N 2: ancestral chains of the bases under the old prompts
    chain_cond: Tensor  # N
    schedule: Schedule  # of the chains
    ode: Schedule  # of the likelihoods


def make_probe(
    world: World,
    net: EpsMLP,
    theta_star: Params,
    truth_rule: Rule,
    base_rule: Rule,
    chains: int,
    ode_nodes: int,
) -> Probe:
    """Make a probe with `chains` ancestral chains for each old prompt and seed.

    Likelihoods are computed on `ode_nodes` nodes of the schedule.
    """
    mixture = world.num_components == 1
    schedule = world.schedule.to(theta_star["bias0"].device)
    ode = ode_schedule(schedule, ode_nodes)
    seeds = theta_star["bias0"].shape[0]
    cond = torch.tensor(world.old).repeat_interleave(chains)
    rng = generator(0, "probe")
    device = theta_star["bias0"].device
    x_T = torch.randn(seeds, len(cond), 2, generator=rng).to(device)
    chain = ancestral(net.bind(theta_star), schedule, x_T, cond, rng, runs=1, chain=True)
    return Probe(
        truth=truth_points(world, world.old, truth_rule, mixture),
        new=truth_points(world, (world.new, *world.composed), truth_rule),
        base=base_points(net, theta_star, ode, world.old, base_rule, mixture),
        chain=torch.stack(chain),
        chain_cond=cond,
        schedule=schedule,
        ode=ode,
    )


def measure(world: World, group: Group, probe: Probe, chunk: int = 8192) -> list[dict]:
    """One record per run of the group.

    kl_truth and kl_base are {prompt: [mean, error, n]}, kl_new and path_kl are [mean, error, n],
    delta_theta and delta_eps are numbers.

    Runs that diverged have None where a number would be. `chunk` bounds memory: points evaluated at
    once, in whole runs.
    """
    laws = len(world.old) if probe.truth.log_mix is not None else 1
    points = laws * len(world.old) * max(probe.base.x.shape[2], probe.truth.x.shape[2])
    size, records = max(1, chunk // points), []
    for start in range(0, len(group), size):
        which = list(range(start, min(start + size, len(group))))
        records += _measure_chunk(world, group, probe, which)
    return [
        record if m not in group.stopped else dict.fromkeys(record, None)
        for m, record in enumerate(records)
    ]


def _measure_chunk(world, group, probe, which):
    theta = members({k: v.detach() for k, v in group.theta.items()}, which)
    star = members(group.theta_star, which)
    seeds = group.seed_index[which]
    predict, predict_star = group.net.bind(theta), group.net.bind(star)
    truth = compare(predict, probe.ode, probe.truth, torch.zeros_like(seeds), world)
    base = compare(predict, probe.ode, probe.base, seeds, world)
    new = compare(predict, probe.ode, probe.new, torch.zeros_like(seeds), world)
    chain = probe.chain[:, seeds]  # on the network's device
    path = path_kl(predict, predict_star, probe.schedule, chain, probe.chain_cond, runs=1)
    d_theta = delta_theta(theta, star, runs=1)
    d_eps = delta_eps(predict, predict_star, probe.schedule, *eps_probe(chain, probe.chain_cond))
    covered = mode_coverage(world, predict, probe.ode) if world.num_components > 1 else None
    return [
        {
            "kl_truth": truth[m],
            "kl_base": base[m],
            "kl_new": new[m][world.names[world.new]],
            "delta_theta": float(d_theta[m]),
            "delta_eps": float(d_eps[m]),
            "path_kl": _triple(path[0][m], path[1][m], chain.shape[2]),
        }
        | _of_groups(world, truth[m], base[m], new[m])
        | ({"coverage": {n: float(v[m]) for n, v in covered.items()}} if covered else {})
        for m in range(len(which))
    ]


def _of_groups(world: World, truth: dict, base: dict, new: dict) -> dict:
    """Means over the world's groups of prompts, and the composed prompts.

    The error of a mean is the mean error: prompts share points.
    """

    def mean(kls, conds):
        triples = [kls[world.names[c]] for c in conds]
        value, error, _ = (sum(v) / len(conds) for v in zip(*triples, strict=True))
        return [value, error, triples[0][2]]

    of = {"kl_truth_group": truth, "kl_base_group": base}
    means = {k: {g: mean(v, c) for g, c in world.groups.items()} for k, v in of.items()}
    composed = {world.names[c]: new[world.names[c]] for c in world.composed}
    return (means if world.groups else {}) | ({"kl_composed": composed} if composed else {})


def mode_coverage(world: World, predict: Bound, ode: Schedule, n: int = 256) -> dict[str, Tensor]:
    """How many modes are kept, by prompt that shares the class ("the class", "... in contexts").

    sum_i min(share of n flow samples in mode i, 1/C), (M,) each. A sample is in mode i if that
    is its nearest and within its 99.7 % ellipse. The world itself scores 0.997 - O(1 / sqrt(n)).
    """
    conds = (world.class_prompt, *world.groups.get("the class in contexts", ()))
    stack = predict.theta["bias0"].shape[0]
    normal = sobol(n, 1).points.float().repeat(len(conds), 1).to(ode.alpha_bar.device)
    cond = torch.tensor(conds).repeat_interleave(n)
    x = flow_sample(predict, ode, normal.expand(stack, -1, -1), cond, runs=1).cpu()
    C, ab = world.num_components, world.schedule.alpha_bar[0].cpu()
    inverse = torch.linalg.inv(ab * world.covs + (1 - ab) * torch.eye(2, dtype=torch.float64))
    diff = x.double()[..., None, :] - ab.sqrt() * world.means[cond]
    squared, mode = torch.einsum("mnci,ncij,mncj->mnc", diff, inverse[cond], diff).min(-1)
    hit = torch.nn.functional.one_hot(mode, C) * (squared < -2 * math.log(0.003))[..., None]
    share = hit.reshape(stack, len(conds), n, C).double().mean(2)
    kept = share.clamp(max=1 / C).sum(-1)
    return {world.names[c]: kept[:, i] for i, c in enumerate(conds)}


def eps_probe(chain: Tensor, cond: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A fixed set of (x_t, t, cond): one node of each chain, so that all nodes appear."""
    i = torch.arange(chain.shape[2])
    # 37 is coprime to the usual T - 1: neighbouring chains are far apart in t
    t = 1 + (i * 37) % (chain.shape[0] - 1)
    return (
        chain[t, :, i].movedim(1, 0),
        t.expand(chain.shape[1], -1),
        cond.expand(chain.shape[1], -1),
    )


def compare(predict: Bound, ode: Schedule, points: Points, k: Tensor, world: World) -> list[dict]:
    """{prompt name: [mean, error, n]} per run; also "mixture" where its density was asked for."""
    conds, x = points.conds, points.x[k].to(ode.alpha_bar.device)
    if points.log_mix is None:
        log_q = own_log_prob(predict, ode, x, conds)
    else:
        table = log_prob_table(predict, ode, x, conds)
        log_q = torch.stack([table[:, i, i] for i in range(len(conds))], 1)
    expected = _expect(points.rule, points.log_p[k] - log_q)
    kls = dict(zip((world.names[c] for c in conds), expected, strict=True))
    if points.log_mix is not None:
        ratio = points.log_mix[k] - _log_mixture(table.movedim(1, 0))
        kls["mixture"] = _expect(points.rule, ratio.mean(1, keepdim=True))[0]
    n = x.shape[2]
    count = {name: n * (len(conds) if name == "mixture" else 1) for name in kls}
    return [
        {
            name: [float(mean[m]), float(error[m]), count[name]]
            for name, (mean, error) in kls.items()
        }
        for m in range(len(x))
    ]


def _triple(mean: Tensor, error: Tensor, n: int) -> list:
    """[mean, error, n], with None for what is not a number (JSON has no NaN)."""
    finite = bool(torch.isfinite(mean) and torch.isfinite(error))
    return [float(mean), float(error), n] if finite else [None, None, n]


def _expect(rule: Rule, ratio: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Per prompt, (mean, error) over the runs, for log ratios (M, P, N)."""
    mean, error = rule.expect(ratio)
    return list(zip(mean.unbind(1), error.unbind(1), strict=True))
