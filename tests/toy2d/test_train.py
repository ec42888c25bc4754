"""The stack: each member is its run alone; noise is shared across objectives; a diverging member
stops alone.
"""

import pytest
import torch

from toy2d.core.objectives import FISHER, L2, OUTPUT, PRIOR, STANDARD, Objective
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule
from toy2d.data import ExamplePool, Pentagon, world_pool
from toy2d.model import EpsMLP, members
from toy2d.train import Group, Saving, Streams, Watch, fit, restore, state

SCHEDULE = Schedule.log_snr(20, 5.0, -10.0)
WORLD = Pentagon(SCHEDULE)
NET = EpsMLP(WORLD.tokens, 20, width=16, alpha_bar=tuple(SCHEDULE.alpha_bar.tolist()))
SEEDS = (0, 1)
POOLS = {
    "instance": world_pool(WORLD, (WORLD.new,), 6, SEEDS, "instance"),
    "class": world_pool(WORLD, (0,), 20, SEEDS, "class"),
    "all": world_pool(WORLD, WORLD.old, 10, SEEDS, "all"),
}
BASE = NET.init([generator(s, "init") for s in SEEDS])
ONES = {k: torch.ones_like(v) for k, v in BASE.items()}


def group(objectives, seeds, lr=1e-3):
    index = torch.tensor(seeds)
    return Group(
        NET,
        members(BASE, index),
        members(BASE, index),
        Objective.stack(objectives),
        index,
        [f"{o.active}, seed {s}" for o, s in zip(objectives, seeds, strict=True)],
        {"instance": "instance", "prior": "class", "output": "all"},
        lr,
        members(ONES, index),
    )


def train(groups, steps=30, pools=POOLS, seeds=SEEDS, **kwargs):
    fit(groups, Streams(pools, seeds, 8, "test"), SCHEDULE, steps, **kwargs)
    return [{k: p.detach() for k, p in g.theta.items()} for g in groups]


@pytest.mark.parametrize(
    "objective",
    [
        STANDARD,
        PRIOR(2.0),
        L2(0.1),
        OUTPUT(1.0),
        FISHER(0.1),
        PRIOR(1.0) + L2(0.1),
        L2(0.1, decoupled=True),
    ],
)
def test_a_member_is_its_run_alone(objective):
    """Equal to 1e-5: batched matmuls of another batch count may sum in another order (1e-7 a step),
    and Adam, whose first steps are sign-like, passes such a difference on at size lr * relative
    error of the gradient."""
    stack = train([group([objective] * 4, [0, 1, 0, 1]), group([STANDARD] * 2, [0, 1])])[0]
    alone_pools = {k: ExamplePool(p.x0[1:], p.cond[1:]) for k, p in POOLS.items()}
    single = group([objective], [1])
    single.seed_index = torch.tensor([0])
    alone = train([single], pools=alone_pools, seeds=(1,))[0]
    for name in alone:
        torch.testing.assert_close(stack[name][1], alone[name][0], rtol=0, atol=1e-5)
    assert torch.equal(stack["weight0"][1], stack["weight0"][3])


def test_the_l2_stack_moves_as_autograd_says():
    """The distance in the loss and its gradient in place give the same run, to rounding."""
    in_place = train([group([L2(0.3)], [0])])[0]
    g = group([STANDARD], [0])
    terms, anchor = g.terms, g.anchors["l2"]
    g.terms = lambda s, b: terms(s, b) | {"l2": 0.3 * anchor.squared_distance()}
    by_autograd = train([g])[0]
    for name in in_place:
        torch.testing.assert_close(in_place[name], by_autograd[name], rtol=0, atol=1e-5)


def test_instance_noise_is_bit_identical_across_objectives():
    seen = {}
    for label, objective in {
        "standard": STANDARD,
        "prior": PRIOR(1.0),
        "output": OUTPUT(1.0),
    }.items():
        g = group([objective], [0])
        terms = g.terms

        def spy(schedule, batch, terms=terms, label=label):
            seen.setdefault(label, []).append(batch["instance"])
            return terms(schedule, batch)

        g.terms = spy
        train(
            [g],
            steps=5,
            pools={k: POOLS[k] for k in {"instance", *(() if label == "standard" else POOLS)}},
        )
    for other in ("prior", "output"):
        for a, b in zip(seen["standard"], seen[other], strict=True):
            assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_weight_zero_in_the_loop_is_standard_bit_for_bit():
    zero, standard = (train([group([o], [0])])[0] for o in (L2(0.0), STANDARD))
    assert all(torch.equal(zero[k], standard[k]) for k in zero)


def test_a_diverging_member_stops_with_its_name_and_the_others_go_on():
    """Its own pool holds an infinite point from the start of seed 1: the loss is not finite at
    once.
    """
    x0 = POOLS["instance"].x0.clone()
    x0[1] = float("inf")
    pools = POOLS | {"instance": ExamplePool(x0, POOLS["instance"].cond)}
    g = group([STANDARD] * 2, [0, 1])
    theta = train([g], pools=pools)[0]
    healthy = train([group([STANDARD] * 2, [0, 1])])[0]
    assert list(g.stopped) == [1]
    assert "seed 1" in g.stopped[1]
    assert "step 0" in g.stopped[1]
    for name in theta:
        assert torch.equal(theta[name][1], BASE[name][1])  # as it was before the bad step
        torch.testing.assert_close(theta[name][0], healthy[name][0], rtol=0, atol=1e-5)


def test_an_absurd_learning_rate_is_caught_before_the_update():
    g = group([STANDARD], [0], lr=1e20)
    theta = train([g])[0]
    assert "last finite loss" in g.stopped[0]
    assert all(torch.isfinite(p).all() for p in theta.values())


def keeping(kept: dict):
    """A `save` that keeps every state by its step."""
    return lambda t, s: kept.setdefault(s["step"], ({n: v.clone() for n, v in t.items()}, s))


@pytest.mark.parametrize("k", [1, 7, 29])
def test_resume_is_bit_exact(k):
    """N steps = k + restore + (N - k)."""
    objectives = [STANDARD, PRIOR(1.0), L2(0.1), OUTPUT(1.0), FISHER(0.1)]

    def groups():
        return [group([o] * 2, [0, 1]) for o in objectives]

    whole = train(groups())
    kept = {}
    train(groups(), saving=Saving(keeping(kept), 1))
    second = train(groups(), saving=Saving(resume=kept[k]))
    for a, b in zip(whole, second, strict=True):
        assert all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("lost", ["exp_avg/weight0", "rng/instance/0"])
def test_resume_needs_every_part_of_the_state(lost):
    """The negative control: drop one state and the result differs."""
    whole = train([group([STANDARD], [0])])[0]
    g, streams = group([STANDARD], [0]), Streams(POOLS, SEEDS, 8, "test")
    kept = {}
    fit([g], streams, SCHEDULE, 30, saving=Saving(keeping(kept), 10))
    tensors, scalars = kept[10]
    key = next(n for n in tensors if n.endswith(lost))
    tensors[key] = generator(9, "other").get_state() if "rng" in lost else tensors[key] * 0
    broken = train([group([STANDARD], [0])], saving=Saving(resume=(tensors, scalars)))[0]
    assert any(not torch.equal(whole[n], broken[n]) for n in whole)


def test_state_and_restore_are_inverse():
    g, streams = group([STANDARD], [0]), Streams(POOLS, SEEDS, 8, "test")
    optimizer = fit([g], streams, SCHEDULE, 3)
    tensors, scalars = state([g], optimizer, streams, 3)
    other, other_streams = group([STANDARD], [0]), Streams(POOLS, SEEDS, 8, "else")
    other_optimizer = fit([other], other_streams, SCHEDULE, 1)
    assert restore([other], other_optimizer, other_streams, tensors, scalars) == 3
    again, _ = state([other], other_optimizer, other_streams, 3)
    assert all(torch.equal(tensors[n], again[n]) for n in tensors)


def test_observing_does_not_change_training():
    plain = train([group([STANDARD], [0])])[0]
    seen = []
    watch = Watch(lambda step, terms: seen.append(step), (0, 5, 30))
    watched = train([group([STANDARD], [0])], watch=watch)[0]
    assert seen == [0, 5, 30]
    assert all(torch.equal(plain[n], watched[n]) for n in plain)
