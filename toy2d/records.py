"""What is written about a run: rows of history.csv, records of metrics.json, samples to look at."""

from functools import cache

import torch
from torch import Tensor

from toy2d.core.drift import Params
from toy2d.core.objectives import STANDARD, Objective
from toy2d.core.rng import generator
from toy2d.data import world_pool
from toy2d.figures.frontier import toy_trajectories
from toy2d.measure import Probe, drift_on_chains, measure
from toy2d.model import members
from toy2d.prepare import Setting, clean_samples, finer_probe
from toy2d.runs.folder import hash_tensors
from toy2d.runs.frontier import HEADLINE, contrasts
from toy2d.runs.layers import layer_of
from toy2d.runs.target import DriftTarget
from toy2d.train import Group

KL_TABLES = ("kl_truth", "kl_base", "kl_truth_group", "kl_base_group", "kl_composed")


def history_rows(
    group: Group, step: int, terms: dict[str, Tensor], measured: list[dict], seconds: float
) -> list[dict]:
    """One row of history.csv for each run of the group; `terms` are its losses at that step."""
    rows = []
    for m, (run, record) in enumerate(zip(group.runs, measured, strict=True)):
        spec = run.spec
        row = {"step": step, "objective": spec.objective, "weight": spec.weight, "seed": run.seed}
        if group.adapted:
            row["adapted_weight"] = float(group.weight[m])
        row |= {f"loss_{k}": _finite(v[m]) for k, v in terms.items()}
        row["delta_theta"] = record["delta_theta"]
        for key in ("delta_eps", "path_kl", "kl_new"):
            row[key], row[f"{key}_error"] = (record[key] or [None, None])[:2]
        for key in KL_TABLES:
            for name, triple in (record.get(key) or {}).items():
                row[f"{key}/{name}"], row[f"{key}_error/{name}"] = triple[:2]
        row |= {f"coverage/{k}": v for k, v in (record.get("coverage") or {}).items()}
        rows.append(row | {"seconds": round(seconds, 2)})
    return rows


def _finite(value: Tensor) -> float | None:
    return float(value) if torch.isfinite(value) else None


def measure_finely(
    setting: Setting, theta_star: Params, probe: Probe, groups: list[Group]
) -> list[list[dict]]:
    """Each group's measurements; KLs below 1 nat known worse than to 0.01 nat are repeated."""
    c, world = setting.config, setting.world
    finer = cache(
        lambda more: finer_probe(setting, theta_star, more)
    )  # made if some group needs it
    # randomized QMC gains too little from more points: there the printed error has to do
    more = (4, 10) if world.num_components == 1 else ()
    found = []
    for group in groups:
        measured = measure(world, group, probe, chunk=c.chunk)
        for k in more:
            loose = [m for m, record in enumerate(measured) if _is_loose(record)]
            if loose:
                again = measure(world, group.only(loose), finer(k), chunk=c.chunk)
                for m, record in zip(loose, again, strict=True):
                    measured[m] = record
        found.append(measured)
    return found


def _is_loose(record: dict) -> bool:
    """Is some KL below 1 nat known worse than to 0.01 nat?"""
    if record["kl_new"] is None:
        return False
    triples = [record["kl_new"], *record["kl_truth"].values(), *record["kl_base"].values()]
    return any(mean is not None and mean < 1 and error > 0.01 for mean, error, _ in triples)


def _target(group: Group, m: int, record: dict) -> dict:
    """What a run with a target reached; empty for others."""
    if not group.adapted or m in group.stopped:
        return {}
    reached, error, _ = record["path_kl"]
    target = DriftTarget(group.max_path_kl, float(group.target.start[m]))
    return {"target": target.summary(reached, error, float(group.weight[m]))}


def drift_by_layer(group: Group, probe: Probe) -> list[dict[str, dict]]:
    """Per run, {kind of layer: delta_theta and path_kl of theta_star + delta_b}: the change of
    that layer alone.
    """
    kinds, found = group.net.layers, [{} for _ in range(len(group))]
    for kind in kinds:
        mine = [k for k in group.theta if layer_of(k, kinds) == kind]
        theta = group.theta_star | {k: group.theta[k].detach() for k in mine}
        for layers, drift in zip(found, drift_on_chains(group, probe, theta), strict=True):
            layers[kind] = {k: drift[k] for k in ("delta_theta", "path_kl")}
    return found


def run_records(
    groups: list[Group], measured: list[list[dict]], probe: Probe, seconds: float
) -> list[dict]:
    """One record of metrics.json for each run; the training's `seconds` are shared out evenly."""
    count = sum(len(g) for g in groups)
    layers = [drift_by_layer(g, probe) for g in groups]
    return [
        {
            "run": run.spec.spec,
            "objective": run.spec.objective,
            "weight": run.spec.weight,
            "seed": run.seed,
            **record,
            "layers": None if m in group.stopped else by_layer,
            **_target(group, m, record),
            "seconds": seconds / count,
            "stopped": group.stopped.get(m),
        }
        for group, records, of in zip(groups, measured, layers, strict=True)
        for m, (run, record, by_layer) in enumerate(zip(group.runs, records, of, strict=True))
    ]


def metrics_of(
    setting: Setting, theta_star: Params, probe: Probe, runs: list[dict], rows: list[dict]
) -> dict:
    """metrics.json: what was run, the bases' own records and those of the runs.

    "chosen" names each objective's weight at equal learning, from the history's rows.
    """
    world, seeds = setting.world, setting.seeds
    base = measure(world, _bases_as_a_group(setting, theta_star), probe)
    metrics = {
        "world": setting.config.world,
        "new_class": world.names[world.new],
        "replayed_class": world.names[world.class_prompt],
        "groups": {g: [world.names[c] for c in cs] for g, cs in world.groups.items()},
        "base_hash": hash_tensors(theta_star),
        "base": [{"seed": s} | b for s, b in zip(seeds, base, strict=True)],
        "runs": runs,
    }
    along = contrasts(toy_trajectories(metrics, rows))
    weights = {o: at[HEADLINE].weights[:1] for o, at in along.items()}
    named = {o: names[0] for o, names in weights.items() if names}
    return metrics | {"chosen": {"standard": "standard"} | named}


def _bases_as_a_group(setting: Setting, theta_star: Params) -> Group:
    seeds = setting.seeds
    standard = Objective.stack([STANDARD] * len(seeds))
    names = [f"base, seed {s}" for s in seeds]
    index = torch.arange(len(seeds))
    return Group(setting.net, theta_star, theta_star, standard, index, names, {})


def all_parameters(groups: list[Group]) -> Params:
    """Every run's parameters, stacked in the order of metrics.json."""
    stacks = [g.theta for g in groups]
    return {k: torch.cat([s[k].detach() for s in stacks]) for k in stacks[0]}


def samples_of(
    setting: Setting, theta_star: Params, groups: list[Group], n: int = 150
) -> dict[str, Tensor]:
    """Ancestral samples of every prompt, first seed: truth, base and each run, from one noise."""
    world, seed = setting.world, setting.seeds[0]
    conds = (*world.old, world.new, *world.composed)
    cond = torch.tensor(conds).repeat_interleave(n)
    truth = [world.sample(c, n, generator(seed, f"truth/{c}")) for c in conds]
    out = {"truth": torch.cat(truth)}
    models = {"base": members(theta_star, 0)}
    for group in groups:
        for m, run in enumerate(group.runs):
            if run.seed == seed:
                theta = {k: p.detach() for k, p in group.theta.items()}
                models[run.spec.spec] = members(theta, m)
    for name, theta in models.items():
        predict = setting.net.bind(theta)
        out[name] = clean_samples(setting, predict, cond, generator(seed, "sample"))
    shots = world_pool(world, (world.new,), setting.config.shots, (seed,), "instance")
    out["shots"] = shots.x0[0]
    return {k: v.float() for k, v in out.items()} | {"cond": cond}
