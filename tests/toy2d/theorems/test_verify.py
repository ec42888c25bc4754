"""`toy2d verify`: everything from a run folder; exit 1 only for a failed proof, with the row, the seed and the command."""

import json

import pytest

from toy2d.__main__ import main
from toy2d.runs.files import UserError
from toy2d.theorems import path_bound
from toy2d.theorems.verify import verify


def test_a_label_on_a_finished_run(folder, capsys):
    out = folder.parent.parent
    code = main(["verify", "--name", "tiny", "--out", str(out), "--only", "counterexamples"])
    printed = capsys.readouterr().out
    assert code == 0
    assert "zero drift on old" in printed
    assert "the paper's claim" in printed  # refuted, reported, and no failure
    record = json.loads((folder / "verify" / "partial.json").read_text())
    assert {r["label"] for r in record["rows"]} == {"counterexamples"}
    assert all({"lhs", "rhs", "lhs_error", "rhs_error", "margin", "holds", "command"} <= set(r) for r in record["rows"])  # fmt: skip


def test_a_failed_proof_exits_1_with_its_command(folder, capsys, monkeypatch):
    monkeypatch.setattr(path_bound, "_gaussian_laws", lambda *a: (18.0, 9.0))
    monkeypatch.setattr("toy2d.theorems.verify.Course.which", lambda self, *specs: [])
    monkeypatch.setattr(path_bound, "star_chain", lambda *a: None)
    code = main(["verify", "--name", "tiny", "--out", str(folder.parent.parent), "--only", "path_bound"])  # fmt: skip
    assert code == 1
    complaint = capsys.readouterr().err
    assert "bug of ours" in complaint
    assert "toy2d verify --only path_bound --seeds 0 --name tiny" in complaint


def test_what_a_user_mistypes_is_one_line_and_exit_2(folder, capsys):
    out = str(folder.parent.parent)
    for flags, word in (
        (["--only", "theorem_9"], "choose from"),
        (["--seeds", "5"], "holds seeds"),
        (["--name", "nothing_here"], "no finished run"),
    ):
        flags = flags if "--name" in flags else ["--name", "tiny", *flags]
        assert main(["verify", "--out", out, *flags]) == 2
        complaint = capsys.readouterr().err
        assert word in complaint
        assert complaint.count("\n") == 1


@pytest.mark.slow
def test_everything_on_the_small_run(folder):
    """All statements, figures included; about a minute."""
    path, rows = verify("tiny", folder.parent.parent, say=lambda _: None)
    assert not [r for r in rows if r.is_bug]
    figures = {"bounds", "evolution", "local_law", "certificate", "paper_theorem_2"}
    assert figures == set(json.loads((path / "captions.json").read_text()))


def test_a_run_of_another_world_is_refused(tmp_path):
    for file, text in (("status.json", {"status": "done"}), ("config.json", {"world": "prompts"})):
        (tmp_path / "toy2d" / "mine").mkdir(parents=True, exist_ok=True)
        (tmp_path / "toy2d" / "mine" / file).write_text(json.dumps(text))
    with pytest.raises(UserError, match="pentagon"):
        verify("mine", tmp_path)


def test_an_unfinished_folder_of_another_name_is_not_trained(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        verify("mine", tmp_path)
