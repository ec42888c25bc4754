"""The mini base: training resumes bit for bit, and the official classes open what is published."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from discs import disc
from transformers import AutoModel, AutoModelForImageClassification, CLIPModel

from personalize.config.commands import PARTS, Pretrain
from personalize.data.decode import open_rgb
from personalize.evaluate.judges import load_dino, load_subjects
from personalize.mini import shipped as mini
from personalize.mini.pretrain import clip, data, publish, vae, world
from personalize.mini.pretrain import command as pretrain
from personalize.mini.pretrain.clip import tokenizer
from personalize.mini.pretrain.loop import fit, has_bf16, trained
from personalize.mini.pretrain.muon import Muon
from personalize.mini.pretrain.quality import reconstruction, right_on_shipped_pictures
from personalize.pipeline.load import load
from toy2d.runs.files import UserError
from toy2d.runs.folder import RunFolder


def fresh(out, **asked) -> pretrain.Parts:
    return pretrain.Parts(Pretrain(out=str(out), **asked))


@pytest.mark.parametrize("part", ["vae", "clip", "dino", "classifier"])
def test_each_part_learns(part, small_world, tmp_path, monkeypatch):
    """Fifteen steps on one repeated batch lower its loss."""
    monkeypatch.setattr(clip, "PAIRS", 16)
    of = fresh(tmp_path).terms(part, small_world)
    network, same = fresh(tmp_path).new(part), 7
    before = float(sum(of(network, torch.Generator().manual_seed(same)).values()).detach())
    fit(
        "part",
        network,
        lambda n, _: of(n, torch.Generator().manual_seed(same)),
        15,
        2e-2,
        tmp_path,
        0,
    )
    network = fresh(tmp_path).new(part)
    network.load_state_dict(_last_weights(tmp_path / "part"), strict=False)
    after = float(sum(of(network, torch.Generator().manual_seed(same)).values()).detach())
    assert after < before


def _last_weights(folder):
    tensors, _ = RunFolder(folder, {}).newest_checkpoint()
    return {k[6:]: v for k, v in tensors.items() if k.startswith("theta/")}


class Stop(Exception):
    pass


@pytest.mark.parametrize("how", [{}, {"optimizer": Muon, "bf16": True}], ids=["adamw", "muon bf16"])
def test_killed_and_resumed_equals_uninterrupted(how, tmp_path, monkeypatch):
    """Weights and their average, bit for bit; and another seed gives others."""

    def of(network, rng):
        x = torch.randn(4, 20, generator=rng)
        return {"square": (network(x) - x.sum(1, keepdim=True)).square().mean()}

    def stops(network, rng):
        if stops.left == 0:
            raise Stop
        stops.left -= 1
        return of(network, rng)

    def start():
        torch.manual_seed(0)
        return torch.nn.Linear(20, 18)

    monkeypatch.setattr("personalize.mini.pretrain.loop.SAVE_EVERY", 0.0)
    whole = fit("a", start(), of, 12, 1e-2, tmp_path / "whole", 0, **how)
    stops.left = 5
    with pytest.raises(Stop):
        fit("a", start(), stops, 12, 1e-2, tmp_path / "cut", 0, **how)
    resumed = fit("a", start(), of, 12, 1e-2, tmp_path / "cut", 0, **how)
    other = fit("a", start(), of, 12, 1e-2, tmp_path / "other", 1, **how)
    assert torch.equal(whole.weight, resumed.weight)
    assert not torch.equal(whole.weight, other.weight)
    assert torch.equal(trained(tmp_path / "cut" / "a", start(), 12).weight, whole.weight)


def test_bf16_computes_the_terms_only_in_it(tmp_path):
    """The multiplication is in bfloat16; the weights and what the optimizer keeps are not."""
    seen = []

    def of(network, rng):
        y = network(torch.randn(4, 20, generator=rng))
        seen.append(y.dtype)
        return {"square": y.float().square().mean()}

    for bf16 in (False, True):
        network = fit("a", torch.nn.Linear(20, 18), of, 2, 1e-2, tmp_path / str(bf16), 0, bf16=bf16)
        tensors, _ = RunFolder(tmp_path / str(bf16) / "a", {}).newest_checkpoint()
        assert {t.dtype for t in (network.weight, *tensors.values())} == {torch.float32}
    assert seen == 2 * [torch.float32] + 2 * [torch.bfloat16]


def test_bf16_is_chosen_where_the_cpu_multiplies_it(tmp_path):
    assert has_bf16({"amx_bf16": True})
    assert has_bf16({"avx512_bf16": True})
    assert not has_bf16({"avx512_f": True, "avx512_bf16": False, "amx_int8": True})
    assert fresh(tmp_path, precision="bf16").bf16
    assert not fresh(tmp_path, precision="fp32").bf16
    assert fresh(tmp_path).bf16 == has_bf16()


def test_other_weights_to_begin_with_are_refused(tmp_path):
    """--start in a folder where the part was trained from others: the old end is not passed off
    as the new one's.
    """

    def beginning_at(value):
        network = torch.nn.Linear(3, 1)
        torch.nn.init.constant_(network.weight, value)
        torch.nn.init.zeros_(network.bias)
        return network

    def of(network, _):
        return {"square": (network(torch.ones(2, 3)) - 1).square().mean()}

    end = fit("unet", beginning_at(0.0), of, 3, 1e-4, tmp_path, 0).weight
    with pytest.raises(UserError, match=r"another configuration \(start: \w+ there, \w+ now\)"):
        fit("unet", beginning_at(7.0), of, 3, 1e-4, tmp_path, 0)
    assert torch.equal(fit("unet", beginning_at(0.0), of, 3, 1e-4, tmp_path, 0).weight, end)


def test_another_seed_or_drawing_composes_its_own_pictures(drawings, tmp_path, monkeypatch):
    """In one folder, what captions say and pictures show stays together: equal to a folder of its
    own.
    """

    def made(folder, seed, of=drawings):
        artwork = SimpleNamespace(training=lambda: of, instances=lambda: list(of.values())[:3])
        return data.make(tmp_path / folder, artwork, seed, n_train=16, views=1)

    few = world.contents
    monkeypatch.setattr(
        data, "contents", lambda n, seed, held_out=False: few(min(n, 16), seed, held_out)
    )
    red = dict.fromkeys(drawings, disc((255, 0, 0, 255)))
    for seed, of in ((0, drawings), (1, drawings), (0, red)):
        shared, alone = (
            made("shared", seed, of),
            made(f"{seed} {len(set(map(id, of.values())))}", seed, of),
        )
        assert shared.train_contents == few(16, seed)
        for name in ("train", "unseen_pairs", "instances"):
            assert np.array_equal(getattr(shared, name), getattr(alone, name)), (seed, name)
    assert (made("shared", 0).train != made("shared", 1).train).any()


@pytest.mark.parametrize("shipped", [True, False])
def test_only_the_shipped_weights_bring_new_subjects(shipped, published, tmp_path, monkeypatch):
    """--weights elsewhere leaves the package's subjects alone; and what made the weights tells
    nobody's home folder.
    """
    weights, drawn = tmp_path / "weights", []
    monkeypatch.setattr(pretrain, "WEIGHTS", weights if shipped else mini.WEIGHTS)
    monkeypatch.setattr(publish, "write_subjects", lambda *asked: drawn.append(asked))
    monkeypatch.setattr(pretrain.Parts, "done", pretrain.Parts.new)
    monkeypatch.setattr(pretrain.Parts, "latents", lambda *_: torch.randn(8, vae.CHANNELS, 16, 16))
    asked = Pretrain(
        parts=("unet",),
        out=str(tmp_path / "out"),
        weights=str(weights),
        start=str(published),
        pictures=0,
    )
    before = {"asked": {"weights": "/home/ada/weights", "out": "runs/pretrain"}}
    kept = (published / "made_by.json").read_text()
    (published / "made_by.json").write_text(json.dumps(before))
    pretrain.finish(pretrain.Parts(asked), SimpleNamespace(digest="discs"), None)
    (published / "made_by.json").write_text(kept)
    assert bool(drawn) == shipped
    text = (weights / "made_by.json").read_text()
    assert json.loads(text)["precision"] == ("bf16" if has_bf16() else "fp32")
    assert str(tmp_path.parent) not in text
    assert "/home" not in text
    assert json.loads(text)["began_with"]["asked"] == {"weights": "weights", "out": "runs/pretrain"}


def test_the_subject_judge_learns_from_drawings_it_is_shown(small_world, tmp_path):
    """Fifteen steps lower the loss of telling flat squares of eight greys from the world."""
    greys = np.linspace(0, 255, 8).astype(np.uint8).repeat(4)
    drawn = np.broadcast_to(greys[:, None, None, None], (32, 64, 64, 3)).copy()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        of = clip.subject_judge_terms(small_world, drawn, vae.build())
        network = clip.build_subject_judge()
    before = float(of(network, torch.Generator().manual_seed(7))["label"].detach())
    fit("part", network, of, 15, 2e-2, tmp_path, 0)
    network.load_state_dict(_last_weights(tmp_path / "part"), strict=False)
    assert float(of(network, torch.Generator().manual_seed(7))["label"].detach()) < before


def test_the_published_subject_judge_knows_every_subject():
    """It was trained on other composites of the same drawings."""
    judge = load_subjects(str(mini.subject_judge_folder()))
    assert min(right_on_shipped_pictures(judge).values()) > 0.9
    for name, subject in mini.subjects().items():
        assert judge.subject_of([open_rgb(p) for p in subject.folder.glob("*.png")]) == name


def test_running_statistics_are_kept(tmp_path):
    """A judge with batch normalization reads pictures as it did when it was trained, not with
    fresh statistics.
    """

    def start():
        torch.manual_seed(0)
        return torch.nn.BatchNorm1d(3)

    def of(network, rng):
        return {"square": network(5 + torch.randn(8, 3, generator=rng)).square().mean()}

    fit("a", start(), of, 40, 1e-2, tmp_path, 0)
    again = trained(tmp_path / "a", start(), 40)
    assert again.running_mean.sub(5).abs().max() < 1


def test_a_part_that_is_not_trained_is_named(tmp_path):
    with pytest.raises(UserError, match="--parts vae"):
        fresh(tmp_path).done("vae")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Untrained parts, published as trained ones are."""
    out = tmp_path_factory.mktemp("weights")
    publish.publish({p: fresh(out).new(p) for p in PARTS}, {"seed": 0}, out)
    return out


def test_official_classes_open_what_is_published(published):
    pipeline = StableDiffusionPipeline.from_pretrained(published / "model")
    image = pipeline(
        "a photo of a fox on the beach", num_inference_steps=2, height=64, width=64
    ).images[0]
    assert image.size == (64, 64)
    for kind, name in (
        (CLIPModel, "clip"),
        (AutoModel, "dino"),
        (AutoModelForImageClassification, "classifier"),
    ):
        kind.from_pretrained(published / name)


def test_the_pipelines_text_encoder_is_the_clips(published):
    model, whole = (
        load(str(published / "model")),
        CLIPModel.from_pretrained(published / "clip", dtype=torch.float32),
    )
    tokens = tokenizer()(["a fox at night"], padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(model.text_encoders[0](tokens)[0], whole.text_model(tokens)[0])


@pytest.mark.parametrize("part", PARTS)
def test_training_goes_on_from_what_is_published(part, published, tmp_path):
    """--start: the part begins as published, up to half precision; one that is not trained here
    is taken from there.
    """
    parts = fresh(tmp_path, start=str(published), parts=("unet",), seed=1)
    first = fresh(tmp_path).new(part).state_dict()
    for network in (parts.new(part), *([parts.done(part)] if part != "unet" else [])):
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, first[name], rtol=1e-3, atol=1e-7)
    with pytest.raises(UserError, match="--parts unet"):
        parts.done("unet")


def test_anew_trains_from_random_weights_and_takes_the_others(published, tmp_path):
    """--start with --anew: a part can change its shape while the judges stay as they are."""
    parts = fresh(tmp_path, start=str(published), parts=("unet",), anew=True, seed=1)
    random = fresh(tmp_path, seed=1).new("unet").state_dict()
    for name, value in parts.new("unet").state_dict().items():
        assert torch.equal(value, random[name])
    assert Pretrain(anew=True).problems()  # without --start it would change nothing
    assert not Pretrain(anew=True, start=str(published)).problems()
    taken, there = (p.state_dict() for p in (parts.done("dino"), publish.read("dino", published)))
    assert all(torch.equal(v, there[k]) for k, v in taken.items())


def test_weights_fit_the_budget(published):
    """24 MB in fp16, all together."""
    assert sum(p.stat().st_size for p in published.rglob("*.safetensors")) <= 24e6


def test_a_judge_is_described_the_same_each_time_it_is_opened(published):
    """Its hash is what a resumed evaluation and a reader compare: parts that it lacks must not be
    random.
    """
    first, second = (load_dino(str(published / "dino")).describe() for _ in range(2))
    assert first == second


def test_mini_is_just_an_alias(published, monkeypatch):
    monkeypatch.setattr(mini, "WEIGHTS", published)
    assert load("mini").hash() == load(str(published / "model")).hash()
    assert load("mini").family is load(str(published / "model")).family


def test_absent_or_altered_weights_are_refused(published, monkeypatch, tmp_path):
    monkeypatch.setattr(mini, "WEIGHTS", tmp_path)
    with pytest.raises(UserError, match="personalize pretrain"):
        mini.model_folder()
    monkeypatch.setattr(mini, "WEIGHTS", published)
    file = published / "dino" / "model.safetensors"
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + b"\x7f" + b"")
    with pytest.raises(UserError, match="not those that were published"):
        mini.dino_folder()
    file.write_bytes(kept)


def test_standardizing_changes_latents_and_no_picture(small_world):
    """Latents to mean 0 and deviation 1, the reconstruction and the posterior's spread (in units
    of it) as before.
    """
    network = fresh("runs").new("vae").eval()
    x = vae.pixels(small_world.train[:16])
    with torch.no_grad():
        old = network.encode(x).latent_dist
        picture = network.decode(old.mean).sample
        mean, std = vae.moments(old.mean)
        vae.standardize(network, mean, std)
        new = network.encode(x).latent_dist
        again = network.decode(new.mean).sample
    mean_now, std_now = vae.moments(new.mean)
    assert mean_now.abs().max() < 1e-4
    torch.testing.assert_close(std_now, torch.ones(vae.CHANNELS))
    torch.testing.assert_close(new.std * std[:, None, None], old.std)
    torch.testing.assert_close(again, picture, atol=1e-4, rtol=1e-4)


def test_decibels_of_a_known_error():
    """A picture that comes back brighter by 0.1 everywhere: 10 log10(4 / 0.01) = 26.02 dB."""
    grey = np.full((3, 64, 64, 3), 127, np.uint8)
    brighter = SimpleNamespace(
        encode=lambda x: SimpleNamespace(latent_dist=SimpleNamespace(mean=x)),
        decode=lambda z: SimpleNamespace(sample=z + 0.1),
    )
    measured = reconstruction(brighter, grey)
    assert measured["decibels"] == pytest.approx(26.0206, abs=1e-3)
    assert measured["mse_se"] == pytest.approx(0, abs=1e-9)


def test_edges_of_a_flat_picture_vanish():
    assert float(vae.edges(torch.full((1, 3, 8, 8), 0.3)).abs().max()) == 0


def test_contrast_of_perfect_partners_vanishes():
    """Orthogonal rows at a large scale: nothing left to tell apart; equal rows: log n nats."""
    eye = torch.eye(8)
    assert float(clip.contrast(eye, eye, 100.0)) < 1e-6
    same = torch.ones(8, 8)
    assert float(clip.contrast(same, same, 100.0)) == pytest.approx(float(torch.tensor(8.0).log()))
