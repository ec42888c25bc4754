"""Few nodes of each chain give the sum over all of them: unbiased, with an honest error, at a
small loss of precision.
"""

import pytest
import torch

from personalize.drift.allocation import (
    even_starts,
    in_proportion,
    inclusion,
    standard_error,
    systematic,
)
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule

SHORT = Schedule.linear(1000).strided(10)


@pytest.mark.parametrize("each", [1, 2, 5, 9, 20])
def test_probabilities_of_being_drawn(each):
    pi = inclusion(SHORT, each)
    assert float(pi.sum()) == pytest.approx(min(each, 9))
    assert pi[0] == 0
    assert (pi[1:] > 0).all()
    assert (pi <= 1).all()
    if each >= 9:
        assert (pi[1:] == 1).all()
    if each == 1:
        law = SHORT.path_weights() * SHORT.alpha_bar
        torch.testing.assert_close(pi[1:], 0.5 * law[1:] / law.sum() + 0.5 / 9)


@pytest.mark.parametrize("each", [1, 2, 5, 9])
def test_every_node_is_drawn_as_often_as_its_probability_says(each):
    """Over a grid of starts, which is uniform; no node is drawn twice for one start."""
    pi, n = inclusion(SHORT, each), 5000
    nodes = systematic(pi, (torch.arange(n, dtype=torch.float64) + 0.5) / n)
    assert nodes.shape == (n, each)
    assert (nodes.diff(dim=1) > 0).all()
    often = torch.bincount(nodes.flatten(), minlength=10) / n
    torch.testing.assert_close(often.double(), pi, atol=2 / n, rtol=0)


def chains_that_differ(n: int, rng) -> torch.Tensor:
    """f (n, T): w_t d_t of n chains. What a node contributes falls as on the mini, chains differ
    by 15 %, nodes of one by 20 %.
    """
    profile = torch.tensor([0, 0.38, 0.22, 0.14, 0.1, 0.05, 0.035, 0.025, 0.025, 0.025])
    of_chain = 1 + 0.15 * torch.randn(n, 1, generator=rng)
    return (profile * of_chain * (1 + 0.2 * torch.randn(n, 10, generator=rng))).double()


def estimate(f, pi, rng):
    starts = even_starts(len(f), rng)
    nodes = systematic(pi, starts)
    sums = (f.gather(1, nodes) / pi[nodes]).sum(1)
    return float(sums.mean()), standard_error(sums, starts)


@pytest.mark.parametrize(("each", "most"), [(1, 1.8), (2, 1.5)])
def test_the_sum_is_unbiased_and_its_error_little_larger(each, most):
    """400 draws of new chains and nodes, 32 chains each, against the full sum over the nodes."""
    rng, pi = generator(0, "test"), inclusion(SHORT, each)
    few, errors, full = [], [], []
    for _ in range(400):
        f = chains_that_differ(32, rng)
        mean, error = estimate(f, pi, rng)
        few.append(mean)
        errors.append(error)
        full.append(f.sum(1).mean())
    few, errors, full = (torch.tensor(v, dtype=torch.float64) for v in (few, errors, full))
    apart = few - full
    assert abs(float(apart.mean())) < 4 * float(apart.std()) / 20
    assert float((errors**2).mean()) ** 0.5 == pytest.approx(float(few.std()), rel=4 / 800**0.5)
    assert float(few.std()) < most * float(full.std())


def test_a_law_that_ignores_the_weights_would_be_found_out():
    """Equal probabilities are unbiased too, but their error is half as large again."""
    rng = generator(0, "test")
    equal = torch.cat([torch.zeros(1), torch.full((9,), 1 / 9)]).double()
    ours, even = [], []
    for _ in range(200):
        f = chains_that_differ(32, rng)
        ours.append(estimate(f, inclusion(SHORT, 1), rng)[0] - float(f.sum(1).mean()))
        even.append(estimate(f, equal, rng)[0] - float(f.sum(1).mean()))
    assert torch.tensor(even).std() > 1.5 * torch.tensor(ours).std()


def test_where_every_node_is_drawn_the_error_is_the_usual_one_in_the_mean():
    rng = generator(0, "test")
    found = [
        standard_error(torch.randn(16, generator=rng).double(), even_starts(16, rng)) ** 2
        for _ in range(2000)
    ]
    assert sum(found) / 2000 == pytest.approx(1 / 16, rel=0.05)


def test_in_proportion():
    sizes, counts = torch.tensor([1.0, 0.0, 3.0, 4.0]), torch.zeros(4)
    rng = generator(0, "test")
    for _ in range(2000):
        counts += torch.bincount(in_proportion(sizes, 2, rng), minlength=4)
    torch.testing.assert_close(counts / 4000, sizes / 8, atol=0.03, rtol=0)
    assert counts[1] == 0
