"""`toy2d bench`: two comparisons, each side by side in one process, as ratios.

1. A training step of a stack of runs, against the same network as a plain nn.Module, one run at a
   time.
2. Log-likelihoods per second, against torchdiffeq's dopri5 at equal error.
"""

import itertools
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from toy2d.config import course
from toy2d.core.likelihood import log_prob
from toy2d.core.objectives import L2, Objective, denoising_loss
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon, world_pool
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


def likelihood_against_dopri5(points: int, threads: int) -> dict:
    """Likelihoods a second on the exact eps of a class, where the error is known.

    dopri5's tolerance is the loosest that is as exact.
    """
    from torchdiffeq import odeint

    torch.set_num_threads(threads)
    schedule = Schedule.log_snr(100, 5.0, -15.0)
    world = Pentagon(schedule)
    x = world.sample(0, points, generator(0, "data"), t=0).double()
    truth = world.log_prob(x, 0, 0)
    mean, var0 = world.means[0, 0], 0.25

    def eps_and_trace(x_t, ab):
        var = ab * var0 + 1 - ab
        return (1 - ab).sqrt() * (x_t - ab.sqrt() * mean) / var, 2 * (1 - ab).sqrt() / var

    class Exact:
        def __call__(self, x_t, t, cond):
            return self.with_divergence(x_t, t, cond)[0]

        def with_divergence(self, x_t, t, cond):
            eps, trace = eps_and_trace(x_t, schedule.alpha_bar[t][:, None])
            return eps, trace[:, 0]

    def ours():
        return log_prob(Exact(), schedule, x, torch.tensor(0))

    def dopri5(tolerance):
        def slope(log_r, state):
            ab = 1 / (1 + (2 * log_r).exp())
            eps, trace = eps_and_trace(state[0] * ab.sqrt(), ab)
            return log_r.exp() * eps, ((1 - ab).sqrt() * trace).expand(points)

        start = (x / schedule.alpha_bar[0].sqrt(), torch.zeros(points, dtype=torch.float64))
        z, total = odeint(
            slope, start, schedule.noise_ratio.log()[[0, -1]], rtol=tolerance, atol=tolerance
        )
        x_T = z[-1] * schedule.alpha_bar[-1].sqrt()
        log_normal = -0.5 * (x_T**2).sum(-1) - torch.log(torch.tensor(2 * torch.pi))
        return log_normal + (schedule.alpha_bar[-1] / schedule.alpha_bar[0]).log() + total[-1]

    def error(values):
        return float((values - truth).abs().max())

    wanted = error(ours())
    tolerance = next(
        t for t in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7) if error(dopri5(t)) <= 1.05 * wanted
    )
    a, b = seconds(ours), seconds(lambda: dopri5(tolerance))
    return {
        "what": f"log-likelihoods a second, {points} points, dopri5 at tolerance {tolerance:g}",
        "ours": points / a,
        "theirs": points / b,
        "error": f"{wanted:.1e} against {error(dopri5(tolerance)):.1e} nat",
        "ratio": b / a,
    }


def bench(members: int = 32, steps: int = 60, batch_size: int = 6, threads: int = 1) -> list[dict]:
    """Run both comparisons, print a table, return its rows. A ratio above 1 is in our favour."""
    before = torch.get_num_threads()
    rows = [
        stack_against_one_by_one(n, steps, batch_size, threads) for n in (1, members, 2 * members)
    ]
    rows.append(likelihood_against_dopri5(4096, threads))
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
