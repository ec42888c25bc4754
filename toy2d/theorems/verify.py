"""`toy2d verify`: feed every statement from a run folder, write verify.json and figures, say what held and what did not.

Reads config.json, base.safetensors, finetuned.safetensors (stacked in the order of metrics.json's runs); trains only what the folder
does not hold: the new-word-only models, and one short stack with snapshots to see the bounds evolve.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from toy2d.config import ToyConfig, course
from toy2d.core.drift import Params, path_kl, squared_distance
from toy2d.core.rng import generator
from toy2d.data import world_pool
from toy2d.experiment import load_bases, run
from toy2d.measure import compare, truth_points
from toy2d.model import members
from toy2d.prepare import Setting, make_groups, make_pools, probe_of, used_pools
from toy2d.quadrature import gauss_hermite
from toy2d.runs.files import UserError, write_json
from toy2d.runs.folder import RunFolder, load_tensors
from toy2d.theorems import certificate as cert
from toy2d.theorems import counterexamples as counter
from toy2d.theorems import local_law, lower_bound, paper_theorem_2, path_bound
from toy2d.theorems.paper_theorem_2 import Drift
from toy2d.theorems.row import LIMIT, Row
from toy2d.train import Streams, fit

SHOWN = ("standard", "prior:1", "l2:0.03", "output:1", "fisher:1", "replay_all:1")
SNAPSHOTS = (10, 30, 100, 300)


@dataclass
class Course:
    """A finished run folder, opened: networks, worlds and chains, for the functions of this package."""

    path: Path
    seeds: tuple[int, ...]  # of those in the folder

    def __post_init__(self):
        saved = json.loads((self.path / "config.json").read_text())
        known = {f.name for f in fields(ToyConfig)}
        if set(saved) != known:
            raise UserError(f"{self.path}/config.json is of another version (differs in {', '.join(sorted(set(saved) ^ known))}); run it anew under another name")  # fmt: skip
        lists = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        self.config = replace(ToyConfig(**lists), device="cpu")
        missing = set(self.seeds) - set(self.config.seeds)
        if missing:
            raise UserError(f"--seeds {sorted(missing)}: {self.path} holds seeds {self.config.seeds}")  # fmt: skip
        self.metrics = json.loads((self.path / "metrics.json").read_text())
        self.setting = Setting(self.config)
        self.theta_star = load_bases(self.setting, self.path).theta
        self.probe = probe_of(self.setting, self.theta_star)
        self.world, self.net = self.setting.world, self.setting.net
        self.schedule = self.world.schedule
        self.local: list[Row] = []  # the local law's rows: `as_printed` reads the ladder from them
        self.tuned = load_tensors(self.path / "finetuned.safetensors")
        if len(self.tuned["bias0"]) != len(self.metrics["runs"]):
            raise UserError(f"{self.path}: finetuned.safetensors and metrics.json disagree; run it anew under another name")  # fmt: skip

    def base(self, seed: int) -> Params:
        return members(self.theta_star, self.config.seeds.index(seed))

    def run(self, i: int) -> Params:
        return members(self.tuned, i)

    def chain(self, seed: int) -> Tensor:
        """(T, N, 2): the base's cached ancestral chains under every old prompt."""
        return self.probe.chain[:, self.config.seeds.index(seed)]

    @property
    def cond(self) -> Tensor:
        return self.probe.chain_cond

    def shots(self, seed: int) -> Tensor:
        """The instance points that seed was fine-tuned on."""
        c = self.config
        return world_pool(self.world, (self.world.new,), c.shots, (seed,), "instance").x0[0]

    def which(self, *specs: str) -> list[tuple[int, str, int]]:
        """(place in the stack, run, seed) of these runs, of the wanted seeds, that did not diverge."""
        runs = enumerate(self.metrics["runs"])
        return [(i, r["run"], r["seed"]) for i, r in runs
                if (r["run"] in specs or not specs) and r["seed"] in self.seeds and not r["stopped"]]  # fmt: skip

    @cached_property
    def shown(self) -> tuple[str, ...]:
        there = [r["run"] for r in self.metrics["runs"]]
        return tuple(s for s in SHOWN if s in there) or tuple(dict.fromkeys(there))[:6]

    @cached_property
    def drifts(self) -> list[Drift]:
        """Every run's distance and KL(base || tuned), mean over old prompts, as measured (mean error: prompts share points)."""
        found = []
        for i, _, _ in self.which():
            r = self.metrics["runs"][i]
            kls = [v for name, v in r["kl_base"].items() if name != "mixture"]
            mean = [sum(v[j] for v in kls) / len(kls) for j in (0, 1)]
            found.append(Drift(r["run"], r["objective"], r["weight"], r["seed"], r["delta_theta"], *mean))  # fmt: skip
        return found


def lower_bounds(c: Course) -> list[Row]:
    """Theorem 1', Theorem 1 and Corollary 1' on the final models and along a short training with snapshots."""
    truth = truth_points(c.world, c.world.old, gauss_hermite(6), mixture=True)
    seeds = sorted(c.seeds)
    bases = lower_bound.laws_of(c.world, c.net.bind(_stack([c.base(s) for s in seeds])), c.probe.ode, truth)  # fmt: skip
    chosen = c.which(*c.shown)
    stack = [c.run(i) for i, _, _ in chosen]
    names, of = [r for _, r, _ in chosen], [s for _, _, s in chosen]
    for step, spec, theta in snapshots(c, seeds[0], list(c.shown[:3])):
        stack.append(theta)
        names.append(f"{spec} after {step} steps")
        of.append(seeds[0])
    laws = lower_bound.laws_of(c.world, c.net.bind(_stack(stack)), c.probe.ode, truth)
    regions = [lower_bound.Ball.around(c.shots(s)) for s in of]
    rows = lower_bound.lower_bound(c.world, laws, regions, names, of)
    rows += lower_bound.theorem_1(c.world, laws, bases, [seeds.index(s) for s in of], regions, names, of)  # fmt: skip
    replayed = [_replayed(c, n) for n in names]
    return rows + lower_bound.coverage(c.world, laws, regions, replayed, names, of)


def _replayed(c: Course, name: str) -> tuple[int, ...]:
    kind = name.split(":")[0]
    return {"prior": (c.world.class_prompt,), "replay_all": c.world.old, "output": c.world.old}.get(kind, ())  # fmt: skip


def snapshots(c: Course, seed: int, specs: list[str]) -> list[tuple[int, str, Params]]:
    """(step, run, parameters) along the same training as the folder's, one seed: the same data, the same noise."""
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
    fit(groups, streams, setting.schedule, max(at) + 1, observe=observe, observe_at=at, label="snapshots")  # fmt: skip
    return found


def path_bounds(c: Course) -> list[Row]:
    """Theorem 2' on every shown run: kNN KL per prompt, the Lipschitz constant, and the Gaussian pair."""
    rows = path_bound.gaussian_pair()
    fresh = {s: path_bound.star_chain(c.world, c.net, c.base(s), s) for s in c.seeds}
    for i, name, seed in c.which(*c.shown):
        rows += path_bound.path_bound(c.world, c.net, c.base(seed), c.run(i), *fresh[seed], name, seed)  # fmt: skip
        rows += path_bound.lipschitz_bound(c.world, c.net, c.base(seed), c.run(i), c.chain(seed), c.cond, name, seed)  # fmt: skip
    return rows


def local_laws(c: Course) -> list[Row]:
    """One seed: the trained direction, two random ones, and G's top eigenvector."""
    seed = min(c.seeds)
    star, chain = c.base(seed), c.chain(seed)
    rng = generator(seed, "verify/directions")
    first = c.which(*c.shown[:1])
    directions = {f"toward {name}": {k: p - star[k] for k, p in c.run(i).items()} for i, name, s in first if s == seed}  # fmt: skip
    directions |= {f"random {j}": {k: torch.randn(p.shape, generator=rng) for k, p in star.items()} for j in (1, 2)}  # fmt: skip
    rows, top = local_law.spectrum(c.net, star, c.schedule, chain, c.cond, directions, seed)
    directions["top eigenvector of G"] = top
    rows += local_law.contraction(c.world, c.net, star, directions, seed, rng)
    place = c.config.seeds.index(seed)
    base = replace(c.probe.base, x=c.probe.base.x[place : place + 1], log_p=c.probe.base.log_p[place : place + 1])  # fmt: skip
    for name, direction in directions.items():
        rows += local_law.ladder(c.world, c.net, star, direction, name, c.probe.ode, base, chain, c.cond, seed)  # fmt: skip
    return rows


def certificates(c: Course) -> list[Row]:
    """Every lam of l2."""
    rows = []
    weights = {r["run"]: r["weight"] for r in c.metrics["runs"] if r["objective"] == "l2"}
    for i, name, seed in c.which(*(weights or ("",))):
        star, theta, chain = c.base(seed), c.run(i), c.chain(seed)
        few = torch.cat([(c.cond == p).nonzero().flatten()[:12] for p in c.world.old])
        constant = path_bound.lipschitz_constant(c.net, star, theta, c.schedule, chain[:, few], c.cond[few])  # fmt: skip
        path, error = path_kl(c.net.bind(theta), c.net.bind(star), c.schedule, chain[:, None], c.cond, runs=1)  # fmt: skip
        losses = [cert.instance_losses(c.net, p, c.schedule, c.shots(seed), c.world.new, generator(seed, "verify/loss"))
                  for p in (star, theta)]  # fmt: skip
        rows += cert.certificate(*losses, weights[name], float(squared_distance(theta, star)),
                                 (float(path[0]), float(error[0])), constant, name, seed)  # fmt: skip
    return rows


def as_printed(c: Course) -> list[Row]:
    """The paper's Theorem 2 and Remark 3, on all trained models and near the base."""
    ladder = [r for r in c.local if r.curve.get("h") and r.curve["direction"].startswith("toward")]
    near = [Drift(r.curve["direction"], "ladder", None, r.seed, h, kl)
            for r in ladder for h, kl in zip(r.curve["h"], r.curve["kl"], strict=True)]  # fmt: skip
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


PARTS: dict[str, tuple[Callable[[Course], list[Row]], tuple[str, ...]]] = {
    "lower bounds": (lower_bounds, (lower_bound.LABEL, lower_bound.CONCLUSION, lower_bound.COVERAGE)),
    "path bounds": (path_bounds, (path_bound.LABEL,)),
    "local law": (local_laws, (local_law.LABEL,)),
    "certificate": (certificates, (cert.LABEL,)),
    "as printed": (as_printed, (paper_theorem_2.LABEL,)),
    "counter-examples": (counterexamples, (counter.LABEL,)),
}  # fmt: skip
LABELS = tuple(label for _, labels in PARTS.values() for label in labels)


def _stack(thetas: list[Params]) -> Params:
    return {k: torch.cat([t[k] for t in thetas]) for k in thetas[0]}


def verify(
    name: str = "course", out: Path | str = "runs", only: str | None = None, seeds: tuple[int, ...] = (),
    say: Callable[[str], None] = print,
) -> tuple[Path, list[Row]]:  # fmt: skip
    """All rows, written to <run>/verify/; the course is run first where it is missing. Raises UserError for an unknown label or seed."""
    if only is not None and only not in LABELS:
        raise UserError(f"--only {only!r}: choose from {', '.join(LABELS)}")
    path = Path(out) / "toy2d" / name
    if RunFolder(path, {}).status != "done":
        if name != course().name:
            raise UserError(f"{path} holds no finished run; `toy2d run` makes one")
        say(f"{path} holds no finished run: making it first")
        run(course(), out, say)
    saved = json.loads((path / "config.json").read_text())
    if saved.get("world") != "pentagon":
        raise UserError(f"{path} is a run of the world {saved.get('world')!r}; verify needs the mixture of all old prompts: pentagon")  # fmt: skip
    c = Course(path, tuple(seeds) or tuple(saved["seeds"]))
    rows: list[Row] = []
    for part, (function, labels) in PARTS.items():
        if only is not None and only not in labels and not (only == paper_theorem_2.LABEL and part == "local law"):  # fmt: skip
            continue
        start = time.perf_counter()
        found = function(c)
        if part == "local law":
            c.local = found
        rows += [r for r in found if only is None or r.label == only]
        say(f"{part}: {len(found)} rows ({time.perf_counter() - start:.0f} s)")
    folder = path / "verify"
    write(folder, rows, c, partial=only is not None or bool(seeds))
    return folder, rows


def write(folder: Path, rows: list[Row], c: Course, partial: bool) -> None:
    """verify.json, and the figures of a complete run; a partial one goes to partial.json and leaves the figures alone."""
    from toy2d.figures import theorems as figures

    record = {
        "run": str(c.config.name),
        "base_hash": c.metrics["base_hash"],
        "seeds": c.seeds,
        "limit_in_standard_errors": LIMIT,
        "rows": [r.as_dict() for r in rows],
    }
    write_json(folder / ("partial.json" if partial else "verify.json"), record)
    if not partial:
        figures.draw_all(folder)
