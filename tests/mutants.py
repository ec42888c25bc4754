"""Mutation: change one thing in a module, run its tests, and see whether any of them notices.

    python tests/mutants.py toy2d/core/drift.py --sample 40
    python tests/mutants.py                       every module of TESTS

A mutant is one change of an operator, a constant, a condition, an order of arguments, or a
statement left out. The server has imported torch and pytest; every mutant is a forked child in
which the module is read with that change and its tests run until the first failure. Nothing is
written: the source files stay as they are.
"""

import argparse
import ast
import copy
import functools
import importlib
import importlib.machinery
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from equivalent_mutants import EQUIVALENT

ROOT = Path(__file__).parent.parent
CORE, TUNE = "tests/toy2d/core", "tests/personalize"
TESTS = {  # module -> its tests, the fastest first
    "toy2d/core/drift.py": f"{CORE}/test_drift.py {CORE}/test_gain.py tests/toy2d/test_measure.py",
    "toy2d/core/likelihood.py": f"{CORE}/test_likelihood.py tests/toy2d/theorems/test_ddim.py",
    "toy2d/core/objectives.py": f"{CORE}/test_objectives.py tests/toy2d/test_train.py",
    "toy2d/core/sample.py": f"{CORE}/test_sample.py tests/toy2d/theorems/test_ancestral_law.py",
    "toy2d/core/schedule.py": f"{CORE}/test_schedule.py {CORE}/test_objectives.py",
    "toy2d/core/trace.py": f"{CORE}/test_trace.py",
    "toy2d/core/rng.py": "tests/toy2d/test_data.py tests/toy2d/test_train.py",
    "toy2d/sentences.py": "tests/toy2d/test_sentences.py",
    "toy2d/runs/sentences.py": f"tests/toy2d/test_sentences.py {TUNE}/report/test_sentences.py",
    "personalize/report/sentences.py": f"{TUNE}/report/test_sentences.py",
    "personalize/adapters/anchors.py": f"{TUNE}/adapters {TUNE}/test_objectives_identity.py",
    "personalize/adapters/deltas.py": f"{TUNE}/adapters",
    "personalize/evaluate/metrics.py": f"{TUNE}/evaluate/test_metrics.py",
    "personalize/train/state.py": f"{TUNE}/train/test_state.py {TUNE}/train/test_resume.py",
    "personalize/train/streams.py": f"{TUNE}/train/test_prior.py {TUNE}/parallel/test_processes.py",
    "personalize/train/loop.py": f"{TUNE}/train/test_prior.py {TUNE}/train/test_train.py",
    "personalize/drift/measure.py": f"{TUNE}/drift/test_measure.py",
    "personalize/drift/gain.py": f"{TUNE}/drift/test_gain.py",
    "personalize/drift/fisher.py": f"{TUNE}/drift/test_fisher.py",
}
HEAVY = ("torch", "scipy.stats", "scipy.integrate", "matplotlib.pyplot", "pytest", "hypothesis")
HEAVIER = ("diffusers", "transformers", "peft", "accelerate", "PIL.Image", "rich.console")

# ---- making mutants
COMPARED = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
COMPUTED = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


def changed_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[op]) if type(op) in COMPARED:
            new.ops = [COMPARED[type(op)]()]
            yield new
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in COMPUTED:
            new.op = COMPUTED[type(op)]()
            yield new
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield operand
        case ast.BoolOp():
            new.op = ast.Or() if isinstance(new.op, ast.And) else ast.And()
            yield new
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.IfExp(test=test):
            new.test = ast.UnaryOp(ast.Not(), test)
            yield new
        case ast.If(test=test):
            new.test = ast.UnaryOp(ast.Not(), test)
            yield new
        case ast.Call(args=[a, b, *rest]) if not isinstance(a, ast.Starred):
            new.args = [b, a, *rest]
            yield new
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign():
            yield ast.Pass()
    if isinstance(node, ast.AugAssign):
        yield ast.Pass()


class Mutant(NamedTuple):
    line: int
    change: str  # "old -> new"
    source: str


def mutants(source: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    tree, found = ast.parse(source), []
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            places = enumerate(value) if isinstance(value, list) else [(None, value)]
            for index, node in places:
                if isinstance(node, ast.AST) and not left_alone(parent, name):
                    for new in changed_nodes(node):
                        found.append(mutant(tree, parent, name, index, node, new))
    return sorted(found, key=lambda m: m.line)


def left_alone(parent: ast.AST, name: str) -> bool:
    """Annotations compute nothing, and words in messages are not judged here."""
    words = isinstance(parent, ast.JoinedStr | ast.FormattedValue)
    return words or name in ("annotation", "returns")


def mutant(tree, parent, name, index, node, new) -> Mutant:
    def put(child):
        if index is None:
            setattr(parent, name, child)
        else:
            getattr(parent, name)[index] = child

    ast.copy_location(new, node)
    put(new)
    text = ast.unparse(ast.fix_missing_locations(tree))
    put(node)
    shown = [" ".join(ast.unparse(n).split("\n")[0].split()) for n in (node, new)]
    return Mutant(node.lineno, " -> ".join(shown), text)


def is_equivalent(module: str, m: Mutant) -> bool:
    line = (ROOT / module).read_text().split("\n")[m.line - 1].strip()
    known = EQUIVALENT.get(module, {})
    return any(line.startswith(start) and m.change == change for start, change in known)


# ---- running one
def read_as(file: Path, source: str) -> None:
    """From now on, whoever imports `file` in this process gets `source`."""
    sys.dont_write_bytecode = True
    read = importlib.machinery.SourceFileLoader.get_data

    def get_data(self, path):
        if Path(path) == file:
            return source.encode()
        if str(path).endswith(".pyc") and Path(path).name.startswith(f"{file.stem}."):
            raise OSError("no bytecode of a mutant")
        return read(self, path)

    importlib.machinery.SourceFileLoader.get_data = get_data


def in_child(work: Callable[[], int], limit: float) -> int | None:
    """The exit code of `work` in a forked child; None if it took more than `limit` seconds."""
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os.setsid()
        code = 70
        try:
            code = work()
        finally:
            os._exit(code)
    until = time.monotonic() + limit
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def tested(module: str, source: str | None, limit: float) -> int | None:
    """pytest's exit code for the module's tests: 0 where none of them notices."""

    def work() -> int:
        import pytest

        if source is not None:
            read_as(ROOT / module, source)
        words = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS[module].split()]
        return int(pytest.main(words))

    return in_child(work, limit)


def survivors(module: str, sample: int, seed: int, say: Callable[[str], None]) -> dict:
    """Run a sample of the module's mutants; what survived."""
    every = [m for m in mutants((ROOT / module).read_text()) if not is_equivalent(module, m)]
    chosen = random.Random(f"{seed} {module}").sample(every, min(sample, len(every)))
    begun = time.monotonic()
    if tested(module, None, 600) != 0:
        raise SystemExit(f"{module}: its tests fail without a mutant")
    limit = 20 + 4 * (time.monotonic() - begun)
    alive = []
    for m in sorted(chosen, key=lambda m: m.line):
        if tested(module, m.source, limit) == 0:
            alive.append(m)
            say(f"  {module}:{m.line}: {m.change}")
    killed = len(chosen) - len(alive)
    say(f"{module}: {killed} of {len(chosen)} killed ({len(every)} in all)")
    return {"killed": killed, "run": len(chosen), "all": len(every)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("modules", nargs="*", help="files; without any, all of TESTS")
    parser.add_argument("--sample", type=int, default=10**9, help="at most so many a module")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--list", action="store_true", help="print the mutants, run none")
    asked = parser.parse_args()
    os.chdir(ROOT)
    modules = asked.modules or list(TESTS)
    if asked.list:
        for module in modules:
            for m in mutants((ROOT / module).read_text()):
                print(f"{module}:{m.line}: {m.change}")
        return
    heavier = HEAVIER if any(m.startswith("personalize") for m in modules) else ()
    for name in (*HEAVY, *heavier):
        importlib.import_module(name)
    say = functools.partial(print, flush=True)
    found = {m: survivors(m, asked.sample, asked.seed, say) for m in modules}
    run, killed = (sum(f[k] for f in found.values()) for k in ("run", "killed"))
    print(json.dumps({"killed": killed, "run": run, "score": round(killed / max(1, run), 4)}))


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    main()
