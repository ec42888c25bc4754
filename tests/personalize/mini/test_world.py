"""The world of the mini base is what it says, and its subjects and words are kept apart from it."""

import json
import random

import numpy as np
import pytest
from discs import disc
from PIL import Image

from personalize.data.photos import scan
from personalize.evaluate.judges import load_dino
from personalize.mini import shipped as mini
from personalize.mini.pretrain import unet, world
from personalize.mini.pretrain.artwork import FACES, OTHERS, SUBJECTS
from personalize.mini.pretrain.clip import RARE, tokenizer
from personalize.mini.pretrain.loop import rate
from personalize.mini.pretrain.quality import diversity, prompt
from personalize.pipeline.families import from_diffusers


def test_the_world_is_large_enough():
    assert len(set(world.CLASSES)) >= 16
    assert len(set(world.SCENES)) >= 8


def test_training_never_shows_a_held_out_pair_and_shows_every_other():
    shown = {(c.animal, c.scene) for c in world.contents(1000, 0)}
    assert shown.isdisjoint(world.HELD_OUT_PAIRS)
    assert len(shown) + len(world.HELD_OUT_PAIRS) == len(world.CLASSES) * len(world.SCENES)
    assert {
        (c.animal, c.scene) for c in world.contents(64, 0, held_out=True)
    } == world.HELD_OUT_PAIRS


def test_diversity_compares_only_pictures_of_one_prompt():
    """Two prompts, each drawn three times alike: 0, however different the prompts are; one
    picture in common, above 0.
    """
    asked = sorted(3 * world.contents(2, 0), key=prompt)
    assert prompt(asked[2]) != prompt(asked[3])
    alike = [disc((255, 0, 0, 255)).convert("RGB")] * 3 + [
        disc((0, 0, 255, 255)).convert("RGB")
    ] * 3
    dino = load_dino(str(mini.WEIGHTS / "dino"))
    assert diversity(dino, alike, asked) == pytest.approx(0, abs=1e-6)
    assert diversity(dino, [alike[5], *alike[1:]], asked) > 0.01


def test_every_class_and_scene_of_a_held_out_pair_is_seen_apart():
    """Else composition could not be learnt: each appears in training with others."""
    for animal, scene in world.HELD_OUT_PAIRS:
        assert sum(a == animal for a, _ in world.HELD_OUT_PAIRS) < len(world.SCENES)
        assert sum(s == scene for _, s in world.HELD_OUT_PAIRS) < len(world.CLASSES)


def test_a_picture_is_a_function_of_seed_and_index(drawings):
    chosen = world.contents(6, 0)
    once, again = (world.pictures(drawings, chosen, 5) for _ in range(2))
    assert (once == again).all()
    assert (world.pictures(drawings, chosen[:3], 5) == once[:3]).all()
    assert (world.pictures(drawings, chosen, 6) != once).any()


def test_scenes_differ_more_between_kinds_than_within():
    """Mean absolute difference of two draws: a student must see which scene it is."""
    kinds = [
        [np.asarray(world.draw_scene(s, random.Random(k)), float) for k in range(3)]
        for s in range(8)
    ]
    within = max(abs(k[0] - k[1]).mean() for k in kinds)
    between = min(abs(kinds[a][0] - kinds[b][0]).mean() for a in range(8) for b in range(a))
    assert between > within


def test_subjects_are_no_training_drawings():
    trained_on = {code for code, _ in FACES.values()} | set(OTHERS)
    assert trained_on.isdisjoint(code for _, _, code, _ in SUBJECTS.values())
    names = {name for _, name in FACES.values()} | set(OTHERS.values())
    fluent = {n for _, style, _, n in SUBJECTS.values() if style in ("flat", "glossy")}
    assert names.isdisjoint(fluent)


def test_subjects_are_shipped():
    subjects = mini.subjects()
    assert len(subjects) >= 6
    for s in subjects.values():
        sizes = [Image.open(p).size for p in sorted(s.folder.glob("*.png"))]
        assert sizes == [(64, 64)] * 5
        assert s.class_word in mini.CLASSES


def test_held_out_pictures_are_shipped_apart():
    """Sixteen of each subject, twice in each scene; training scans none, and none is trained on."""
    listed = json.loads((mini.FOLDER / "subjects" / "subjects.json").read_text())
    for s in mini.subjects().values():
        held_out, train = scan(s.held_out).require(), scan(s.folder).require()
        assert [(r.width, r.height) for r in held_out] == [(64, 64)] * 16
        assert len(train) == 5
        assert not {r.sha256 for r in held_out} & {r.sha256 for r in train}
        scenes = listed[s.name]["held_out_scenes"]
        assert sorted(scenes) == sorted(2 * mini.SCENES)


def test_every_word_is_one_token_and_rare_ones_are_never_trained():
    words = tokenizer()
    captions = world.captions_all()
    for c in captions[::50]:
        assert len(words(c).input_ids) == len(c.split()) + 2
    assert all(len(words(r).input_ids) == 3 for r in RARE.split())
    assert not {w for c in captions for w in c.split()} & set(RARE.split())
    assert max(len(c.split()) for c in captions) + 2 <= words.model_max_length


def test_captions_are_all_among_captions_all():
    everything, dice = set(world.captions_all()), random.Random(0)
    made = {world.caption(c, dice) for c in world.contents(500, 0)}
    assert made <= everything
    assert len(made) > 200


def test_the_schedule_ends_in_noise_with_finite_weights():
    """Those of path KL sum to half the range of log-SNR, as many small steps must (5 % for w_0 =
    0 and the steps' size); none stands out:
    a clipped cosine's last one would be 500."""
    schedule = from_diffusers(unet.scheduler())
    ab, weights = schedule.alpha_bar, schedule.path_weights()
    assert 0 < float(ab[-1]) < 1e-4
    log_snr = (ab / (1 - ab)).log()
    assert float(weights.sum()) == pytest.approx(float(log_snr[0] - log_snr[-1]) / 2, rel=0.05)
    assert weights.min() == weights[0] == 0
    assert weights.max() < 1


def test_rate_warms_up_and_ends_at_a_fiftieth():
    assert rate(0, 1000, 1.0) == pytest.approx(0.01)
    assert rate(1000, 1000, 1.0) == pytest.approx(0.02)
