"""Ctrl-C: the first asks, the second stops."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from grpo.run.interrupt import Interrupt

def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

before = handlers()
number = int(sys.argv[1])
try:
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
        print("asked", flush=True)
        os.kill(os.getpid(), number)
        print("went on", flush=True)
except KeyboardInterrupt:
    print("stopped", flush=True)
assert handlers() == before
with Interrupt() as again:
    assert handlers() != before and not again.requested
assert handlers() == before
"""


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_the_first_signal_asks_and_the_second_stops(number: signal.Signals, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(number))], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["asked", "stopped", ""]
    # Told once, with what comes next.
    assert done.stderr == f"{name}: stopping after this step, with a checkpoint; a second signal stops at once\n"
