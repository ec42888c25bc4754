"""run(config) -> runs/toy2d/<name>/: pretrain, fine-tune every objective as one stack, measure, write. Resumes by itself.

Everything between the two trainings (replayed samples, Fisher, probe) is a function of the base and the seeds, so only the parameters
are stored: a killed run repeats the cheap parts and goes on from the newest checkpoint, bit for bit.
"""

import json
import math
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from toy2d.config import ToyConfig
from toy2d.core.drift import Params, fisher_diagonal
from toy2d.core.objectives import STANDARD, Objective
from toy2d.core.rng import generator
from toy2d.core.sample import ancestral, denoise
from toy2d.core.schedule import Schedule
from toy2d.data import Pool, World, world_pool
from toy2d.measure import Probe, gauss_hermite, make_probe, measure, sobol
from toy2d.model import EpsMLP, members
from toy2d.runs.files import UserError, write_atomic, write_csv, write_json
from toy2d.runs.folder import RunFolder, environment, hash_tensors, load_tensors, save_tensors
from toy2d.runs.spec import Run, parse_run
from toy2d.train import MOMENTS, Group, Streams, fit


def run(
    config: ToyConfig,
    out: Path | str = "runs",
    say: Callable[[str], None] = print,
    base: Path | None = None,
) -> Path:
    """Make, continue or find the run `config`; returns its folder. Raises UserError / RunFailure as `RunFolder.open` does.

    `base`: the base.safetensors of a run whose pretraining settings are the same, to save making it again.
    """
    folder = RunFolder(Path(out) / "toy2d" / config.name, config.as_dict())
    with folder.open():
        if folder.status == "done":
            say(f"{folder.path} is done already")
            return folder.path
        start = time.perf_counter()
        _same_threads(folder)
        experiment = Experiment(config, folder)
        experiment.pretrain(base)
        say(f"base models pretrained ({time.perf_counter() - start:.0f} s so far)")
        experiment.finetune()
        say(f"{len(experiment.names)} runs fine-tuned ({time.perf_counter() - start:.0f} s so far)")
        experiment.write()
        folder.drop_checkpoints()
        say(f"measured and drawn in {folder.path} ({time.perf_counter() - start:.0f} s)")
    return folder.path


def _same_threads(folder: RunFolder) -> None:
    """Another thread count may round differently: a continued run uses the one it began with."""
    record = folder.path / "env.json"
    if record.exists():
        torch.set_num_threads(json.loads(record.read_text())["threads"])
    else:
        write_json(record, environment(("torch", "numpy", "scipy")))


class Experiment:
    """The parts of one run, in order; each reads what the earlier ones left in memory or in the folder."""

    def __init__(self, config: ToyConfig, folder: RunFolder):
        self.config, self.folder = config, folder
        self.world: World = config.make_world()
        self.net: EpsMLP = config.make_net(self.world)
        self.schedule: Schedule = self.world.schedule.to(_device(config.device))
        self.runs: list[Run] = [parse_run(spec) for spec in config.runs]
        self.rows: list[dict] = []

    # ---- the base models, one a seed, as one stack
    def pretrain(self, base: Path | None = None) -> None:
        c = self.config
        file = self.folder.path / "base.safetensors"
        if base is not None and not file.exists():
            write_atomic(file, base.read_bytes())
        if file.exists():
            saved = load_tensors(file)
        else:
            rngs = [generator(s, "init") for s in c.seeds]
            theta = {k: p.to(c.device) for k, p in self.net.init(rngs).items()}
            group = Group(
                self.net,
                theta,
                theta,
                Objective.stack([STANDARD] * len(c.seeds)),
                torch.arange(len(c.seeds)),
                [f"base, seed {s}" for s in c.seeds],
                {"instance": "old classes"},
                c.pretrain_learning_rate,
            )
            pool = world_pool(self.world, self.world.old, c.pretrain_samples, c.seeds, "data")
            optimizer = fit(
                [group],
                Streams({"old classes": pool}, c.seeds, c.pretrain_batch_size, "pretrain"),
                self.schedule,
                c.pretrain_steps,
                decay=c.pretrain_decay,
                label="pretrain",
                **self._checkpointing("pretrain", c.pretrain_steps),
            )
            if group.stopped:
                raise UserError(
                    f"pretraining diverged ({group.stopped[0]}); lower --pretrain_learning_rate"
                )
            saved = {f"theta/{k}": p.detach() for k, p in group.theta.items()}
            for name, p in group.theta.items():
                saved |= {f"{m}/{name}": optimizer.state[p][m] for m in MOMENTS}
            save_tensors(file, saved)
        self.theta_star: Params = {k: p.to(c.device) for k, p in _below(saved, "theta").items()}
        self.base_moments = saved
        self.probe = self._make_probe(c.quadrature)

    def _make_probe(self, k: int, ode_nodes: int | None = None) -> Probe:
        c, rule = self.config, gauss_hermite(k)
        nodes = ode_nodes or c.ode_nodes
        # pushed through a base's ODE to a law of several modes, the integrand has ridges that no quadrature sees
        many = self.world.num_components > 1
        base_rule = sobol(2 ** round(math.log2(k * k)), scrambles=8) if many else rule
        return make_probe(self.world, self.net, self.theta_star, rule, base_rule, c.chains, nodes)

    # ---- fine-tuning
    def finetune(self) -> None:
        c = self.config
        self.groups = self._make_groups()
        self.names = [n for g in self.groups for n in g.names]
        pools = self._make_pools()
        used = {g.pools[role] for g in self.groups for role in g.roles}
        coarse = self._make_probe(max(4, c.quadrature - 2), max(3, c.ode_nodes * 2 // 3))
        spent = self._checkpointing("finetune", c.steps)
        started = time.perf_counter()
        before = spent["resume"][1]["seconds"] if spent["resume"] else 0.0
        self.rows = spent["resume"][1]["rows"] if spent["resume"] else []

        def observe(step: int, terms: list[dict[str, Tensor]]) -> None:
            seconds = before + time.perf_counter() - started
            for group, t in zip(self.groups, terms, strict=True):
                measured = measure(self.world, group, coarse, chunk=c.chunk)
                self.rows += self._rows(group, step, t, measured, seconds)

        fit(
            self.groups,
            Streams(
                {n: p for n, p in pools.items() if n in used}, c.seeds, c.batch_size, "finetune"
            ),
            self.schedule,
            c.steps,
            observe=observe,
            observe_at=tuple(s for s in c.snapshots if s < c.steps),
            moments=self._moments() if c.carry_moments else None,
            label="fine-tune",
            **spent,
        )
        self.train_seconds = before + time.perf_counter() - started

    def _make_pools(self) -> dict[str, Pool]:
        """instance: the few shots; class, all: what is replayed of one class, of every old prompt."""
        c, world = self.config, self.world
        each = math.ceil(c.prior_samples / len(world.old))
        sets = {"class": ((world.class_prompt,), c.prior_samples), "all": (world.old, each)}
        pools = {"instance": world_pool(world, (world.new,), c.shots, c.seeds, "instance")}
        for name, (conds, n) in sets.items():
            if c.prior_from == "world":
                pools[name] = world_pool(world, conds, n, c.seeds, f"replay/{name}")
            else:
                pools[name] = self._base_pool(conds, n, f"replay/{name}")
        return pools

    def _base_pool(self, conds: tuple[int, ...], n: int, role: str) -> Pool:
        """n ancestral samples of each prompt by the frozen base of every seed."""
        cond = torch.tensor(conds).repeat_interleave(n)
        x0 = []
        for s, seed in enumerate(self.config.seeds):
            rng, predict = generator(seed, role), self.net.bind(members(self.theta_star, s))
            x_T = torch.randn(1, len(cond), 2, generator=rng).to(self.config.device)
            x = ancestral(predict, self.schedule, x_T, cond, rng, runs=1)
            x0.append(denoise(predict, self.schedule, x, cond, runs=1)[0].cpu())
        return Pool(torch.stack(x0), cond.expand(len(x0), -1))

    def _fisher(self) -> Params:
        """diag G of every base, from its own chains."""
        rng, chain = generator(0, "fisher"), self.probe.chain
        T, seeds, n, _ = chain.shape
        theta = {k: p.clone().requires_grad_() for k, p in self.theta_star.items()}

        def samples(batch=4):
            for _ in range(math.ceil(self.config.fisher_samples / batch)):
                t = torch.randint(1, T, (seeds, batch), generator=rng)
                i = torch.randint(n, (seeds, batch), generator=rng)
                x_t = chain[t, torch.arange(seeds)[:, None], i]
                yield x_t, t.to(x_t.device), self.probe.chain_cond[i].to(x_t.device)

        return fisher_diagonal(self.net.bind(theta), theta, self.schedule, samples(), rng)

    def _make_groups(self) -> list[Group]:
        """Runs that use the same terms share a group; every run once per seed."""
        seeds = len(self.config.seeds)

        def kind(run: Run):
            v = run.value
            return v.active, v.reduction, v.decoupled, run.replay

        fisher = self._fisher() if any(r.value.uses("fisher") for r in self.runs) else None
        kinds = dict.fromkeys(kind(r) for r in self.runs)
        groups = []
        for active, reduction, decoupled, replay in kinds:
            runs = [r for r in self.runs if kind(r) == (active, reduction, decoupled, replay)]
            seed_index = torch.arange(seeds).repeat(len(runs))
            start = members(self.theta_star, seed_index)
            groups.append(
                Group(
                    self.net,
                    start,
                    start,
                    Objective.stack([r.value for r in runs for _ in range(seeds)]),
                    seed_index,
                    [f"{r.spec}, seed {s}" for r in runs for s in self.config.seeds],
                    {"instance": "instance", "prior": replay, "output": "all"},
                    self.config.learning_rate,
                    members(fisher, seed_index) if "fisher" in active else None,
                )
            )
        return groups

    def _moments(self) -> list[dict[str, Tensor]]:
        def of(group, m, name):
            value = self.base_moments[f"{m}/{name}"]
            return value if m == "step" else value[group.seed_index].to(self.config.device)

        return [{f"{m}/{n}": of(g, m, n) for m in MOMENTS for n in g.theta} for g in self.groups]

    def _checkpointing(self, phase: str, steps: int) -> dict:
        """`save`, `save_every` and `resume` for `fit`."""
        started = time.perf_counter()
        found = self.folder.newest_checkpoint()
        resume = found if found and found[1]["phase"] == phase else None
        before = resume[1]["seconds"] if resume else 0.0

        def save(tensors, scalars):
            seconds = before + time.perf_counter() - started
            more = {"phase": phase, "rows": self.rows, "seconds": seconds}
            self.folder.save_checkpoint(scalars["step"], tensors, scalars | more)

        return {"save": save, "save_every": max(1, steps // 8), "resume": resume}

    # ---- results
    def _rows(self, group: Group, step, terms, measured, seconds) -> list[dict]:
        rows = []
        for m, record in enumerate(measured):
            run, seed = self._identity(group.names[m])
            row = {"step": step, "objective": run.objective, "weight": run.weight, "seed": seed}
            row |= {f"loss_{k}": _number(v[m]) for k, v in terms.items()}
            row |= {k: record[k] for k in ("delta_theta", "delta_eps")}
            for key in ("path_kl", "kl_new"):
                row[key], row[f"{key}_error"] = (record[key] or [None, None])[:2]
            for key in ("kl_truth", "kl_base", "kl_truth_group", "kl_base_group", "kl_composed"):
                for name, triple in (record.get(key) or {}).items():
                    row[f"{key}/{name}"], row[f"{key}_error/{name}"] = triple[:2]
            row |= {f"coverage/{k}": v for k, v in (record.get("coverage") or {}).items()}
            rows.append(row | {"seconds": round(seconds, 2)})
        return rows

    def _identity(self, name: str) -> tuple[Run, int]:
        spec, _, seed = name.rpartition(", seed ")
        return next(r for r in self.runs if r.spec == spec), int(seed)

    def final_records(self) -> list[dict]:
        """metrics.json: one record per run, every KL below 1 nat to 0.01 nat or with the error that more points left."""
        c, records = self.config, []
        finer = cache(self._make_probe)  # made once, and only if some group needs it
        for group in self.groups:
            measured = measure(self.world, group, self.probe, chunk=c.chunk)
            # randomized QMC gains too little from more points: there the printed error has to do
            more = (c.quadrature + 4, c.quadrature + 10) if self.world.num_components == 1 else ()
            for k in more:
                loose = [m for m, record in enumerate(measured) if _is_loose(record)]
                if loose:
                    again = measure(self.world, _only(group, loose), finer(k), chunk=c.chunk)
                    for m, record in zip(loose, again, strict=True):
                        measured[m] = record
            no_terms = {"instance": group.last_loss}
            self.rows += self._rows(group, c.steps, no_terms, measured, self.train_seconds)
            for m, record in enumerate(measured):
                run, seed = self._identity(group.names[m])
                records.append(
                    {
                        "run": run.spec,
                        "objective": run.objective,
                        "weight": run.weight,
                        "seed": seed,
                    }
                    | record
                    | {
                        "seconds": self.train_seconds / len(self.names),
                        "stopped": group.stopped.get(m),
                    }
                )
        return records

    def write(self) -> None:
        from toy2d import report
        from toy2d.figures import all as figures

        path = self.folder.path
        records = self.final_records()
        base = measure(self.world, self._base_group(), self.probe)
        save_tensors(path / "finetuned.safetensors", self._all_parameters())
        save_tensors(path / "samples.safetensors", self._samples())
        write_csv(path / "history.csv", self.rows)
        metrics = {
            "world": self.config.world,
            "new_class": self.world.names[self.world.new],
            "replayed_class": self.world.names[self.world.class_prompt],
            "groups": {g: [self.world.names[c] for c in cs] for g, cs in self.world.groups.items()},
            "base_hash": hash_tensors(self.theta_star),
            "base": [{"seed": s} | b for s, b in zip(self.config.seeds, base, strict=True)],
            "runs": records,
        }
        write_json(path / "metrics.json", metrics)
        figures.draw_all(path)
        report.write(path)

    def _base_group(self) -> Group:
        seeds = len(self.config.seeds)
        objective = Objective.stack([STANDARD] * seeds)
        names = [f"base, seed {s}" for s in self.config.seeds]
        return Group(self.net, self.theta_star, self.theta_star, objective, torch.arange(seeds), names, {})  # fmt: skip

    def _all_parameters(self) -> Params:
        """Every run's parameters, stacked in the order of metrics.json."""
        stacks = [g.theta for g in self.groups]
        return {k: torch.cat([s[k].detach() for s in stacks]) for k in stacks[0]}

    def _samples(self, n: int = 150) -> dict[str, Tensor]:
        """Ancestral samples of every prompt, first seed: truth, base and each run, from one x_T and one noise."""
        world, seed = self.world, self.config.seeds[0]
        conds = (*world.old, world.new, *world.composed)
        cond = torch.tensor(conds).repeat_interleave(n)
        out = {
            "truth": torch.cat([world.sample(c, n, generator(seed, f"truth/{c}")) for c in conds])
        }
        for name, theta in {"base": members(self.theta_star, 0), **self._first_seed()}.items():
            rng = generator(seed, "sample")
            predict = self.net.bind(theta)
            x_T = torch.randn(1, len(cond), 2, generator=rng).to(self.config.device)
            x = ancestral(predict, self.schedule, x_T, cond, rng, runs=1)
            out[name] = denoise(predict, self.schedule, x, cond, runs=1)[0]
        out["shots"] = world_pool(world, (world.new,), self.config.shots, (seed,), "instance").x0[0]
        return {k: v.float() for k, v in out.items()} | {"cond": cond}

    def _first_seed(self) -> dict[str, Params]:
        found = {}
        for group in self.groups:
            for m, name in enumerate(group.names):
                run, seed = self._identity(name)
                if seed == self.config.seeds[0]:
                    found[run.spec] = members({k: p.detach() for k, p in group.theta.items()}, m)
        return found


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise UserError(
            f"--device {name!r} cannot be used here ({str(e).splitlines()[0]}); try cpu"
        ) from e
    return device


def _below(tensors: dict[str, Tensor], prefix: str) -> Params:
    return {
        k.removeprefix(f"{prefix}/"): v for k, v in tensors.items() if k.startswith(f"{prefix}/")
    }


def _number(value: Tensor) -> float | None:
    return float(value) if torch.isfinite(value) else None


def _is_loose(record: dict) -> bool:
    """Is some KL below 1 nat known worse than to 0.01 nat?"""
    if record["kl_new"] is None:
        return False
    triples = [record["kl_new"], *record["kl_truth"].values(), *record["kl_base"].values()]
    return any(mean is not None and mean < 1 and error > 0.01 for mean, error, _ in triples)


def _only(group: Group, which: list[int]) -> Group:
    return Group(
        group.net,
        members({k: p.detach() for k, p in group.theta.items()}, which),
        members(group.theta_star, which),
        group.objective,
        group.seed_index[which],
        [group.names[m] for m in which],
        group.pools,
    )
