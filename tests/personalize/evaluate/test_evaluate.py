"""Evaluation end to end on the tiny model: a model that has not moved has no drift, a copied photo is found, nothing is drawn twice."""

import csv
import json
import math
import shutil
import sys
import types
from pathlib import Path
from unittest import mock

import pytest
import torch
from judges import LABELS, judges
from photographs import photo
from PIL import Image
from small import config, trained, workshop

from personalize.__main__ import main
from personalize.adapters.trainable import choose
from personalize.data.photos import scan
from personalize.data.prompts import PromptSet
from personalize.data.subjects import training_pictures
from personalize.evaluate import command as evaluate_run
from personalize.evaluate.judges import Evaluators, evaluators_of, load_evaluators, square
from personalize.evaluate.metrics import cosine, pairs_over_seeds, perceptual_distance
from personalize.evaluate.model import evaluate_model, has_its_base
from personalize.export.write import load_run
from personalize.pipeline.load import load
from personalize.pipeline.model import Model
from personalize.sample import gallery
from personalize.sample.gallery import Sampling, pictures
from toy2d.runs.files import UserError

torch.set_num_threads(1)

QUICK = Sampling(steps=2, batch_size=4)
SEEDS = [11, 22, 33]
PROMPTS = PromptSet("sks", "dog", {"subject": ("a sks dog in the snow", "a sks dog on the beach"), "class": ("a photo of a dog",), "unrelated": ("a red car",)})  # fmt: skip


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return judges(tmp_path_factory.mktemp("judges"))


@pytest.fixture(scope="session")
def evaluators(folders):
    return load_evaluators(folders["clip"], folders["dino"], folders["truth"], lpips=False)


@pytest.fixture(scope="session")
def still():
    """A model with adapters that have not moved: B = 0."""
    model = load(str(workshop() / "sd"))
    choose(model, "lora")
    return model


@pytest.fixture(scope="session")
def moved():
    """The same with adapters that have."""
    model = load(str(workshop() / "sd"))
    theta = choose(model, "lora")
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theta.values():
            p.add_(0.3 * torch.randn(p.shape, generator=rng))
    return model


@pytest.fixture(scope="session")
def evaluation(moved, evaluators, tmp_path_factory):
    """The moved model's evaluation, and its folder."""
    folder = tmp_path_factory.mktemp("evaluation")
    found = evaluate_model(moved, workshop() / "photos", PROMPTS, evaluators, SEEDS, folder, sampling=QUICK, chains=2, say=silent)  # fmt: skip
    found.write(folder)
    return found, folder


def silent(text: str) -> None:
    pass


def run(model: Model, folder: Path, evaluators: Evaluators, prompts: PromptSet = PROMPTS, **more):
    """Without path KL, unless asked for."""
    chosen = {"reference": workshop() / "photos", "seeds": SEEDS, "sampling": QUICK, "chains": 0, "say": silent} | more  # fmt: skip
    return evaluate_model(model, prompts=prompts, evaluators=evaluators, folder=folder, **chosen)


# ---- what the numbers must be
def test_a_model_that_has_not_moved_has_no_drift(still, evaluators, tmp_path):
    """B = 0: the same pictures, so every distance is 0, CLIP-T stands still and path KL is rounding."""
    found = run(still, tmp_path, evaluators, chains=2)
    assert set(found.drift) == {"subject", "class", "unrelated"}
    for group, drift in found.drift.items():
        for name in ("moved_dino", "moved_clip", "moved_perceptual", "clip_t_change"):
            assert drift[name]["mean"] == pytest.approx(0, abs=1e-6), (group, name)
        # unbiased: within a set nobody is paired with itself, across sets the same picture is
        assert drift["mmd2_dino"] <= 1e-6
    assert found.drift["class"]["path_kl"]["mean"] == pytest.approx(0, abs=1e-6)
    assert found.headline["pres"]["mean"] == pytest.approx(found.headline["pres_base"]["mean"])


def test_a_model_that_has_moved_is_seen_to(evaluation):
    found, _ = evaluation
    for drift in found.drift.values():
        assert drift["moved_dino"]["mean"] > 1e-6
        assert drift["moved_perceptual"]["mean"] > 0.01
    assert found.drift["class"]["path_kl"]["mean"] > 0.01
    assert found.drift["subject"]["path_kl"] is None  # the base knows no sks dog


def test_path_kl_is_the_trainers(moved, evaluators, tmp_path):
    """The same chains, nodes and prompts as `personalize train` measures, here with the adapters switched off for the base."""
    from personalize.data.latents import Prompts
    from personalize.drift import measure

    c = config("unused", class_prompt="a photo of a dog", context_prompts=(), unrelated_prompts=("a red car",), measure_chains=2, measure_nodes=10, sample_batch_size=4)  # fmt: skip
    prompts = Prompts(moved)

    def predict(x_t, t, texts):
        return moved.predict(x_t, t, prompts(texts))

    def base(x_t, t, texts):
        with moved.base():
            return predict(x_t, t, texts)

    with torch.no_grad():
        chains = measure.make_chains(base, c, moved.schedule, (4, 8, 8))
        expected = measure.path_drift(predict, chains, 4)
    found = run(moved, tmp_path, evaluators, chains=2)
    for group, (mean, _, n) in expected.items():
        assert found.drift[group]["path_kl"]["mean"] == pytest.approx(mean, rel=1e-4)
        assert found.drift[group]["path_kl"]["n"] == n


def test_rows_are_the_definitions(evaluation, evaluators):
    """Each column once more from the files, by its formula."""
    found, folder = evaluation
    mine = [r for r in found.rows if r["model"] == "tuned" and r["prompt"] == PROMPTS.groups["subject"][0]]  # fmt: skip
    theirs = [r for r in found.rows if r["model"] == "base" and r["prompt"] == PROMPTS.groups["subject"][0]]  # fmt: skip
    assert [r["seed"] for r in mine] == [r["seed"] for r in theirs] == SEEDS
    photos = [Image.open(p) for p in sorted((workshop() / "photos").glob("*.jpg"))]
    images = [Image.open(folder / side / r["file"]) for side, rows in (("tuned", mine), ("base", theirs)) for r in rows]  # fmt: skip
    clip, dino = evaluators.clip, evaluators.dino
    to_text = cosine(clip.images(images), clip.texts(["a dog in the snow"]))[:, 0]
    to_photos = cosine(clip.images(images), clip.images(photos))
    features, layers = dino.features(images)
    to_training = cosine(features, dino.features(photos)[0])
    alike = cosine(features, features)
    distance = perceptual_distance([f[:3] for f in layers], [f[3:] for f in layers])
    for i, row in enumerate(mine):
        assert row["clip_t"] == pytest.approx(float(to_text[i]), abs=1e-5)
        assert row["clip_i"] == pytest.approx(float(to_photos[i].mean()), abs=1e-5)
        assert row["subject_max"] == pytest.approx(float(to_photos[i].max()), abs=1e-5)
        assert row["dino"] == pytest.approx(float(to_training[i].mean()), abs=1e-5)
        assert row["memorization"] == pytest.approx(float(to_training[i].max()), abs=1e-5)
        assert row["nearest"] == f"{int(to_training[i].argmax())}.jpg"
        assert row["moved_dino"] == pytest.approx(1 - float(alike[i, i + 3]), abs=1e-5)
        assert row["moved_perceptual"] == pytest.approx(float(distance[i]), abs=1e-5)
        assert row["clip_t_change"] == pytest.approx(float(to_text[i] - to_text[i + 3]), abs=1e-5)
    assert all("moved_dino" not in r for r in theirs)


def test_summary_is_the_mean_of_the_rows(evaluation):
    found, folder = evaluation
    with open(folder / "pictures.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 2 * 4 * len(SEEDS)

    def mean(group, column, model="tuned"):
        values = [float(r[column]) for r in rows if (r["model"], r["group"]) == (model, group)]
        return sum(values) / len(values)

    head = found.headline
    assert head["dino"]["mean"] == pytest.approx(mean("subject", "dino"))
    assert head["pres"]["mean"] == pytest.approx(mean("class", "dino"))
    assert head["div"]["mean"] == pytest.approx(mean("subject", "perceptual"))
    assert head["div_distance"] == "perceptual"
    assert head["clip_t_base"]["mean"] == pytest.approx(mean("subject", "clip_t", "base"))
    assert head["dino"]["low"] <= head["dino"]["mean"] <= head["dino"]["high"]
    assert head["dino"]["n"] == len(SEEDS)
    mine = [r for r in found.rows if (r["model"], r["group"]) == ("tuned", "subject")]
    assert head["div"] == pairs_over_seeds([r["perceptual"] for r in mine], [r["seed"] for r in mine])  # fmt: skip
    assert "jackknife" in found.about["intervals"]
    with open(folder / "prompts.csv", newline="") as f:
        line = next(r for r in csv.DictReader(f) if r["prompt"] == "a red car" and r["model"] == "base")  # fmt: skip
    assert float(line["clip_t"]) == pytest.approx(mean("unrelated", "clip_t", "base"))
    assert int(line["pictures"]) == len(SEEDS)


def test_a_copied_training_picture_is_found(evaluation, moved, evaluators, tmp_path):
    """One generated picture among the training pictures: memorization 1, and it is named."""
    _, folder = evaluation
    copied = next((folder / "tuned").glob("*-22.png"))
    (tmp_path / "training").mkdir()
    shutil.copy(copied, tmp_path / "training" / "copied.png")
    photo().save(tmp_path / "training" / "other.png")
    found = run(moved, folder, evaluators, training=scan(tmp_path / "training", captions=False))
    top = found.headline["nearest_to_training"]
    assert top["memorization"] == pytest.approx(1)
    assert (top["file"], top["nearest"]) == (copied.name, "copied.png")


def test_references_that_are_the_pictures_themselves(evaluation, moved, evaluators):
    """The tuned pictures as references: the largest identity is 1; real_images is the mean over pairs."""
    _, folder = evaluation
    found = run(moved, folder, evaluators, reference=folder / "tuned")
    assert found.headline["subject_max"]["mean"] == pytest.approx(1)
    features = evaluators.clip.images([Image.open(p) for p in sorted((folder / "tuned").glob("*.png"))])  # fmt: skip
    pairs = cosine(features, features)
    n = len(pairs)
    expected = float((pairs.sum() - pairs.trace()) / (n * n - n))
    assert found.headline["real_images"]["clip_i"] == pytest.approx(expected, abs=1e-6)


def test_the_classifier_reads_marginals_and_checks_the_metric(evaluation, evaluators):
    """class and scene are read apart; the rows say whether they are the prompt's."""
    found, folder = evaluation
    rows = [r for r in found.rows if "scene_right" in r]
    assert {r["group"] for r in rows} == {"subject"}  # only those prompts name a scene it knows
    assert {r["prompt"] for r in found.rows if "class_right" not in r} == {"a red car"}
    side = {"tuned": folder / "tuned", "base": folder / "base"}
    image = Image.open(side[rows[0]["model"]] / rows[0]["file"])
    truth = evaluators.truth
    p = truth.network(truth.pixels([image])).logits.softmax(1)[0]
    classes = {c: sum(float(p[i]) for i, n in enumerate(LABELS) if n.startswith(c)) for c in ("dog", "cat")}  # fmt: skip
    assert truth.read([image])[0][0] == max(classes, key=classes.get)
    assert rows[0]["class_right"] == float(classes["dog"] > classes["cat"])
    right = sum(r["class_right"] == r["scene_right"] == 1 for r in rows)
    assert found.summary["check"]["right"] == right
    assert found.summary["check"]["n"] == len(rows)


def test_a_wide_photo_is_seen_by_its_central_square(evaluators):
    wide = photo(96, 64)
    middle = wide.crop((16, 0, 80, 64))
    assert square(wide).tobytes() == middle.tobytes()
    for eye in (evaluators.clip, evaluators.dino):
        assert torch.equal(eye.pixels([wide]), eye.pixels([middle]))


# ---- nothing is drawn twice
def test_pictures_that_are_there_are_kept(moved, tmp_path):
    """Again: nothing. One damaged, one gone: those two, bit-equal. One prompt more: only its pictures."""
    jobs = [("a cat", s) for s in SEEDS]
    said = []
    paths = pictures(moved, jobs, tmp_path, QUICK, say=said.append)
    assert "3 drawn" in said[0]
    assert "images/s" in said[0]
    before = {p: p.read_bytes() for p in paths.values()}
    with mock.patch.object(gallery, "draw", side_effect=AssertionError("drawn again")):
        assert pictures(moved, jobs, tmp_path, QUICK, say=said.append) == paths
    assert len(said) == 1
    first, second, _ = paths.values()
    first.unlink()
    second.write_bytes(before[second][:-1])
    pictures(moved, jobs, tmp_path, QUICK, say=said.append)
    assert "2 drawn" in said[1]
    assert {p: p.read_bytes() for p in paths.values()} == before
    pictures(moved, [*jobs, ("a dog", 11)], tmp_path, QUICK, say=said.append)
    assert "1 drawn" in said[2]
    assert "3 were there" in said[2]


def test_a_killed_evaluation_goes_on(moved, tmp_path):
    """Stopped after the first batch: that batch stays, the rest is drawn, and the files equal those of a run never stopped."""
    jobs, real, calls = [("a cat", s) for s in range(6)], gallery.draw, []

    def fails_second_time(*args, **more):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    with mock.patch.object(gallery, "draw", fails_second_time), pytest.raises(KeyboardInterrupt):
        pictures(moved, jobs, tmp_path / "killed", QUICK, say=silent)
    assert len(list((tmp_path / "killed").glob("*.png"))) == 4
    said = []
    again = pictures(moved, jobs, tmp_path / "killed", QUICK, say=said.append)
    assert "2 drawn" in said[0]
    whole = pictures(moved, jobs, tmp_path / "whole", QUICK, say=silent)
    assert [p.read_bytes() for p in again.values()] == [p.read_bytes() for p in whole.values()]


def test_another_sampler_or_other_weights_are_refused(moved, still, tmp_path):
    pictures(moved, [("a cat", 1)], tmp_path, QUICK, say=silent)
    with pytest.raises(UserError, match="steps: 2 there, 3 now"):
        pictures(moved, [("a cat", 1)], tmp_path, Sampling(steps=3), say=silent)
    with pytest.raises(UserError, match="weights"):
        pictures(still, [("a cat", 1)], tmp_path, QUICK, say=silent)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "mine.txt").write_text("")
    with pytest.raises(UserError, match=r"mine\.txt"):
        pictures(moved, [("a cat", 1)], tmp_path / "strange", QUICK, say=silent)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        pictures(moved, [("a cat", 1)], tmp_path, QUICK, say=silent)


def test_runs_of_one_base_share_its_pictures(still, moved, evaluators, tmp_path):
    """With adapters off both are the base: the second evaluation draws only its own pictures."""
    run(still, tmp_path / "a", evaluators, base_folder=tmp_path / "base")
    said = []
    run(moved, tmp_path / "b", evaluators, base_folder=tmp_path / "base", say=said.append)
    assert len(said) == 1
    assert "tuned" in said[0]


def test_a_base_of_its_own_draws_what_switched_off_adapters_draw(moved, evaluators, tmp_path):
    one = run(moved, tmp_path / "a", evaluators)
    other = run(moved, tmp_path / "b", evaluators, base=load(str(workshop() / "sd")))
    assert other.about["base"] == one.about["base"]
    for x, y in zip(one.rows, other.rows, strict=True):
        assert x["clip_t"] == pytest.approx(y["clip_t"], abs=1e-5)


def test_without_a_base_there_is_no_drift(evaluators, tmp_path):
    plain = load(str(workshop() / "sd"))
    assert not has_its_base(plain)
    found = run(plain, tmp_path, evaluators, chains=2)
    assert found.drift == {}
    assert any("--base" in note for note in found.about["left_out"])
    assert found.headline["dino"]


# ---- what is not there
def test_a_missing_evaluator_is_named_and_the_others_go_on(folders, moved, tmp_path):
    found = load_evaluators(folders["clip"], str(tmp_path / "nowhere"), lpips=False)
    assert found.dino is None
    assert len(found.left_out) == 1
    assert all(word in found.left_out[0] for word in ("DINO", "nowhere", "--dino"))
    done = run(moved, tmp_path / "out", found)
    assert done.headline["clip_t"]
    assert done.headline["dino"] is None
    assert done.headline["pres"] is None
    assert done.headline["div"] is None
    assert "moved_clip" in done.drift["class"]
    done.write(tmp_path / "out")
    nobody = run(moved, tmp_path / "out", Evaluators(), chains=2)
    assert nobody.drift["class"]["path_kl"]["mean"] > 0


def test_weights_with_holes_are_refused(folders, tmp_path):
    """transformers would fill them at random and go on."""
    from toy2d.runs.folder import load_tensors, save_tensors

    folder = Path(shutil.copytree(folders["dino"], tmp_path / "dino"))
    weights = load_tensors(folder / "model.safetensors")
    dropped = next(k for k in weights if "attention" in k)
    save_tensors(folder / "model.safetensors", {k: v for k, v in weights.items() if k != dropped}, {"format": "pt"})  # fmt: skip
    found = load_evaluators(folders["clip"], str(folder), lpips=False)
    assert found.dino is None
    assert "missing" in found.left_out[0]


def test_weights_in_half_precision_judge_in_float32(folders, evaluators, tmp_path):
    """The mini's are published so: rounded once, then computed exactly. 2^-11 is half precision's rounding."""
    for name in ("clip", "dino", "truth"):
        shutil.copytree(folders[name], tmp_path / name)
        kind = type(getattr(evaluators, name).network)
        kind.from_pretrained(folders[name], dtype=torch.float16).save_pretrained(tmp_path / name)
    half = load_evaluators(*(str(tmp_path / name) for name in ("clip", "dino", "truth")), False)
    assert not half.left_out
    image = [photo()]
    for a, b in (
        (half.clip.images(image), evaluators.clip.images(image)),
        (half.clip.texts(["a dog"]), evaluators.clip.texts(["a dog"])),
        (half.dino.features(image)[0], evaluators.dino.features(image)[0]),
    ):
        assert a.dtype == torch.float32
        assert float((a - b).norm() / b.norm()) < 20 * 2**-11
    assert next(half.truth.network.parameters()).dtype == torch.float32


def test_one_reference_and_one_seed(moved, evaluators, tmp_path):
    """Pairs do not exist: undefined, said, and no crash."""
    (tmp_path / "one").mkdir()
    photo().save(tmp_path / "one" / "a.png")
    found = run(moved, tmp_path / "out", evaluators, reference=tmp_path / "one", seeds=[11])
    assert found.headline["real_images"] == {"clip_i": None, "dino": None}
    assert found.headline["div"] is None
    assert found.headline["dino"]["low"] is None
    assert found.drift["class"]["mmd2_dino"] is None
    text = " ".join(found.about["left_out"])
    assert "one reference picture" in text
    assert "one picture a prompt" in text
    found.write(tmp_path / "out")
    assert not any(math.isnan(v) for r in found.rows for v in r.values() if isinstance(v, float))


def test_a_prompt_that_is_cut_is_said(still, evaluators, tmp_path):
    long = PromptSet("sks", "dog", {"subject": ("a sks dog" + " and a cat" * 40,)})
    found = run(still, tmp_path, evaluators, long, seeds=[1, 2])
    assert any("longer than the text encoder" in note for note in found.about["left_out"])


def test_corrupt_pictures_are_named(moved, evaluators, tmp_path):
    (tmp_path / "photos").mkdir()
    photo().save(tmp_path / "photos" / "good.png")
    (tmp_path / "photos" / "torn.jpg").write_bytes((workshop() / "photos" / "0.jpg").read_bytes()[:300])  # fmt: skip
    (tmp_path / "photos" / "empty.png").write_bytes(b"")
    with pytest.raises(UserError) as e:
        run(moved, tmp_path / "out", evaluators, reference=tmp_path / "photos")
    assert "torn.jpg" in str(e.value)
    assert "empty.png" in str(e.value)
    assert not (tmp_path / "out").exists()  # before anything is drawn


class FakeLpips(torch.nn.Module):
    """What the package's class promises: (n, 3, H, W) in [-1, 1], twice, gives (n, 1, 1, 1)."""

    def __init__(self, net, verbose):
        super().__init__()
        assert (net, verbose) == ("alex", False)
        self.scale = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x, y):
        assert x.shape[1:] == (3, 224, 224)
        assert x.min() >= -1
        assert x.max() <= 1
        return self.scale * (x - y).abs().mean((1, 2, 3), keepdim=True)


def test_lpips_is_div_where_it_is_installed(folders, moved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=FakeLpips))
    found = load_evaluators(folders["clip"], folders["dino"])
    assert not found.left_out
    a, b = Image.new("RGB", (64, 64), (0, 0, 0)), Image.new("RGB", (64, 64), (255, 255, 255))
    assert found.lpips.pairwise([a, b, a]).tolist() == [[0, 4, 0], [4, 0, 4], [0, 4, 0]]
    done = run(moved, tmp_path / "out", found)
    assert done.headline["div_distance"] == "lpips"
    assert done.headline["div"] == done.summary["means"]["tuned"]["subject"]["lpips"]
    assert "moved_lpips" in done.drift["class"]
    assert done.about["evaluators"]["lpips"]["preprocessing"]["size"] == [224, 224]


def test_lpips_that_is_not_installed_is_said(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    found = load_evaluators(folders["clip"], folders["dino"])
    assert found.lpips is None
    assert "driftlab[lpips]" in found.left_out[0]


# ---- the command
@pytest.fixture(scope="session")
def words(folders):
    return ["--images", "2", "--steps", "2", "--chains", "2", "--clip", folders["clip"], "--dino", folders["dino"]]  # fmt: skip


def said(capsys) -> str:
    out = capsys.readouterr()
    assert "Traceback" not in out.err + out.out
    return out.err + out.out


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_run_from_the_command_line(tmp_path, capsys, words, kind):
    """Its own words, prompts and base; the JSON says all that the numbers depend on, and nothing of the home folder."""
    trained(config(tmp_path / "run", kind=kind, max_train_steps=2, class_prompt="a photo of a dog", context_prompts=("a dog in the snow",), center_crop=True))  # fmt: skip
    (tmp_path / "prompts.txt").write_text("a {0} {1} in the snow\n")
    command = ["evaluate", "--model", str(tmp_path / "run"), "--reference", str(workshop() / "photos"), "--prompts", str(tmp_path / "prompts.txt"), *words]  # fmt: skip
    assert main(command) == 0
    text = said(capsys)
    assert "images/s" in text
    assert "LPIPS" in text
    report = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())
    assert (report["model"], report["base_model"]) == ("run", "sd")
    assert report["identifier"] == "sks"
    assert report["class_word"] == "dog"
    assert list(report["groups"]) == ["subject", "class", "contexts", "unrelated"]
    assert set(report["drift"]) == set(report["groups"])
    assert report["drift"]["class"]["path_kl"]["n"] == 2
    assert report["evaluators"]["clip"]["preprocessing"]["crop_size"] == {"height": 32, "width": 32}
    assert len(report["evaluators"]["dino"]["weights"]) == 16
    assert "without its identifier" in report["prompt_convention"]
    assert report["training"]["folder"] == "photos"
    written = (tmp_path / "run" / "evaluation" / "evaluation.json").read_text()
    assert str(tmp_path) not in written
    assert str(workshop()) not in written
    assert main(command) == 0
    assert "images/s" not in said(capsys)  # everything was there


def test_the_benchmark_as_published(tmp_path, capsys, words):
    """Folders of subjects beside prompts_and_classes.txt, and runs named as subjects: each is evaluated, the rest is listed.

    Judges are loaded once, runs of one base share its pictures, and a subject that fails is named and stops no other.
    """
    from data.test_prompts import published

    root = tmp_path / "dreambooth"
    for subject in ("dog", "monster_toy", "vase"):
        shutil.copytree(workshop() / "photos", root / subject)
    published(root)
    trained(config(tmp_path / "runs" / "monster_toy", max_train_steps=1, instance_prompt="a photo of sks toy"))  # fmt: skip
    for subject in ("vase", "dog"):
        shutil.copytree(tmp_path / "runs" / "monster_toy", tmp_path / "runs" / subject)
    (root / "dog" / "torn.jpg").write_bytes(b"")
    command = ["evaluate", "--model", str(tmp_path / "runs"), "--reference", str(root), "--chains", "0", *words[:4], *words[6:], "--images", "1"]  # fmt: skip
    with mock.patch.object(evaluate_run, "evaluators_of", wraps=evaluators_of) as loaded:
        assert main(command) == 1
    assert loaded.call_count == 1
    assert "1 of 3 subjects failed (dog" in said(capsys)
    evaluation = tmp_path / "runs" / "evaluation"
    (shared,) = (evaluation / "base").iterdir()
    drawn = len(list(shared.glob("*.png")))
    assert drawn < sum(len(list((evaluation / s / "tuned").glob("*.png"))) for s in ("vase", "monster_toy"))  # fmt: skip
    report = json.loads((evaluation / "benchmark.json").read_text())
    assert "torn.jpg" in report["failed"]["dog"]
    assert set(report["subjects"]) == {"monster_toy", "vase"}
    assert len(report["without_run"]) == 27
    assert report["means"]["dino"]["n"] == 2
    one = json.loads((tmp_path / "runs/evaluation/vase/evaluation.json").read_text())
    assert one["class_word"] == "vase"
    assert len(one["groups"]["subject"]) == 25
    assert "a sks vase on top of a mirror" in one["groups"]["subject"]


def test_faults_of_the_user(tmp_path, capsys, words):
    trained(config(tmp_path / "run", max_train_steps=1))
    start = ["evaluate", "--model", str(tmp_path / "run"), "--reference", str(workshop() / "photos"), *words]  # fmt: skip
    for more, why in (
        (["--images", "0"], "--images 0"),
        (["--chains", "1"], "--chains 1: one chain has no standard error"),
        (["--chains", "-2", "--steps", "0"], "--steps 0"),
        (["--guidance", "0.5"], "--guidance 0.5"),
        (["--sample_batch_size", "0"], "--sample_batch_size 0"),
        (["--prompts", "nonsense"], "neither dreambooth"),
        (["--identifier", "zwx"], "'zwx' is not in the run's prompt"),
        (["--reference", str(tmp_path / "none")], "is not a folder"),
        (["--model", str(tmp_path)], "model_index.json"),
        (["--sampler", "magic"], "no sampler 'magic'"),
    ):
        assert main([*start, *more]) == 2, more
        assert why in said(capsys)
    plain = ["evaluate", "--model", str(workshop() / "sd"), "--reference", str(workshop() / "photos"), *words, "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(plain) == 2
    assert "--class_word" in said(capsys)


def test_one_chain_is_refused_before_anything_is_drawn(still, tmp_path):
    with pytest.raises(UserError, match="at least 2"):
        run(still, tmp_path / "out", Evaluators(), chains=1)
    assert not (tmp_path / "out").exists()


def pictures_in(folder: Path, *colours: str) -> Path:
    folder.mkdir(parents=True)
    for c in colours:
        Image.new("RGB", (64, 64), c).save(folder / f"{c}.png")
    return folder


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A run begun in begun/ with relative paths; now one stands elsewhere, where photos/ holds other pictures."""
    photos = pictures_in(tmp_path / "begun/photos", "red", "blue")
    other = pictures_in(tmp_path / "elsewhere/photos", "white")
    monkeypatch.chdir(other.parent)
    folder = tmp_path / "begun/runs/rex"
    folder.mkdir(parents=True)
    (folder / "env.json").write_text(json.dumps({"data_hash": scan(photos).hash()}))
    return folder, {"instance_data_dir": "photos", "output_dir": "runs/rex"}, photos


def names(found) -> list[str]:
    return [r.path.name for r in found.records]


def test_memorization_is_against_what_the_run_was_trained_on(begun, tmp_path):
    """Found where the run was begun, not by the same name here; also if they are the reference now; several folders as one set."""
    folder, asked, photos = begun
    reference = pictures_in(tmp_path / "reference", "green")
    found, notes = training_pictures(None, asked, folder, reference)
    assert (names(found), notes) == (["blue.png", "red.png"], [])
    concepts = [{"instance_data_dir": "photos", "instance_prompt": "a sks dog"}, {"instance_data_dir": str(reference)}]  # fmt: skip
    listed = asked | {"concepts_list": json.dumps(concepts), "instance_data_dir": None}
    found, _ = training_pictures(None, listed, folder, reference)
    assert names(found) == ["blue.png", "red.png", "green.png"]
    moved = Path(shutil.move(photos, tmp_path / "moved"))
    found, notes = training_pictures(None, asked, folder, moved)
    assert (names(found), notes) == (["blue.png", "red.png"], [])
    found, notes = training_pictures(str(moved), asked, folder, reference)
    assert (names(found), notes) == (["blue.png", "red.png"], [])


def test_memorization_against_other_pictures_is_said(begun, tmp_path):
    """Changed since, gone, never recorded."""
    folder, asked, photos = begun
    reference = pictures_in(tmp_path / "reference", "green")
    (photos / "red.png").unlink()
    found, notes = training_pictures(None, asked, folder, reference)
    assert names(found) == ["blue.png"]
    assert "not the pictures that the run recorded" in notes[0]
    gone = asked | {"instance_data_dir": "gone"}
    found, notes = training_pictures(None, gone, folder, reference)
    assert found is None
    assert all(word in notes[0] for word in ("not found (gone)", "--reference", "--training"))
    found, notes = training_pictures(None, {}, folder, reference)
    assert found is None
    assert "unknown" in notes[0]


def test_a_pipeline_against_a_base_of_ones_choice(tmp_path, capsys, words):
    """The tiny pipeline against itself: no drift at all."""
    sd = str(workshop() / "sd")
    (tmp_path / "p.txt").write_text("a {0} {1}\n")
    command = ["evaluate", "--model", sd, "--base", sd, "--class_word", "dog", "--reference", str(workshop() / "photos"), "--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out"), *words]  # fmt: skip
    assert main(command) == 0
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["drift"]["class"]["moved_clip"]["mean"] == pytest.approx(0, abs=1e-6)
    assert report["drift"]["class"]["path_kl"]["mean"] == pytest.approx(0, abs=1e-9)


@pytest.fixture
def mini(folders, monkeypatch, tmp_path):
    """A mini world in small, with the names of `personalize.mini.shipped`; its pipeline is the tiny one."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model").symlink_to(workshop() / "sd")
    world = types.SimpleNamespace(
        CLASSES=("dog", "cat", "owl"),
        SCENES=("in the snow", "on the beach"),
        WEIGHTS=tmp_path / "weights",
        clip_folder=lambda: Path(folders["clip"]),
        dino_folder=lambda: Path(folders["dino"]),
        classifier_folder=lambda: Path(folders["truth"]),
    )
    monkeypatch.setattr("personalize.mini.shipped.WEIGHTS", world.WEIGHTS)  # what is_mini reads
    monkeypatch.setitem(sys.modules, "personalize.mini.shipped", world)
    return world


def test_the_mini_is_judged_by_its_own_networks_in_its_own_world(mini, tmp_path):
    """Without a flag: prompts are its scenes and classes, evaluators its own, DIV its perceptual distance, truth its classifier."""
    trained(config(tmp_path / "run", max_train_steps=1, class_prompt="a photo of a dog", context_prompts=("a dog in the snow",)))  # fmt: skip
    command = ["evaluate", "--model", str(tmp_path / "run"), "--reference", str(workshop() / "photos"), "--images", "2", "--steps", "1", "--chains", "0"]  # fmt: skip
    assert main(command) == 0
    report = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())
    assert report["groups"] == {
        "subject": ["a photo of sks dog in the snow", "a photo of sks dog on the beach"],
        "class": ["a photo of a dog"],
        "contexts": ["a photo of a dog in the snow", "a photo of a dog on the beach"],
        "unrelated": ["a photo of a cat in the snow", "a photo of an owl on the beach"],
    }
    assert set(report["evaluators"]) == {"clip", "dino", "truth"}
    assert report["headline"]["div_distance"] == "perceptual"
    assert len(report["left_out"]) == 1
    assert "one pair" in report["left_out"][0]  # of two pictures
    assert report["headline"]["div"]["low"] is None
    assert report["means"]["base"]["contexts"]["scene_right"]["n"] == 2
    assert report["check"]["n"] == 2 * 2 * (
        2 + 2 + 1
    )  # all but the class prompt, without a scene, and the owl


def test_an_unfinished_mini_is_said(mini, folders):
    def unfinished():
        raise UserError("no weights yet; run personalize pretrain")

    mini.dino_folder = unfinished
    found = evaluators_of(True)
    assert found.clip
    assert found.truth
    assert len(found.left_out) == 1
    assert "personalize pretrain" in found.left_out[0]


def test_a_finished_run_is_loaded_with_its_weights(tmp_path, evaluators):
    """What is evaluated is what was trained: the run's pictures differ from its base's."""
    trained(config(tmp_path / "run"))
    found = run(load_run(tmp_path / "run"), tmp_path / "out", evaluators)
    assert found.drift["subject"]["moved_perceptual"]["mean"] > 1e-4
