"""Drift at full scale: cached answers equal a second network's, and a constant shift has its
closed form.
"""

import dataclasses
import itertools
import os

import pytest
import torch
from small import config, workshop

from personalize.adapters.trainable import choose
from personalize.config.rules import resolve
from personalize.data.latents import PromptCache
from personalize.drift.chains import (
    chain_sampling,
    forget_oldest,
    kept_chains,
    make_chains,
    prompt_groups,
    shared_file,
    writable,
)
from personalize.drift.measure import DriftMeter, Probes, evaluations, path_columns, path_drift
from personalize.pipeline.load import load
from toy2d.core import drift
from toy2d.runs.files import read_csv
from toy2d.runs.folder import RunFolder, load_tensors

torch.set_num_threads(1)

SHAPE = (4, 8, 8)  # of a latent
GROUPS = {"class_prompt": "a photo of a dog", "context_prompts": ("a dog in the snow",)}


@pytest.fixture(scope="module")
def setting():
    """A model with adapters, chains of its base, and then moved adapters."""
    model = load(str(workshop() / "sd"))
    theta = choose(model, "lora")
    prompts = PromptCache(model)

    def predict(x_t, t, texts):
        return model.predict(x_t, t, prompts(texts))

    c = config("unused", **GROUPS, measure_nodes=5, measure_chains=3, nodes_per_chain=1)
    chains = make_chains(predict, model.schedule, chain_sampling(c, SHAPE))
    at_start = path_drift(predict, chains, 4)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theta.values():
            p.add_(0.2 * torch.randn(p.shape, generator=rng))

    def base(x_t, t, texts):
        with model.base():
            return predict(x_t, t, texts)

    return model, predict, base, c, chains, at_start


def test_the_base_has_not_moved(setting):
    # nodes are batched otherwise than when the chain was made: rounding
    assert all(abs(mean) < 1e-8 for mean, _, _ in setting[-1].values())


def test_cached_answers_equal_the_base_asked_again(setting):
    """path KL and delta eps with the stored answers, against toy2d's functions with a live
    second predictor.
    """
    model, predict, base, c, chains, _ = setting
    short = model.schedule.strided(c.measure_nodes)
    cached = path_drift(predict, chains, 3)
    for name, group in chains.items():
        live = drift.path_kl(predict, base, short, group.x, group.prompts)
        assert cached[name][0] == pytest.approx(float(live[0]), rel=1e-4)
        assert cached[name][1] == pytest.approx(float(live[1]), rel=1e-4)
        assert cached[name][0] > 0.01


def test_all_nodes_give_the_full_sum(setting):
    """With every node of every chain evaluated: toy2d's path KL, its error, and delta eps."""
    model, predict, base, c, chains, _ = setting
    short = model.schedule.strided(c.measure_nodes)
    probes = Probes.of(chains, 99, seed=0)
    squares = probes.squares(predict, 3)
    full, mine = path_drift(predict, chains, 4), probes.path_kl(squares)
    for name in full:
        assert mine[name] == pytest.approx(full[name], rel=1e-4)
    live = []
    for g in chains.values():
        for n in range(1, len(short)):
            t = torch.full((len(g.prompts),), n)
            live.append(drift.squared_error(predict, base, short, g.x[n], t, g.prompts))
    expected = float(torch.cat(live).mean()) ** 0.5
    assert float((probes.terms() * squares).sum()) ** 0.5 == pytest.approx(expected, rel=1e-4)


def test_one_node_of_each_chain_is_unbiased(setting):
    """200 draws of the nodes against the full sum over them: path KL of each group, and delta
    eps.
    """
    _, predict, _, _, chains, _ = setting
    everything = Probes.of(chains, 99, seed=0)
    squares = everything.squares(predict, 8)
    full = everything.path_kl(squares)
    table = dict(
        zip(
            zip(everything.prompts, everything.x.flatten(1)[:, 0].tolist(), strict=True),
            squares,
            strict=True,
        )
    )
    found, eps = {name: [] for name in chains}, []
    for seed in range(200):
        probes = Probes.of(chains, 1, seed)
        keys = zip(probes.prompts, probes.x.flatten(1)[:, 0].tolist(), strict=True)
        mine = torch.stack([table[key] for key in keys])
        for name, (mean, _, _) in probes.path_kl(mine).items():
            found[name].append(mean)
        eps.append(float((probes.terms() * mine).sum()))
    for name, means in found.items():
        means = torch.tensor(means)
        assert abs(float(means.mean()) - full[name][0]) < 4 * float(means.std()) / 200**0.5
        assert float(means.std()) > 0
    eps = torch.tensor(eps)
    whole = float((everything.terms() * squares).sum())
    assert abs(float(eps.mean()) - whole) < 4 * float(eps.std()) / 200**0.5


@pytest.mark.parametrize("each", [1, 2, 3])
def test_some_of_the_pairs_stand_for_all(setting, each):
    """The sum that delta eps takes over some of the pairs is unbiased for the sum over all nodes
    and chains, however many nodes of a chain are drawn. Here a square depends on its node alone.
    """
    found = []
    for seed in range(400):
        probes = Probes.of(setting[4], each, seed)
        some = probes.some()
        terms = (probes.terms() * 10.0**-probes.node)[some]
        found.append(float(terms.sum()) * len(probes.node) / len(some))
    found = torch.tensor(found)
    wanted = (0.1 + 0.01 + 0.001 + 0.0001) / 4
    assert abs(float(found.mean()) - wanted) < 4 * float(found.std()) / 20


class Counting:
    """A predictor that counts the samples it is asked for, `h` away from the base."""

    def __init__(self, base, h: float):
        self.base, self.h, self.asked = base, h, 0

    def __call__(self, x_t, t, prompts):
        self.asked += len(x_t)
        return self.base(x_t, t, prompts) + self.h


def meter(setting, predict, file) -> DriftMeter:
    model, *_, chains, _ = setting
    return DriftMeter(model, {}, {}, predict, Probes.of(chains, 1, 0), 4, file)


def test_between_full_measurements_few_pairs_are_evaluated(setting, tmp_path):
    """The first probed step evaluates every second chain, later ones two pairs, step 0 none; a
    shift that doubles is seen to double.
    """
    live = Counting(setting[2], 0.1)
    m = meter(setting, live, tmp_path / "probe.safetensors")
    assert m.everything(0) == (
        0.0,
        {"class": (0.0, 0.0, 3), "contexts": (0.0, 0.0, 3), "unrelated": (0.0, 0.0, 3)},
    )
    assert live.asked == 0
    first = m.delta_eps(50)
    half, live.asked, live.h = live.asked, 0, 0.2
    second = m.delta_eps(100)
    assert (half, live.asked) == (5, 2)
    assert second == pytest.approx(2 * first, rel=1e-3)
    _, paths = m.everything(150)
    assert live.asked == 2 + 9
    assert set(paths) == {"class", "contexts", "unrelated"}


def test_how_many_evaluations_a_default_run_costs():
    """500 steps, 32 chains: 16 + 8 x 2 + 32, where 0.1 needed 928. Below 5 % of the run, with steps
    of as many forward passes as were measured (lab log, 2026-11-26).
    """
    c = config("unused", class_prompt="a photo of a dog", max_train_steps=500, train_batch_size=1)
    default = {f.name: f.default for f in dataclasses.fields(c)}
    keep = ("probe_steps", "measure_nodes", "measure_chains", "unrelated_prompts", "path_kl_steps")
    c = resolve(dataclasses.replace(c, log_every=10, **{k: default[k] for k in keep}))
    assert evaluations(c) == 16 + 8 * 2 + 32
    assert evaluations(dataclasses.replace(c, path_kl_steps=50)) == 10 * 32
    assert evaluations(dataclasses.replace(c, nodes_per_chain=2)) == 16 + 8 * 2 + 64
    assert evaluations(dataclasses.replace(c, nodes_per_chain=99)) == 18 + 8 * 2 + 288
    passes = {"lora": 2.98, "full": 4.51}  # of a standard step; output asks the base once more
    for train, objective in itertools.product(passes, ("standard", "l2", "prior", "output")):
        step = passes[train] * (2 if objective in ("prior", "output") else 1)
        more = {"train": train, "lora_alpha": None, "objective": objective}
        more |= {"nodes_per_chain": None}
        more |= {"class_data_dir": "unused"} if objective in ("prior", "output") else {}
        assert evaluations(resolve(dataclasses.replace(c, **more))) < 0.05 * 500 * step


def test_evaluations_are_those_that_happen(setting, tmp_path):
    """A run's calls, counted: first probed step, two more, the end."""
    live = Counting(setting[2], 0.1)
    m = meter(setting, live, tmp_path / "probe.safetensors")
    m.everything(0)
    for step in (2, 4, 6):
        m.delta_eps(step)
    m.everything(8)
    c = dataclasses.replace(setting[3], probe_steps=2, max_train_steps=8)
    assert live.asked == evaluations(c) == 5 + 2 + 2 + 9


def test_a_resumed_run_measures_as_it_began(setting, tmp_path):
    """From a step after the first probed one it reads what that one kept; from before, it
    measures again.
    """
    file, live = tmp_path / "probe.safetensors", Counting(setting[2], 0.1)
    m = meter(setting, live, file)
    began = [m.delta_eps(50), m.delta_eps(100)]
    live.asked = 0
    resumed = meter(setting, live, file)
    assert resumed.delta_eps(100) == began[1]
    assert live.asked == 2
    again = meter(setting, live, file)
    assert [again.delta_eps(50), again.delta_eps(100)] == began


def test_growth_is_unbiased_for_the_sum_of_the_first_pairs(setting, tmp_path):
    """Pairs that grow differently: the mean over 300 draws of the two is that of all the first
    pairs.
    """

    def first(x_t, t, prompts):
        return 0.1 * x_t

    m = meter(setting, first, tmp_path / "probe.safetensors")
    began = m.delta_eps(50) ** 2

    def later(x_t, t, prompts):  # moves by itself, and more at much noise
        return first(x_t, t, prompts) + 2 * (t / 1000).reshape(-1, 1, 1, 1)

    m.predict = later
    half = torch.arange(0, 9, 2)
    squares = m.probes.squares(later, 8, half)
    truth = float((m.probes.terms()[half] * squares).sum()) * 9 / 5
    found = []
    for seed in range(300):
        m.seed = seed
        found.append(m.delta_eps(100) ** 2)
    found = torch.tensor(found)
    assert abs(float(found.mean()) - truth) < 4 * float(found.std()) / 300**0.5
    assert abs(truth - began) > 4 * float(found.std()) / 300**0.5


def test_a_constant_shift_has_its_closed_form(setting):
    """eps + h everywhere: delta eps = h sqrt(D) and path KL = h^2 D sum_t w_t, for every chain
    alike.
    """
    model, _, _, c, chains, _ = setting
    h, D = 0.1, 4 * 8 * 8
    for group in chains.values():

        def shifted(x_t, t, texts, group=group):
            return group.base(x_t, t, texts) + h

        one = {"group": group}
        weights = float(model.schedule.strided(c.measure_nodes).path_weights().sum())
        mean, error, n = path_drift(shifted, one, len(group.prompts))["group"]
        assert mean == pytest.approx(h**2 * D * weights, rel=1e-4)
        assert error < 1e-4 * mean
        assert n == len(group.prompts)


def test_pairs_are_chains_at_nodes_that_count(setting):
    """Two nodes of each of nine chains, none twice; node 0 has no weight and is never drawn."""
    chains = setting[4]
    probes = Probes.of(chains, 2, seed=0)
    nodes = probes.node.reshape(9, 2)
    assert (nodes[:, 0] < nodes[:, 1]).all()
    assert nodes.min() >= 1
    for k, (name, row) in enumerate((n, r) for n in chains for r in range(3)):
        assert torch.equal(probes.x[2 * k], chains[name].x[nodes[k, 0], row])
        assert torch.equal(probes.answers[2 * k], chains[name].answers[nodes[k, 0], row])


def test_chains_are_kept_and_found_again(setting, tmp_path):
    model, predict, _, c, _, _ = setting
    file = tmp_path / "chains.safetensors"
    sampling = chain_sampling(c, SHAPE)
    first = kept_chains(file, predict, model.schedule, sampling)
    again = kept_chains(file, None, model.schedule, sampling)  # nobody is asked
    for name in first:
        assert torch.equal(first[name].x, again[name].x)
        assert torch.equal(first[name].answers, again[name].answers)


def test_runs_of_one_base_share_their_chains(setting, tmp_path, monkeypatch):
    """The same base, prompts and sampler: one file, whatever the batch size. Anything else:
    another.
    """
    model, *_, c, _, _ = setting
    monkeypatch.setenv("DRIFTLAB_CACHE", str(tmp_path / "shared"))

    def file(base="base", schedule=model.schedule, dtype="no", **more):
        sampling = chain_sampling(dataclasses.replace(c, **more), SHAPE)
        return shared_file(base, schedule, sampling, dtype)

    assert file() == file(sample_batch_size=1, max_train_steps=9, objective="l2")
    assert file().parent == tmp_path / "shared" / "chains"
    flow = dataclasses.replace(model.schedule, prediction="v")
    others = [
        file("other"), file(dtype="bf16"), file(schedule=flow), file(seed=1), file(measure_nodes=6),
        file(measure_chains=2), file(class_prompt="a cat"), file(unrelated_prompts=("a house",)),
    ]  # fmt: skip
    assert len({file(), *others}) == 9


def test_the_shared_folder_keeps_the_newest_files(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.safetensors").touch()
        os.utime(tmp_path / f"{i}.safetensors", (i, i))
    forget_oldest(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3.safetensors", "4.safetensors"]


def test_where_nothing_can_be_shared_the_run_keeps_its_own(tmp_path):
    (tmp_path / "blocked").write_text("a file")
    own = tmp_path / "chains.safetensors"
    assert writable(tmp_path / "blocked" / "chains" / "x", own) == own
    there = tmp_path / "cache" / "x"
    assert writable(there, own) == there


def test_prompt_groups():
    c = config("unused", class_prompt=None, context_prompts=(), unrelated_prompts=("a house",))
    assert prompt_groups(c) == {"unrelated": ("a house",)}


def test_columns_pool_the_groups():
    row = path_columns({"a": (1.0, 0.3, 10), "b": (4.0, 0.4, 20)})
    assert row["path_kl"] == pytest.approx((10 * 1 + 20 * 4) / 30)
    assert row["path_kl_error"] == pytest.approx(((10 * 0.3) ** 2 + (20 * 0.4) ** 2) ** 0.5 / 30)
    assert row["path_kl/b"] == 4.0


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_writes_the_toys_columns_and_its_blocks(tmp_path, kind):
    from personalize.train.experiment import run

    c = config(tmp_path / "run", "l2", kind, probe_steps=2, **GROUPS)
    run(c, lambda text: None)
    rows = read_csv(tmp_path / "run" / "history.csv")
    assert [r["step"] for r in rows] == [0, 1, 2, 3, 4]
    toy = {
        "step",
        "objective",
        "weight",
        "seed",
        "loss_instance",
        "delta_theta",
        "delta_eps",
        "path_kl",
        "path_kl_error",
        "seconds",
    }
    assert toy <= set(rows[-1])
    assert rows[0]["delta_theta"] == rows[0]["path_kl"] == 0
    assert rows[-1]["delta_theta"] > rows[2]["delta_theta"] > 0
    assert rows[-1]["loss_l2"] == pytest.approx(
        c.l2_reg_weight * rows[-1]["delta_theta"] ** 2, rel=1e-4
    )
    import json

    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    blocks = metrics["delta_theta_blocks"]
    assert sum(v**2 for v in blocks.values()) ** 0.5 == pytest.approx(
        metrics["delta_theta"], rel=1e-6
    )
    assert {"unet.down_blocks.0", "unet.up_blocks.1"} <= set(blocks)
    assert set(metrics["path_kl_groups"]) == {"class", "contexts", "unrelated"}
    assert "ancestral" in metrics["path_kl_sampler"]
    if kind == "full":  # the number is the distance of what was exported
        before = load_tensors(workshop() / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
        after = load_tensors(tmp_path / "run/pipeline/unet/diffusion_pytorch_model.safetensors")
        distance = drift.delta_theta(after, before)
        assert metrics["delta_theta"] == pytest.approx(float(distance), rel=1e-5)
    assert RunFolder(c.output_dir, {}).status == "done"
