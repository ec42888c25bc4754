"""The state of training by itself: its copy goes on as the original does, and its log holds means.

With whole runs, and with a negative control for every part: test_resume.py.
"""

import copy

import pytest
import torch
from diffusers.training_utils import EMAModel

from personalize.train.state import State


class Scaler:
    """As much of a GradScaler as a checkpoint knows."""

    def __init__(self, scale: float):
        self.scale = scale

    def state_dict(self) -> dict:
        return {"scale": self.scale}

    def load_state_dict(self, state: dict) -> None:
        self.scale = state["scale"]


def fresh(seed: int, lr: float = 0.1, ema: bool = True, weight: float | None = None) -> State:
    """Two groups with rates of their own that halve every step."""
    rng = torch.Generator().manual_seed(seed)
    theta = {n: torch.nn.Parameter(torch.randn(3, generator=rng)) for n in ("a", "b")}
    groups = [{"params": [theta["a"]], "lr": lr}, {"params": [theta["b"]], "lr": lr / 10}]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    average = EMAModel(theta.values(), decay=0.9, use_ema_warmup=True) if ema else None
    return State(theta, optimizer, schedule, average, Scaler(2.0**seed), weight=weight)


def steps(state: State, n: int) -> State:
    for _ in range(n):
        state.optimizer.zero_grad()
        loss = sum((p - state.step) ** 2 for p in state.theta.values()).sum()
        loss.backward()
        state.optimizer.step()
        state.lr_scheduler.step()
        if state.ema is not None:
            state.ema.step(state.theta.values())
        state.step += 1
        state.add_to_log({"instance": loss, "l2": 2 * loss})
    return state


def weights(state: State) -> list:
    return [p.tolist() for p in state.theta.values()]


@pytest.mark.parametrize("ema", [True, False])
def test_a_restored_copy_goes_on_as_the_original(ema):
    """Weights, moments, average, rates of both groups, log, loss scale and adapted weight."""
    first = steps(fresh(0, ema=ema, weight=0.25), 3)
    first.seconds = 12.5
    kept = copy.deepcopy(first.exact())
    again = steps(fresh(1, ema=ema, weight=1.0), 1)  # whatever was there is replaced
    again.restore(*kept)
    assert (again.step, again.seconds, again.count, again.weight) == (3, 12.5, 3, 0.25)
    assert again.scaler.scale == 1.0
    for state in (first, again):
        assert [g["lr"] for g in state.optimizer.param_groups] == [0.1 / 8, 0.01 / 8]
        assert state.lr_scheduler.get_last_lr() == [0.1 / 8, 0.01 / 8]
        assert state.learning_rate == 0.1 / 8
        steps(state, 2)
    assert weights(again) == weights(first)
    assert again.take_log() == first.take_log()
    if ema:
        averages = [[s.tolist() for s in state.ema.shadow_params] for state in (first, again)]
        assert averages[0] == averages[1]
    ours, theirs = again.exact(), first.exact()
    assert ours[1] == theirs[1]
    assert ours[0].keys() == theirs[0].keys()
    assert all(torch.equal(ours[0][k], theirs[0][k]) for k in ours[0])


def test_a_restored_copy_shares_no_memory_with_what_was_read():
    kept = copy.deepcopy(steps(fresh(0), 2).exact())
    before = copy.deepcopy(kept[0])
    again = fresh(1)
    again.restore(*kept)
    steps(again, 1)
    assert all(torch.equal(kept[0][k], before[k]) for k in before if not k.startswith("sums/"))


def test_weights_alone_come_with_fresh_moments_and_the_average_at_theta():
    first = steps(fresh(0), 3)
    kept = copy.deepcopy(first.weights_only())
    assert set(kept[0]) == {"theta/a", "theta/b"}
    assert kept[1] == {"step": 3, "seconds": 0.0, "exact": False}
    again = fresh(1)
    again.restore(*kept)
    assert weights(again) == weights(first) == [s.tolist() for s in again.ema.shadow_params]
    assert again.ema.optimization_step == 3
    assert not again.optimizer.state
    assert (again.step, again.count, again.sums) == (3, 0, {})
    assert again.scaler.scale == 2.0  # of its own: a checkpoint of weights holds none


def test_a_weight_that_is_adapted_is_kept_and_one_that_is_not_stays_away():
    """A run with a target may begin at a run without one: then its own weight holds."""
    adapted, plain = steps(fresh(0, weight=0.25), 1), steps(fresh(0), 1)
    assert adapted.weights_only()[1]["weight"] == 0.25
    assert "weight" not in plain.exact()[1]
    target = fresh(1, weight=3.0)
    target.restore(*copy.deepcopy(plain.exact()))
    assert target.weight == 3.0
    none = fresh(1)
    none.restore(*copy.deepcopy(adapted.exact()))
    assert none.weight is None


def test_the_log_holds_means_since_it_was_last_taken():
    state = fresh(0)
    assert (state.step, state.seconds, state.count, state.sums) == (0, 0.0, 0, {})
    assert state.take_log() == {}
    for value in (1.0, 2.0, 6.0):
        state.add_to_log({"instance": torch.tensor(value, requires_grad=True)})
    assert not state.sums["instance"].requires_grad
    assert state.take_log() == {"instance": 3.0}
    assert (state.sums, state.count) == ({}, 0)
    state.add_to_log({"instance": torch.tensor(5.0)})
    assert state.take_log() == {"instance": 5.0}
