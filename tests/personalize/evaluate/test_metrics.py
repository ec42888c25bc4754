"""The metrics have closed forms: angles that are known, laws that are equal, means that
bootstrap.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from personalize.evaluate import metrics
from personalize.evaluate.metrics import (
    auc,
    cosine,
    interval,
    mean_to_others,
    mmd2,
    over_seeds,
    paired_cosine,
    pairs_interval,
    pairs_over_seeds,
    pairwise_perceptual,
    perceptual_distance,
    spread,
)


def at_angles(*degrees: float, scale: float = 1.0) -> torch.Tensor:
    """(N, 2): features at known angles."""
    a = torch.tensor(degrees).deg2rad()
    return scale * torch.stack([a.cos(), a.sin()], 1)


# ---- similarity
def test_cosine_is_the_cosine_of_the_angle_whatever_the_length():
    expected = [[math.cos(math.radians(a - b)) for b in (0, 60, 90)] for a in (0, 30)]
    found = cosine(at_angles(0, 30, scale=5), at_angles(0, 60, 90, scale=0.1))
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(
        paired_cosine(at_angles(0, 30), at_angles(60, 90)),
        torch.tensor([0.5, 0.5], dtype=torch.float64),
        atol=1e-6,
    )


def test_mean_to_others_leaves_each_one_itself_out():
    pairwise = cosine(at_angles(0, 60, 120), at_angles(0, 60, 120))
    assert mean_to_others(pairwise).tolist() == pytest.approx([0.0, 0.5, 0.0], abs=1e-6)
    assert mean_to_others(torch.ones(1, 1)).isnan().all()  # one picture has no pairs
    assert len(mean_to_others(torch.ones(0, 0))) == 0


# ---- perceptual distance
def test_perceptual_distance_of_known_directions():
    """2 - 2 cos of the angle: 0, 2 and 4 for equal, orthogonal and opposite features, whatever
    their length.
    """
    x = at_angles(0, 0, 0, 0)[:, None]  # N P=1 C
    y = at_angles(0, 90, 180, 60, scale=7)[:, None]
    assert perceptual_distance([x], [y]).tolist() == pytest.approx([0, 2, 4, 1], abs=1e-5)


def test_perceptual_distance_is_a_mean_over_positions_and_layers():
    x = at_angles(0, 0)[None]  # one picture, two positions
    y = at_angles(0, 180)[None]
    z = at_angles(90)[None]
    found = perceptual_distance([x, x[:, :1]], [y, z])
    assert float(found) == pytest.approx((2 + 2) / 2)  # (0 + 4)/2 in one layer, 2 in the other


def test_perceptual_distance_of_any_shape(rng):
    """A convolution's (N, C, H, W) with channel=1 is the same as its tokens (N, H W, C)."""
    a, b = (torch.randn(3, 8, 4, 4, generator=rng) for _ in range(2))
    tokens = [x.flatten(2).mT for x in (a, b)]
    assert torch.allclose(
        perceptual_distance([a], [b], 1), perceptual_distance([tokens[0]], [tokens[1]])
    )


def test_pairwise_perceptual_is_the_distance_of_each_pair(rng):
    layers = [torch.randn(4, 5, 6, generator=rng), torch.randn(4, 2, 3, generator=rng)]
    found = pairwise_perceptual(layers)
    for i in range(4):
        for j in range(4):
            one = perceptual_distance(
                [f[i : i + 1] for f in layers], [f[j : j + 1] for f in layers]
            )
            assert found[i, j] == pytest.approx(float(one), abs=1e-9)
    assert pairwise_perceptual([torch.randn(1, 5, 6)]).shape == (1, 1)


def test_pairwise_perceptual_never_holds_all_pairs(monkeypatch):
    """100 pictures (50 seeds, tuned and base) are 4,950 pairs: 2 x 4,950 pictures' layers at
    once were gigabytes.
    """
    seen, real = [], metrics.perceptual_distance
    monkeypatch.setattr(
        metrics, "perceptual_distance", lambda a, b, c: (seen.append(len(a[0])), real(a, b, c))[1]
    )
    found = pairwise_perceptual([torch.randn(100, 2, 3)])
    assert sum(seen) == 4950
    assert max(seen) < 100
    assert torch.equal(found, found.T)


# ---- two sets
def test_mmd2_of_two_points_each():
    """a at 0 degrees, b at 180: kernel 8 within, 0 across, so 8 + 8; the same set twice: 8 + 8 -
    16.
    """
    assert mmd2(at_angles(0, 0), at_angles(180, 180)) == pytest.approx(16, abs=1e-5)
    assert mmd2(at_angles(0, 0), at_angles(0, 0)) == pytest.approx(0, abs=1e-5)
    assert math.isnan(mmd2(at_angles(0), at_angles(0, 90)))


def test_mmd2_is_unbiased_and_finds_a_shift(rng):
    """Mean over many draws of one law within 5 standard errors of 0; of two laws, far from it."""

    def draws(shift):
        make = lambda: torch.randn(8, 6, generator=rng)  # noqa: E731
        return np.array([mmd2(make(), make() + shift) for _ in range(300)])

    same, moved = draws(0.0), draws(1.0)
    error = same.std(ddof=1) / len(same) ** 0.5
    assert abs(same.mean()) < 5 * error
    assert moved.mean() > 20 * error


def test_auc_counts_pairs():
    scores, right = [0.1, 0.4, 0.4, 0.9, 0.2], [False, True, False, True, False]
    pairs = [
        (a > b) + 0.5 * (a == b)
        for a, x in zip(scores, right, strict=True)
        if x
        for b, y in zip(scores, right, strict=True)
        if not y
    ]
    assert auc(scores, right) == pytest.approx(np.mean(pairs))
    assert math.isnan(auc([1, 2], [True, True]))


# ---- summaries
def test_interval_covers_the_mean():
    """Of 200 samples of 40 normals the 95 % interval holds the mean 95 % of the time: binomial,
    4 standard errors, 2 % for the bootstrap's own bias.
    """
    rng = np.random.default_rng(0)
    held = sum(
        i["low"] <= 0 <= i["high"] for i in (interval(rng.standard_normal(40)) for _ in range(200))
    )
    assert abs(held / 200 - 0.95) < 4 * (0.95 * 0.05 / 200) ** 0.5 + 0.02


def test_interval_of_little():
    assert interval([]) is None
    assert interval([math.nan]) is None
    assert interval([3.0]) == {"mean": 3.0, "low": None, "high": None, "n": 1}
    assert interval([2.0, math.nan, 2.0]) == {"mean": 2.0, "low": 2.0, "high": 2.0, "n": 2}


@given(
    st.lists(st.floats(-5, 5), min_size=3, max_size=6),
    st.lists(st.floats(-50, 50), min_size=2, max_size=4),
)
def test_prompts_shift_the_interval_but_do_not_widen_it(seeds, prompts):
    """value = prompt + seed: however different the prompts, the width is that of the seeds
    alone.
    """
    values = [p + s for p in prompts for s in seeds]
    found = over_seeds(values, list(range(len(seeds))) * len(prompts))
    alone = interval(seeds)
    shift = np.mean(prompts)
    assert found["n"] == len(seeds)
    for k in ("mean", "low", "high"):
        assert found[k] == pytest.approx(alone[k] + shift, abs=1e-6)


# ---- intervals of means of pairs
def test_pairs_interval_is_the_jackknife(rng):
    """Once more from the matrix, one picture left out at a time."""
    d = torch.rand(5, 5, generator=rng).double()
    d = d + d.T
    left = [torch.tensor([i for i in range(5) if i != k]) for k in range(5)]
    without = np.array([float(mean_to_others(d[k][:, k]).mean()) for k in left])
    error = (4 / 5 * ((without - without.mean()) ** 2).sum()) ** 0.5
    found = pairs_interval(mean_to_others(d).tolist())
    assert found["high"] - found["mean"] == pytest.approx(t.ppf(0.975, 4) * error)
    assert found["mean"] - found["low"] == pytest.approx(t.ppf(0.975, 4) * error)
    assert (found["mean"], found["n"]) == (pytest.approx(float(mean_to_others(d).mean())), 5)


def test_pairs_interval_of_little():
    """Two pictures are one pair: its distance says nothing about another's."""
    assert pairs_interval([math.nan]) is None
    assert pairs_interval([3.0]) == {"mean": 3.0, "low": None, "high": None, "n": 1}
    assert pairs_interval([2.0, 2.0]) == {"mean": 2.0, "low": None, "high": None, "n": 2}


@pytest.mark.parametrize("n", [3, 4, 32])
def test_pairs_interval_is_exact_where_pictures_add_up(n):
    """d_ij = a_i + a_j with normal a: Student's t of 2 mean(a), so exactly 95 %; 4 standard
    errors of 1,000 repetitions.
    """
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        a = rng.standard_normal(n)
        found = pairs_interval(a + (a.sum() - a) / (n - 1))
        held += found["low"] <= 0 <= found["high"]
    assert abs(held / 1000 - 0.95) < 4 * (0.95 * 0.05 / 1000) ** 0.5


def covered(of, seeds: int, pictures, repeat: int) -> float:
    """Share of intervals that hold the law's mean squared distance, 3 prompts; `pictures(n)`:
    (n, prompts, D) unit vectors.
    """
    truth = 2 - 2 * float(pictures(20_000).mean(0).square().sum(-1).mean())
    held = 0
    for _ in range(repeat):
        x = pictures(seeds)
        rows = torch.cat([mean_to_others(2 - 2 * x[:, p] @ x[:, p].T) for p in range(3)])
        found = of(rows.tolist(), list(range(seeds)) * 3)
        held += found["low"] <= truth <= found["high"]
    return held / repeat


@pytest.mark.parametrize("mixture", [False, True])
def test_intervals_of_diversity_hold_at_four_seeds(rng, mixture):
    """Distances of unit vectors, of one kind or two. The jackknife is on the safe side (97 to 99
    % of 1,500 repetitions, never below 95 % by more than 4 standard errors here); a bootstrap of
    the same rows as if independent holds 49 to 59 %.
    """

    def pictures(n):
        x = torch.randn(n, 3, 8, generator=rng).double()
        if mixture:
            x[..., 0] += 3 * (torch.rand(n, 3, generator=rng) < 0.5)
        return x / x.norm(dim=-1, keepdim=True)

    error = (0.95 * 0.05 / 400) ** 0.5
    assert covered(pairs_over_seeds, 4, pictures, 400) > 0.95 - 4 * error
    assert covered(over_seeds, 4, pictures, 60) < 0.95 - 4 * (0.95 * 0.05 / 60) ** 0.5


def test_spread_is_the_sample_standard_deviation():
    assert spread([1, 2, 3, math.nan]) == pytest.approx(1)
    assert spread([1.0]) is None


def test_the_bootstrap_is_the_same_every_time():
    x = np.random.default_rng(1).standard_normal(9)
    assert interval(x) == interval(x)
    assert metrics.RESAMPLES >= 1000  # fewer would leave the second digit to chance
