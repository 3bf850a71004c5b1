"""Verifiers for the pool's tests: each misbehaves in its own way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from rewards.stage import enter


def right(completion, reference):
    return completion == reference


def slow(completion, reference):
    time.sleep(float(completion))
    return True


def spin(completion, reference):
    enter("spinning")
    while True:
        pass


def burn(completion, reference):
    """Uses the processor for `completion` seconds; those of the clock do not count."""
    end = time.process_time() + float(completion)
    while time.process_time() < end:
        pass
    return True


def crowded_out(completion, reference):
    """Works for 20 ms, behind a program that has this processor to itself for `completion` seconds."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if os.fork() == 0:
        end = time.monotonic() + float(completion)
        while time.monotonic() < end:
            pass
        os._exit(0)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    return burn("0.02", reference)


def hang(completion, reference):
    enter("waiting for nothing")
    time.sleep(1000)


def hang_on_request(completion, reference):
    if completion == "hang":
        time.sleep(1000)
    return completion == reference


def deaf_hang(completion, reference):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(10)


def with_child(completion, reference):
    """Starts a process that outlives the call unless it is killed with it."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)", completion])
    time.sleep(1000)


def eat(completion, reference):
    return len(bytearray(4 << 30)) > 0


def die(completion, reference):
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(completion, reference):
    """Dies at the first call for `reference`, a path; counts its calls there."""
    with Path(reference).open("a") as log:
        log.write("call\n")
    if Path(reference).read_text().count("call") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return True


def record(completion, reference):
    """Appends to a file: what was run, and how often, can be counted afterwards."""
    with Path(reference).open("a") as log:
        log.write(completion + "\n")
    time.sleep(0.002)
    return True


def raises(completion, reference):
    raise LookupError("no such gene")


def exits(completion, reference):
    sys.exit(3)


def nothing(completion, reference):
    return None


def nan(completion, reference):
    return float("nan")


def word(completion, reference):
    return "correct"


def huge(completion, reference):
    return 10**9


def half(completion, reference, prompt):
    return 0.5 if prompt.get("hard") else 1.0


async def eventually(completion, reference):
    await asyncio.sleep(0.01)
    return completion == reference


def prints_on_the_wire(completion, reference):
    """Writes garbage to every socket that this process has open."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.write(int(name), b"\xff" * 4096)
        except OSError:
            continue
    time.sleep(1000)


def modules(completion, reference):
    return 1.0 if any(name in sys.modules for name in ("torch", "ray", "vllm", "transformers")) else 0.0
