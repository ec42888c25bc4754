"""Several subjects in one run, each under its own prompts and class images."""

import json

import pytest
import torch
from small import config, photos, trained

from personalize.config.concepts import read_concepts
from personalize.config.rules import resolve
from personalize.data.subjects import Together, scan_subjects
from personalize.drift.chains import prompt_groups
from toy2d.runs.files import UserError


def two_subjects(folder):
    photos(folder / "cats", 2)
    photos(folder / "dogs", 1)
    (folder / "cats" / "1.txt").write_text("<new1> asleep")
    return [
        {
            "instance_data_dir": str(folder / "cats"),
            "instance_prompt": "a photo of <new1> cat",
            "class_prompt": "a photo of a cat",
            "class_data_dir": str(folder / "class/cat"),
        },
        {
            "instance_data_dir": str(folder / "dogs"),
            "instance_prompt": "a photo of <new2> dog",
            "class_prompt": "a photo of a dog",
            "class_data_dir": str(folder / "class/dog"),
        },
    ]


def both(tmp_path, objective="prior", **more):
    entries = two_subjects(tmp_path)
    (tmp_path / "concepts.json").write_text(json.dumps(entries))
    single = {
        "instance_data_dir": None,
        "instance_prompt": None,
        "class_prompt": None,
        "class_data_dir": None,
    }
    words = {
        "placeholder_token": "<new1>+<new2>",
        "initializer_token": "cat+dog",
        "concepts_list": str(tmp_path / "concepts.json"),
    }
    return config(
        tmp_path / "run",
        objective,
        "custom_diffusion",
        **single,
        **words,
        context_prompts=(),
        **more,
    )


def test_two_subjects_train_in_one_run_each_under_its_own_prompts(tmp_path):
    c = both(tmp_path, num_class_images=2)
    pictures = scan_subjects(c)
    assert [r.caption for r in pictures.records] == [
        "a photo of <new1> cat",
        "<new1> asleep",
        "a photo of <new2> dog",
    ]
    resolved = resolve(c)
    assert read_concepts(resolved.concepts_list) == c.concepts  # the run records what the file said
    assert prompt_groups(resolved)["class"] == ("a photo of a cat", "a photo of a dog")
    assert len(resolved.context_prompts) == 6
    weights = trained(c)
    assert {n.split("/")[0] for n in weights} >= {"<new1>", "<new2>"}
    for animal in ("cat", "dog"):
        manifest = json.loads((tmp_path / "class" / animal / "manifest.json").read_text())
        assert f"a photo of a {animal}" in json.dumps(manifest)


class Stub:
    """Two pictures that are their own number."""

    def __init__(self, first, prompt):
        self.first, self.prompts = first, [prompt] * 2

    def __len__(self):
        return 2

    def draw(self, indices, rng):
        return torch.tensor(
            [[self.first + i + float(torch.rand((), generator=rng))] for i in indices]
        ), [self.prompts[i] for i in indices]


def test_pictures_of_several_subjects_stay_beside_their_prompts():
    pool = Together([Stub(0, "a"), Stub(10, "b")])
    x0, prompts = pool.draw([3, 0, 2], torch.Generator().manual_seed(0))
    assert prompts == ["b", "a", "b"]
    assert x0.flatten().int().tolist() == [11, 0, 10]
    assert len(pool) == 4
    assert pool.prompts == ["a", "a", "b", "b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "is not JSON"),
        ("[]", "must be a list"),
        ('["x"]', "entry 1 is not an object"),
        ('[{"instance_prompt": "x"}]', "lacks instance_data_dir"),
        ('[{"instance_data_dir": "x", "prompt": "y"}]', "has 'prompt'"),
        ('[{"instance_data_dir": 3}]', "must be text"),
        ("nowhere.json", "cannot be read"),
    ],
)
def test_a_list_of_concepts_that_is_none_is_refused(text, said):
    with pytest.raises(UserError, match=said):
        read_concepts(text)
