"""The processes of conversations: openings per second, the driver's time per turn, and what a tool's latency costs.

    python tests/bench/conversing/worlds.py [--worlds 256] [--turns 4] [--tool-s 0.2] [--repeats 5]

Each world has the tool `wait`, which sleeps. First all worlds open. Then each plays its turns; the driver answers at
once, as a policy without latency would. Then all worlds close. Printed are medians over the repeats. The driver's time
is processor time of its thread, so that other processes do not count. The stretch is the time of all turns over the
time of the tool calls of a single conversation; 1 means that no conversation waited for another.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT)]

from grpo.environments.contract import Answer, Opening, WorldFailed  # noqa: E402
from grpo.environments.processes import WorldProcesses  # noqa: E402
from grpo.environments.spec import WorldSpec  # noqa: E402
from grpo.messages import ChatMessage, ToolCall, WorldReward  # noqa: E402

ROW = {"question": "How many legs have seven sheep?" * 10, "answer": "28"}


def wait(seconds: float) -> str:
    """Wait.

    Args:
        seconds: Time to wait.
    """
    time.sleep(seconds)
    return "waited " * 20


def heard(worlds: WorldProcesses, kind: type) -> list[int]:
    """Return the keys of the events; each must be of this kind."""
    events = worlds.events(1.0)
    for _, event in events:
        assert not isinstance(event, WorldFailed), event
        assert isinstance(event, kind)
    return [key for key, _ in events]


def play(worlds: WorldProcesses, count: int, turns: int, tool_s: float) -> dict[str, float]:
    """Open, play and close all conversations; return the measured figures."""
    begun, spent = time.perf_counter(), time.thread_time()
    for key in range(count):
        worlds.open(key, ROW)
    opened = 0
    while opened < count:
        opened += len(heard(worlds, Opening))
    opening_s, opening_own = time.perf_counter() - begun, time.thread_time() - spent
    shared = [psutil.Process(pid).memory_full_info().pss for pid in world_pids()[:16]]
    turn = ChatMessage("assistant", "I wait. " * 20, (ToolCall("wait", {"seconds": tool_s}),))
    played = dict.fromkeys(range(count), 0)
    begun, spent = time.perf_counter(), time.thread_time()
    for key in played:
        worlds.answer(key, turn)
    while played:
        for key in heard(worlds, Answer):
            played[key] += 1
            if played[key] == turns:
                del played[key]
            else:
                worlds.answer(key, turn)
    playing_s, playing_own = time.perf_counter() - begun, time.thread_time() - spent
    begun = time.perf_counter()
    for key in range(count):
        worlds.close(key)
    closed = 0
    while closed < count:
        closed += len(heard(worlds, WorldReward))
    seconds = worlds.take_seconds()
    return {
        "openings per second": count / opening_s,
        "driver, ms per opening": opening_own / count * 1e3,
        "driver, ms per turn": playing_own / (count * turns) * 1e3,
        "tool call, s (median)": statistics.median(seconds["answer"]),
        "stretch of all turns": playing_s / (turns * tool_s),
        "closings per second": count / (time.perf_counter() - begun),
        "MiB of own memory per world (PSS)": statistics.median(shared) / (1 << 20),
    }


def world_pids() -> list[int]:
    (nursery,) = psutil.Process().children()
    return [each.pid for each in nursery.children()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=256)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tool-s", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    spec = WorldSpec((f"{__file__}:wait",))
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        with WorldProcesses(spec, tool_deadline_s=60.0, memory_mib=2048, log=Path(folder) / "log") as worlds:
            print(f"start, with the tools' schemas: {time.perf_counter() - begun:.2f} s")
            rounds = [
                play(worlds, arguments.worlds, arguments.turns, arguments.tool_s) for _ in range(arguments.repeats)
            ]
    for name in rounds[0]:
        figures = sorted(each[name] for each in rounds)
        print(f"{name}: {statistics.median(figures):.3g} ({figures[0]:.3g} to {figures[-1]:.3g})")


if __name__ == "__main__":
    main()
