"""Held-out pictures never train: which are chosen, and what is refused."""

import numpy as np
import pytest
from photographs import photo
from PIL import Image, ImageOps
from small import config, photos

from personalize.config.rules import resolve
from personalize.data.held_out import hold_out
from personalize.data.photos import scan
from personalize.data.subjects import scan_subjects, training_pictures
from toy2d.runs.files import UserError


@pytest.fixture
def folder(tmp_path):
    return photos(tmp_path / "photos", 5)


def names(records):
    return [r.path.name for r in records]


@pytest.mark.parametrize(("n", "held"), [(1, ["2.jpg"]), (2, ["1.jpg", "3.jpg"])])
def test_evenly_spaced_in_name_order_whatever_the_seed(folder, n, held):
    for seed in (0, 1):
        found = scan_subjects(
            config("unused", instance_data_dir=str(folder), held_out=n, seed=seed)
        )
        assert names(found.held_out) == held
        assert names(found.records) == [f"{i}.jpg" for i in range(5) if f"{i}.jpg" not in held]


def test_three_pictures_must_train(folder):
    with pytest.raises(UserError, match=r"leaves 2 of the 5.*at least 3.*hold out at most 2"):
        hold_out(scan(folder), 3)
    for name in ("0.jpg", "1.jpg"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="pass --held_out_data_dir instead"):
        hold_out(scan(folder), 1)


def test_without_the_flag_every_picture_trains(folder):
    found = scan_subjects(config("unused", instance_data_dir=str(folder)))
    assert (len(found.records), found.held_out) == (5, ())


def again(original: Image.Image, how: str) -> Image.Image:
    """Nearly the same picture."""
    if how == "mirrored":
        return ImageOps.mirror(original)
    if how == "smaller":
        return original.resize((60, 48), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(0).normal(0, 3, (original.height, original.width, 3))
    return Image.fromarray((np.asarray(original) + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("how", ["mirrored", "smaller", "noisy"])
def test_nearly_the_same_picture_is_refused(folder, tmp_path, how):
    (tmp_path / "others").mkdir()
    again(Image.open(folder / "1.jpg"), how).save(tmp_path / "others" / "x.jpg", quality=80)
    photo().save(tmp_path / "others" / "new.jpg")
    c = config("unused", instance_data_dir=str(folder), held_out_data_dir=str(tmp_path / "others"))
    with pytest.raises(UserError, match=r"x\.jpg is nearly the same picture as .*1\.jpg") as e:
        scan_subjects(c)
    assert "new.jpg" not in str(e.value)


def test_the_same_file_is_refused(folder):
    (folder / "9.jpg").write_bytes((folder / "1.jpg").read_bytes())
    with pytest.raises(UserError, match="is the same file as"):
        scan_subjects(config("unused", instance_data_dir=str(folder), held_out=2))


def test_a_folder_of_its_own(folder, tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    photo().save(others / "new.jpg")
    (others / "new.txt").write_text("a sks dog at night")
    found = scan_subjects(
        config("unused", instance_data_dir=str(folder), held_out_data_dir=str(others))
    )
    assert len(found.records) == 5
    assert [r.caption for r in found.held_out] == ["a sks dog at night"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"held_out": 1, "held_out_data_dir": "x"}, "choose one"),
        ({"held_out": -1}, "--held_out -1 must not be negative"),
        ({"gain_samples": 80}, "no picture is held out"),
        ({"held_out": 1, "gain_samples": 3}, "--gain_samples 3 must be at least 4"),
        (
            {"concepts_list": '[{"instance_data_dir": "x"}]', "held_out_data_dir": "x"},
            "use --held_out",
        ),
    ],
)
def test_flags_without_sense_are_refused(flags, says):
    with pytest.raises(UserError, match=says):
        resolve(config("unused", **flags))


def test_memorization_is_against_what_trained(folder, tmp_path):
    """`evaluate` finds the pictures of a run again, without those held out."""
    (tmp_path / "run").mkdir()
    asked = {"instance_data_dir": str(folder), "held_out": 1}
    found, _ = training_pictures(None, asked, tmp_path / "run", folder)
    assert names(found.records) == ["0.jpg", "1.jpg", "3.jpg", "4.jpg"]
