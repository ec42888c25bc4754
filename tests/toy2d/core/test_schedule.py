"""The schedule: equal to diffusers' where they have the same table, inverse where it claims to be,
loud where it must be.
"""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toy2d.core.schedule import Schedule

SCHEDULES = [Schedule.linear(1000), Schedule.cosine(100), Schedule.log_snr(100)]


def test_linear_is_ddpms_table():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    # theirs is accumulated in float32: 1000 roundings of 6e-8
    torch.testing.assert_close(
        Schedule.linear(1000).alpha_bar, theirs.alphas_cumprod.double(), rtol=1e-4, atol=0
    )


def test_cosine_is_diffusers_squaredcos_cap_v2():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(100, beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(
        Schedule.cosine(100).alpha_bar, theirs.alphas_cumprod.double(), rtol=1e-4, atol=1e-9
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_add_noise_and_target_equal_diffusers(prediction):
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(
        1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
    )
    ours = Schedule(theirs.alphas_cumprod, "v" if prediction == "v_prediction" else "eps")
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 4, 8, 8, generator=rng)
    t = torch.randint(1000, (5,), generator=rng)
    torch.testing.assert_close(ours.add_noise(x0, t, eps), theirs.add_noise(x0, eps, t))
    wanted = theirs.get_velocity(x0, eps, t) if prediction == "v_prediction" else eps
    torch.testing.assert_close(ours.target(x0, t, eps), wanted)


def test_flow_is_the_same_signal_to_noise_ratio():
    """x_t = (1 - s) x0 + s eps with a^2 / b^2 = ab / (1 - ab): one table serves both."""
    vp, flow = Schedule.log_snr(50), Schedule.log_snr(50, prediction="flow")
    t = torch.arange(50)
    one = torch.ones(50, 1, dtype=torch.float64)
    a, b = flow.coefficients(t, one)
    torch.testing.assert_close(a + b, one)
    a_vp, b_vp = vp.coefficients(t, one)
    torch.testing.assert_close(a / b, a_vp / b_vp)


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
@settings(max_examples=25, deadline=None)
@given(t=st.integers(0, 99), seed=st.integers(0, 2**20))
def test_eps_from_inverts_target(prediction, t, seed):
    s = Schedule.log_snr(100, prediction=prediction)
    x0, eps = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(seed)).double()
    t = torch.full((3,), t)
    torch.testing.assert_close(s.eps_from(s.target(x0, t, eps), s.add_noise(x0, t, eps), t), eps)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noised_data_of_unit_variance_keep_it(schedule):
    a, b = schedule.coefficients(torch.arange(len(schedule)), torch.ones(len(schedule), 1).double())
    torch.testing.assert_close(a**2 + b**2, torch.ones_like(a))


def test_path_weights_closed_form():
    """s^2 = beta gives w = beta / (2 alpha (1 - ab)); the posterior variance divides by (1 -
    ab_{t-1}) instead (lectures/06_path_kl.md, Theorem 6.2).
    """
    s = Schedule.linear(100)
    ab, alpha = s.alpha_bar, s.alpha_bar[1:] / s.alpha_bar[:-1]
    torch.testing.assert_close(s.path_weights()[1:], (1 - alpha) / (2 * alpha * (1 - ab[1:])))
    torch.testing.assert_close(
        s.path_weights("posterior")[1:], (1 - alpha) / (2 * alpha * (1 - ab[:-1]))
    )
    assert s.path_weights()[0] == 0


def test_path_weights_sum_to_half_the_log_snr_range():
    """Continuous form: sum_t w_t -> 1/2 integral d(log-SNR), here 7; the error falls as 1/T."""
    errors = [float(Schedule.log_snr(T, 5, -9).path_weights().sum()) - 7 for T in (100, 200, 400)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_clipped_cosine_has_the_heavy_last_step_that_the_docstring_warns_of():
    assert Schedule.cosine(100).path_weights().max() == pytest.approx(499.5, rel=1e-3)
    assert Schedule.cosine(100, max_beta=0.5).path_weights().max() < 1.5


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_min_snr_counts_the_error_of_the_clean_example_alike(prediction):
    """weight * loss = min(SNR, gamma) ||x0 - x0_hat||^2, whatever the network predicts (Hang et
    al. 2023, eq. 5).
    """
    schedule = Schedule.log_snr(30, 6.0, -6.0, prediction=prediction)
    rng, t = torch.Generator().manual_seed(0), torch.arange(30)
    x0, eps, wrong = (torch.randn(30, 8, generator=rng, dtype=torch.float64) for _ in range(3))
    x_t = schedule.add_noise(x0, t, eps)
    output = schedule.target(x0, t, eps) + wrong
    a, b = schedule.coefficients(t, x_t)
    x0_hat = (x_t - b * schedule.eps_from(output, x_t, t)) / a
    snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
    loss = (wrong**2).sum(-1)
    torch.testing.assert_close(
        schedule.min_snr_weights(5.0) * loss,
        (snr.clamp(max=5.0) * ((x0 - x0_hat) ** 2).sum(-1)),
        check_dtype=False,
        rtol=1e-5,
        atol=0,
    )


def test_min_snr_equals_diffusers():
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    theirs = DDPMScheduler(1000)
    t = torch.arange(0, 1000, 7)
    snr = compute_snr(theirs, t)
    ours = Schedule(theirs.alphas_cumprod)
    torch.testing.assert_close(
        ours.min_snr_weights(5.0)[t], snr.clamp(max=5.0) / snr, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ([0.9, 0.5, 0.0], r"alpha_bar\[2\] = 0 .*clip beta"),
        ([0.9, 0.95, 0.5], r"alpha_bar\[1\] >= alpha_bar\[0\]"),
        ([1.0, 0.5], r"alpha_bar\[0\] = 1"),
        ([0.9, float("nan")], r"alpha_bar\[1\]"),
        ([0.5], "at least 2"),
    ],
)
def test_a_table_that_would_divide_by_zero_is_refused(table, says):
    with pytest.raises(ValueError, match=says):
        Schedule(torch.tensor(table))


def test_from_flow_is_the_rectified_path():
    s = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    a, b = Schedule.from_flow(s).coefficients(torch.arange(50), torch.ones(50, 1).double())
    torch.testing.assert_close(b[:, 0], s)
    torch.testing.assert_close(a[:, 0], 1 - s)


def test_flow_has_the_path_weights_of_its_variance_preserving_twin_but_no_min_snr():
    flow, twin = Schedule.log_snr(10, prediction="flow"), Schedule.log_snr(10)
    assert torch.equal(flow.path_weights("posterior"), twin.path_weights("posterior"))
    with pytest.raises(ValueError, match="flow"):
        flow.min_snr_weights(5.0)


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
def test_eps_per_output_is_the_slope_of_eps_from(prediction):
    s = Schedule.log_snr(20, prediction=prediction)
    t, (x, u, v) = torch.arange(20), torch.randn(3, 20, 2, dtype=torch.float64)
    apart = s.eps_per_output(t, u) * (u - v)
    torch.testing.assert_close(apart, s.eps_from(u, x, t) - s.eps_from(v, x, t))


def test_strided_keeps_the_ends_and_the_networks_numbers():
    s = Schedule.linear(1000).strided(5)
    assert s.timesteps.tolist() == [0, 250, 500, 749, 999]
    torch.testing.assert_close(s.alpha_bar, Schedule.linear(1000).alpha_bar[s.timesteps])
    with pytest.raises(ValueError, match="strided"):
        s.strided(6)


def test_defaults_are_the_published_tables():
    linear, cosine, log_snr = Schedule.linear(), Schedule.cosine(), Schedule.log_snr()
    assert [s.num_timesteps for s in (linear, cosine, log_snr)] == [1000, 1000, 100]
    assert [float(v) for v in log_snr.log_snr_table[[0, -1]]] == pytest.approx([8, -16])
    beta = 1 - linear.alpha_bar[1:] / linear.alpha_bar[:-1]
    assert float(beta[-1]) == pytest.approx(0.02)
    short = Schedule.linear(100)
    betas = torch.linspace(1e-3, 0.2, 100, dtype=torch.float64)
    torch.testing.assert_close(short.alpha_bar, Schedule.from_betas(betas).alpha_bar)
    assert len(Schedule.linear(21)) == 21
    with pytest.raises(ValueError, match=r"beta_T = 1\.00 would reach 1"):
        Schedule.linear(20)


def test_between_nodes_log_snr_is_linear_in_the_timestep():
    s = Schedule.linear(100)
    log_snr, t = s.log_snr_table, torch.tensor([0.0, 2.25, 98.5, 99.0], dtype=torch.float64)
    wanted = torch.stack(
        [
            log_snr[0],
            0.75 * log_snr[2] + 0.25 * log_snr[3],
            (log_snr[98] + log_snr[99]) / 2,
            log_snr[99],
        ]
    )
    torch.testing.assert_close(torch.logit(s.alpha_bar_at(t)), wanted)
    assert torch.equal(s.alpha_bar_at(torch.tensor([0, 3])), s.alpha_bar[[0, 3]])
    # and back: the timestep of a log-SNR, in the network's own numbers
    torch.testing.assert_close(s.at_log_snr(wanted).timesteps, t)
    torch.testing.assert_close(s.at_log_snr(wanted).log_snr_table, wanted)
    few = s.strided(4)  # 0, 33, 66, 99
    middle = (few.log_snr_table[1:] + few.log_snr_table[:-1]) / 2
    found = few.at_log_snr(middle).timesteps
    torch.testing.assert_close(found, torch.tensor([16.5, 49.5, 82.5], dtype=torch.float64))


def test_the_score_of_unit_normal_data_is_minus_x():
    """x_t is N(0, 1) at every t, and its best eps is b_t x_t."""
    s, t = Schedule.log_snr(20), torch.arange(20)
    x = torch.randn(20, 3, dtype=torch.float64)
    b = s.coefficients(t, x)[1]
    torch.testing.assert_close(s.score_from_eps(b * x, t), -x)
    torch.testing.assert_close(s.noise_ratio**2, torch.exp(-s.log_snr_table))


def test_the_smallest_and_the_largest_of_what_is_allowed():
    s = Schedule(torch.tensor([0.9, 0.5]))
    assert s.alpha_bar.dtype == torch.float64
    assert s.strided(2).timesteps.tolist() == [0, 1]
    for n in (1, 3):
        with pytest.raises(ValueError, match=r"need 2 <= n <= 2"):
            s.strided(n)
    with pytest.raises(ValueError, match=r"alpha_bar\[1\] >= alpha_bar\[0\]"):
        Schedule(torch.tensor([0.5, 0.5]))
    table = SimpleNamespace(alpha_bar=torch.tensor([[0.9, 0.5]]), prediction="eps", timesteps=None)
    with pytest.raises(ValueError, match=r"not \(1, 2\)"):  # past the type checker
        Schedule.__post_init__(table)
    x0 = SimpleNamespace(alpha_bar=s.alpha_bar, prediction="x0", timesteps=None)
    with pytest.raises(ValueError, match="eps, v or flow, not 'x0'"):
        Schedule.__post_init__(x0)
