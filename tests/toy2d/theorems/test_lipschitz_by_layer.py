"""Theorem 6.7 (c) of lecture 6: the Lipschitz bound with a constant for each layer."""

import pytest
import torch

from toy2d.runs.layers import layer_of
from toy2d.theorems import lipschitz
from toy2d.theorems.lipschitz import by_layer, layer_distances, layer_grams, worst_by_layer
from toy2d.verify.power import WRONG_WEIGHTS, spoiled


def test_each_layers_gram_is_its_jacobians(course):
    net, theta = course.net, {k: p.double() for k, p in course.base(0).items()}
    rng = torch.Generator().manual_seed(0)
    x, t, c = torch.randn(6, 2, generator=rng).double(), torch.arange(6), torch.arange(6) % 5

    def eps(theta, x, t, c):
        return net(theta, x[None, None], t[None, None], c[None, None])[0, 0]

    J = torch.func.vmap(torch.func.jacrev(eps), in_dims=(None, 0, 0, 0))(theta, x, t, c)
    grams = layer_grams(net, theta, x, t, c)
    assert set(grams) == set(net.layers)
    for layer, gram in grams.items():
        mine = [p.flatten(2) for k, p in J.items() if layer_of(k, net.layers) == layer]
        flat = torch.cat(mine, -1)
        torch.testing.assert_close(gram, flat @ flat.mT)


@pytest.mark.parametrize("spec", ["standard", "l2:0.1", "output:1"])
def test_path_kl_is_below_the_bounds_by_layer(course, pair, spec):
    """And the sharper constant is below the sum of the layers', by Cauchy-Schwarz."""
    rows = by_layer(pair(spec), course.chain(0), course.cond)
    assert all(r.holds for r in rows)
    triangle, weighted, cauchy = rows
    assert weighted.rhs <= triangle.rhs * (1 + 1e-9)
    assert 0.2 < cauchy.lhs / cauchy.rhs <= 1


@pytest.mark.parametrize("change", ["w_t x 0.5", "-w_t"])
def test_wrong_weights_are_measured_too(course, change):
    """`verify --power` asks every row what it says of them, a negative constant included."""
    wrong = spoiled(course, WRONG_WEIGHTS[change])
    one = wrong.pair(wrong.which("standard")[0][0])
    rows = by_layer(one, course.chain(0), course.cond)
    right = by_layer(course.pair(course.which("standard")[0][0]), course.chain(0), course.cond)
    assert [r.statement for r in rows] == [r.statement for r in right]
    assert all(a.lhs != b.lhs for a, b in zip(rows[:2], right[:2], strict=True))


def test_layers_distances_add_up_to_the_whole(pair):
    one = pair("standard")
    squares = [d**2 for d in layer_distances(one).values()]
    assert sum(squares) == pytest.approx(one.squared_distance, rel=1e-5)


def test_the_bounds_are_tight_along_each_layers_worst_direction(course, pair, monkeypatch):
    """All of it is used; a constant of any one layer that is 1 % too small fails."""
    one = pair("standard")
    point = course.chain(0)[20, 0], 20, int(course.cond[0])
    rows = worst_by_layer(one, *point)
    assert len(rows) == len(one.net.layers) + 1
    for row in rows:
        assert row.holds
        assert row.lhs / row.rhs == pytest.approx(1, abs=1e-4)
    exact = lipschitz.layer_grams
    for i, layer in enumerate(one.net.layers):

        def wrong(*a, layer=layer):
            return {b: g * (0.99 if b == layer else 1) for b, g in exact(*a).items()}

        monkeypatch.setattr(lipschitz, "layer_grams", wrong)
        assert worst_by_layer(one, *point)[i].is_bug
