"""The right answers to the graded tasks, by the package's own functions, and calls to compare on.

Each answer calls what training or measuring calls, on what the student is given. `check`
(toy2d/course.py) compares.
"""

import math

import torch
from torch import Tensor

from toy2d.core.drift import gain as core_gain
from toy2d.core.drift import path_kl as core_path_kl
from toy2d.core.drift import squared_distance
from toy2d.core.objectives import PRIOR, Anchor, Example
from toy2d.core.rng import generator
from toy2d.core.sample import ddim
from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon
from toy2d.kl import kl
from toy2d.runs.statistics import best_at_equal_adaptation, estimate, paired
from toy2d.theorems.estimators import Mass, counted_kl

SCHEDULE = Schedule.log_snr(100, 5.0, -15.0)


def normal(name: str, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(0, f"course/{name}"))


# ---- right answers
def add_noise(x0: Tensor, t: Tensor, eps: Tensor, alpha_bar: Tensor) -> Tensor:
    return SCHEDULE.add_noise(x0, t, eps)


def ddim_step(x_t: Tensor, eps: Tensor, ab: Tensor, ab_before: Tensor) -> Tensor:
    """`core.sample.ddim` on the two nodes."""
    two = Schedule(torch.stack([ab_before, ab]))
    return ddim(lambda x, t, cond: eps, two, x_t, None)


def l2_gradient(theta: Tensor, theta_star: Tensor, weight: float) -> Tensor:
    moved = theta.clone().requires_grad_()
    moved.grad = torch.zeros_like(moved)
    Anchor({"p": moved}, {"p": theta_star}).add_gradient_(weight)
    return moved.grad


def path_kl(eps: Tensor, eps_star: Tensor, weights: Tensor) -> Tensor:
    """`core.drift.path_kl` on a chain whose states carry their own two predictions."""
    chain = torch.stack([eps, eps_star], -1).transpose(-1, -2).flatten(-2)  # T N (2 D)
    half = eps.shape[-1]
    mean, _ = core_path_kl(
        lambda x, t, cond: x[..., :half],
        lambda x, t, cond: x[..., half:],
        SCHEDULE,
        chain,
        torch.zeros(eps.shape[1], dtype=torch.long),
    )
    return mean


def interval(values: list[float]) -> tuple[float, float]:
    found = estimate(values)
    return found.mean - found.half, found.mean + found.half


def kl_estimate(log_base: Tensor, log_tuned: Tensor) -> tuple[Tensor, Tensor]:
    return kl(log_base, log_tuned)


def noised_log_density(x: Tensor, mean: Tensor, std: float, ab: Tensor) -> Tensor:
    """The Pentagon's own density of one class at the node whose alpha_bar is `ab`."""
    world = Pentagon(SCHEDULE, std=std)
    c = int((world.means[:, 0] - mean).norm(dim=-1).argmin())
    return world.log_prob(x, c, int((SCHEDULE.alpha_bar - ab).abs().argmin()))


def counted_bound(inside_true: Tensor, inside_tuned: Tensor) -> float:
    return counted_kl(Mass.count(inside_true), Mass.count(inside_tuned))[0]


def prior_loss(new_hat: Tensor, new_eps: Tensor, old_hat: Tensor, old_eps: Tensor, weight: float):
    """`PRIOR(weight)` on a predictor that answers what it is given, by the name of the prompt."""
    answers = {"new": new_hat, "old": old_hat}
    batch = {
        role: Example(torch.zeros_like(eps), torch.zeros(len(eps), dtype=torch.long), eps, name)
        for role, eps, name in (("instance", new_eps, "new"), ("prior", old_eps, "old"))
    }
    terms = PRIOR(weight).terms(lambda x, t, cond: answers[cond], SCHEDULE, batch)
    return sum(terms.values())


def gain(eps: Tensor, eps_star: Tensor, eps_tuned: Tensor, weights: Tensor) -> Tensor:
    """`core.drift.gain` on predictors that know the node's answers."""
    rows = core_gain(
        lambda x, t, cond: eps_tuned[t[0]],
        lambda x, t, cond: eps_star[t[0]],
        SCHEDULE,
        torch.zeros_like(eps[0]),
        eps,
        None,
    )
    return rows.sum(0).mean()


def lora_distance(B: Tensor, A: Tensor, scale: float) -> Tensor:
    """The square of the norm of the change itself, formed here."""
    return squared_distance({"w": scale * B @ A}, {"w": torch.zeros(len(B), A.shape[1])})


def eps_from_flow(x_t: Tensor, u: Tensor, s: Tensor) -> Tensor:
    """`Schedule.eps_from` of a flow model's schedule with the nodes s."""
    flow = Schedule.from_flow(s)
    return flow.eps_from(u, x_t, torch.arange(len(s)))


def choose(learnt: list[float], lost: list[float], limit: float) -> int:
    runs = [
        {"run": str(i), "objective": "l2", "weight": i, "seed": 0, "kl_new": a, "lost": b}
        for i, (a, b) in enumerate(zip(learnt, lost, strict=True))
    ]
    best = best_at_equal_adaptation(runs, "kl_new", "lost", limit)
    return best["l2"][0]["weight"]


def paired_ratio(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float, float]:
    """Geometric mean of the ratios within seeds, limits of Student's 95 % interval."""
    a, b = ([{"seed": s, "v": v} for s, v in of.items()] for of in (ours, theirs))
    found = paired(a, b, lambda r: math.log(r["v"]))
    return math.exp(found.mean - found.half), math.exp(found.mean + found.half)


def l2_penalty(theta: dict, theta_star: dict) -> Tensor:
    return Anchor(theta, theta_star, runs=1).squared_distance()


# ---- calls to compare on
def noising() -> list[tuple]:
    t = torch.tensor([0, 7, 40, 99])
    return [(normal("x0", 4, 2), t, normal("eps", 4, 2), SCHEDULE.alpha_bar)]


def two_nodes() -> list[tuple]:
    ab = SCHEDULE.alpha_bar
    return [(normal("x_t", 5, 2), normal("eps", 5, 2), ab[n], ab[n - 1]) for n in (1, 30, 99)]


def two_sets_of_weights() -> list[tuple]:
    return [(normal("theta", 6), normal("star", 6), weight) for weight in (0.1, 3.0)]


def predictions() -> list[tuple]:
    shape = (len(SCHEDULE), 8, 2)
    return [(normal("new", *shape), normal("old", *shape), SCHEDULE.path_weights())]


def log_densities() -> list[tuple]:
    return [(normal("log base", n), normal("log tuned", n) - 1) for n in (5, 40)]


def noised_class() -> list[tuple]:
    mean = Pentagon().means[1, 0]
    nodes = SCHEDULE.alpha_bar[[0, 30, 70]]
    return [(normal("x", 7, 2).double(), mean, 0.5, ab) for ab in nodes]


def counted() -> list[tuple]:
    share = torch.linspace(0, 1, 500)
    return [(share < 0.2, share < 0.7), (share < 0.9, share < 0), (share < 0.01, share < 0.02)]


def replayed() -> list[tuple]:
    new, old = (6, 2), (10, 2)
    four = (normal("a", *new), normal("b", *new), normal("c", *old), normal("d", *old))
    return [(*four, 1.0), (*four, 0.1)]


def three_answers() -> list[tuple]:
    shape = (len(SCHEDULE), 8, 2)
    return [(*(normal(n, *shape) for n in ("eps", "star", "tuned")), SCHEDULE.path_weights())]


def factors() -> list[tuple]:
    return [(normal("B", 30, r), normal("A", r, 20), s) for r, s in ((1, 2.0), (4, 0.5))]


def flow() -> list[tuple]:
    s = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    return [(normal("x_t", 3, 2), normal("u", 3, 2), s)]


def weights_tried() -> list[tuple]:
    learnt, lost = [0.4, 0.3, 0.5, 1.2], [3.0, 0.9, 0.2, 0.01]
    return [(learnt, lost, 0.5), (learnt, lost, 0.4), (learnt, lost, 2.0)]


def two_methods() -> list[tuple]:
    ours = {0: 0.2, 1: 0.9, 2: 0.35, 3: 0.12}
    theirs = {3: 0.5, 1: 2.9, 0: 0.9, 2: 1.2}  # another order: pair by seed
    return [(ours, theirs)]


def two_stacks() -> list[tuple]:
    """Three runs with a matrix and a bias each."""
    shapes = {"weight0": (3, 4, 5), "bias0": (3, 1, 5)}
    return [tuple({k: normal(f"{n}/{k}", *s) for k, s in shapes.items()} for n in "ab")]
