"""Measuring a stack of runs: exact KL per prompt in both directions, and drift. No training here.

    kl_truth[c] = KL(p*(. | c) || p_theta(. | c))         against the world
    kl_base[c]  = KL(p_theta*(. | c) || p_theta(. | c))   against the model before fine-tuning
    "mixture"   = the same for the equal mixture of the old prompts, in worlds of one component:
                  it needs every prompt's law at every point
    kl_new      = KL(p*(. | new) || p_theta(. | new))
    kl_composed = the same for the prompts composed with the new word
    coverage[c] = sum over modes of min(share of samples in the mode, 1 / modes):
                  1 if all modes are kept, 1 / modes if one is

All in nats (kl.py says of which laws, and how), each with the sum of its errors.

Shapes: M runs, S seeds, T timesteps, N points.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from toy2d.core.drift import Params, delta_theta, path_kl_of, squared_error, stratified
from toy2d.core.likelihood import flow_sample, ode_schedule
from toy2d.core.rng import generator
from toy2d.core.sample import ancestral
from toy2d.core.schedule import Schedule
from toy2d.data import World
from toy2d.kl import Points, base_points, compare_in_parts, truth_points
from toy2d.model import Bound, EpsMLP, members
from toy2d.quadrature import Rule, sobol
from toy2d.runs.progress import progress
from toy2d.train import Group


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
    for start in progress(range(0, len(group), size), "measuring", leave=False):
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


def drift_on_chains(group: Group, probe: Probe, theta: Params | None = None) -> list[dict]:
    """path_kl, delta_eps and delta_theta of every run, from one pass over the base's chains.

    `theta`: other parameters (M, ...) than the group's own.

    delta_eps is the root mean square over all nodes 1 .. T-1 and all chains. Errors are standard
    errors over chains, stratified by prompt.
    """
    theta = theta or {k: v.detach() for k, v in group.theta.items()}
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


def _triple(mean: Tensor, error: Tensor, n: int) -> list:
    """[mean, error, n], with None for what is not a number (JSON has no NaN)."""
    finite = bool(torch.isfinite(mean) and torch.isfinite(error))
    return [float(mean), float(error), n] if finite else [None, None, n]
