"""Gain is the evidence bound's growth: against closed forms, and against the bound itself
computed along forward paths.
"""

import pytest
import torch

from toy2d.core.drift import gain, log_snr_bands, noise_error, path_kl
from toy2d.core.rng import generator
from toy2d.core.sample import ancestral
from toy2d.core.schedule import Schedule
from toy2d.data import Pentagon


def two_worlds(T: int, std: float = 0.5):
    """The base knows N(0, std^2 I); the tuned model knows the subject's law, 3 away."""
    schedule = Schedule.log_snr(T, 6.0, -16.0)
    base, tuned = (Pentagon(schedule, std=std, radius=r, classes=1) for r in (0.0, 3.0))
    return schedule, base, tuned


def subject(n: int, rng: torch.Generator, std: float = 0.5) -> torch.Tensor:
    """n clean points of the tuned world's only class."""
    mean = Pentagon(Schedule.log_snr(3), std=std, radius=3.0, classes=1).means[0]
    return mean + std * torch.randn(n, 2, generator=rng, dtype=torch.float64)


def noise_for(schedule: Schedule, x0: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return torch.randn(len(schedule), *x0.shape, generator=rng, dtype=x0.dtype)


def mean_and_error(draws: torch.Tensor) -> tuple[float, float]:
    return float(draws.mean()), float(draws.std()) / len(draws) ** 0.5


def test_every_node_but_the_first_counts_and_infinite_weights_are_refused():
    """Row 0 is zero; each other row is its node's. A step to no signal at all has no finite w_t."""
    schedule, base, tuned = two_worlds(20)
    rng = torch.Generator().manual_seed(0)
    x0 = subject(50, rng)
    args = x0, noise_for(schedule, x0, rng), torch.zeros(50, dtype=torch.long)
    rows = gain(tuned.eps, base.eps, schedule, *args)
    assert (rows[0] == 0).all()
    assert (rows[1:].mean(1) != 0).all()
    none = Schedule(torch.tensor([0.9, 0.5, 0.1, 1e-320], dtype=torch.float64))
    with pytest.raises(ValueError, match="infinite weights"):
        gain(tuned.eps, base.eps, none, x0, noise_for(none, x0, rng), args[2])
    with pytest.raises(ValueError, match="infinite weights"):
        path_kl(tuned.eps, base.eps, none, x0.expand(4, 50, 2), args[2])


def test_gain_of_two_gaussians_has_a_closed_form():
    """eps_star - eps_tuned = b_t a_t dm / v_t whatever x is, and the tuned predictor is exact for
    the subject.

    So gain = sum_t w_t (b_t a_t |dm| / v_t)^2, which is the pair's path KL, and tends to |dm|^2 /
    (2 v_0) at order 1/T.
    """
    limits = []
    for T in (200, 400):
        schedule, base, tuned = two_worlds(T)
        rng, ab = generator(0, "gain"), schedule.alpha_bar
        x0, cond = subject(400, rng), torch.zeros(400, dtype=torch.long)
        terms = gain(tuned.eps, base.eps, schedule, x0, noise_for(schedule, x0, rng), cond)
        mean, error = mean_and_error(terms.sum(0))
        variance = ab * 0.25 + 1 - ab
        exact = float((schedule.path_weights() * (1 - ab) * ab * 9 / variance**2).sum())
        assert abs(mean - exact) < 5 * error
        assert error < 0.03 * exact
        chain = ancestral(
            tuned.eps, schedule, torch.randn(8, 2, generator=rng), cond[:8], rng, chain=True
        )
        assert exact == pytest.approx(
            float(path_kl(base.eps, tuned.eps, schedule, chain, cond[:8])[0]), rel=1e-4
        )
        limits.append(exact - float(ab[0] * 9 / (2 * variance[0])))
    assert limits[0] / limits[1] == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_gain_is_the_growth_of_the_evidence_bound(variance):
    """Any two predictors: sum_t ln k_theta(x_{t-1} | x_t) - ln k_star(x_{t-1} | x_t) along
    forward paths, in the mean.
    """
    schedule = Schedule.log_snr(12, 4.0, -6.0)
    world, rng, n = Pentagon(schedule), generator(0, "gain"), 20_000
    x0, cond = subject(n, rng), torch.zeros(n, dtype=torch.long)

    def tuned(x_t, t, c):
        return world.eps(x_t, t, c) + 0.4 * (x_t + t[:, None] / 10).sin()

    terms = gain(tuned, world.eps, schedule, x0, noise_for(schedule, x0, rng), cond, variance)
    beta, alpha, s2 = schedule.reverse_chain(variance)
    bound = torch.zeros(n, dtype=torch.float64)
    ab = schedule.alpha_bar
    x = ab[0].sqrt() * x0 + (1 - ab[0]).sqrt() * torch.randn(x0.shape, generator=rng)
    for t in range(1, len(schedule)):
        before = x
        x = alpha[t].sqrt() * x + beta[t].sqrt() * torch.randn(x.shape, generator=rng)
        at = torch.full((n,), t)
        for sign, predict in ((1, tuned), (-1, world.eps)):
            eps = predict(x, at, cond)
            mean = (x - beta[t] / (1 - ab[t]).sqrt() * eps) / alpha[t].sqrt()
            bound -= sign * ((before - mean) ** 2).sum(-1) / (2 * s2[t])
    (got, error), (wanted, path_error) = mean_and_error(terms.sum(0)), mean_and_error(bound)
    assert abs(got - wanted) < 5 * (error**2 + path_error**2) ** 0.5
    assert abs(wanted) > 20 * (error**2 + path_error**2) ** 0.5  # else any weights would pass
    assert error < path_error  # the noise of each step has been integrated out


def test_a_flow_model_gains_what_its_twin_in_eps_gains():
    """The same predictor as a velocity, asked at x_t / k_t: the same evidence, node by node."""
    vp = Schedule.log_snr(20, 4.0, -6.0)
    s = (1 - vp.alpha_bar).sqrt() / (vp.alpha_bar.sqrt() + (1 - vp.alpha_bar).sqrt())
    flow = Schedule.from_flow(s)
    base, tuned = (Pentagon(vp, radius=r, classes=1) for r in (0.0, 3.0))
    rng = generator(0, "gain")
    x0, cond = subject(50, rng), torch.zeros(50, dtype=torch.long)
    noise = noise_for(vp, x0, rng)

    def velocity(predict):
        def answer(x_t, t, c):
            at = t.round().long()
            eps = predict(x_t * flow.vp_scale[at][:, None], at, c)
            return (eps - x_t) / (1 - s[at])[:, None]

        return answer

    in_eps = gain(tuned.eps, base.eps, vp, x0, noise, cond)
    as_flow = gain(velocity(tuned.eps), velocity(base.eps), flow, x0, noise, cond)
    torch.testing.assert_close(as_flow, in_eps, rtol=1e-6, atol=1e-8)


def some_models(schedule):
    world = Pentagon(schedule)
    return [lambda x, t, c, h=h: world.eps(x, t, c) + h * x.cos() for h in (0.0, 0.1, 0.5)]


def test_with_common_noise_gains_add_up():
    """gain(c, a) = gain(c, b) + gain(b, a) for every single draw; an unmoved model gains exactly
    0.
    """
    schedule, rng = Schedule.log_snr(10), generator(0, "gain")
    a, b, c = some_models(schedule)
    x0, cond = subject(30, rng), torch.zeros(30, dtype=torch.long)
    asked = schedule, x0, noise_for(schedule, x0, rng), cond
    torch.testing.assert_close(gain(c, a, *asked), gain(c, b, *asked) + gain(b, a, *asked))
    assert torch.equal(gain(b, a, *asked), -gain(a, b, *asked))
    assert not gain(c, c, *asked).any()


def test_common_noise_makes_a_comparison_cheap():
    """Two nearby models: with one noise the error of their difference is below a fifth of what
    it is with two.
    """
    schedule, rng = Schedule.log_snr(10), generator(0, "gain")
    a, b, _ = some_models(schedule)
    world = Pentagon(schedule)
    x0, cond = subject(500, rng), torch.zeros(500, dtype=torch.long)

    def of(model, noise):
        return gain(model, lambda x, t, c: world.eps(x, t, c) + 1, schedule, x0, noise, cond).sum(0)

    one, other = noise_for(schedule, x0, rng), noise_for(schedule, x0, rng)
    shared = mean_and_error(of(a, one) - of(b, one))[1]
    apart = mean_and_error(of(a, one) - of(b, other))[1]
    assert shared < 0.2 * apart


def test_who_knows_the_subject_gains_and_who_forgets_it_loses():
    schedule, base, tuned = two_worlds(40)
    rng = generator(0, "gain")
    x0, cond = subject(200, rng), torch.zeros(200, dtype=torch.long)
    noise = noise_for(schedule, x0, rng)
    assert mean_and_error(gain(tuned.eps, base.eps, schedule, x0, noise, cond).sum(0))[0] > 10
    assert mean_and_error(gain(base.eps, tuned.eps, schedule, x0, noise, cond).sum(0))[0] < -10


def test_bands_part_the_nodes_at_snr_e_and_its_inverse():
    schedule = Schedule.log_snr(9, 4.0, -4.0)  # log-SNR 4, 3, ..., -4
    bands = log_snr_bands(schedule)
    assert torch.stack(list(bands.values())).sum(0).tolist() == [1] * 9
    log_snr = torch.logit(schedule.alpha_bar)
    assert (log_snr[bands["detail"]] > 1).all()
    assert (log_snr[bands["identity"]] < -1 + 1e-9).all()
    assert bands["shape"].sum() in (2, 3)  # a node on a border belongs to one side, by rounding


def test_noise_error_is_in_eps_whatever_is_predicted():
    """At the least noise v's error is a_t times smaller than eps's; the sum is over D."""
    x0, t = torch.zeros(6, 3, 2, 2), torch.arange(6)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    for prediction in ("eps", "v"):
        schedule = Schedule.log_snr(6, prediction=prediction)
        target = schedule.target(x0, t, eps)
        got = noise_error(lambda x, t, c, y=target: y + 2, schedule, x0, t, eps, None)
        a = schedule.alpha_bar if prediction == "v" else torch.ones(6, dtype=torch.float64)
        torch.testing.assert_close(got, 4 * 12 * a, rtol=1e-5, atol=1e-5)


def test_gain_refuses_what_it_cannot_answer():
    schedule = Schedule.log_snr(5)
    a, b, _ = some_models(schedule)
    with pytest.raises(ValueError, match="noise for 4 nodes"):
        gain(a, b, schedule, torch.zeros(2, 2), torch.zeros(4, 2, 2), torch.zeros(2).long())


def test_a_stack_of_runs_gains_run_by_run():
    schedule, rng = Schedule.log_snr(8), generator(0, "gain")
    world = Pentagon(schedule)
    x0 = subject(12, rng).reshape(3, 4, 2)
    noise, cond = noise_for(schedule, x0, rng), torch.zeros(3, 4, dtype=torch.long)
    shift = torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1)
    whole = gain(
        lambda x, t, c: world.eps(x, t, c) + shift, world.eps, schedule, x0, noise, cond, runs=1
    )
    for r in range(3):
        alone = gain(
            lambda x, t, c, r=r: world.eps(x, t, c) + shift[r],
            world.eps, schedule, x0[r], noise[:, r], cond[r],
        )  # fmt: skip
        torch.testing.assert_close(whole[:, r], alone)
