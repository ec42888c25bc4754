"""The command line `toy2d course | run | sweep | verify | bench`.

It picks a preset and overrides fields; every default is a preset's.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from toy2d.config import PRESETS, Sweep, ToyConfig, course
from toy2d.runs.cli import guard, parse, to_stderr
from toy2d.runs.spec import OBJECTIVE_WORDS

DESCRIPTION = """A 2D world in which the drift of a personalized diffusion model can be computed.

  toy2d course              the course's experiment; then open runs/toy2d/course/report.html
  toy2d run smoke           everything once, in seconds
  toy2d run course --name mine --runs standard l2:0.01 prior:1+l2:0.01 --seeds 0 1 2 3
  toy2d run paper           the paper's toy, with the KLs that the paper lacks
  toy2d sweep               tune each objective's weight, compare at equal adaptation
  toy2d verify              measure both sides of every theorem on the course's run
  toy2d bench               speed beside other implementations

Objectives, written kind:weight (joined by + for a sum):
""" + "\n".join(f"  {kind:16s} {word.says}" for kind, word in OBJECTIVE_WORDS.items())

Out = Annotated[
    Path, tyro.conf.arg(help="parent folder; the run goes to OUT/toy2d/NAME", metavar="DIR")
]
RUNS = Path("runs")
DryRun = Annotated[bool, tyro.conf.arg(help="print the configuration and the plan, train nothing")]


def run_config(config: ToyConfig, out: Path, dry_run: bool) -> None:
    if dry_run:
        print(json.dumps(config.as_dict(), indent=1))
        members = len(config.runs) * len(config.seeds)
        print(
            f"{members} fine-tunings ({len(config.runs)} runs x {len(config.seeds)} seeds) of "
            f"{config.steps} steps, after {config.pretrain_steps} pretraining steps a seed; "
            f"would write {Path(out) / 'toy2d' / config.name}"
        )
        return
    from toy2d.experiment import run

    folder = run(config, out)
    print_table(folder)
    print(f"report: {folder / 'report.html'}")


def print_table(folder: Path) -> None:
    """The closing table: the same rows as the report's."""
    from toy2d.figures.frontier import toy_trajectories
    from toy2d.report import summary
    from toy2d.runs.files import read_csv
    from toy2d.sentences import readings

    metrics = json.loads((folder / "metrics.json").read_text())
    trajectories = toy_trajectories(metrics, read_csv(folder / "history.csv"))
    header, rows = summary(metrics, False, trajectories)
    table = Table(
        title=f"{escape(folder.name)}: KL in nats after the last step, median over seeds; "
        "bold: the weights chosen at equal learning",
        title_justify="left",
    )
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=not i, max_width=18)
    for row in rows:
        table.add_row(*row["cells"], style="bold" if row["best"] else None)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for sentence in readings(metrics, trajectories):
        console.print(f"- {sentence}", markup=False, highlight=False)


def course_command(
    out: Out = Path("runs"),
    seeds: tuple[int, ...] = course().seeds,
    device: str = "cpu",
    dry_run: DryRun = False,
) -> None:
    """The course's experiment: five objectives, five weights each, eight seeds; about 2 minutes on
    two cores.

    If it was killed, the same command continues; if it was finished, it says so.

    Args:
        seeds: each seed has its own base model, few-shot points and noise
        device: device of the networks, e.g. cpu or cuda
    """
    run_config(replace(course(), seeds=seeds, device=device), out, dry_run)


def _of_preset(preset: Callable[[], ToyConfig]) -> Callable:
    default, runs = preset(), Path("runs")

    def command(config: ToyConfig = default, out: Out = runs, dry_run: DryRun = False) -> None:
        run_config(config, out, dry_run)

    command.__doc__ = preset.__doc__
    return command


def run_command() -> None:
    """A preset (smoke, course, paper) with any field changed; see `toy2d run --help` and `toy2d run
    course --help`.
    """


SWEEP = Sweep()


def sweep_command(plan: Sweep = SWEEP, out: Out = RUNS, dry_run: DryRun = False) -> None:
    """Train objectives x weights x seeds at every learning rate, step count and width, and find the
    least drift at equal adaptation.

    The default is 4 cells of 84 fine-tunings, about 6 minutes on two cores. If it was
    killed, the same command continues.
    """
    cells = plan.cells()
    if dry_run:
        each = len(plan.runs) * len(plan.seeds)
        print(f"{len(cells)} cells of {each} fine-tunings: " + ", ".join(c.name for c in cells))
        return
    from toy2d.sweep import sweep

    folder = sweep(plan, out)
    print_best(folder)


def print_best(folder: Path) -> None:
    """The table of least drift at equal adaptation."""
    from toy2d.runs.statistics import number

    table = Table(
        title="least KL(base || tuned) of the old classes, nats, over all weights, learning rates "
        "and steps (1 standard error)",
        title_justify="left",
    )
    header = ("new-class KL at most", "objective", "least drift", "at", "lr", "steps", "width")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i in (1, 3) else "right")
    for row in json.loads((folder / "sweep.json").read_text())["best"]:
        r = row["best"]
        cells = ("none learnt so well",)
        if r is not None:
            drift, low, high = (number(r[f"old_base{end}"]) for end in ("", "_low", "_high"))
            setting = (f"{r['learning_rate']:g}", str(r["steps"]), str(r["width"]))
            cells = (f"{drift} ({low}\u2013{high})", r["run"], *setting)
        table.add_row(f"{row['level']:g}", row["objective"], *cells)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"every setting: {folder / 'sweep.csv'}; figure: {folder / 'sweep.png'}")


def verify_command(
    name: str = "course",
    out: Out = RUNS,
    only: str | None = None,
    seeds: tuple[int, ...] = (),
    power: bool = False,
    json: bool = False,
) -> None:
    """Measure both sides of every theorem on a finished run; a few minutes.

    The course is run first if it is missing. Writes OUT/toy2d/NAME/verify/verify.json and figures.
    Exit code 1 only if something *proved* fails by more than its error: our code has a bug. A claim
    of the paper that does not hold is a result: it is printed, and the exit code is 0.

    Args:
        name: a run on the pentagon world
        only: one label, e.g. path_bound; writes partial.json instead
        seeds: some of the run's seeds; the first three by default
        power: also say which wrong constants make a row of each statement fail; writes power.json
        json: print the rows as JSON, for scripts; messages go to stderr
    """
    from toy2d.verify.power import show_power
    from toy2d.verify.table import refuse_bugs, show
    from toy2d.verify.verify import verify

    say = to_stderr if json else print
    folder, rows, records = verify(name, out, only, seeds, say, with_power=power)
    if json:
        print((folder / ("partial.json" if only or seeds else "verify.json")).read_text())
    else:
        show(rows)
        if records:
            show_power(records)
        print(f"every row: {folder}")
    refuse_bugs(rows, f" --name {name} --out {out}")


def bench_command(members: int = 32, steps: int = 60, shots: int = 6, threads: int = 1) -> None:
    """Time the training of all networks at once against one at a time, and log-likelihoods against
    torchdiffeq's dopri5 and scipy's DOP853.

    Args:
        members: number of networks trained at once
        steps: training steps timed
        shots: batch size of the few-shot training step
        threads: torch threads of both sides (tiny tensors are fastest on one)
    """
    from toy2d.bench import bench

    bench(members, steps, shots, threads)


COMMANDS = {
    "course": course_command,
    "run": run_command,
    "sweep": sweep_command,
    "verify": verify_command,
    "bench": bench_command,
}
RUN_COMMANDS = {name: _of_preset(preset) for name, preset in PRESETS.items()}
RUN_HELP = """A preset with any field changed. Give it a --name of its own: a run folder holds one
configuration.

  toy2d run course --name mine --runs standard l2:0.01 --seeds 0 1 2 3"""


def main(args: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (the machine refused), 2 (a wrong command)."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["run"]:
        return guard(lambda: parse("toy2d run", RUN_COMMANDS, RUN_HELP, args[1:]), "toy2d run")
    return guard(lambda: parse("toy2d", COMMANDS, DESCRIPTION, args), "toy2d")


if __name__ == "__main__":
    sys.exit(main())
