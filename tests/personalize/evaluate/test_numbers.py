"""Scores are their definitions: no drift where nothing moved, and copied photos are found."""

import csv
import json
import shutil

import pytest
import torch
from evaluating import PROMPTS, SEEDS, run
from judges import LABELS
from photographs import photo
from PIL import Image
from small import config, workshop

from personalize.data.photos import scan
from personalize.data.prompts import PromptSet
from personalize.evaluate.metrics import cosine, pairs_over_seeds, perceptual_distance
from personalize.evaluate.rows import look_at, score

torch.set_num_threads(1)


def test_a_model_that_has_not_moved_has_no_drift(still, evaluators, tmp_path):
    """B = 0: the same pictures, so every distance is 0, CLIP-T stands still and path KL is
    rounding.
    """
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
    """The same chains, nodes and prompts as `personalize train` measures, here with the adapters
    switched off for the base.
    """
    from personalize.data.latents import PromptCache
    from personalize.drift import measure
    from personalize.drift.chains import chain_sampling, make_chains

    c = config(
        "unused",
        class_prompt="a photo of a dog",
        context_prompts=(),
        unrelated_prompts=("a red car",),
        measure_chains=2,
        measure_nodes=10,
        sample_batch_size=4,
    )
    prompts = PromptCache(moved)

    def predict(x_t, t, texts):
        return moved.predict(x_t, t, prompts(texts))

    def base(x_t, t, texts):
        with moved.base():
            return predict(x_t, t, texts)

    with torch.no_grad():
        chains = make_chains(base, moved.schedule, chain_sampling(c, (4, 8, 8)))
        expected = measure.path_drift(predict, chains, 4)
    found = run(moved, tmp_path, evaluators, chains=2)
    for group, (mean, _, n) in expected.items():
        assert found.drift[group]["path_kl"]["mean"] == pytest.approx(mean, rel=1e-4)
        assert found.drift[group]["path_kl"]["n"] == n


def test_rows_are_the_definitions(evaluation, evaluators):
    """Each column once more from the files, by its formula."""
    found, folder = evaluation
    mine = [
        r
        for r in found.rows
        if r["model"] == "tuned" and r["prompt"] == PROMPTS.groups["subject"][0]
    ]
    theirs = [
        r
        for r in found.rows
        if r["model"] == "base" and r["prompt"] == PROMPTS.groups["subject"][0]
    ]
    assert [r["seed"] for r in mine] == [r["seed"] for r in theirs] == SEEDS
    photos = [Image.open(p) for p in sorted((workshop() / "photos").glob("*.jpg"))]
    images = [
        Image.open(folder / side / r["file"])
        for side, rows in (("tuned", mine), ("base", theirs))
        for r in rows
    ]
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


def test_fidelity_is_against_the_references_and_memorization_against_what_trained(
    evaluation, evaluators, tmp_path
):
    """Two different sets of pictures: DINO and CLIP-I compare with the first, memorization with
    the second.
    """
    folder = evaluation[1]
    sets = [tmp_path / name for name in ("reference", "training")]
    for seed, place in enumerate(sets):
        place.mkdir()
        for i in range(2):
            photo(seed=10 * seed + i).save(place / f"{i}.png")
    reference, training = (sorted(place.iterdir()) for place in sets)
    prompt = PROMPTS.groups["subject"][0]
    prompts = PromptSet("sks", "dog", {"subject": (prompt,)})
    kept = json.loads((folder / "tuned" / "manifest.json").read_text())["files"]
    files = {(f["prompt"], f["seed"]): folder / "tuned" / name for name, f in kept.items()}
    seen = look_at(reference, training, evaluators)
    rows = score([("subject", prompt, SEEDS)], prompts.plain, files, {}, evaluators, seen).rows
    images = [Image.open(files[prompt, seed]) for seed in SEEDS]
    features, photos = (
        evaluators.dino.features(images)[0],
        [
            evaluators.dino.features([Image.open(f) for f in files])[0]
            for files in (reference, training)
        ],
    )
    for row, feature in zip(rows, features, strict=True):
        to_reference, to_training = (cosine(feature[None], p)[0] for p in photos)
        assert row["dino"] == pytest.approx(float(to_reference.mean()), abs=1e-5)
        assert row["memorization"] == pytest.approx(float(to_training.max()), abs=1e-5)
        assert abs(float(to_reference.mean() - to_training.mean())) > 1e-4


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
    assert head["div"] == pairs_over_seeds(
        [r["perceptual"] for r in mine], [r["seed"] for r in mine]
    )
    assert "jackknife" in found.about["intervals"]
    with open(folder / "prompts.csv", newline="") as f:
        line = next(
            r for r in csv.DictReader(f) if r["prompt"] == "a red car" and r["model"] == "base"
        )
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
    """The tuned pictures as references: the largest identity is 1; real_images is the mean over
    pairs.
    """
    _, folder = evaluation
    found = run(moved, folder, evaluators, reference=folder / "tuned")
    assert found.headline["subject_max"]["mean"] == pytest.approx(1)
    features = evaluators.clip.images(
        [Image.open(p) for p in sorted((folder / "tuned").glob("*.png"))]
    )
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
    classes = {
        c: sum(float(p[i]) for i, n in enumerate(LABELS) if n.startswith(c)) for c in ("dog", "cat")
    }
    assert truth.read([image])[0][0] == max(classes, key=classes.get)
    assert rows[0]["class_right"] == float(classes["dog"] > classes["cat"])
    right = sum(r["class_right"] == r["scene_right"] == 1 for r in rows)
    assert found.summary["check"]["right"] == right
    assert found.summary["check"]["n"] == len(rows)
