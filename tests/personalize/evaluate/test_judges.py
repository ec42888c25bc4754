"""The networks that judge pictures: what they see, and which of them are left out."""

import shutil
import sys
import types
from pathlib import Path

import torch
from evaluating import run
from photographs import photo
from PIL import Image

from personalize.evaluate.judges import Evaluators, load_evaluators, square

torch.set_num_threads(1)


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


def test_a_wide_photo_is_seen_by_its_central_square(evaluators):
    wide = photo(96, 64)
    middle = wide.crop((16, 0, 80, 64))
    assert square(wide).tobytes() == middle.tobytes()
    for eye in (evaluators.clip, evaluators.dino):
        assert torch.equal(eye.pixels([wide]), eye.pixels([middle]))


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
    save_tensors(
        folder / "model.safetensors",
        {k: v for k, v in weights.items() if k != dropped},
        {"format": "pt"},
    )
    found = load_evaluators(folders["clip"], str(folder), lpips=False)
    assert found.dino is None
    assert "missing" in found.left_out[0]


def test_weights_in_half_precision_judge_in_float32(folders, evaluators, tmp_path):
    """The mini's are published so: rounded once, then computed exactly. 2^-11 is half
    precision's rounding.
    """
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
