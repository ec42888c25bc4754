"""Gain at full scale: what toy2d's gain says of the same samples, unbiased however the samples
are shared out, cheap to compare.
"""

import pytest
import torch
from PIL import ImageOps
from small import config, photos, workshop

from personalize.adapters.trainable import choose
from personalize.data.decode import open_rgb
from personalize.data.latents import PromptCache, make_pixels
from personalize.data.photos import scan
from personalize.drift.gain import HeldOut, ask_the_base, encode_held_out, peak, share_out
from personalize.pipeline.load import load
from toy2d.core.drift import gain, log_snr_bands
from toy2d.core.rng import generator
from toy2d.core.schedule import Schedule

torch.set_num_threads(1)

ASKED = {"class_prompt": "a photo of a dog", "held_out": 1, "measure_nodes": 5, "gain_samples": 24}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Two held-out pictures, the base asked, and then moved adapters."""
    model = load(str(workshop() / "sd"))
    theta = choose(model, "lora")
    prompts = PromptCache(model)

    def predict(x_t, t, texts):
        return model.predict(x_t, t, prompts(texts))

    c = config("unused", **ASKED)
    records = scan(photos(tmp_path_factory.mktemp("held") / "out", 2)).records
    pictures = encode_held_out(model, c, records, 64)
    file = tmp_path_factory.mktemp("cache") / "held_out.safetensors"
    held = ask_the_base(file, predict, pictures, model.schedule, c)
    at_start = held.columns(predict, 1)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theta.values():
            p.add_(0.2 * torch.randn(p.shape, generator=rng))

    def base(x_t, t, texts):
        with model.base():
            return predict(x_t, t, texts)

    return model, predict, base, held, at_start, (file, pictures, c)


@pytest.mark.parametrize(("pad", "crop"), [(False, "center"), (True, "pad")])
def test_held_out_pictures_are_cut_as_training_cuts_them_and_mirrored(tmp_path, pad, crop):
    """Pictures that are not square: first as they are, then as a mirrored file would be encoded."""
    records = scan(photos(tmp_path / "out", 2, (80, 64))).records
    mirrored = tmp_path / "mirrored"
    mirrored.mkdir()
    for r in records:
        ImageOps.mirror(open_rgb(r.path)).save(mirrored / f"{r.path.stem}.png")
    model = load(str(workshop() / "sd"))
    found = encode_held_out(model, config("unused", pad=pad, **ASKED), records, 64)
    for i, r in enumerate([*records, *scan(mirrored).records]):
        mean, std = model.posterior(make_pixels(r, 64, crop)[None])
        torch.testing.assert_close(found.mean[i], mean[0])
        torch.testing.assert_close(found.std[i], std[0])
    assert found.prompts == {
        "subject": ["a photo of sks dog"] * 4,
        "class": ["a photo of a dog"] * 4,
    }


def test_at_the_start_nothing_is_learnt_to_the_bit(setting):
    at_start = setting[4]
    assert {
        "gain",
        "gain_error",
        "gain/detail",
        "gain/shape",
        "gain/identity",
        "binding",
        "leak",
    } <= set(at_start)
    assert not any(at_start.values())


def test_it_is_toy2ds_gain_of_the_same_samples(setting):
    """Each sample asked alone through toy2d.core.drift.gain, its base a live one."""
    _, predict, base, held, *_ = setting
    weights = held.schedule.path_weights()
    total = dict.fromkeys(held.base, 0.0)
    for k in range(len(held.node)):
        x0, eps = held._draw([k])
        node, row = int(held.node[k]), int(held.picture[k])
        noise = eps.expand(len(held.schedule), *eps.shape)
        count = int((held.node == node).sum())
        for group, prompts in held.pictures.prompts.items():
            terms = gain(predict, base, held.schedule, x0, noise, [prompts[row]])
            total[group] += float(terms[node]) / count
    row = held.columns(predict, 1)
    assert weights[0] == 0
    assert row["gain"] == pytest.approx(total["subject"], rel=1e-3)
    assert row["leak"] == pytest.approx(total["class"], rel=1e-3)
    assert row["binding"] == pytest.approx(total["subject"] - total["class"], rel=1e-2)
    assert abs(row["gain"]) > 1


def test_bands_add_up(setting):
    row = setting[3].columns(setting[1], 1)
    bands = [row[f"gain/{band}"] for band in ("detail", "shape", "identity")]
    assert sum(bands) == pytest.approx(row["gain"])
    errors = [row[f"gain_error/{band}"] for band in ("detail", "shape", "identity")]
    assert sum(e**2 for e in errors) ** 0.5 == pytest.approx(row["gain_error"])


def test_without_a_class_prompt_there_is_no_contrast(setting):
    model = setting[0]
    records = scan(workshop() / "photos").records[:1]
    pictures = encode_held_out(model, config("unused", class_prompt=None), records, 64)
    assert set(pictures.prompts) == {"subject"}


def test_a_resumed_run_asks_nobody_and_gets_the_same(setting):
    file, pictures, c = setting[5]
    held = setting[3]
    again = ask_the_base(file, None, pictures, setting[0].schedule, c)
    assert all(torch.equal(again.base[g], held.base[g]) for g in held.base)
    assert again.columns(setting[1], 1) == held.columns(setting[1], 1)


def test_the_samples_depend_on_the_seed_alone(setting):
    _, pictures, c = setting[5]
    schedule = setting[0].schedule
    one, same = (HeldOut.draw(pictures, schedule, c) for _ in range(2))
    assert all(
        torch.equal(a, b) for a, b in zip(one._draw([3, 5]), same._draw([3, 5]), strict=True)
    )
    assert torch.equal(one._draw([3, 5])[1][1:], one._draw([5])[1])  # whatever is drawn beside it
    counts = torch.bincount(one.picture, minlength=4)
    assert counts.max() - counts.min() <= 1  # each picture and its mirror image equally often


def test_pictures_are_mirrored(setting):
    """Rows: pictures, then their mirror images."""
    mean = setting[3].pictures.mean
    assert len(mean) == 4
    assert not torch.allclose(mean[0], mean[2])


@pytest.mark.parametrize("samples", [4, 20, 64])
def test_samples_are_shared_out_by_weight(samples):
    schedule = Schedule.linear(1000).strided(10)
    counts = share_out(schedule, samples)
    assert counts[0] == 0
    assert counts[1:].min() >= 2
    assert counts.sum() == max(samples, 18)
    assert (counts[1:].diff() <= 0).all()  # more at little noise
    law = schedule.path_weights() * schedule.alpha_bar
    wanted = law / law.sum() * max(samples, 18)
    assert (counts <= (wanted + 1).clamp(min=2)).all()  # above 2, no more than its share asks for


class Shifted:
    """A stand-in for pictures: a law of x0 on the plane, so that the full sum is known."""

    def __init__(self, n: int, rng):
        self.mean = torch.randn(n, 2, 1, 1, generator=rng, dtype=torch.float64)
        self.std = torch.zeros_like(self.mean)
        self.prompts = {"subject": ["x"] * n}


def test_unbiased_against_the_full_sum_and_its_error_is_right():
    """100 seeds of 40 samples on 9 nodes, each against toy2d's gain of every picture at every
    node, 400 draws each.
    """
    rng, schedule = generator(0, "test"), Schedule.linear(1000)
    pictures = Shifted(6, rng)
    short = schedule.strided(10)

    def star(x_t, t, c):
        return 0.5 * x_t

    def tuned(x_t, t, c):
        return 0.6 * x_t + 0.1 * x_t.sin()

    x0 = pictures.mean.repeat(400, 1, 1, 1)
    noise = torch.randn(10, *x0.shape, generator=rng, dtype=torch.float64)
    full = gain(tuned, star, short, x0, noise, ["x"] * len(x0)).sum(0)
    truth, truth_error = float(full.mean()), float(full.std()) / len(full) ** 0.5

    means, errors = [], []
    for seed in range(100):
        c = config("unused", measure_nodes=10, gain_samples=40, seed=seed)
        held = HeldOut.draw(pictures, schedule, c)
        held.base["subject"] = held.errors(star, "subject")
        row = held.columns(tuned, 1)
        means.append(row["gain"])
        errors.append(row["gain_error"])
    means, errors = torch.tensor(means), torch.tensor(errors)
    spread = float(means.std())
    assert abs(float(means.mean()) - truth) < 4 * (spread**2 / 100 + truth_error**2) ** 0.5
    assert abs(truth) > 3 * spread / 10  # else zero would pass
    assert float((errors**2).mean()) ** 0.5 == pytest.approx(spread, rel=4 * 0.07)


def test_one_band_of_nodes(setting):
    held = setting[3]
    grown = torch.ones(len(held.node), dtype=torch.float64)
    for nodes in log_snr_bands(held.schedule).values():
        mean, error = held.total(grown, nodes)
        weights = held.schedule.path_weights()[nodes]
        assert mean == pytest.approx(float(weights.sum()))
        assert error == pytest.approx(0, abs=1e-12)


def test_the_error_of_the_total_is_that_of_independent_nodes(setting):
    held = setting[3]
    grown = torch.randn(len(held.node), generator=torch.Generator().manual_seed(0)).double()
    by_node = [grown[held.node == t] for t in range(1, len(held.schedule))]
    weights = held.schedule.path_weights()[1:].tolist()
    squares = [w**2 * float(g.var()) / len(g) for w, g in zip(weights, by_node, strict=True)]
    mean, error = held.total(grown)
    assert error == pytest.approx(sum(squares) ** 0.5)
    means = [w * float(g.mean()) for w, g in zip(weights, by_node, strict=True)]
    assert mean == pytest.approx(sum(means))


def test_the_peak_is_the_first_best_row():
    rows = [
        {"step": 0, "gain": 0.0},
        {"step": 5},
        {"step": 10, "gain": 3.0},
        {"step": 20, "gain": 3.0},
        {"step": 30, "gain": -1.0},
    ]
    assert peak(rows) == {"gain_peak": 3.0, "gain_peak_step": 10}
    assert peak([{"step": 0}, {"step": 1, "gain": ""}]) == {}


def test_a_run_measures_what_it_learns(tmp_path):
    """Columns in history.csv, the peak in metrics.json and in the last message; the held-out
    picture does not train.
    """
    import json

    from personalize.train.experiment import run
    from toy2d.runs.files import read_csv

    said, folder = [], photos(tmp_path / "photos", 4)
    c = config(tmp_path / "run", instance_data_dir=str(folder), probe_steps=2, **ASKED)
    run(c, said.append)
    rows = read_csv(tmp_path / "run" / "history.csv")
    assert [r.get("gain", "") != "" for r in rows] == [True, False, True, False, True]
    assert rows[0]["gain"] == rows[0]["leak"] == 0
    assert rows[-1]["gain_error"] > 0
    assert rows[-1]["binding"] == pytest.approx(rows[-1]["gain"] - rows[-1]["leak"])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["gain_peak_step"] in (0, 2, 4)
    assert f"after step {metrics['gain_peak_step']}" in said[-1]
    env = json.loads((tmp_path / "run" / "env.json").read_text())
    assert "held_out_hash" in env
    plain = config(tmp_path / "plain", instance_data_dir=str(folder), max_train_steps=1)
    run(plain, said.append)
    assert not any("gain" in k for k in read_csv(tmp_path / "plain" / "history.csv")[-1])
    assert "gain" not in said[-1]
    assert "held_out" not in json.loads((tmp_path / "plain" / "config.json").read_text())
