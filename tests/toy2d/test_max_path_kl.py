"""--max_path_kl in the toy: the target is kept over seeds, a resumed run is the same run."""

from dataclasses import replace

import pytest
import torch

from toy2d.config import ToyConfig, smoke
from toy2d.core.rng import generator
from toy2d.data import world_pool
from toy2d.experiment import adapt_weights
from toy2d.measure import drift_on_chains
from toy2d.prepare import Setting, make_groups, snapshot_probe, target_probe
from toy2d.runs.files import UserError
from toy2d.runs.spec import parse_run
from toy2d.train import Saving, Streams, Watch, fit

torch.set_num_threads(1)
STEPS, EVERY, NATS = 400, 20, 0.03


@pytest.fixture(scope="module")
def lab():
    """A setting of four seeds, untrained bases, and chains of them."""
    more = {"runs": ("l2:0.005", "standard"), "learning_rate": 1e-3, "steps": STEPS, "chains": 8}
    target = {"max_path_kl": NATS, "path_kl_steps": EVERY}
    setting = Setting(replace(smoke(), seeds=(0, 1, 2, 3), **more, **target))
    star = setting.net.init([generator(s, "init") for s in setting.seeds])
    return setting, star, snapshot_probe(setting, star)


def trained(lab, kept=None, resume=None):
    """(groups, weights after each measurement); `kept` collects a checkpoint."""
    setting, star, probe = lab
    c, world = setting.config, setting.world
    groups, few, weights = make_groups(setting, star, probe), target_probe(probe), []
    pools = {"instance": world_pool(world, (world.new,), c.shots, c.seeds, "instance")}

    def observe(step, _):
        adapt_weights(groups, few)
        weights.append(groups[0].weight.clone())

    def save(tensors, scalars):
        kept.append(({k: v.clone() for k, v in tensors.items()}, scalars))

    watch = Watch(observe, tuple(range(EVERY, STEPS, EVERY)))
    saving = Saving(resume=resume) if kept is None else Saving(save, STEPS - 50, resume)
    streams = Streams(pools, c.seeds, c.batch_size, "finetune")
    fit(groups, streams, setting.schedule, STEPS, watch, saving)
    return groups, weights


@pytest.fixture(scope="module")
def whole(lab):
    """(groups, weights, checkpoint) of one training."""
    kept = []
    return *trained(lab, kept), kept[0]


def test_the_target_is_kept_over_seeds_and_standard_is_left_alone(lab, whole):
    """Standard drifts several times as far on each seed; the geometric mean over seeds is near the
    target. One seed alone may be off by a factor: 20 measurements are few.
    """
    (held, free), weights, _ = whole
    reached, without = (
        torch.tensor([r["path_kl"][0] for r in drift_on_chains(g, lab[2])]) for g in (held, free)
    )
    assert (without > 3 * reached).all()
    assert 0.6 < float((reached / NATS).log().mean().exp()) < 1.6
    assert free.adapted is None
    assert len({float(w) for w in weights[-1]}) == 4  # each seed has found a weight of its own


def test_a_resumed_run_goes_on_with_its_weights(lab, whole):
    (held, _), weights, checkpoint = whole
    (again, _), rest = trained(lab, resume=checkpoint)
    assert all(torch.equal(held.theta[k], again.theta[k]) for k in held.theta)
    assert all(torch.equal(a, b) for a, b in zip(weights[-len(rest) :], rest, strict=True))
    assert not torch.equal(checkpoint[0]["0/weight"], torch.full((4,), 0.005))


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"max_path_kl": 0.0}, "must be a number of nats above 0"),
        ({"max_path_kl": -1.0}, "must be a number of nats above 0"),
        ({"max_path_kl": 1.0, "runs": ("standard",)}, "no run has a term beside standard's"),
        ({"max_path_kl": 1.0, "path_kl_steps": 40}, "measures nothing within 40 steps"),
        ({"path_kl_steps": 5}, "no effect without --max_path_kl"),
    ],
)
def test_what_cannot_be_a_target_is_refused(chosen, said):
    with pytest.raises(UserError, match=said):
        replace(smoke(), **chosen)


def test_a_configuration_without_it_reads_as_before():
    assert not {"max_path_kl", "path_kl_steps"} & set(ToyConfig().as_dict())


@pytest.mark.parametrize(
    ("spec", "term"),
    [("standard", None), ("replay_all:1", "prior"), ("prior:1+l2_decoupled:2", "l2")],
)
def test_the_last_terms_weight_is_the_one_that_adapts(spec, term):
    assert parse_run(spec).last_term == term
