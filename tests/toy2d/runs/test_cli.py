"""Command lines: exit codes, signals that are recorded, messages on one line."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from toy2d.runs.cli import BROKEN_PIPE, guard, one_line
from toy2d.runs.files import RunFailure, UserError
from toy2d.runs.folder import RunFolder


def ended_by(fault):
    def main():
        raise fault

    return main


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (UserError("a\nb"), 2, "prog: a b\n"),
        (UserError("a\x1b[31mb.jpg \udc80"), 2, "prog: a\\x1b[31mb.jpg \\udc80\n"),
        (RunFailure("full"), 1, "prog: full\n"),
        (MemoryError(), 1, "prog: the memory of this machine does not suffice\n"),
        (
            KeyboardInterrupt(),
            130,
            "prog: interrupted; the same command goes on from the last checkpoint\n",
        ),
        (BrokenPipeError(), BROKEN_PIPE, ""),
    ],
)
def test_every_fault_has_its_exit_code_and_one_line(fault, code, said, capfd):
    if isinstance(fault, BrokenPipeError):
        out = os.dup(1)
        assert guard(ended_by(fault), "prog") == code
        os.dup2(out, 1)
    else:
        assert guard(ended_by(fault), "prog") == code
    assert capfd.readouterr().err == said


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_is_recorded_in_the_run_folder_and_is_the_exit_code(
    tmp_path, number, code, capsys
):
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # pytest itself may run under nohup
    run = RunFolder(tmp_path / "run", {})

    def main():
        with run.open():
            threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
            time.sleep(5)

    assert guard(main, "prog") == code
    record = json.loads((run.path / "status.json").read_text())
    assert record["status"] == "failed"
    name = "KeyboardInterrupt" if number == signal.SIGINT else signal.Signals(number).name
    assert name in record["reason"]
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signal.signal(signal.SIGHUP, hangup)


def test_a_signal_that_nohup_ignores_stays_ignored():
    """SIGHUP of a closing terminal does not end a run that was started with nohup."""
    code = """
import os, signal
from toy2d.runs.cli import guard
signal.signal(signal.SIGHUP, signal.SIG_IGN)
raise SystemExit(guard(lambda: os.kill(os.getpid(), signal.SIGHUP), "prog"))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_reader_that_has_gone_ends_the_command_quietly():
    code = """
from toy2d.runs.cli import guard
def main():
    for i in range(100000):
        print("line", i)
raise SystemExit(guard(main, "prog"))
"""
    line = f"{sys.executable} -c '{code}' | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (BROKEN_PIPE, "line 0\n", "")


def test_what_is_missing_is_named():
    box = """
\u256d\u2500 Required options \u2500\u256e
\u2502 Missing from prog: \u2502
\u2502     --model STR \u2502
\u2502         a folder (required) \u2502
\u2502     --reference STR \u2502
\u2570\u2500\u2500\u256f"""
    said = "--model and --reference are missing; see prog --help"
    assert one_line(box, "prog --help") == said
