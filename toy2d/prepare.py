"""What lies between the two trainings: probe, replayed samples, Fisher diagonal, groups of runs.

Each is a function of the configuration and the base models, so a continued run makes them anew.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from toy2d.config import ToyConfig
from toy2d.core.drift import Params, fisher_diagonal
from toy2d.core.objectives import Objective
from toy2d.core.rng import generator
from toy2d.core.sample import ancestral, denoise
from toy2d.core.schedule import Schedule
from toy2d.data import ExamplePool, World, world_pool
from toy2d.measure import Probe, make_probe
from toy2d.model import EpsMLP, members
from toy2d.quadrature import gauss_hermite, sobol
from toy2d.runs.files import UserError
from toy2d.runs.layers import layer_weights
from toy2d.runs.spec import RunSpec, SeededRun, parse_run
from toy2d.train import Group


@dataclass(frozen=True)
class Setting:
    """A configuration and what follows from it alone. Raises UserError for an unusable device,
    or layers that the network does not have.
    """

    config: ToyConfig

    def __post_init__(self):
        try:
            torch.zeros(1, device=self.config.device)
        except (RuntimeError, AssertionError) as e:
            why = str(e).splitlines()[0]
            raise UserError(
                f"--device {self.config.device!r} cannot be used here ({why}); try cpu"
            ) from e
        _ = self.layers  # refused now if an entry fits no parameter

    @cached_property
    def world(self) -> World:
        return self.config.make_world()

    @cached_property
    def net(self) -> EpsMLP:
        return self.config.make_net(self.world)

    @cached_property
    def layers(self) -> dict[str, float] | None:
        """What each parameter counts in the l2 distance; None: all alike."""
        if not self.config.l2_layers:
            return None
        names = self.net.init([generator(0, "init")])
        return layer_weights(self.config.l2_layers, names, self.net.layers)

    @cached_property
    def schedule(self) -> Schedule:
        return self.world.schedule.to(self.config.device)

    @cached_property
    def specs(self) -> list[RunSpec]:
        return [parse_run(spec) for spec in self.config.runs]

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.config.seeds


def probe_of(setting: Setting, theta_star: Params) -> Probe:
    """The probe of the finished runs, as configured."""
    c = setting.config
    return _probe(setting, theta_star, c.quadrature, c.ode_nodes, c.chains)


def target_probe(probe: Probe, each: int = 4) -> Probe:
    """`probe` with `each` chains of every old prompt: path KL for a target, measured often.

    Its error is that of so few chains; the finished runs are measured on other chains.
    """
    cond = probe.chain_cond
    pick = torch.cat([(cond == c).nonzero().flatten()[:each] for c in cond.unique()])
    few = {"chain": probe.chain[:, :, pick], "eps_star": probe.eps_star[:, :, pick]}
    return replace(probe, **few, chain_cond=cond[pick])


def finer_probe(setting: Setting, theta_star: Params, more: int) -> Probe:
    """More quadrature points (`more` an axis) and twice the ODE nodes."""
    c = setting.config
    return _probe(setting, theta_star, c.quadrature + more, 2 * c.ode_nodes - 1, c.chains)


def snapshot_probe(setting: Setting, theta_star: Params) -> Probe:
    """The probe along training: fewer quadrature points and chains, no mixture."""
    c = setting.config
    k, chains = max(4, c.quadrature - 2), max(2, c.chains // 2)
    return _probe(setting, theta_star, k, c.ode_nodes, chains, mixture=False)


def _probe(
    setting: Setting, theta_star: Params, k: int, nodes: int, chains: int, mixture: bool = True
) -> Probe:
    world = setting.world
    rule = base_rule = gauss_hermite(k)
    if world.num_components > 1:
        # pushed through a base's ODE to a law of several modes, the integrand has ridges that no
        # Gauss rule sees
        base_rule = sobol(2 ** round(math.log2(k * k)), scrambles=8)
    return make_probe(world, setting.net, theta_star, rule, base_rule, chains, nodes, mixture)


def make_pools(setting: Setting, theta_star: Params) -> dict[str, ExamplePool]:
    """The examples of every role.

    "instance" holds the few shots, "class" what is replayed of one class, "all" what is replayed of
    every old prompt.
    """
    c, world = setting.config, setting.world
    each = math.ceil(c.prior_samples / len(world.old))
    replayed = {"class": ((world.class_prompt,), c.prior_samples), "all": (world.old, each)}
    pools = {"instance": world_pool(world, (world.new,), c.shots, c.seeds, "instance")}
    for name, (conds, n) in replayed.items():
        if c.prior_from == "world":
            pools[name] = world_pool(world, conds, n, c.seeds, f"replay/{name}")
        else:
            pools[name] = _base_pool(setting, theta_star, conds, n, f"replay/{name}")
    return pools


def _base_pool(
    setting: Setting, theta_star: Params, conds: tuple[int, ...], n: int, role: str
) -> ExamplePool:
    """n ancestral samples of each prompt by the frozen base of every seed."""
    cond = torch.tensor(conds).repeat_interleave(n)
    x0 = []
    for s, seed in enumerate(setting.seeds):
        predict = setting.net.bind(members(theta_star, s))
        x0.append(clean_samples(setting, predict, cond, generator(seed, role)).cpu())
    return ExamplePool(torch.stack(x0), cond.expand(len(x0), -1))


def clean_samples(setting: Setting, predict, cond: Tensor, rng: torch.Generator) -> Tensor:
    """One ancestral sample (N, 2) under each prompt of `cond` (N), denoised at the end."""
    x_T = torch.randn(1, len(cond), 2, generator=rng).to(setting.config.device)
    x = ancestral(predict, setting.schedule, x_T, cond, rng, runs=1)
    return denoise(predict, setting.schedule, x, cond, runs=1)[0]


def fisher_of(setting: Setting, theta_star: Params, probe: Probe) -> Params:
    """diag G of every base, from its own chains."""
    rng, chain = generator(0, "fisher"), probe.chain
    T, seeds, n, _ = chain.shape
    theta = {k: p.clone().requires_grad_() for k, p in theta_star.items()}

    def samples(batch=4):
        for _ in range(math.ceil(setting.config.fisher_samples / batch)):
            t = torch.randint(1, T, (seeds, batch), generator=rng)
            i = torch.randint(n, (seeds, batch), generator=rng)
            x_t = chain[t, torch.arange(seeds)[:, None], i]
            yield x_t, t.to(x_t.device), probe.chain_cond[i].to(x_t.device)

    return fisher_diagonal(setting.net.bind(theta), theta, setting.schedule, samples(), rng)


def make_groups(setting: Setting, theta_star: Params, probe: Probe) -> list[Group]:
    """Runs that use the same terms share a group; every run once per seed."""
    seeds, specs = setting.seeds, setting.specs
    uses_fisher = any(s.value.uses("fisher") for s in specs)
    fisher = fisher_of(setting, theta_star, probe) if uses_fisher else None
    same_terms: dict[tuple, list[RunSpec]] = {}
    for s in specs:
        terms = (s.value.active, s.value.reduction, s.value.decoupled, s.replay, s.last_term)
        same_terms.setdefault(terms, []).append(s)
    groups = []
    target = setting.config.max_path_kl
    for (active, _, _, replay, last), alike in same_terms.items():
        seed_index = torch.arange(len(seeds)).repeat(len(alike))
        start = members(theta_star, seed_index)
        groups.append(
            Group(
                setting.net,
                start,
                start,
                Objective.stack([s.value for s in alike for _ in seeds]),
                seed_index,
                [SeededRun(s, seed) for s in alike for seed in seeds],
                {"instance": "instance", "prior": replay, "output": "all"},
                setting.config.learning_rate,
                members(fisher, seed_index) if "fisher" in active else None,
                setting.layers,
                last if target else None,
                target,
            )
        )
    return groups


def used_pools(pools: dict[str, ExamplePool], groups: list[Group]) -> dict[str, ExamplePool]:
    """Those pools from which some group draws."""
    used = {g.pools[role] for g in groups for role in g.roles}
    return {name: pool for name, pool in pools.items() if name in used}
