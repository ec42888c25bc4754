"""Prompts: their groups, the prompt without its identifier, and files that cannot be used."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from personalize.data.prompts import (
    prompt_set,
    subject_words,
    with_article,
    without_identifier,
)
from personalize.data.subjects import _check_words
from toy2d.runs.files import UserError


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a sks dog in the snow", "a dog in the snow"),
        ("a photo of sks dog on the beach", "a photo of a dog on the beach"),
        ("a photo of sks owl", "a photo of an owl"),
        ("a sks owl at night", "an owl at night"),
        ("sks dog", "a dog"),
        ("a cube shaped sks toy", "a cube shaped toy"),
        ("my sks toy with a sks hat", "my toy with a hat"),
        ("a photo of a dog", "a photo of a dog"),
        ("asks dogs", "asks dogs"),
        ("a photo of a SKS dog", "a photo of a dog"),
        ("An sks dog, wet", "A dog, wet"),
        ("a photo of sks, a dog", "a photo of a dog"),
        ("sks, my dog, in the snow", "my dog, in the snow"),
        ("a dog, Sks, in the snow", "a dog, in the snow"),
        ("a dog named sks.", "a dog named."),
        ("a dog with sks, on a beach", "a dog with on a beach"),
        ("a photo of sks unicorn", "a photo of a unicorn"),
        ("an sks sks hourglass", "an hourglass"),
    ],
)
def test_the_prompt_without_its_identifier(prompt, plain):
    assert without_identifier(prompt, "sks") == plain


def test_an_identifier_of_other_characters_goes_too():
    assert without_identifier("a photo of <new1> cat", "<new1>") == "a photo of a cat"
    assert (
        without_identifier("a photo of <new1>, <new12> cat", "<new1>") == "a photo of <new12> cat"
    )
    assert without_identifier("a sks rex dog", "sks rex") == "a dog"


def test_articles_follow_the_sound():
    assert [with_article(w).split()[0] for w in ("owl", "uninvited cat", "hour", "umbrella")] == [
        "an"
    ] * 4
    assert [
        with_article(w).split()[0] for w in ("unicorn", "used car", "one-eyed cat", "ewe", "dog")
    ] == ["a"] * 5


def test_a_word_to_learn_must_stand_alone():
    """ "ca" is in "cat", and would never be learnt as meant; "<new1>" may touch its neighbours."""
    for prompt, word, there in (
        ("a cat", "ca", False),
        ("a ca cat", "ca", True),
        ("a <new1>cat", "<new1>", True),
        ("<new12>", "<new1>", False),
    ):
        config = SimpleNamespace(words=[SimpleNamespace(placeholder=word)])
        with nullcontext() if there else pytest.raises(UserError, match="has no effect"):
            _check_words(config, [prompt])


def test_dreambooth_takes_the_live_list_for_animals_and_people():
    dog, toy = prompt_set("dreambooth", "sks", "dog"), prompt_set("dreambooth", "sks", "toy")
    assert "a sks dog wearing a santa hat" in dog.groups["subject"]
    assert "a sks toy on top of a mirror" in toy.groups["subject"]
    assert dog.groups["class"] == ("a photo of a dog",)
    assert (
        prompt_set("dreambooth-object", "sks", "dog")
        .groups["subject"][-15]
        .startswith("a sks dog with a wheat field")
    )
    assert [len(p) for p in dog.groups.values()] == [25, 1, 3, 4]


def test_a_file_sorts_its_prompts_by_what_they_hold(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(
        "# mine\na {0} {1} at night\n\n"
        "a dog in a car\na photo of a dog\na red car\na sks dog at night\n"
    )
    found = prompt_set(str(file), "sks", "dog")
    assert found.groups == {
        "subject": ("a sks dog at night",),
        "class": ("a photo of a dog",),
        "contexts": ("a dog in a car",),
        "unrelated": ("a red car",),
    }
    assert len(found.jobs()) == 4


def test_a_file_that_cannot_be_used(tmp_path):
    file = tmp_path / "prompts.txt"
    for text, why in (
        ("a {0} at night", "line 1: no class word"),
        ("a dog at night", "no prompt with the identifier"),
        ("a {0} {1} {2}", "only {0}"),
        ("a {name}", "only {0}"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=why.replace("{", r"\{")):
            prompt_set(str(file), "sks", "dog")
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="neither dreambooth"):
        prompt_set(str(file), "sks", "dog")
    with pytest.raises(UserError, match="neither dreambooth"):
        prompt_set("dreamboth", "sks", "dog")


def test_subject_words_a_run():
    assert subject_words("a photo of sks dog", "a photo of a dog", None, None) == ("sks", "dog")
    assert subject_words("a photo of zwx dog on grass", "a dog", None, None) == ("zwx", "dog")
    assert subject_words("a sks stuffed animal", None, None, None) == ("sks", "stuffed animal")
    assert subject_words("a photo of zwx dog", None, None, "dog") == ("zwx", "dog")
    assert subject_words("a photo of SKS, dog", None, None, None) == ("SKS", "dog")
    assert subject_words("a <new1> cat", "a cat", None, None) == ("<new1>", "cat")
    assert subject_words(None, None, "sks", "dog") == ("sks", "dog")


def test_words_that_cannot_be_known():
    with pytest.raises(UserError, match="--class_word"):
        subject_words(None, "a photo of a dog", None, None)
    with pytest.raises(UserError, match="--class_word"):
        subject_words("sks", None, None, None)
    with pytest.raises(UserError, match="--identifier"):
        subject_words("a photo of rex", None, None, "dog")
