"""The pool's throughput, and what hanging verifiers cost it.

    python tests/bench/pool.py [--verdicts 20000] [--deadline 1.0] [--repeats 3]

Each verdict costs a little processor time, as a verifier of medium weight does (`--work` seconds). Hanging ones either
sleep for ever or spin for ever; both are killed at the deadline. Printed: the time without them, with 1 % of each, the
ratio, and the processes left behind. On a machine that others use as well, the processor seconds of the pool's own
processes tell more than the seconds of the clock; both are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from rewards.build import VerifierSpec  # noqa: E402
from rewards.pool import VerifierPool  # noqa: E402
from rewards.verdict import Status  # noqa: E402


def worked(completion: str, reference: float, prompt: object) -> bool:
    """Burn `reference` seconds of processor time, or hang the way the completion says."""
    if completion == "sleep":
        time.sleep(1e6)
    while completion == "spin":
        pass
    end = time.thread_time() + reference
    while time.thread_time() < end:
        pass
    return True


def processor_s() -> float:
    """Of this process and all below it, those that were reaped included."""
    here = psutil.Process()
    spent = 0.0
    for each in (here, *here.children(recursive=True)):
        # A worker may end between being listed and being asked; the nursery has then counted it among its children.
        with contextlib.suppress(psutil.NoSuchProcess):
            spent += sum(each.cpu_times()[:4])
    return spent


def run(kinds: list[str], work: float, deadline: float, workers: int, spares: int) -> tuple[float, float]:
    """Seconds of the clock and of the processors for all the verdicts."""
    spec = VerifierSpec("worked", f"{__file__}:worked")
    with VerifierPool([spec], workers=workers, deadline_s=deadline, spares=spares) as pool:
        pool.submit("worked", "", 0.0, {}).result(30)
        begun, spent = time.perf_counter(), processor_s()
        futures = pool.submit_many([("worked", kind, work, {}) for kind in kinds])
        statuses = [future.result(600).status for future in futures]
        seconds, spent = time.perf_counter() - begun, processor_s() - spent
    assert statuses.count(Status.TIMEOUT) == sum(kind != "" for kind in kinds), statuses.count(Status.TIMEOUT)
    assert statuses.count(Status.CORRECT) == sum(kind == "" for kind in kinds)
    return seconds, spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verdicts", type=int, default=20_000)
    parser.add_argument("--work", type=float, default=0.001, help="processor seconds of one verdict")
    parser.add_argument("--deadline", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--spares", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", default=["sleep", "spin"])
    options = parser.parse_args()
    source = random.Random(0)
    hanging = set(source.sample(range(options.verdicts), options.verdicts // 100))
    settings = (options.work, options.deadline, options.workers, options.spares)
    print(f"{options.verdicts} verdicts of {options.work * 1e3:g} ms, {options.workers} workers, "
          f"{options.spares} spares, deadline {options.deadline:g} s")  # fmt: skip
    base = (0.0, 0.0)
    for kind in ("", *options.kinds):
        kinds = [kind if at in hanging else "" for at in range(options.verdicts)]
        measured = [run(kinds, *settings) for _ in range(options.repeats)]
        clock, processor = (statistics.median(each[which] for each in measured) for which in (0, 1))
        base = base if kind else (clock, processor)
        spread = f"{min(each[0] for each in measured):.2f} to {max(each[0] for each in measured):.2f}"
        print(f"{'1 % that ' + kind if kind else 'none hanging':15s} {clock:7.2f} s ({spread}), "
              f"{clock / base[0]:.2f} times; processors {processor:7.2f} s, {processor / base[1]:.2f} times; "
              f"{options.verdicts / clock:.0f} verdicts/s", flush=True)  # fmt: skip
    left = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    print(f"processes left behind: {len(left)}")


if __name__ == "__main__":
    main()
