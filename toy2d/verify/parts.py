"""The rows of every statement, from an open run folder: what `toy2d verify` computes, part by part.

Trains only what the folder does not hold: models with only the new word's row trained, and one
short stack with snapshots, to see the bounds evolve.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from toy2d.core.drift import Params, path_kl
from toy2d.core.rng import generator
from toy2d.kl import compare, truth_points
from toy2d.prepare import Setting, make_groups, make_pools, used_pools
from toy2d.quadrature import gauss_hermite
from toy2d.theorems import certificate as cert
from toy2d.theorems import counterexamples as counter
from toy2d.theorems import (
    information,
    lipschitz,
    local_law,
    lower_bound,
    paper_theorem_2,
    path_bound,
)
from toy2d.theorems.pair import Pair
from toy2d.theorems.paper_theorem_2 import Drift
from toy2d.theorems.row import Row
from toy2d.train import Streams, Watch, fit
from toy2d.verify.course import Course

SNAPSHOTS = (10, 30, 100, 300)


# ---- Theorem 1', Theorem 1 and Corollary 5.1
def lower_bounds(c: Course) -> list[Row]:
    """On the final models, and along a short training with snapshots."""
    truth = truth_points(c.world, c.world.old, gauss_hermite(6), mixture=True)
    seeds = sorted(c.seeds)
    ode = c.probe.ode
    every_base = c.net.bind(_stack([c.base(s) for s in seeds]))
    bases = lower_bound.laws_of(c.world, every_base, ode, truth)
    chosen = c.which(*c.shown)
    stack = [c.run(i) for i, _, _ in chosen]
    names, of = [r for _, r, _ in chosen], [s for _, _, s in chosen]
    for step, spec, theta in snapshots(c, seeds[0], list(c.shown[:3])):
        stack.append(theta)
        names.append(f"{spec} after {step} steps")
        of.append(seeds[0])
    laws = lower_bound.laws_of(c.world, c.net.bind(_stack(stack)), ode, truth)
    regions = [lower_bound.Ball.around(c.shots(s)) for s in of]
    places = [seeds.index(s) for s in of]
    replayed = [_replayed(c, n) for n in names]
    return [
        *lower_bound.lower_bound(c.world, laws, regions, names, of),
        *lower_bound.theorem_1(c.world, laws, bases, places, regions, names, of),
        *lower_bound.coverage(c.world, laws, regions, replayed, names, of),
    ]


def _replayed(c: Course, name: str) -> tuple[int, ...]:
    prompts = {"prior": (c.world.class_prompt,), "replay_all": c.world.old, "output": c.world.old}
    return prompts.get(name.split(":")[0], ())


def _stack(thetas: list[Params]) -> Params:
    return {k: torch.cat([t[k] for t in thetas]) for k in thetas[0]}


def snapshots(c: Course, seed: int, specs: list[str]) -> list[tuple[int, str, Params]]:
    """(step, run, parameters) along the folder's own training: one seed, same data and noise."""
    config = replace(c.config, seeds=(seed,), runs=tuple(specs))
    setting, star = Setting(config), c.base(seed)
    groups = make_groups(setting, star, replace(c.probe, chain=c.chain(seed)[:, None]))
    pools = used_pools(make_pools(setting, star), groups)
    found = []

    def observe(step, _):
        for g in groups:
            for m, tuned in enumerate(g.runs):
                theta = {k: p.detach()[m : m + 1].clone() for k, p in g.theta.items()}
                found.append((step, tuned.spec.spec, theta))

    at = tuple(s for s in SNAPSHOTS if s < config.steps)
    streams = Streams(pools, (seed,), config.batch_size, "finetune")
    watch = Watch(observe, at)
    fit(groups, streams, setting.schedule, max(at) + 1, watch, label="snapshots")
    return found


# ---- Theorems 6.2 and 6.7
def path_bounds(c: Course) -> list[Row]:
    """Every shown run: the whole chain under one old prompt, another for each seed, and points."""
    rows = path_bound.gaussian_pair(schedule=lambda T: c.spoil(path_bound.near_clean(T)))
    for i, _, seed in c.which(*c.shown):
        pair, old = c.pair(i), c.world.old
        fresh = c.once(("chains", seed), lambda pair=pair: path_bound.star_chain(pair))
        base = c.base_law(pair, old[c.config.seeds.index(seed) % len(old)])
        kl = c.once(("law", i), lambda pair=pair, base=base: path_bound.law_kl(pair, base))
        rows.append(path_bound.path_bound(pair, base, kl))
        rows.append(path_bound.sampled(pair, base, *fresh))
        cond = old[i % len(old)]
        some = int((c.cond == cond).nonzero()[0])
        rows += path_bound.from_a_point(pair, c.chain(seed)[:, some], cond)
        rows += lipschitz.lipschitz_bound(pair, c.chain(seed), c.cond)
        rows += lipschitz.by_layer(pair, c.chain(seed), c.cond)
    for seed in c.seeds:
        pair = next(c.pair(i) for i, _, s in c.which() if s == seed)
        for n in (1, len(c.schedule) // 2):
            x, cond = c.chain(seed)[n, 0], int(c.cond[0])
            rows.append(lipschitz.worst_direction(pair, x, n, cond))
            rows += lipschitz.worst_by_layer(pair, x, n, cond)
    return rows


# ---- Theorem 6.8
def local_laws(c: Course, every_direction: bool = True) -> list[Row]:
    """One seed: toward a run, in a random direction, and along G's first eigenvector."""
    seed = c.seeds[0]
    star, chain = c.base(seed), c.chain(seed)
    rng = generator(seed, "verify/directions")
    wanted = [i for i, _, s in c.which(c.shown[0]) if s == seed]
    directions = {
        f"toward {c.metrics['runs'][i]['run']}": {k: p - star[k] for k, p in c.run(i).items()}
        for i in wanted
    }
    if every_direction:
        random = {k: torch.randn(p.shape, generator=rng) for k, p in star.items()}
        directions["a random direction"] = random
    operator = local_law.path_operator(c.net, star, c.schedule, chain, c.cond)
    rows, top = local_law.spectrum(operator, directions, star, seed)
    directions["top eigenvector of G"] = top
    for name, direction in directions.items():
        rows += _along(c, seed, name, local_law.unit(direction), operator)
    return rows


def _along(c: Course, seed: int, name: str, direction: Params, operator) -> list[Row]:
    """Information and ladder along one unit direction."""
    star, prompt = c.base(seed), c.world.old[0]
    theta = local_law.moved(star, direction, 1.0)
    pair = Pair(c.world, c.net, star, theta, name, seed)
    cond = torch.tensor(c.world.old).repeat_interleave(1500)
    rng = generator(seed, f"verify/scores {name}")
    scores = information.path_scores(c.net, star, direction, c.schedule, cond, rng)
    base = c.base_law(pair, prompt, density=1.0)
    here = scores.of(prompt)
    S2 = information.information(scores)["S2"]
    h = (2 * 3e-3 / information.information(here)["S2"][0]) ** 0.5  # path KL about 0.003 nats
    F = c.once(("F", seed, name), lambda: information.fisher_of_law(pair, base, h))
    place = c.config.seeds.index(seed)
    k = slice(place, place + 1)
    base_points = c.probe.base
    points = replace(
        base_points,
        x=base_points.x[k],
        log_p=base_points.log_p[k],
        coarse=base_points.coarse[k],
    )
    G = local_law.quadratic_form(operator, direction)
    what = c.world.names[prompt]
    return [
        *information.contraction(name, what, scores, here, F, seed),
        *local_law.ladder(pair, name, G, S2, c.probe.ode, points, c.chain(seed), c.cond),
    ]


# ---- Theorem 6.9
def certificates(c: Course) -> list[Row]:
    """Every weight lam of l2."""
    rows = []
    weights = {r["run"]: r["weight"] for r in c.metrics["runs"] if r["objective"] == "l2"}
    for i, name, seed in c.which(*(weights or ("",))):
        pair, chain, lam = c.pair(i), c.chain(seed), weights[name]
        few = torch.cat([(c.cond == p).nonzero().flatten()[:12] for p in c.world.old])
        constant = lipschitz.lipschitz_constant(
            c.net, pair.theta_star, pair.theta, c.schedule, chain[:, few], c.cond[few]
        )
        path, error = path_kl(pair.tuned, pair.star, c.schedule, chain[:, None], c.cond, runs=1)

        def losses(role, pair=pair, seed=seed):
            rngs = (generator(seed, role) for _ in range(2))  # the same noise for both models
            return [
                cert.instance_losses(c.net, p, c.schedule, c.shots(seed), c.world.new, rng)
                for p, rng in zip((pair.theta_star, pair.theta), rngs, strict=True)
            ]

        square = pair.squared_distance
        measured = (float(path[0]), float(error[0]))
        rows.append(cert.condition(*losses("verify/condition"), lam, square, name, seed))
        rows += cert.certificate(
            *losses("verify/loss"), lam, square, measured, constant, name, seed
        )
    return rows


# ---- what the paper prints, and what it does not say
def as_printed(c: Course, local: list[Row]) -> list[Row]:
    """Theorem 2 and Remark 3, on all trained models and near the base (`local`: the ladders)."""
    near = []
    for r in local:
        if r.curve.get("h") and r.curve["direction"].startswith("toward"):
            for h, kl in zip(r.curve["h"], r.curve["kl"], strict=True):
                near.append(Drift(r.curve["direction"], "ladder", None, r.seed, h, kl))
    return paper_theorem_2.paper_theorem_2(c.drifts, near)


def counterexamples(c: Course) -> list[Row]:
    rows = counter.lora_factors()
    new = truth_points(c.world, (c.world.new,), gauss_hermite(8))
    for seed in c.seeds:
        star, chain = c.base(seed), c.chain(seed)
        theta = counter.train_new_row(c.world, c.net, star, c.shots(seed), seed)
        both = {k: torch.cat([star[k], theta[k]]) for k in theta}
        kl = compare(c.net.bind(both), c.probe.ode, new, torch.zeros(2).long(), c.world)
        before, after = (v[c.world.names[c.world.new]][0] for v in kl)
        learnt = f"The new class went from {before:.3g} to {after:.3g} nats."
        rows += counter.new_row_only(c.world, c.net, star, theta, chain, c.cond, seed, learnt)
        rows += counter.same_function(c.world, c.net, star, chain, c.cond, seed)
    return rows + counter.further_yet_closer(c.drifts) + counter.monotone(c.drifts)


LOCAL, PRINTED = "local law", "as printed"
PARTS: dict[str, tuple[Callable[..., list[Row]], tuple[str, ...]]] = {
    "lower bounds": (
        lower_bounds,
        (lower_bound.LABEL, lower_bound.CONCLUSION, lower_bound.COVERAGE),
    ),
    "path bounds": (path_bounds, (path_bound.LABEL,)),
    LOCAL: (local_laws, (local_law.LABEL,)),
    "certificate": (certificates, (cert.LABEL,)),
    PRINTED: (as_printed, (paper_theorem_2.LABEL,)),
    "counter-examples": (counterexamples, (counter.LABEL,)),
}
LABELS = tuple(label for _, labels in PARTS.values() for label in labels)
