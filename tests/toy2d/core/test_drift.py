"""Distances in parameters and outputs, and path KL, against closed forms."""

import pytest
import torch

from toy2d.core.drift import (
    delta_theta,
    fisher_diagonal,
    path_kl,
    squared_distance,
    squared_error,
    stratified,
)
from toy2d.core.rng import generator
from toy2d.core.sample import ancestral
from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon


def pair():
    rng = torch.Generator().manual_seed(0)
    theta = {"a": torch.randn(3, 4, 5, generator=rng), "b": torch.randn(3, 7, generator=rng)}
    return theta, {k: torch.randn(v.shape, generator=rng) for k, v in theta.items()}


def test_squared_distance_is_the_square_of_the_euclidean_norm():
    theta, star = pair()
    flat = torch.cat([(theta[k] - star[k]).flatten() for k in theta])
    torch.testing.assert_close(squared_distance(theta, star), flat.square().sum())
    torch.testing.assert_close(delta_theta(theta, star), flat.norm())


def test_a_stack_has_one_distance_per_run():
    theta, star = pair()
    stack = squared_distance(theta, star, runs=1)
    alone = [
        squared_distance({k: v[m] for k, v in theta.items()}, {k: v[m] for k, v in star.items()})
        for m in range(3)
    ]
    torch.testing.assert_close(stack, torch.stack(alone))


def test_tensor_mean_is_the_papers_code_and_another_number():
    """sum over tensors of F.mse_loss: tensor i has the weight lambda / numel_i."""
    theta, star = pair()
    theirs = sum(torch.nn.functional.mse_loss(theta[k], star[k]) for k in theta)
    torch.testing.assert_close(squared_distance(theta, star, reduction="tensor_mean"), theirs)
    assert squared_distance(theta, star) > 10 * theirs


def test_a_missing_anchor_is_an_error():
    theta, star = pair()
    with pytest.raises(KeyError, match="b"):
        squared_distance(theta, {"a": star["a"]})


def gaussian_pair(T=400):
    """Two one-class worlds N(m, 0.25 I), 3 apart: KL = |dm|^2 / (2 s^2) = 18 before noising."""
    schedule = Schedule.log_snr(T, 6.0, -16.0)
    p, q = (Pentagon(schedule, std=0.5, radius=r, classes=1) for r in (0.0, 3.0))
    return schedule, p, q


def test_path_kl_of_the_gaussian_pair_is_its_kl():
    """path KL -> |m1 - m2|^2 / (2 s^2) = 18 (lectures/06_path_kl.md, Proposition 6.6).

    At t = 0's noise level the variance is ab s^2 + 1 - ab and the difference sqrt(ab) * 3, so the
    limit is 17.82. Discretization: 1/T.
    """
    values = []
    for T in (200, 400):
        schedule, p, q = gaussian_pair(T)
        cond = torch.zeros(64, dtype=torch.long)
        rng = generator(0, "sample")
        chain = ancestral(p.eps, schedule, torch.randn(64, 2, generator=rng), cond, rng, chain=True)
        mean, error = path_kl(q.eps, p.eps, schedule, chain, cond)
        assert error < 1e-3  # eps_q - eps_p does not depend on x: no Monte Carlo noise
        values.append(float(mean))
    ab = schedule.alpha_bar[0]
    limit = float(ab * 9 / (2 * (ab * 0.25 + 1 - ab)))
    errors = [abs(v - limit) for v in values]
    assert errors[1] < 0.02 * limit
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.15)  # order 1 in 1/T


def test_path_kl_standard_error_is_that_of_the_mean():
    """Over 40 repetitions of 50 chains, the mean spreads as reported (40 draws tell to 11 %)."""
    schedule = Schedule.log_snr(20, 4.0, -10.0)
    world = Pentagon(schedule)
    a = torch.zeros(2000, dtype=torch.long)
    rng = generator(0, "sample")
    chain = ancestral(world.eps, schedule, torch.randn(2000, 2, generator=rng), a, rng, chain=True)

    def drifted(x, t, cond):
        return world.eps(x, t, cond) + 0.1 * x.sin()

    parts = [
        path_kl(drifted, world.eps, schedule, [x[i * 50 : i * 50 + 50] for x in chain], a[:50])
        for i in range(40)
    ]
    means, errors = (torch.stack(v) for v in zip(*parts, strict=True))
    assert errors.mean() == pytest.approx(float(means.std()), rel=4 * 0.11)


def test_strata_leave_out_the_spread_between_prompts():
    """Two prompts 10 apart, spread 1 within: the error of the mean is that of the spread within."""
    rng = torch.Generator().manual_seed(0)
    strata = torch.arange(2).repeat_interleave(50)
    draws = torch.randn(400, 100, generator=rng) + 10 * strata
    mean, error = stratified(draws, strata)
    assert float(error.mean()) == pytest.approx(0.1, rel=0.02)  # 1 / sqrt(100)
    assert float(mean.std()) == pytest.approx(0.1, rel=4 * 0.035)  # 400 draws tell to 3.5 %
    assert float(stratified(draws)[1].mean()) > 0.4  # as if prompts were drawn


def test_path_kl_refuses_what_it_cannot_answer():
    schedule, p, q = gaussian_pair(20)
    cond = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="3 stored steps"):
        path_kl(q.eps, p.eps, schedule, [torch.zeros(4, 2)] * 3, cond)
    with pytest.raises(ValueError, match="2 chains"):
        path_kl(q.eps, p.eps, schedule, [torch.zeros(1, 2)] * 20, cond[:1])


def test_a_squared_error_is_summed_over_the_datas_coordinates():
    schedule = Schedule.log_snr(10)
    x, t, cond = torch.zeros(6, 3, 8, 8), torch.arange(6), torch.zeros(6)
    shift = torch.arange(1.0, 7.0).reshape(6, 1, 1, 1)
    value = squared_error(lambda x, t, c: x + shift, lambda x, t, c: x, schedule, x, t, cond)
    torch.testing.assert_close(value, shift.flatten() ** 2 * 3 * 8 * 8)


def test_a_squared_error_is_in_eps_whatever_is_predicted():
    """A v network and an eps network that mean the same thing have drifted the same."""
    eps_s, v_s = Schedule.log_snr(50), Schedule.log_snr(50, prediction="v")
    world = Pentagon(eps_s)
    x, t = torch.randn(50, 2), torch.arange(50)
    cond = torch.zeros(50, dtype=torch.long)

    def as_v(predict):
        def v(x_t, t, c):
            a, b = v_s.coefficients(t, x_t)
            return (predict(x_t, t, c) - b * x_t) / a

        return v

    def other(x_t, t, c):
        return world.eps(x_t, t, c) + 0.1 * x_t

    torch.testing.assert_close(
        squared_error(as_v(other), as_v(world.eps), v_s, x, t, cond).mean().sqrt(),
        squared_error(other, world.eps, eps_s, x, t, cond).mean().sqrt(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_fisher_diagonal_of_a_linear_model():
    """eps = theta * x has J_ii = x_i, so diag G_i = sum_t 2 w_t E[x_i^2]; 5 standard errors."""
    schedule = Schedule.log_snr(10, 2.0, -2.0)
    theta = {"theta": torch.ones(2, requires_grad=True)}
    rng = torch.Generator().manual_seed(0)
    std = torch.tensor([1.0, 3.0])

    def samples():
        for _ in range(2000):
            yield (
                torch.randn(4, 2, generator=rng) * std,
                torch.randint(1, 10, (4,), generator=rng),
                None,
            )

    got = fisher_diagonal(lambda x, t, c: theta["theta"] * x, theta, schedule, samples(), rng)
    wanted = 2 * schedule.path_weights().sum() * std**2
    # (sum over 4 of sign * sqrt(w) x)^2 is about chi-square with 1 degree: relative sd sqrt(2) (w
    # varies by 30 %), over 2000 batches
    torch.testing.assert_close(got["theta"], wanted.float(), rtol=5 * 1.6 / 2000**0.5, atol=0)


def test_distance_does_not_depend_on_the_order_of_names():
    """To the bit: a checkpoint gives names back sorted, a network in the order of its layers."""
    rng = torch.Generator().manual_seed(0)
    theta = {f"layer {i}": torch.randn(97, generator=rng) for i in range(9)}
    star = {k: torch.zeros_like(v) for k, v in theta.items()}
    backwards = dict(reversed(theta.items()))
    assert torch.equal(squared_distance(theta, star), squared_distance(backwards, star))


def test_importance_weighs_every_coordinate_of_every_shape():
    """A single number, a vector and a matrix; with "tensor_mean" each is averaged; and in a
    stack."""
    rng = torch.Generator().manual_seed(0)
    shapes = {"gain": (), "bias": (4,), "weight": (3, 4)}
    theta, star, F = (
        {n: torch.rand(2, *s, generator=rng) for n, s in shapes.items()} for _ in range(3)
    )
    squares = {n: (F[n] * (theta[n] - star[n]) ** 2).reshape(2, -1) for n in shapes}
    for reduction, of in (("sum", torch.sum), ("tensor_mean", torch.mean)):
        wanted = sum(of(v, 1) for v in squares.values())
        stack = squared_distance(theta, star, F, reduction, runs=1)
        torch.testing.assert_close(stack, wanted)
        first = ({n: v[0] for n, v in each.items()} for each in (theta, star, F))
        torch.testing.assert_close(squared_distance(*first, reduction), wanted[0])
    torch.testing.assert_close(
        delta_theta(theta, star, 1) ** 2, squared_distance(theta, star, runs=1)
    )


def test_path_kl_of_a_stack_is_that_of_its_runs():
    """Sum by hand of w_t ||eps - eps_star||^2; the variance of the sampler and the strata count."""
    schedule, strata = Schedule.log_snr(6, 3.0, -3.0), torch.tensor([0, 0, 1, 1])
    rng = torch.Generator().manual_seed(0)
    chain = [torch.randn(2, 4, 3, generator=rng) for _ in range(6)]

    def predict(x, t, cond):
        return x + 0.1 * t[..., None] * x.sin()

    def star(x, t, cond):
        return x

    for variance in ("beta", "posterior"):
        asked = schedule, chain, None, variance
        mean, error = path_kl(predict, star, *asked, runs=1, strata=strata)
        w = schedule.path_weights(variance).float()
        each = sum(w[n] * ((0.1 * n * chain[n].sin()) ** 2).sum(-1) for n in range(6))
        torch.testing.assert_close(mean, each.mean(-1))
        within = sum(2 * each[:, strata == g].var(-1) for g in (0, 1))
        torch.testing.assert_close(error, within.sqrt() / 4)


def test_fisher_needs_samples_and_is_that_of_eps_whatever_is_predicted():
    """A network of v whose eps is theta * x: the same Fisher diagonal from the same signs."""
    eps_s, v_s = Schedule.log_snr(10, 2.0, -2.0), Schedule.log_snr(10, 2.0, -2.0, prediction="v")
    theta = {"theta": torch.ones(2, requires_grad=True)}
    rng = torch.Generator().manual_seed(0)
    samples = [
        (torch.randn(4, 2, generator=rng), torch.randint(1, 10, (4,), generator=rng), None)
        for _ in range(20)
    ]

    def as_v(x, t, cond):
        a, b = v_s.coefficients(t, x)
        return (theta["theta"] * x - b * x) / a

    found = [
        fisher_diagonal(p, theta, s, samples, torch.Generator().manual_seed(1))["theta"]
        for p, s in ((lambda x, t, c: theta["theta"] * x, eps_s), (as_v, v_s))
    ]
    torch.testing.assert_close(*found)
    other = fisher_diagonal(
        lambda x, t, c: theta["theta"] * x, theta, eps_s, samples, rng, "posterior"
    )
    assert (other["theta"] > found[0]).all()  # its steps have less noise: a difference counts more
    with pytest.raises(ValueError, match="no samples"):
        fisher_diagonal(as_v, theta, v_s, [], rng)


def test_the_fisher_diagonal_of_one_number_is_the_sum_over_nodes():
    """eps = theta x of one coordinate, every node of 4 once: exactly G = sum_t 2 w_t x_t^2."""
    schedule, theta = Schedule.log_snr(4), {"a": torch.ones((), requires_grad=True)}
    x = torch.tensor([0.0, 1.0, 2.0, 3.0])
    nodes = [(x[t].reshape(1, 1), torch.tensor([t]), None) for t in (1, 2, 3)]
    found = fisher_diagonal(
        lambda x_t, steps, cond: theta["a"] * x_t, theta, schedule, nodes, generator(0, "signs")
    )
    expected = (2 * schedule.path_weights() * x**2).sum()
    torch.testing.assert_close(found["a"], expected.float())
