"""The class set: each picture its own seed, completed and repaired but never silently reused."""

import json
import multiprocessing
from dataclasses import replace

import pytest
import torch
from PIL import Image

from personalize.adapters.trainable import choose
from personalize.pipeline.families import SD15
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from personalize.pipeline.random_pipeline import tiny
from personalize.sample import class_images as classimages
from personalize.sample import store
from personalize.sample.class_images import make_class_images
from personalize.sample.sampler import Sampling, generate, image_seed
from personalize.sample.store import PictureStore
from toy2d.runs.files import UserError, write_atomic

HOW = Sampling(steps=3, resolution=64, batch_size=4)


def make(model, folder, n=5, prompt="a dog", seed=0, keep="png", encode=None, **changes):
    """Class images of `changes` to HOW."""
    how = replace(HOW, **changes)
    return make_class_images(model, prompt, n, folder, how, seed, keep, encode)


def contents(folder):
    return {
        p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".png", ".safetensors")
    }


@pytest.fixture
def sampled(monkeypatch):
    """The seeds for which pictures were made."""
    seeds, real = [], classimages.sample_latents

    def spy(model, cond, numbers, *args, **options):
        seeds.extend(numbers)
        return real(model, cond, numbers, *args, **options)

    monkeypatch.setattr(classimages, "sample_latents", spy)
    return seeds


def test_pictures_are_what_generate_makes_from_their_seeds(base, tmp_path):
    make(base, tmp_path / "c", n=2)
    for i in range(2):
        (expected,) = generate(base, ["a dog"], [image_seed(0, i)], Sampling(steps=3))
        kept = Image.open(tmp_path / "c" / f"{i:05d}.png")
        difference = torch.tensor(
            [a - b for a, b in zip(kept.tobytes(), expected.tobytes(), strict=True)]
        )
        assert difference.abs().max() <= 1  # made in a batch of 2 there, alone here


def test_the_manifest_says_how_each_file_was_made(base, tmp_path):
    make(base, tmp_path / "c")
    manifest = json.loads((tmp_path / "c/manifest.json").read_text())
    assert manifest["settings"] == {
        "model": base.hash(),
        "prompt": "a dog",
        "sampler": "dpmsolver++",
        "steps": 3,
        "guidance": 7.5,
        "seed": 0,
        "size": 64,
        "keep": "png",
        "dtype": "float32",
    }
    assert [f["seed"] for f in manifest["files"].values()] == [image_seed(0, i) for i in range(5)]


def test_a_matching_folder_is_used_as_it_is(base, tmp_path, sampled):
    make(base, tmp_path / "c")
    before = contents(tmp_path / "c")
    sampled.clear()
    assert len(make(base, tmp_path / "c")) == 5
    assert len(make(base, tmp_path / "c", n=3)) == 3
    assert sampled == []
    assert contents(tmp_path / "c") == before


def test_a_smaller_set_is_completed_without_touching_it(base, tmp_path, sampled):
    make(base, tmp_path / "c", n=4)
    before = contents(tmp_path / "c")
    sampled.clear()
    make(base, tmp_path / "c", n=6)
    assert sampled == [image_seed(0, 4), image_seed(0, 5)]
    after = contents(tmp_path / "c")
    assert {k: after[k] for k in before} == before
    assert len(set(after.values())) == 6


@pytest.mark.parametrize("keep", ["png", "latents"])
def test_missing_and_damaged_files_are_made_again_alone(base, tmp_path, sampled, keep):
    make(base, tmp_path / "c", keep=keep, batch_size=1)
    before = contents(tmp_path / "c")
    names = sorted(before)
    (tmp_path / "c" / names[1]).unlink()
    broken = tmp_path / "c" / names[3]
    broken.write_bytes(broken.read_bytes()[:-1] + b"?")
    sampled.clear()
    make(base, tmp_path / "c", keep=keep, batch_size=1)
    assert sampled == [image_seed(0, 1), image_seed(0, 3)]
    assert contents(tmp_path / "c") == before


def test_a_set_killed_in_the_middle_is_the_same_set_afterwards(base, tmp_path, monkeypatch):
    make(base, tmp_path / "whole", n=6, batch_size=2)
    writes = []

    def dying(path, data):
        writes.append(path)
        if len(writes) == 4:
            (path.parent / f".{path.name}.1.tmp").write_bytes(data[:10])  # what kill -9 leaves
            raise KeyboardInterrupt
        write_atomic(path, data)

    monkeypatch.setattr(store, "write_atomic", dying)
    with pytest.raises(KeyboardInterrupt):
        make(base, tmp_path / "torn", n=6, batch_size=2)
    monkeypatch.undo()
    make(base, tmp_path / "torn", n=6, batch_size=2)
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")
    assert not list((tmp_path / "torn").glob(".*.tmp"))


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a cat"},
        {"steps": 4},
        {"guidance": 3.0},
        {"sampler": "ddim"},
        {"seed": 1},
        {"resolution": 96},
        {"keep": "latents"},
    ],
    ids=str,
)
def test_a_folder_made_differently_is_refused_with_the_field(base, tmp_path, change, sampled):
    make(base, tmp_path / "c", n=1)
    sampled.clear()
    field = {"resolution": "size"}.get(*change, *change)
    with pytest.raises(UserError, match=rf"made differently \({field}: .* there, .* now\)"):
        make(base, tmp_path / "c", n=1, **change)
    assert sampled == []


def test_pictures_made_in_another_precision_are_refused(base, tmp_path):
    with torch.autocast("cpu", torch.bfloat16):
        make(base, tmp_path / "c", n=1)
    with pytest.raises(UserError, match="dtype: 'bfloat16' there, 'float32' now"):
        make(base, tmp_path / "c", n=1)


@pytest.mark.parametrize(
    "change",
    [{"n": 0}, {"guidance": 0.5}, {"guidance": float("nan")}, {"sampler": "x"}, {"steps": 0}],
)
def test_what_cannot_be_made_is_refused(base, tmp_path, change):
    with pytest.raises(UserError):
        make(base, tmp_path / "c", **change)


def test_another_models_folder_is_refused(base, tmp_path):
    make(base, tmp_path / "c", n=1)
    with pytest.raises(UserError, match="model: "):
        make(Model(tiny(seed=1), SD15), tmp_path / "c", n=1)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"settings": 3, "files": {}}',
        '{"settings": {}, "files": 3}',
        '{"settings": {}, "files": {}}',
    ],
)
def test_a_folder_of_unknown_origin_is_refused(base, tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError):
        make(base, tmp_path, n=1)
    (tmp_path / "manifest.json").unlink()
    Image.new("RGB", (64, 64)).save(tmp_path / "mine.jpg")
    with pytest.raises(UserError, match="unknown"):
        make(base, tmp_path, n=1)


def test_a_manifest_cannot_point_outside_its_folder(base, tmp_path):
    """Names are made from the index; foreign entries are never opened."""
    make(base, tmp_path / "c", n=1)
    file = tmp_path / "c/manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"]["../../etc/passwd"] = manifest["files"]["00000.png"]
    manifest["files"]["00000.png"] = "not an entry"
    file.write_text(json.dumps(manifest))
    assert len(make(base, tmp_path / "c", n=1)) == 1


def test_latents_are_kept_as_the_sampler_left_them(base, tmp_path):
    """No VAE between sampling and training: a draw is the stored tensor, with no posterior
    noise.
    """
    pictures = make(base, tmp_path / "c", n=3, keep="latents")
    a, prompts = pictures.draw([2, 0], torch.Generator().manual_seed(0))
    b, _ = pictures.draw([2, 0], torch.Generator().manual_seed(1))
    assert torch.equal(a, b)
    assert prompts == ["a dog", "a dog"]
    pixels = base.decode(a[:1])
    (expected,) = generate(base, ["a dog"], [image_seed(0, 2)], Sampling(steps=3))
    level = ((pixels[0] + 1) * 127.5).round().permute(1, 2, 0).flatten().tolist()
    assert max(abs(x - y) for x, y in zip(level, expected.tobytes(), strict=True)) <= 1


def test_pictures_are_encoded_losslessly_and_cached_to_the_bit(base, tmp_path):
    plain, cached = make(base, tmp_path / "c", n=3), make(base, tmp_path / "c", n=3).cache()
    draws = [s.draw([0, 2], torch.Generator().manual_seed(0))[0] for s in (plain, cached)]
    assert torch.equal(*draws)
    assert Image.open(tmp_path / "c/00000.png").format == "PNG"


def test_class_images_are_the_bases_even_after_lora_training(model, base, tmp_path, rng):
    theta = choose(model, "lora")
    with torch.no_grad():
        for p in theta.values():
            p += 0.1 * torch.randn(p.shape, generator=rng)
    make(model, tmp_path / "tuned", n=2)
    make(base, tmp_path / "base", n=2)
    assert contents(tmp_path / "tuned") == contents(tmp_path / "base")


def test_full_training_cannot_pass_its_own_pictures_for_the_bases(model, tmp_path):
    choose(model, "full")
    with pytest.raises(RuntimeError, match="cache"):
        make(model, tmp_path / "c", n=1)


def _make_in_a_process(tiny_folder, folder):
    torch.set_num_threads(1)
    make(load(tiny_folder), folder, n=4, batch_size=1)


@pytest.mark.slow
def test_two_processes_on_one_folder_make_one_whole_set(tiny_folder, tmp_path):
    context = multiprocessing.get_context("spawn")
    jobs = [
        context.Process(target=_make_in_a_process, args=(tiny_folder, tmp_path / "c"))
        for _ in range(2)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    assert [job.exitcode for job in jobs] == [0, 0]
    _make_in_a_process(tiny_folder, tmp_path / "alone")
    assert contents(tmp_path / "c") == contents(tmp_path / "alone")


def test_a_store_that_was_killed_between_two_pictures_goes_on(tmp_path):
    """Not: "holds 0.png but no manifest.json"."""

    def until_killed():
        yield "0.png", b"0", {}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), PictureStore(tmp_path / "s", {"a": 1}, "") as store:
        store.put(until_killed())
    with PictureStore(tmp_path / "s", {"a": 1}, "") as store:
        assert store.missing(["0.png"]) == ["0.png"]
