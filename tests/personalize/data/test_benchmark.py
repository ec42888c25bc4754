"""The DreamBooth benchmark: the published lists, and its file as published."""

import hashlib
from pathlib import Path

import pytest

from personalize.data.benchmark import (
    BENCHMARK,
    LIVE_PROMPTS,
    OBJECT_PROMPTS,
    benchmark_class,
    read_benchmark,
)
from toy2d.runs.files import UserError


def published(folder: Path) -> Path:
    """prompts_and_classes.txt in its published form, blank lines and all."""

    def listed(templates):
        lines = ",\n".join(f"'{t}'.format(unique_token, class_token)" for t in templates)
        return f"prompt_list = [\n{lines}\n]\n\n"

    table = "".join(f"{name},{word}\n" for name, word in BENCHMARK.items())
    file = folder / "prompts_and_classes.txt"
    file.write_text(
        f"Classes\n\nsubject_name,class\n{table}\nPrompts\n\n"
        f"Object Prompts\n\n{listed(OBJECT_PROMPTS)}"
        f"Live Subject Prompts\n\n{listed(LIVE_PROMPTS)}"
    )
    return file


def test_the_lists_are_those_of_google_dreambooth():
    """Hashes of the lists in the repository's prompts_and_classes.txt, one template a line."""

    def digest(lines):
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    assert len(OBJECT_PROMPTS) == len(LIVE_PROMPTS) == 25
    assert len(BENCHMARK) == 30
    assert sum(c in ("dog", "cat") for c in BENCHMARK.values()) == 9  # live subjects
    assert digest(OBJECT_PROMPTS) == "ffc56c551ee45044"
    assert digest(LIVE_PROMPTS) == "1a41ad67868db5db"
    assert digest(f"{k},{v}" for k, v in BENCHMARK.items()) == "6f902d00493ae35a"


def test_the_published_file_is_read(tmp_path):
    found = read_benchmark(published(tmp_path))
    assert found.classes == BENCHMARK
    assert found.object_prompts == OBJECT_PROMPTS
    assert found.live_prompts == LIVE_PROMPTS
    (tmp_path / "monster_toy").mkdir()
    assert benchmark_class(tmp_path / "monster_toy") == "toy"
    assert benchmark_class(tmp_path / "my_rex") is None
    (tmp_path / "prompts_and_classes.txt").write_text("hello")
    with pytest.raises(UserError, match="not the benchmark's"):
        benchmark_class(tmp_path / "monster_toy")
