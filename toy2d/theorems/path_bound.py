"""Theorem 6.2 of lecture 6: KL(p_star || p_theta) <= path KL, for the ancestral sampler's own law.

The chain rule of KL and data processing: no smoothness is assumed. The law's KL comes from its
density (`ancestral_law`), path KL from the same grid or from sampled chains (`drift.path_kl`).
How tight the bound is depends on where the chains start:

    one Gaussian pair        closed form; tight up to O(1/T)
    one step from a point    an equality: KL = w_t ||eps_theta - eps_star||^2 at that point
    several steps from it    nearly tight where the drift is large: 99 % for the course's standard
    the whole chain          17 to 99 % of the bound is used on the course's runs
A wrong weight w_t shows in the tight rows first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from toy2d.core.drift import path_kl
from toy2d.core.rng import generator
from toy2d.core.sample import ancestral
from toy2d.core.schedule import Schedule
from toy2d.theorems.ancestral_law import (
    Ancestral,
    Cloud,
    GridLaw,
    covers,
    kl_of_grids,
    path_kl_of_clouds,
    point,
)
from toy2d.theorems.pair import Pair
from toy2d.theorems.row import Row

LABEL = "path_bound"
CUTS = (1e-25, 1e-90)  # the second, slower one for a tuned law far from the base's


def near_clean(T: int) -> Schedule:
    """Log-SNR from 14 to -20: so close to clean data and to noise that the limit 18 is seen."""
    return Schedule.log_snr(T, 14.0, -20.0)


def gaussian_pair(
    lengths: tuple[int, ...] = (100, 1000, 4000),
    std: float = 0.5,
    shift: float = 3.0,
    schedule: Callable[[int], Schedule] = near_clean,
) -> list[Row]:
    """N(m1, s^2 I) against N(m2, s^2 I) with exact eps: path KL >= KL, both -> shift^2 / (2 s^2).

    Everything is closed form: eps is linear, so the ancestral sampler's law is Gaussian and its
    mean obeys a recursion. The sampler's error is O(1/T): path KL at T and T/2 is extrapolated to
    T = infinity (18 by default), and the next order is allowed for.
    """
    limit, rows = shift**2 / (2 * std**2), []
    for T in lengths:
        kl, path = gaussian_laws(schedule(T), std, shift)
        _, half = gaussian_laws(schedule(T // 2), std, shift)
        where = f"Gaussian pair, T = {T}"
        bound = "KL <= path KL, closed form"
        law = "the sampler's own Gaussian laws"
        rows.append(Row(LABEL, bound, where, "proved", "<=", kl, path, rounding=1e-9, note=law))
        tends = "path KL -> |m1 - m2|^2 / (2 s^2) as T grows"
        sides = (2 * path - half, limit, limit * (10 / T) ** 2 + 1e-4)
        note = f"path KL at T: {path:.4f}, extrapolated; the sampler's KL: {kl:.4f}"
        rows.append(Row(LABEL, tends, where, "proved", "==", *sides, note=note))
    return rows


def gaussian_laws(schedule: Schedule, std: float, shift: float) -> tuple[float, float]:
    """(KL of the ancestral laws, path KL of the first's chains) of two Gaussians `shift` apart.

    At node t the exact eps is b_t (x - a_t m) / v_t, v_t = ab s^2 + 1 - ab. Mean and variance of x
    obey the sampler's recursion, the same for both but for m, so only the means differ.
    """
    ab = schedule.alpha_bar
    beta, alpha, s2 = schedule.reverse_chain()
    slope = (1 - ab).sqrt() / (ab * std**2 + 1 - ab)  # eps = slope * (x - a_t m)
    reach = beta / (1 - ab).sqrt() * slope / alpha.sqrt()
    shrink, push = 1 / alpha.sqrt() - reach, reach * ab.sqrt() * shift
    path = (schedule.path_weights() * (slope * ab.sqrt() * shift) ** 2).sum()
    gap, variance = 0.0, 1.0  # between the means, of each law
    steps = list(zip(shrink.tolist(), push.tolist(), s2.tolist(), strict=True))
    for c, p, v in steps[:0:-1]:
        gap, variance = c * gap + p, c**2 * variance + v
    return gap**2 / (2 * variance), float(path)


@dataclass(frozen=True)
class BaseLaw:
    """The base's ancestral law under one prompt: what every fine-tuned model is compared with."""

    cond: int
    start: Cloud | None  # None: N(0, I) at the last node
    density: float  # grid points per s_n
    law: GridLaw
    clouds: list[Cloud]

    @property
    def end(self) -> int:
        """The node whose law this is."""
        return self.clouds[-1].n - 1


def base_law(
    pair: Pair, cond: int, start: Cloud | None = None, end: int = 0, density: float = 0.8
) -> BaseLaw:
    """The law of x_end of the base's chain from `start`."""
    chain = Ancestral(pair.exact.star, pair.schedule, cond, density, CUTS[0])
    law, clouds = chain.run(start or chain.start(), end=end)
    return BaseLaw(cond, start, density, law, clouds)


def law_kl(pair: Pair, base: BaseLaw) -> tuple[float, float]:
    """(KL(p_star || p_theta) of the ancestral laws, its numerical error) in nats."""
    for cut in CUTS:
        chain = Ancestral(pair.exact.tuned, pair.schedule, base.cond, base.density, cut)
        law, _ = chain.run(base.start or chain.start(), base.law.axes, base.end)
        if covers(law, base.law) or cut == CUTS[-1]:
            break
    return kl_of_grids(base.law, law)


def law_path_kl(pair: Pair, base: BaseLaw) -> tuple[float, float]:
    """(path KL of the same chains, its numerical error) in nats."""
    exact = pair.exact
    path = path_kl_of_clouds(exact.tuned, exact.star, pair.schedule, base.clouds, base.cond)
    return path, abs(path) * base.law.defect


def path_bound(pair: Pair, base: BaseLaw, kl: tuple[float, float] | None = None) -> Row:
    """KL(p_star || p_theta) <= path KL under one prompt, both by the grid of `base`.

    `kl`: what `law_kl` has found for this pair already.
    """
    (value, kl_error), (path, error) = kl or law_kl(pair, base), law_path_kl(pair, base)
    name = pair.world.names[base.cond]
    share = f"{value / path:.3g} of the bound is used" if path else "the chains are equal"
    if base.start is None:
        statement = "KL(p_star || p_theta) <= path KL, ancestral sampler"
        where, curve = f"{pair.name}; {name}", {"run": pair.name, "prompt": name}
    else:
        steps = base.clouds[0].n - base.end
        statement = f"the same for the last {steps} steps, started at a point"
        where, curve = f"{pair.name}; {name}, a point of the base's chain", {}
    sides = (value, path, kl_error, error)
    note = f"density propagated on a grid; {share}"
    return Row(LABEL, statement, where, "proved", "<=", *sides, pair.seed, note=note, curve=curve)


def from_a_point(pair: Pair, chain: Tensor, cond: int) -> list[Row]:
    """The last T / 8 steps and four single steps, each from a point of the base's chain (T, 2)."""
    T = len(pair.schedule)
    window = max(2, T // 8)
    rows = [path_bound(pair, base_law(pair, cond, point(chain[window], window), density=1.0))]
    for n in sorted({1, T // 4, T // 2, T - 1}):
        base = base_law(pair, cond, point(chain[n], n), end=n - 1, density=1.4)
        (kl, kl_error), (path, error) = law_kl(pair, base), law_path_kl(pair, base)
        statement = "KL = w_t ||eps_theta - eps_star||^2, one step from a point"
        where = f"{pair.name}; {pair.world.names[cond]}, node {n}"
        # the grid's KL carries rounding of its own: 1e-16 per log ratio, squared error in float32
        sides = (kl, path, kl_error + 1e-13, error)
        rows.append(Row(LABEL, statement, where, "proved", "==", *sides, pair.seed))
    return rows


def star_chain(pair: Pair, n: int = 400) -> tuple[Tensor, Tensor]:
    """Fresh ancestral chains (T, 1, N, 2) of the base, n for each old prompt, and their prompts."""
    cond = torch.tensor(pair.world.old).repeat_interleave(n)
    rng = generator(pair.seed, "verify/chains")
    x_T = torch.randn(1, len(cond), 2, generator=rng)
    chain = ancestral(pair.star, pair.schedule, x_T, cond, rng, runs=1, chain=True)
    return torch.stack(chain), cond


def sampled(pair: Pair, base: BaseLaw, chain: Tensor, cond: Tensor) -> Row:
    """path KL of sampled chains (`star_chain`) = path KL by the grid, for the prompt of `base`."""
    mine = cond == base.cond
    path, error = path_kl(
        pair.tuned, pair.star, pair.schedule, chain[:, :, mine], cond[mine], runs=1
    )
    exact, exact_error = law_path_kl(pair, base)
    statement = "path KL of sampled chains = path KL by the grid"
    where = f"{pair.name}; {pair.world.names[base.cond]}, {int(mine.sum())} chains"
    sides = (float(path[0]), exact, float(error[0]), exact_error)
    return Row(LABEL, statement, where, "proved", "==", *sides, pair.seed)
