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
from typing import NamedTuple

import torch
from torch import Tensor

from toy2d.core.drift import Params, delta_theta, path_kl_of, squared_error, stratified
from toy2d.core.likelihood import flow_sample, log_prob, ode_error, ode_schedule
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
    """Where densities are compared: x (K, P, N, 2) float32, with the law's log densities there.

    K is 1 for the world (one truth for all seeds) or S for the bases. `log_p` (K, P, N) is prompt
    i's law at prompt i's points, `log_mix` (K, P, N) the equal mixture of all P prompts at them, or
    None: it costs P^2 laws. `coarse` is `log_p` on every second node of the ODE: the same numbers
    for the world, whose density is exact.
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
    return Points(conds, rule, x.cpu(), laws.own, laws.coarse, laws.mixture)


def _log_mixture(log_all: Tensor) -> Tensor:
    """log of the equal mixture; the laws are the first dimension."""
    return torch.logsumexp(log_all.double(), 0) - math.log(len(log_all))


class Laws(NamedTuple):
    """Log densities of a stack's laws at every prompt's points, (M, P, N) each.

    `own` is prompt i's law at prompt i's points, `coarse` the same on every second node of the ODE,
    `mixture` the equal mixture of all prompts' laws (None where it was not asked for), and
    `mixture_error` its ODE error.
    """

    own: Tensor
    coarse: Tensor
    mixture: Tensor | None = None
    mixture_error: Tensor | None = None


def laws_at(
    predict: Bound, ode: Schedule, x: Tensor, conds: tuple[int, ...], mixture: bool = False
) -> Laws:
    """The laws of `conds` at their points x (M, P, N, 2).

    A mixture takes the other prompts' laws, which matter where laws overlap, from the coarse pass.
    """
    P = len(conds)
    own = own_log_prob(predict, ode, x, conds)
    if not mixture:
        return Laws(own, own_log_prob(predict, ode, x, conds, every=2))
    table = log_prob_table(predict, ode, x, conds, every=2)  # M law P N
    coarse = torch.stack([table[:, i, i] for i in range(P)], 1)
    same = torch.eye(P, dtype=torch.bool)[None, :, :, None]
    log_mix = _log_mixture(torch.where(same, own[:, None], table).movedim(1, 0))
    share = (own.double() - log_mix).exp() / P  # of the point's own law in the mixture
    others = (own - coarse).abs().double().mean((1, 2), keepdim=True)  # the other laws' errors
    return Laws(own, coarse, log_mix, share * ode_error(own, coarse) + (1 - share) * others)


def log_prob_table(
    predict: Bound, ode: Schedule, x: Tensor, conds: tuple[int, ...], every: int = 1
) -> Tensor:
    """log q(x | c) of every law c at every prompt's points: (M, law, P, N) for x (M, P, N, 2)."""
    flat = x.flatten(1, -2)
    cond = torch.tensor(conds).repeat_interleave(flat.shape[1])
    table = log_prob(predict, ode, flat.repeat(1, len(conds), 1), cond, 1, every).cpu()
    return table.reshape(x.shape[0], len(conds), *x.shape[1:-1])


def own_log_prob(
    predict: Bound, ode: Schedule, x: Tensor, conds: tuple[int, ...], every: int = 1
) -> Tensor:
    """log q(x | c) of prompt c at its own points only: (M, P, N) for x (M, P, N, 2)."""
    cond = torch.tensor(conds).repeat_interleave(x.shape[2])
    return log_prob(predict, ode, x.flatten(1, 2), cond, 1, every).cpu().reshape(x.shape[:-1])


@dataclass(frozen=True)
class Probe:
    """Everything measurements need, made once from the world and the bases."""

    truth: Points
    new: Points
    base: Points
    chain: Tensor  # T S N 2: ancestral chains of the bases under the old prompts
    chain_cond: Tensor  # N
    eps_star: Tensor  # T S N 2: what the bases answer on their chains
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
    mixture: bool = True,
) -> Probe:
    """Make a probe with `chains` ancestral chains for each old prompt and seed.

    Likelihoods are computed on `ode_nodes` nodes. `mixture`: measure the equal mixture of the old
    prompts too, in a world of one component.
    """
    mixture = mixture and world.num_components == 1
    device = theta_star["bias0"].device
    schedule, predict = world.schedule.to(device), net.bind(theta_star)
    ode, flow = (ode_schedule(schedule, n, net.smooth_in_time) for n in (ode_nodes, 4 * ode_nodes))
    seeds = theta_star["bias0"].shape[0]
    cond = torch.tensor(world.old).repeat_interleave(chains)
    rng = generator(0, "probe")
    x_T = torch.randn(seeds, len(cond), 2, generator=rng).to(device)
    chain = ancestral(predict, schedule, x_T, cond, rng, runs=1, chain=True)
    with torch.no_grad():
        eps_star = [predict(x, _at(n, x), cond) for n, x in enumerate(chain)]
    return Probe(
        truth=truth_points(world, world.old, truth_rule, mixture),
        new=truth_points(world, (world.new, *world.composed), truth_rule),
        base=base_points(net, theta_star, ode, world.old, base_rule, mixture, flow),
        chain=torch.stack(chain),
        chain_cond=cond,
        eps_star=torch.stack(eps_star),
        schedule=schedule,
        ode=ode,
    )


def _at(n: int, x: Tensor) -> Tensor:
    """Node n for every point of x (M, N, 2)."""
    return torch.full(x.shape[:-1], n, device=x.device)


def measure(world: World, group: Group, probe: Probe, chunk: int = 8192) -> list[dict]:
    """One record per run of the group.

    kl_truth and kl_base are {prompt: [mean, error, n]}, kl_new and path_kl are [mean, error, n],
    delta_eps is [value, error, n], delta_theta a number. `error_parts` holds for every KL of the
    ODE's law what its error is the sum of: [ODE, quadrature, rounding]. Runs that diverged have
    None where a number would be. `chunk` bounds memory: points evaluated at once, in whole runs.
    """
    points = len(world.old) * max(probe.base.x.shape[2], probe.truth.x.shape[2])
    if probe.truth.log_mix is not None:
        points *= len(world.old)
    size, records = max(1, chunk // points), []
    drifts = drift_on_chains(group, probe)
    for start in range(0, len(group), size):
        which = list(range(start, min(start + size, len(group))))
        kls = _kls_of_chunk(world, group, probe, which)
        records += [kl | drifts[m] for m, kl in zip(which, kls, strict=True)]
    return [
        record if m not in group.stopped else dict.fromkeys(record, None)
        for m, record in enumerate(records)
    ]


def _kls_of_chunk(world: World, group: Group, probe: Probe, which: list[int]) -> list[dict]:
    theta = members({k: v.detach() for k, v in group.theta.items()}, which)
    seeds = group.seed_index[which]
    predict = group.net.bind(theta)
    first = torch.zeros_like(seeds)
    truth = compare_in_parts(predict, probe.ode, probe.truth, first, world)
    base = compare_in_parts(predict, probe.ode, probe.base, seeds, world)
    new = compare_in_parts(predict, probe.ode, probe.new, first, world)
    covered = mode_coverage(world, predict, probe.ode) if world.num_components > 1 else None
    records = []
    for m in range(len(which)):
        kls = {"kl_truth": truth[m][0], "kl_base": base[m][0]}
        groups = _of_groups(world, truth[m][0], base[m][0], new[m][0])
        parts = {"kl_truth": truth[m][1], "kl_base": base[m][1], "kl_new": new[m][1]}
        record = kls | {"kl_new": new[m][0][world.names[world.new]]} | groups
        if covered:
            record["coverage"] = {n: float(v[m]) for n, v in covered.items()}
        records.append(record | {"error_parts": parts})
    return records


def drift_on_chains(group: Group, probe: Probe) -> list[dict]:
    """path_kl, delta_eps and delta_theta of every run, from one pass over the base's chains.

    delta_eps is the root mean square over all nodes 1 .. T-1 and all chains. Errors are standard
    errors over chains, stratified by prompt.
    """
    theta = {k: v.detach() for k, v in group.theta.items()}
    predict, cond = group.net.bind(theta), probe.chain_cond
    errors = []
    with torch.no_grad():
        for n in range(len(probe.schedule)):
            x, star = probe.chain[n, group.seed_index], probe.eps_star[n, group.seed_index]
            t = _at(n, x)
            answer = squared_error(predict, lambda *_, star=star: star, probe.schedule, x, t, cond)
            errors.append(answer)
    errors = torch.stack(errors)  # T M N
    path, path_error = path_kl_of(errors, probe.schedule, strata=cond)
    square, square_error = stratified(errors[1:].mean(0), cond)
    eps = square.sqrt()
    eps_error = square_error / (2 * eps).clamp(min=1e-30)
    distance = delta_theta(theta, group.theta_star, runs=1)
    return [
        {
            "delta_theta": float(distance[m]),
            "delta_eps": _triple(eps[m], eps_error[m], len(cond)),
            "path_kl": _triple(path[m], path_error[m], len(cond)),
        }
        for m in range(len(group))
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
    fine, coarse = points.log_p[k] - laws.own, points.coarse[k] - laws.coarse
    ratios = {"": (fine, ode_error(fine, coarse).double())}
    if points.log_mix is not None:
        mixture = (points.log_mix[k] - laws.mixture).mean(1, keepdim=True)
        ratios["mixture"] = mixture, laws.mixture_error.mean(1, keepdim=True)
    rounding = torch.finfo(x.dtype).eps * len(ode) ** 0.5 * laws.own.abs().double()
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


def _triple(mean: Tensor, error: Tensor, n: int) -> list:
    """[mean, error, n], with None for what is not a number (JSON has no NaN)."""
    finite = bool(torch.isfinite(mean) and torch.isfinite(error))
    return [float(mean), float(error), n] if finite else [None, None, n]
