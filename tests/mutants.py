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
SEEDS = "every run has all seeds, and each seed of it has its name and its weight"
SQUARED = "of a difference that is squared: either sign"
SYMMETRIC = "the distance of two pictures is symmetric"
ANY_ORDER = "a question about any of them"
AS_MANY = "as many of one as of the other, by construction"
FROZEN = "nothing assigns to it"
WAITS = "whether a copy waits changes no number"
STREAM = "another stream of random numbers is as good"
WHOLE = "in pieces or whole, the same bits"
ON_A_GPU = "it differs where there are two devices"
MEMORY = "a graph that is kept longer changes no number"
NO_NUMBER = "a limit that no computed number meets exactly"
NEITHER = "a share is nan or within 0 and 1: sum and difference are nan together"
# mutants that change nothing that anyone sees: (module, start of the line, change) -> why
EQUIVALENT = {
    ("toy2d/sentences.py", "same = next((runs for runs in prior if runs[0]", "0 -> 1"): SEEDS,
    ("toy2d/sentences.py", "f\"{same[0]['run']}, which replays", "0 -> 1"): SEEDS,
    ("toy2d/sentences.py", "pairs = zip(same, standard, strict=", "True -> False"): SEEDS,
    (
        "toy2d/core/objectives.py",
        "return per_run_mean(output, schedule.target(x0, t, eps)",
        "per_run_mean(output, schedule.target(x0, t, eps), t, weights) -> "
        "per_run_mean(schedule.target(x0, t, eps), output, t, weights)",
    ): SQUARED,
    (
        "toy2d/core/objectives.py",
        "return per_run_mean(predict(x_t, steps, cond), star",
        "per_run_mean(predict(x_t, steps, cond), star, t, weights) -> "
        "per_run_mean(star, predict(x_t, steps, cond), t, weights)",
    ): SQUARED,
    (
        "toy2d/core/objectives.py",
        "if self.uses(",
        "self.uses('l2', 'fisher') -> self.uses('fisher', 'l2')",
    ): ANY_ORDER,
    (
        "toy2d/core/objectives.py",
        "if self.uses(",
        "other.uses('l2', 'fisher') -> other.uses('fisher', 'l2')",
    ): ANY_ORDER,
    (
        "toy2d/core/objectives.py",
        "yield p, self.theta_star[name]",
        "True -> False",
    ): WAITS,
    (
        "toy2d/core/objectives.py",
        "distance = other if",
        "other.uses('l2', 'fisher') -> other.uses('fisher', 'l2')",
    ): ANY_ORDER,
    (
        "toy2d/core/drift.py",
        "errors.append(squared_error(",
        "squared_error(predict, predict_star, schedule, chain[n], t, cond) -> "
        "squared_error(predict_star, predict, schedule, chain[n], t, cond)",
    ): SQUARED,
    (
        "toy2d/core/drift.py",
        "grads = torch.autograd.grad(",
        "eps * sign -> eps / sign",
    ): "a sign is its own inverse",
    (
        "toy2d/core/trace.py",
        "(Jv,) = torch.autograd.grad(",
        "i + 1 -> i - 1",
    ): MEMORY,
    (
        "toy2d/runs/sentences.py",
        "if error > UNRESOLVED",
        "error > UNRESOLVED -> error >= UNRESOLVED",
    ): NO_NUMBER,
    (
        "toy2d/runs/sentences.py",
        "elif abs(slope - 2) < 2",
        "abs(slope - 2) < 2 * error + 0.005 -> abs(slope - 2) <= 2 * error + 0.005",
    ): NO_NUMBER,
    ("toy2d/runs/sentences.py", "rises, falls = (", "1 -> 2"): "of a factor only the sign counts",
    (
        "toy2d/core/likelihood.py",
        "past = list(range(n, max(",
        "max(n - order, -1) -> max(-1, n - order)",
    ): "the larger of two, in either order",
    (
        "toy2d/core/likelihood.py",
        "past = list(range(at, -1",
        "1 -> 2",
    ): "`at` is even wherever a step begins: -1 and -2 are both below node 0",
    (
        "toy2d/core/likelihood.py",
        "if step[-1] > 4",
        "step[-1] > 4 * step[-2] -> step[-1] >= 4 * step[-2]",
    ): NO_NUMBER,
    (
        "toy2d/core/likelihood.py",
        "fine = torch.linspace(",
        "4001 -> 4002",
    ): "one point more of a fine grid: nodes move by 1e-8",
    (
        "toy2d/core/likelihood.py",
        "share, gauss = _gauss",
        "20 -> 21",
    ): "both rules are exact to rounding",
    (
        "toy2d/core/trace.py",
        "return LogProb(self.value, self.coarse",
        "LogProb(self.value, self.coarse.mean(0)) -> LogProb(self.coarse.mean(0), self.value)",
    ): "a gap has no sign",
    ("toy2d/core/trace.py", "chunk: int = 0", "0 -> 1"): "a chunk bounds memory only",
    ("toy2d/core/trace.py", "found.append(", "True -> False"): AS_MANY,
    ("toy2d/core/trace.py", "ratio = LogProb(", "True -> False"): AS_MANY,
    (
        "personalize/drift/gain.py",
        "while len(turns) < len(",
        "len(turns) < len(node) -> len(turns) <= len(node)",
    ): "turns beyond the last sample are cut off",
    ("personalize/drift/measure.py", "seed: int = 0", "0 -> 1"): STREAM,
    ("personalize/drift/measure.py", "x, node, prompts, answers, share", "True -> False"): AS_MANY,
    (
        "personalize/drift/measure.py",
        "if self._squares is None or step",
        "step <= self._first_step -> step < self._first_step",
    ): "measured again or kept, the same numbers",
    ("toy2d/core/drift.py", "errors = [torch.zeros(", "0 -> 1"): "a chain is on one device",
    ("toy2d/core/drift.py", "shape = chain[0]", "0 -> 1"): "a chain's states have one shape",
    ("personalize/adapters/deltas.py", "scale: float", "1.0 -> 2.0"): "a scale is always given",
    (
        "personalize/adapters/anchors.py",
        "home = p.device if sharded(",
        "device or p.device -> device and p.device",
    ): ON_A_GPU,
    (
        "personalize/adapters/anchors.py",
        "copies[name] = c.pin_memory(",
        "not c.is_cuda -> c.is_cuda",
    ): ON_A_GPU,
    ("toy2d/core/trace.py", "(Jv,) = torch", "i + 1 < len(probes) -> i + 1 <= len(probes)"): MEMORY,
    ("personalize/drift/gain.py", "@dataclass(frozen=", "True -> False"): FROZEN,
    ("personalize/drift/gain.py", "places = [", "1 -> 2"): "every variant but 0 is mirrored",
    (
        "personalize/drift/gain.py",
        "same = instance_set(",
        "True -> False",
    ): "mirrored or not, a picture has one prompt",
    (
        "personalize/drift/fisher.py",
        "rng = generator(",
        "generator(config.seed, 'fisher/signs') -> generator('fisher/signs', config.seed)",
    ): STREAM,
    (
        "personalize/train/loop.py",
        "seed_dropout(config.seed",
        "seed_dropout(config.seed, step, loop.streams.rank) -> "
        "seed_dropout(step, config.seed, loop.streams.rank)",
    ): STREAM,
    ("personalize/train/loop.py", "for group, anchors in zip(", "True -> False"): AS_MANY,
    (
        "personalize/train/loop.py",
        "self.optimizer.zero_grad(",
        "True -> False",
    ): "a gradient of zeros or none",
    (
        "toy2d/core/objectives.py",
        "plain = all(type(t)",
        "type(t) in (Tensor, Parameter) -> type(t) not in (Tensor, Parameter)",
    ): WHOLE,
    ("toy2d/core/objectives.py", "if not plain or tensors[0]", "0 -> 1"): WHOLE,
    ("toy2d/core/drift.py", "t = torch.full(shape, n", "0 -> 1"): "a chain is on one device",
    (
        "personalize/drift/measure.py",
        "starts[name] = even_starts(",
        "generator(seed, f'probe/{name}/nodes') -> generator(f'probe/{name}/nodes', seed)",
    ): STREAM,
    (
        "personalize/drift/measure.py",
        "mean, error = path_kl(",
        "path_kl(predict, c.base, c.schedule, c.x, c.prompts) -> "
        "path_kl(c.base, predict, c.schedule, c.x, c.prompts)",
    ): SQUARED,
    ("personalize/adapters/anchors.py", "@dataclass(frozen=", "True -> False"): FROZEN,
    ("personalize/adapters/anchors.py", "star = theta_star[name].to(", "True -> False"): WAITS,
    (
        "personalize/adapters/deltas.py",
        "@dataclass(frozen=True, eq=",
        "False -> True",
    ): "no Change is compared or hashed",
    ("personalize/adapters/deltas.py", "@dataclass(frozen=", "True -> False"): FROZEN,
    (
        "personalize/adapters/deltas.py",
        "lambda group: torch.stack([c.layer.moved()",
        "-1 -> 1",
    ): "the last dimension of a matrix is 1",
    (
        "personalize/adapters/deltas.py",
        "if rank**2 >= min(",
        "rank ** 2 >= min(f['hada_w1_a'].shape[-2], inputs) -> "
        "rank ** 2 > min(f['hada_w1_a'].shape[-2], inputs)",
    ): "where both are as large either formula gives the number",
    (
        "personalize/train/streams.py",
        "x0, t, eps, cond = streams.collate(",
        "min(first + size, n) -> min(n, first + size)",
    ): "the smaller of two, in either order",
    ("personalize/train/streams.py", "x0, t, eps, prompts = zip(", "True -> False"): AS_MANY,
    ("personalize/train/streams.py", "t, eps = (torch.cat(v).to(", "True -> False"): WAITS,
    ("personalize/train/state.py", "shadow = zip(self.theta", "True -> False"): AS_MANY,
    ("personalize/train/state.py", "for (name, p), shadow in zip(", "True -> False"): AS_MANY,
    (
        "personalize/evaluate/metrics.py",
        "for x, y in zip(a, b",
        "zip(a, b, strict=True) -> zip(b, a, strict=True)",
    ): SYMMETRIC,
    (
        "personalize/evaluate/metrics.py",
        "out[i, i + 1 :] = out",
        "perceptual_distance(one, rest, channel) -> perceptual_distance(rest, one, channel)",
    ): SYMMETRIC,
    (
        "personalize/report/sentences.py",
        "if not math.isnan(base + tuned)",
        "base + tuned -> base - tuned",
    ): NEITHER,
}


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
    known = [(start, change) for name, start, change in EQUIVALENT if name == module]
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
