"""Names of runs give the objectives of toy2d.core, and are judged before torch is imported."""

import itertools
import json
import subprocess
import sys

import pytest

from toy2d.core.objectives import FISHER, L2, OUTPUT, PRIOR, STANDARD
from toy2d.runs.files import UserError
from toy2d.runs.spec import OBJECTIVE_WORDS, parse_run

MADE = {
    "standard": lambda w: STANDARD,
    "prior": PRIOR,
    "replay_all": PRIOR,
    "l2": L2,
    "l2_tensor_mean": lambda w: L2(w, "tensor_mean"),
    "l2_decoupled": lambda w: L2(w, decoupled=True),
    "output": OUTPUT,
    "fisher": lambda w: FISHER(w),
}


def written(kind: str, weight: float) -> str:
    return kind if kind == "standard" else f"{kind}:{weight:g}"


@pytest.mark.parametrize("kind", OBJECTIVE_WORDS)
def test_a_word_is_its_objective(kind):
    spec = parse_run(written(kind, 0.5))
    assert spec.value == MADE[kind](0.5)
    assert spec.active == set(spec.value.active)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("pair", [*itertools.combinations(OBJECTIVE_WORDS, 2)], ids="+".join)
def test_a_sum_is_refused_exactly_where_the_core_refuses_it(pair, weights):
    if pair == ("prior", "replay_all"):  # one term of the objective with two sample sets
        return
    terms = list(zip(pair, weights, strict=True))
    try:
        wanted = sum((MADE[k](w) for k, w in terms), STANDARD)
    except ValueError as e:
        with pytest.raises(UserError, match=str(e)):
            parse_run("+".join(written(*term) for term in terms))
    else:
        assert parse_run("+".join(written(*term) for term in terms)).value == wanted


PROBE = """
import json, sys
from toy2d.__main__ import main
try:
    code = main(json.loads(sys.argv[1]))
except SystemExit as e:
    code = e.code
print(json.dumps([code, [m for m in ("torch", "numpy", "scipy") if m in sys.modules]]))
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["run", "course", "--help"], 0),
        (["run", "course", "--dry-run"], 0),
        (["run", "course", "--runs", "l2:0.1+l2_tensor_mean:1"], 2),
        (["run", "course", "--max_path_kl", "-1"], 2),
        (["run", "course", "--l2_layers", "layer0:1", "--runs", "standard"], 2),
        (["verify", "--nmae", "x"], 2),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_a_command_is_judged_before_torch_is_imported(arguments, code):
    words = [sys.executable, "-c", PROBE, json.dumps(arguments)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [code, []]
