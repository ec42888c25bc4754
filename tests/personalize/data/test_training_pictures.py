"""The pictures that a run was trained on are found again, wherever it was begun."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from evaluating import pictures_in

from personalize.data.photos import scan
from personalize.data.subjects import training_pictures

torch.set_num_threads(1)


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A run begun in begun/ with relative paths; now one stands elsewhere, where photos/ holds
    other pictures.
    """
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
    """Found where the run was begun, not by the same name here; also if they are the reference
    now; several folders as one set.
    """
    folder, asked, photos = begun
    reference = pictures_in(tmp_path / "reference", "green")
    found, notes = training_pictures(None, asked, folder, reference)
    assert (names(found), notes) == (["blue.png", "red.png"], [])
    concepts = [
        {"instance_data_dir": "photos", "instance_prompt": "a sks dog"},
        {"instance_data_dir": str(reference)},
    ]
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
