"""How far a model has moved: in its parameters, in its outputs, in its law.

    delta_theta = ||theta - theta_star||                    of parameters
    delta_eps   = sqrt(E ||eps_theta - eps_star||^2)        of outputs, at fixed (x_t, t, cond)
    path_kl     = sum_t w_t E ||eps_theta - eps_star||^2    nats; at least KL(p_star || p_theta) of
                                                            the ancestral sampler

and what it has learnt, in the same unit, on examples that it was not trained on:

    gain        = sum_t w_t E (||eps - eps_star||^2 - ||eps - eps_theta||^2)
                                                            nats of evidence bound gained

None of the four needs a density: the same functions measure a two-dimensional toy and Stable
Diffusion.
Shapes: R stack of runs (nothing at full scale), B batch, D data, N chains, T nodes of the schedule.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from toy2d.core.schedule import Schedule, Variance

Params = Mapping[str, Tensor]
# (x_t, t, cond) -> the network's output; nothing here looks into cond
Predict = Callable[[Tensor, Tensor, Any], Tensor]
Reduction = Literal["sum", "tensor_mean"]


def squared_distance(
    theta: Params,
    theta_star: Params,
    importance: Params | None = None,
    reduction: Reduction = "sum",
    runs: int = 0,
) -> Float[Tensor, " *R"]:
    """sum_i F_i (theta_i - theta_star_i)^2 over every coordinate: the norm *squared*.

    F is `importance`, or 1. "tensor_mean" averages within each tensor and adds the averages, as the
    paper's code does (its values of lambda are for that); its unit is not that of the theorem.
    `runs` leading dimensions are kept: a stack of runs gives one distance each. Raises KeyError for
    a parameter that theta_star lacks.
    """
    parts = []
    # sorted: a sum must not depend on the order that a file gives back
    for name, p in sorted(theta.items()):
        square = (p - theta_star[name].to(p.device, p.dtype)) ** 2
        if importance is not None:
            square = square * importance[name].to(p.device, p.dtype)
        square = square.unsqueeze(-1)  # so that a single number has a dimension to sum over too
        each = tuple(range(runs, square.ndim))
        parts.append(square.sum(each) if reduction == "sum" else square.mean(each))
    return torch.stack(parts).sum(0)


def delta_theta(theta: Params, theta_star: Params, runs: int = 0) -> Float[Tensor, " *R"]:
    """||theta - theta_star||_2 over all coordinates: not squared, not a mean."""
    return squared_distance(theta, theta_star, runs=runs).sqrt()


def squared_error(
    predict: Predict,
    predict_star: Predict,
    schedule: Schedule,
    x_t: Float[Tensor, " *B_D"],
    t: Int[Tensor, " *B"],
    cond: Any,
) -> Float[Tensor, " *B"]:
    """||eps_theta - eps_star||^2 of each sample, summed over the data's coordinates.

    The unit is that of eps, whatever the network predicts.
    """
    steps = schedule.timesteps[t]
    apart = predict(x_t, steps, cond) - predict_star(x_t, steps, cond)
    # outputs are subtracted before they become eps: where a_t is small, eps holds a multiple of x_t
    # that would cancel and leave rounding errors, which a large w_t then enlarges
    return ((schedule.eps_per_output(t, apart) * apart).float() ** 2).flatten(t.ndim).sum(-1)


@torch.no_grad()
def path_kl(
    predict: Predict,
    predict_star: Predict,
    schedule: Schedule,
    chain: Iterable[Float[Tensor, " *R_N_D"]],
    cond: Any,
    variance: Variance = "beta",
    runs: int = 0,
    strata: Int[Tensor, " N"] | None = None,
) -> tuple[Float[Tensor, " *R"], Float[Tensor, " *R"]]:
    """(mean, standard error) over the chains, in nats, of sum_t w_t ||eps_theta - eps_star||^2.

    `chain[t]` holds x_t of N independent ancestral chains *of predict_star* at node t
    (`sample.ancestral(..., chain=True)`), so the mean is KL(paths of star || paths of theta) and
    bounds KL(p_star || p_theta) of the same sampler at t = 0's noise level (data processing;
    lectures/06_path_kl.md, Theorem 6.2). `schedule` is the sampler's: pass `schedule.strided(n)`
    for chains of n steps. Mean and error are those of `path_kl_of`.
    Raises ValueError for weights that are not finite, or a chain of another length.
    """
    chain = list(chain)
    if len(chain) != len(schedule):
        raise ValueError(
            f"path_kl: {len(chain)} stored steps, but the schedule has {len(schedule)}"
        )
    shape = chain[0].shape[: runs + 1]
    errors = [torch.zeros(shape, device=chain[0].device)]
    for n in range(1, len(schedule)):
        t = torch.full(shape, n, device=chain[0].device)
        errors.append(squared_error(predict, predict_star, schedule, chain[n], t, cond))
    return path_kl_of(torch.stack(errors), schedule, variance, strata)


def path_kl_of(
    errors: Float[Tensor, " T *R_N"],
    schedule: Schedule,
    variance: Variance = "beta",
    strata: Int[Tensor, " N"] | None = None,
) -> tuple[Float[Tensor, " *R"], Float[Tensor, " *R"]]:
    """(mean, standard error) of sum_t w_t errors_t over N chains, in nats.

    `errors[t]` is `squared_error` at node t; row 0 has weight zero. Each chain is one independent
    draw of the sum. `strata` as in `stratified`.
    """
    weights = schedule.path_weights(variance)
    if not torch.isfinite(weights).all():
        raise ValueError("path_kl: infinite weights w_t; the schedule's noise must be clipped")
    return stratified(torch.einsum("t,t...->...", weights.float(), errors), strata)


def stratified(
    values: Float[Tensor, " *R_N"], strata: Int[Tensor, " N"] | None = None
) -> tuple[Float[Tensor, " *R"], Float[Tensor, " *R"]]:
    """(mean, standard error) over independent draws, the last dimension.

    `strata` says to which of several fixed groups a draw belongs, such as the prompt of a chain: a
    difference between groups is then no error, only the spread within them is. Raises ValueError
    for a group of fewer than 2 draws.
    """
    count = values.shape[-1]
    strata = torch.zeros(count, dtype=torch.long) if strata is None else strata
    variance = 0.0
    for group in strata.unique().tolist():
        draws = values[..., (strata == group).to(values.device)]
        if draws.shape[-1] < 2:
            raise ValueError("path_kl: a standard error needs at least 2 chains of each prompt")
        variance = variance + draws.shape[-1] * draws.var(-1)
    return values.mean(-1), variance.sqrt() / count


# ---- what has been learnt
BANDS = {"detail": (1.0, math.inf), "shape": (-1.0, 1.0), "identity": (-math.inf, -1.0)}


def noise_error(
    predict: Predict,
    schedule: Schedule,
    x0: Float[Tensor, " *B_D"],
    t: Int[Tensor, " *B"],
    eps: Float[Tensor, " *B_D"],
    cond: Any,
) -> Float64[Tensor, " *B"]:
    """Squared error of the predicted noise, ||eps - eps_theta(x_t, t, cond)||^2, of each sample.

    x_t = add_noise(x0, t, eps). Summed over D, in the unit of eps, in float64.
    """
    output = predict(schedule.add_noise(x0, t, eps), schedule.timesteps[t], cond)
    apart = schedule.target(x0, t, eps) - output  # eps is linear in the output at fixed x_t
    return ((schedule.eps_per_output(t, apart) * apart).double() ** 2).flatten(t.ndim).sum(-1)


@torch.no_grad()
def gain(
    predict: Predict,
    predict_star: Predict,
    schedule: Schedule,
    x0: Float[Tensor, " *R_N_D"],
    noise: Iterable[Float[Tensor, " *R_N_D"]],
    cond: Any,
    variance: Variance = "beta",
    runs: int = 0,
) -> Float64[Tensor, " T *R_N"]:
    """What each node adds to the gain of N examples, in nats; row 0 is zero.

    Node t adds w_t (||eps - eps_star||^2 - ||eps - eps_theta||^2).
    `noise[t]` is the eps of node t. Summed over T and averaged over examples this is the gain: how
    much the ancestral model's evidence bound of an example, noised to t = 0's level, has grown
    since star. Positive means learnt (lecture 6b, Proposition 6.11). The rows of a band of
    `log_snr_bands` add up to that band's share. Give all models that you compare the same noise.
    Draw it independently at each node: then an example's sum is one draw, and the standard error
    over repeated noise is that of independent draws. Raises ValueError for weights that are not
    finite, or noise for another number of nodes.
    """
    weights = schedule.path_weights(variance)
    if not torch.isfinite(weights).all():
        raise ValueError("gain: infinite weights w_t; the schedule's noise must be clipped")
    noise = list(noise)
    if len(noise) != len(schedule):
        raise ValueError(
            f"gain: noise for {len(noise)} nodes, but the schedule has {len(schedule)}"
        )
    rows = [torch.zeros(x0.shape[: runs + 1], dtype=torch.float64, device=x0.device)]
    for n in range(1, len(schedule)):
        asked = x0, torch.full_like(rows[0], n, dtype=torch.long), noise[n], cond
        star = noise_error(predict_star, schedule, *asked)
        rows.append(weights[n] * (star - noise_error(predict, schedule, *asked)))
    return torch.stack(rows)


def log_snr_bands(schedule: Schedule) -> dict[str, Bool[Tensor, " T"]]:
    """The nodes of each band of BANDS: log SNR = log(ab / (1 - ab)) above `low`, at most `high`.

    Where the signal is strong only fine detail is still undecided, where it is weak the whole
    picture is. The borders are SNR = e and 1/e.
    """
    log_snr = torch.logit(schedule.alpha_bar)
    return {name: (log_snr > low) & (log_snr <= high) for name, (low, high) in BANDS.items()}


def fisher_diagonal(
    predict: Predict,
    theta: Params,
    schedule: Schedule,
    samples: Iterable[tuple[Tensor, Tensor, Any]],
    rng: torch.Generator,
    variance: Variance = "beta",
) -> dict[str, Tensor]:
    """Fisher diagonal diag G: KL(paths of theta || paths of theta + D) = 1/2 D' G D for small D.

    G = sum_t 2 w_t E[J_t' J_t], J = d eps_theta / d theta (lecture 6b, Theorem 6.8).

    `samples` yields (x_t, t, cond) with x_t from the model's *own* chains and t uniform on 1..T-1.
    For random signs v, the mean of (J' v)_i^2 is (J' J)_ii (Hutchinson), so one backward pass per
    batch is enough: the cross terms of a batch have mean zero.
    Unit: nats per squared parameter. This is EWC's importance; no pretraining data is needed.
    """
    weights = 2 * (len(schedule) - 1) * schedule.path_weights(variance)
    total = {name: torch.zeros_like(p) for name, p in theta.items()}
    count = 0
    for x_t, t, cond in samples:
        eps = schedule.eps_from(predict(x_t, schedule.timesteps[t], cond), x_t, t)
        sign = torch.randint(0, 2, eps.shape, generator=rng, device=rng.device).to(eps) * 2 - 1
        scale = weights[t].sqrt().to(eps.dtype).reshape(*t.shape, *[1] * (eps.ndim - t.ndim))
        grads = torch.autograd.grad((eps * sign * scale).sum(), list(theta.values()))
        for name, g in zip(theta, grads, strict=True):
            total[name] += g**2
        count += t.shape[-1]
    if not count:
        raise ValueError("fisher_diagonal: no samples")
    return {name: f / count for name, f in total.items()}
