"""`toy2d verify`: rows from a run folder; exit 1 only for a failed proof, with its command."""

import json

import pytest

from toy2d.__main__ import main
from toy2d.runs.files import UserError
from toy2d.theorems import path_bound
from toy2d.verify.parts import PARTS
from toy2d.verify.power import WRONG_WEIGHTS
from toy2d.verify.verify import verify


def test_a_label_on_a_finished_run(folder, capsys):
    out = folder.parent.parent
    code = main(["verify", "--name", "tiny", "--out", str(out), "--only", "counterexamples"])
    printed = capsys.readouterr().out
    assert code == 0
    assert "zero drift on old" in printed
    assert "the paper's claim" in printed  # refuted, reported, and no failure
    record = json.loads((folder / "verify" / "partial.json").read_text())
    assert {r["label"] for r in record["rows"]} == {"counterexamples"}
    fields = {"lhs", "rhs", "lhs_error", "rhs_error", "margin", "holds", "command"}
    assert all(fields <= set(r) for r in record["rows"])


def test_rows_as_json_are_all_that_stdout_holds(folder, capsys):
    words = ["verify", "--name", "tiny", "--out", str(folder.parent.parent), "--json"]
    assert main([*words, "--only", "counterexamples"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((folder / "verify" / "partial.json").read_text())
    assert {r["label"] for r in record["rows"]} == {"counterexamples"}
    assert main([*words, "--only", "theorem_9"]) == 2
    out, complaint = capsys.readouterr()
    assert not out
    assert complaint.count("\n") == 1


def test_a_failed_proof_exits_1_with_its_command(folder, capsys, monkeypatch):
    monkeypatch.setattr(path_bound, "gaussian_laws", lambda *a: (18.0, 9.0))
    rows = path_bound.gaussian_pair((100,))
    monkeypatch.setitem(PARTS, "path bounds", (lambda c: rows, ("path_bound",)))
    out = str(folder.parent.parent)
    code = main(["verify", "--name", "tiny", "--out", out, "--only", "path_bound"])
    assert code == 1
    complaint = capsys.readouterr().err
    assert "bug of ours" in complaint
    assert "toy2d verify --only path_bound --seeds 0 --name tiny" in complaint
    assert main(["verify", "--name", "tiny", "--out", out, "--only", "path_bound", "--json"]) == 1
    said, complaint = capsys.readouterr()
    assert [r["holds"] for r in json.loads(said)["rows"]] == [r.holds for r in rows]
    assert not all(r.holds for r in rows)
    assert "bug of ours" in complaint


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
    """All statements with their power, figures included; minutes."""
    parent = folder.parent.parent
    path, rows, power = verify("tiny", parent, say=lambda _: None, with_power=True)
    assert not [r for r in rows if r.is_bug]
    figures = {"bounds", "evolution", "local_law", "certificate", "paper_theorem_2"}
    assert figures == set(json.loads((path / "captions.json").read_text()))
    assert power == json.loads((path / "power.json").read_text())["statements"]
    caught = {r["statement"]: r["caught"] for r in power}
    sharp = "KL = w_t ||eps_theta - eps_star||^2, one step from a point"
    assert set(caught[sharp]) == set(WRONG_WEIGHTS)
    tight = next(s for s in caught if s.startswith("the same for the last"))
    assert "w_t x 0.95" in caught[tight]
    found = {r["statement"]: r for r in power}
    # these leave room by nature: a small ball holds little of any law; a condition is met amply
    weak = ("the instance points' ball", "KL(p* || base) < kl(delta || gamma)", "replay covers")
    for statement, record in found.items():
        if not record["zero"] and not any(w in statement for w in weak):
            assert record["factor"] or record["caught"], statement


def test_a_run_of_another_world_is_refused(tmp_path):
    for file, text in (("status.json", {"status": "done"}), ("config.json", {"world": "prompts"})):
        (tmp_path / "toy2d" / "mine").mkdir(parents=True, exist_ok=True)
        (tmp_path / "toy2d" / "mine" / file).write_text(json.dumps(text))
    with pytest.raises(UserError, match="pentagon"):
        verify("mine", tmp_path)


def test_an_unfinished_folder_of_another_name_is_not_trained(tmp_path):
    with pytest.raises(UserError, match="no finished run"):
        verify("mine", tmp_path)
