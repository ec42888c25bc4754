"""The prompt world: class x context x identifier, exact, and the sentence about its contexts."""

import pytest
import torch

from toy2d.config import prompts
from toy2d.data import Prompts
from toy2d.measure import mode_coverage
from toy2d.model import Bound, EpsMLP
from toy2d.sentences import contexts_reading


@pytest.fixture(scope="module")
def world():
    return prompts().make_world()


def test_every_prompt_is_a_density(world):
    """On a grid of spacing 0.05 a Gaussian of std >= 0.13 is summed to better than 1e-6."""
    axis = torch.arange(-9, 9, 0.05).double()
    x = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    for c in (0, 1, 2, 3, 5, 10, 15, 16, 19):
        assert float(world.log_prob(x, c, 0).exp().sum() * 0.05**2) == pytest.approx(1, abs=1e-5)


def test_eps_is_the_score(world):
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    for c, t in ((0, 0), (6, 40), (17, 90)):
        (score,) = torch.autograd.grad(world.log_prob(x, c, t).sum(), x)
        b = float(1 - world.schedule.alpha_bar[t]) ** 0.5
        torch.testing.assert_close(world.eps(x.detach(), torch.tensor(t), c), -b * score)


def test_a_context_is_one_map_for_every_class_and_for_V(world):
    """mean(c in context k) = A_k mean(c) + b_k: solved from the dog, tested on all others."""
    lift = torch.cat([world.means, torch.ones(20, 3, 1).double()], -1)
    for k in (1, 2, 3):
        affine = torch.linalg.lstsq(lift[0], world.means[k]).solution
        for c in (4, 8, 12, 16):
            torch.testing.assert_close(lift[c] @ affine, world.means[c + k])


def test_words_are_shared_as_the_names_say(world):
    """One length; "V dog in the snow" has the dog's word, the snow's, and V's own."""
    assert {len(t) for t in world.tokens} == {3}
    words = dict(zip(world.names, world.tokens, strict=True))
    (dog, snow, v) = words["V dog in the snow"]
    assert dog == words["dog"][0]
    assert snow == words["cat in the snow"][1]
    assert v == words["V dog"][2]
    assert all(v not in world.tokens[c] for c in world.old)
    assert len(set(world.tokens)) == 20


def test_groups_part_the_old_prompts(world):
    assert sorted(c for g in world.groups.values() for c in g) == list(world.old)
    assert set(world.composed).isdisjoint({*world.old, world.new})


class Exact(Bound):
    """The world's eps with the interface of a bound network; `means` may be moved."""

    def __init__(self, world):
        net = EpsMLP(world.tokens, 100)
        super().__init__(net, {"bias0": torch.zeros(1, 1, 1)})
        object.__setattr__(self, "world", world)

    def __call__(self, x_t, t, cond):
        return self.world.eps(x_t, t, cond)


def test_coverage_is_1_for_the_world_and_a_third_for_one_mode(world):
    """0.997 of the mass is in the ellipses; shares of 256 points are off by a few hundredths."""
    ode = world.schedule
    whole = mode_coverage(world, Exact(world), ode)
    assert all(0.93 < float(v) <= 1 for v in whole.values())
    one = world.means.clone()
    one[:] = one[:, :1]
    collapsed = Prompts(world.schedule)
    object.__setattr__(collapsed, "means", one)
    shares = mode_coverage(world, Exact(collapsed), ode).values()
    assert all(float(v) == pytest.approx(1 / 3, abs=0.01) for v in shares)


def record(weight, *drift):
    groups = ("the class", "the class in contexts", "other classes", "other classes in contexts")
    return {
        "run": f"prior:{weight}",
        "weight": weight,
        "coverage": {"dog": 0.9},
        "kl_composed": {"V dog in the snow": [2.0, 0.1, 9]},
        "kl_base_group": {g: [d, 0.0, 9] for g, d in zip(groups, drift, strict=True)},
    }


@pytest.mark.parametrize(
    ("contexts", "words"),
    [
        (2.0, "keeps the class and loses its contexts"),
        (0.7, "hardly protects its contexts"),
        (0.2, "protects the contexts less than the class"),
        (0.1, "does not lose the contexts to keep the class"),
    ],
)
def test_the_sentence_follows_the_numbers(contexts, words):
    metrics = {"groups": record(1, 1, 1, 1, 1)["kl_base_group"], "replayed_class": "dog"}
    standard = [record(0, 1, 1, 1, 1)] * 3
    said = contexts_reading([[record(1, 0.1, contexts, 0.5, 0.6)] * 3], standard, metrics)
    assert words in " ".join(said)
