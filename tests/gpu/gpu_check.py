"""Check and measure this project on one GPU, in a few minutes. Install torch, transformers and DeepSpeed first.

    make gpu-check                          all parts that fit into six minutes
    make gpu-check PARTS="head attention"   these parts; a group's name (checks, measures, engines) selects all of it
    make gpu-check OPTIONS=--list           the parts, with their expected time
    python tests/gpu/gpu_check.py --device cpu --tiny    try the script itself on a CPU

The checks compare the GPU with float64 on the CPU. The measures take optimizer steps of policies with random weights,
with a new batch in each step. The engines' parts also need vLLM and Ray. A part that does not fit into the time that is
left is skipped; a part that fails makes the exit status 1, and the other parts still run. The last output is one table,
which is also written as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).parent))

from gpu_outcomes import Outcome, table, write
from gpu_parts import PARTS, Part, chosen

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build"
WORKER = Path(__file__).with_name("gpu_worker.py")
# Memory that a finished part may leave on the GPU, in bytes. With more, the next part gets a new process, so that its
# peak is its own.
MOST_KEPT = 256 << 20
# A part may take this many times its expected time before it is ended, but no more than the time that is left.
PATIENCE = 3.0


class Ended(RuntimeError):
    """The worker has ended or had to be ended; the message says why."""


class Worker:
    """The process that runs the parts. After a failure a new process takes its place."""

    def __init__(self, options: argparse.Namespace, folder: Path, log: TextIO, limit_s: float) -> None:
        """Start the process and wait until it has described its machine.

        Raises:
            Ended: the process ended, or did not answer in time.
        """
        self._answers, theirs = os.pipe()
        command = [sys.executable, str(WORKER)]
        command += ["--device", options.device, "--folder", str(folder), "--answers", str(theirs)]
        command += ["--tiny"] if options.tiny else []
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=(theirs,),
            # The engines' processes are in the same session, so all of them can be ended together.
            start_new_session=True,
        )
        os.close(theirs)
        self._read = b""
        first = self._answer(limit_s)
        if first["state"] == "failed":
            self.end()
            raise Ended(first["note"])
        self.machine: dict[str, Any] = first["machine"]

    def run(self, part: str, seconds: float, limit_s: float) -> dict[str, Any]:
        """Run a part and return its answer.

        Raises:
            Ended: the process ended, or did not answer within `limit_s`.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"part": part, "seconds": seconds}) + "\n")
            self._process.stdin.flush()
        return self._answer(limit_s)

    def _answer(self, limit_s: float) -> dict[str, Any]:
        until = time.monotonic() + limit_s
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self.end()
                raise Ended(f"it did not end within {limit_s:.0f} s")
            piece = os.read(self._answers, 1 << 16)
            if not piece:
                self.end()
                raise Ended(f"its process ended with status {self._process.returncode}")
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """End the process and everything that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="parts or groups to run; by default all")
    parser.add_argument("--list", action="store_true", help="list the parts and start nothing")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device under test")
    parser.add_argument("--tiny", action="store_true", help="use tiny shapes, to try the script itself")
    parser.add_argument("--minutes", type=float, default=6.0, help="time for all parts together, in minutes")
    parser.add_argument("--json", type=Path, default=BUILD / "gpu_check.json", help="file for the outcomes")
    parser.add_argument("--log", type=Path, default=BUILD / "gpu_check.log", help="file for what the parts print")
    options = parser.parse_args()
    try:
        options.names = chosen(options.parts)
    except ValueError as error:
        parser.error(str(error))
    return options


def listed(names: Sequence[str]) -> str:
    """Return the parts as lines of text."""
    width = max(map(len, names))
    lines = [
        f"{name:{width}}  {PARTS[name].group:8}  {PARTS[name].seconds:4.0f} s  {PARTS[name].title}" for name in names
    ]
    return "\n".join([f"{'part':{width}}  group       time  what it does", *lines])


def obstacle(part: Part, options: argparse.Namespace, machine: dict[str, Any], left_s: float) -> str:
    """Return the reason why a part cannot run here; empty if it can."""
    missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if part.needs_gpu and options.device == "cpu":
        return "it needs a GPU"
    if part.gpus > machine["gpus"] and options.device == "cuda":
        return f"it needs {part.gpus} GPUs, and torch sees {machine['gpus']}"
    if missing:
        return f"it needs {' and '.join(missing)}, which this environment lacks"
    if part.seconds > left_s:
        return f"it takes about {part.seconds:.0f} s, and {max(0.0, left_s):.0f} s of {options.minutes:g} min are left"
    return ""


def run_parts(options: argparse.Namespace, folder: Path, log: TextIO, outcomes: list[Outcome]) -> dict[str, Any]:
    """Run the chosen parts; append each outcome to `outcomes` at once. Return the description of the machine.

    Raises:
        Ended: not even the first process could start.
    """
    until = time.monotonic() + 60 * options.minutes
    print(f"starting torch on {options.device} ...", flush=True)
    worker: Worker | None = Worker(options, folder, log, 60 * options.minutes)
    machine = worker.machine
    print(f"{machine['device']}, torch {machine['torch']}, {len(options.names)} parts", flush=True)
    try:
        for number, name in enumerate(options.names, 1):
            part, began = PARTS[name], time.monotonic()
            print(f"[{number:2}/{len(options.names)}] {name:14} {part.title} ... ", end="", flush=True)
            reason = obstacle(part, options, machine, until - began)
            if reason:
                outcome = Outcome(name, "skipped", 0.0, reason)
            else:
                try:
                    if worker is None:
                        worker = Worker(options, folder, log, until - time.monotonic())
                    left_s = until - time.monotonic()
                    # The expected times are those of a GPU.
                    limit_s = left_s if options.device == "cpu" else min(max(60.0, PATIENCE * part.seconds), left_s)
                    answer = worker.run(name, part.seconds, limit_s)
                except Ended as ended:
                    answer = {"state": "failed", "note": str(ended)}
                spent = answer.pop("spent", False) | (answer.pop("kept_bytes", 0) > MOST_KEPT)
                outcome = Outcome(name, seconds=time.monotonic() - began, **answer)
                if worker is not None and (outcome.state == "failed" or spent):
                    worker.end()
                    worker = None
            outcomes.append(outcome)
            took = "" if outcome.state == "skipped" else f", {outcome.seconds:.1f} s"
            print(f"{outcome.state}{took}", flush=True)
            if outcome.state != "passed":
                print(f"        {outcome.note}", flush=True)
    finally:
        if worker is not None:
            worker.end()
    return machine


def main() -> int:
    options = arguments()
    if options.list:
        print(listed(options.names))
        return 0
    options.log.parent.mkdir(parents=True, exist_ok=True)
    began, outcomes, machine, interrupted = time.monotonic(), list[Outcome](), dict[str, Any](), False
    with tempfile.TemporaryDirectory(prefix="gpu_check_") as folder, options.log.open("w", encoding="utf-8") as log:
        try:
            machine = run_parts(options, Path(folder), log, outcomes)
        except Ended as ended:
            print(f"gpu-check: {ended}; what it printed is in {options.log}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            interrupted = True
    print(f"\n{table(outcomes)}\n")
    write(options.json, {**machine, "seconds": time.monotonic() - began}, outcomes)
    counts = {state: sum(one.state == state for one in outcomes) for state in ("passed", "failed", "skipped")}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    print(f"{told}; {time.monotonic() - began:.0f} s in all. The table as JSON: {options.json}")
    if counts["failed"]:
        print(f"Errors with their stacks: {options.log}")
    late = [one.part for one in outcomes if one.state == "skipped" and "min are left" in one.note]
    if late:
        command = f"make gpu-check PARTS={shlex.quote(' '.join(late))}"
        print(f"Not enough time was left for some parts. Run them with: {command}")
    if interrupted:
        return 130
    return 0 if counts["passed"] and not counts["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
