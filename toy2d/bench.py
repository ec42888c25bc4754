"""`toy2d bench`: two comparisons, each side by side in one process, as ratios.

1. A training step of a stack of runs, against the same network as a plain nn.Module, one run at a
   time.
2. Log-likelihoods per second, against torchdiffeq's dopri5 and scipy's DOP853 at equal true error.
"""

import itertools
import math
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from toy2d.config import course
from toy2d.core.likelihood import log_prob_with_error, ode_schedule
from toy2d.core.objectives import L2, STANDARD, Objective, denoising_loss
from toy2d.core.rng import generator
from toy2d.data import world_pool
from toy2d.train import Group, Streams, fit


class PlainMLP(nn.Module):
    """EpsMLP's layers as ordinary modules: what one would write for a single run."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.token = nn.Embedding(1 + max(max(p) for p in net.tokens), net.token_dim)
        sizes = [2 + net.time_dim + net.token_dim, *[net.width] * net.depth]
        layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(net.width, 2))
        self.register_buffer("time", net.time_features(torch.zeros(1)))
        self.register_buffer("b", (1 - torch.tensor(net.alpha_bar)).sqrt())

    def forward(self, x_t, t, cond):
        h = torch.cat([x_t, self.time[t], self.token(cond)], -1)
        b = self.b[t][:, None]
        return b * (x_t + (1 - b**2).sqrt() * self.layers(h))


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The best of `repeats` timings after one warm-up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def stack_against_one_by_one(members: int, steps: int, batch_size: int, threads: int) -> dict:
    """Seconds a member and step: the stack with `threads`, the plain module with one thread."""
    world = course().make_world()
    net = course().make_net(world)
    seeds = tuple(range(members))
    pool = world_pool(world, (world.new,), 6, seeds, "instance")
    theta = net.init([generator(s, "init") for s in seeds])

    def stacked():
        torch.set_num_threads(threads)
        objective = Objective.stack([L2(0.1)] * members)
        names = [str(s) for s in seeds]
        group = Group(net, theta, theta, objective, torch.arange(members), names, {"instance": "i"})
        fit([group], Streams({"i": pool}, seeds, batch_size, "bench"), world.schedule, steps)

    def one_by_one():
        torch.set_num_threads(1)
        for s in range(members):
            model = PlainMLP(net)
            start = {k: p.detach().clone() for k, p in model.named_parameters()}
            optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
            streams = Streams(
                {"i": type(pool)(pool.x0[s : s + 1], pool.cond[s : s + 1])},
                (s,),
                batch_size,
                "bench",
            )
            for _ in range(steps):
                example = type(b := streams.next(len(world.schedule))["i"])(*(p[0] for p in b))
                loss = denoising_loss(model, world.schedule, example)
                loss = loss + 0.1 * sum(
                    (p - start[k]).square().sum() for k, p in model.named_parameters()
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    ours, theirs = seconds(stacked), seconds(one_by_one, repeats=1)
    return {
        "what": f"training step, {members} runs, batch {batch_size} (ms a run)",
        "ours": 1e3 * ours / members / steps,
        "theirs": 1e3 * theirs / members / steps,
        "error": "same numbers",
        "ratio": theirs / ours,
    }


class Counting:
    """A network that counts how often it is evaluated."""

    def __init__(self, predict):
        self.predict, self.count = predict, 0

    def with_divergence(self, x_t, t, cond):
        self.count += 1
        return self.predict.with_divergence(x_t, t, cond)


def trained_network(steps: int = 300):
    """(world, predict): a base of the course's architecture after a short pretraining, float64."""
    world = course().make_world()
    net = course().make_net(world)
    theta = net.init([generator(0, "init")])
    standard = Objective.stack([STANDARD])
    group = Group(
        net, theta, theta, standard, torch.tensor([0]), ["bench"], {"instance": "i"}, 3e-3
    )
    pool = world_pool(world, world.old, 500, (0,), "data")
    fit([group], Streams({"i": pool}, (0,), 256, "bench"), world.schedule, steps)
    return world, net.bind({k: p.detach().double() for k, p in group.theta.items()})


def by_torchdiffeq(slope, ends, start, tolerance):
    from torchdiffeq import odeint

    times = torch.tensor(ends, dtype=torch.float64)
    found = odeint(slope, start, times, rtol=tolerance, atol=tolerance, method="dopri5")
    return tuple(v[-1] for v in found)


def by_scipy(slope, ends, start, tolerance):
    from scipy.integrate import solve_ivp

    shapes = [v.shape for v in start]
    sizes = [v.numel() for v in start]

    def flat(u, state):
        parts = torch.from_numpy(state).split(sizes)
        parts = tuple(p.reshape(s) for p, s in zip(parts, shapes, strict=True))
        return torch.cat([v.reshape(-1) for v in slope(u, parts)]).numpy()

    y = torch.cat([v.reshape(-1) for v in start]).numpy()
    found = solve_ivp(flat, ends, y, "DOP853", (ends[1],), rtol=tolerance, atol=tolerance)
    parts = torch.from_numpy(found.y[:, -1]).split(sizes)
    return tuple(p.reshape(s) for p, s in zip(parts, shapes, strict=True))


ADAPTIVE = {"torchdiffeq dopri5": by_torchdiffeq, "scipy DOP853": by_scipy}
TOLERANCES = tuple(10 ** (-k / 4) for k in range(8, 33))  # 1e-2 to 1e-8


def likelihoods(points: int, threads: int) -> list[dict]:
    """Likelihoods a second on a trained network, against adaptive solvers at equal true error.

    The true error is the mean |log p - reference| over the points; the reference is DOP853 at
    1e-10. Each adaptive solver gets the loosest tolerance at which it is as exact as ours, and our
    equations (likelihood.py), which are smoother than those in z. Ours includes its error estimate.
    """
    torch.set_num_threads(threads)
    world, predict = trained_network()
    schedule = ode_schedule(world.schedule, course().ode_nodes, smooth=True)
    x = world.sample(0, points, generator(0, "data"), t=0).double()[None]
    cond = torch.tensor(0)
    ends = tuple(world.schedule.noise_ratio.log()[[0, -1]].tolist())
    network = Counting(predict)

    def slope(u, state):
        r = math.exp(float(u))
        b = r / math.sqrt(1 + r * r)
        t = (len(world.schedule) - 1) * (float(u) - ends[0]) / (ends[1] - ends[0])
        time = torch.full((1, 1), t, dtype=torch.float64)
        eps, trace = network.with_divergence(state[0], time, cond)
        return b * (eps - b * state[0]), b * (trace - 2 * b)

    def adaptive(solve, tolerance):
        x_T, total = solve(slope, ends, (x, torch.zeros_like(x[..., 0])), tolerance)
        return total - 0.5 * (x_T**2).sum(-1) - math.log(2 * math.pi)

    def ours():
        return log_prob_with_error(network, schedule, x, cond, runs=1).value

    reference = adaptive(by_scipy, 1e-10)

    def error(values):
        return float((values - reference).abs().mean())

    def evaluations(work):
        network.count = 0
        work()
        return network.count

    wanted, own_seconds, own_count = error(ours()), seconds(ours), evaluations(ours)
    rows = []
    for name, solve in ADAPTIVE.items():
        tolerance = next(t for t in TOLERANCES if error(adaptive(solve, t)) <= wanted)

        def theirs(solve=solve, tolerance=tolerance):
            return adaptive(solve, tolerance)

        time_of_theirs, count = seconds(theirs), evaluations(theirs)
        rows.append(
            {
                "what": f"log-likelihoods a second, {points} points: {name} at {tolerance:.1e}, "
                f"{own_count} evaluations against {count}",
                "ours": points / own_seconds,
                "theirs": points / time_of_theirs,
                "error": f"{wanted:.1e} against {error(theirs()):.1e} nat",
                "ratio": time_of_theirs / own_seconds,
                "evaluations": [own_count, count],
            }
        )
    return rows


def bench(members: int = 32, steps: int = 60, batch_size: int = 6, threads: int = 1) -> list[dict]:
    """Run both comparisons, print a table, return its rows. A ratio above 1 is in our favour."""
    before = torch.get_num_threads()
    rows = [
        stack_against_one_by_one(n, steps, batch_size, threads) for n in (1, members, 2 * members)
    ]
    rows += likelihoods(2048, threads)
    torch.set_num_threads(before)
    table = Table(
        title="toy2d bench (one process, side by side; ratio > 1: ours is faster)",
        title_justify="left",
    )
    for name in ("what", "ours", "the other", "error", "ratio"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for r in rows:
        table.add_row(
            r["what"], f"{r['ours']:.4g}", f"{r['theirs']:.4g}", r["error"], f"{r['ratio']:.2f}"
        )
    Console(width=120).print(table)
    return rows
