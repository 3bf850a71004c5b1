"""The busy times of each actor: one line of `timeline.jsonl` per step. Every actor measures with its own clock.

`{"step": 3, "begin": 1760000000.0, "lanes": {"generator 0": {"generate": [[0.012, 1.5]], "sync": [[2.1, 2.2]]}}}`:
intervals are seconds since `begin`, the start of the step. Negative times belong to the previous step. An actor sends
its busy times with its normal answers, so some times arrive one step late and are in a later line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from grpo.report import run_files
from grpo.report.json_lines import JsonLines, complete_lines
from grpo.types import ActorId, ActorKind
from rewards.pool.busy_clock import Busy, BusyClock

DRIVER = ActorId(ActorKind.DRIVER)
# If the file is larger than this number of bytes, the older half of its steps is removed. This size is enough for about
# 10,000 steps of ten actors.
MOST_BYTES = 16 << 20
# A step's intervals are in the line of the step, and may also be in this number of lines after it.
_LATE_LINES = 2


@dataclass(frozen=True, slots=True)
class StepLanes:
    """The busy times of each actor from the start of a step until the next step starts.

    Attributes:
        lanes: activities of each actor, with their intervals in seconds since the step began, from 0 to `end`.
        end: end of the driver's last activity, in seconds; an evaluation or a checkpoint may come after the step.
        complete: False for the newest step, because some of its intervals may not have arrived yet.
    """

    lanes: Mapping[ActorId, Busy]
    end: float
    complete: bool


class TimeLine(JsonLines):
    """The time line file. Each step adds one line."""

    def __init__(self, run_dir: Path, most_bytes: int = MOST_BYTES) -> None:
        """Open a run's time line. If the file is missing, it is created. Its size stays below `most_bytes`."""
        # The file is not durable: nothing depends on it, and a step of a small policy should not wait for a disk.
        super().__init__(run_dir / run_files.TIMELINE, durable=False)
        self._most_bytes = most_bytes

    def append(self, step: int, begin: float, lanes: Mapping[ActorId, Busy]) -> None:
        """Write the activities that every actor has reported since the last line.

        Args:
            step: the newest step.
            begin: start of the step, in seconds since the epoch.
            lanes: activities of each actor; times in seconds since the epoch.
        """
        recorded = {
            str(actor): {
                what: [[round(time - begin, 3) for time in interval] for interval in intervals]
                for what, intervals in busy.items()
            }
            for actor, busy in lanes.items()
            if busy
        }
        self.write(json.dumps({"step": step, "begin": round(begin, 3), "lanes": recorded}) + "\n")
        if self.path.stat().st_size > self._most_bytes:
            half = len(complete_lines(self.path)) // 2
            self.keep(lambda number, _: number > half)


def step_lanes(lines: Sequence[str], step: int) -> StepLanes | None:
    """Read one step from the lines of `timeline.jsonl`; None if the lines do not contain this step.

    Raises:
        ValueError: a line has a different format.
    """
    # A resumed run, or the end of a run, may add a second line for a step. The first line has the start of the step.
    marked = [at for at, line in enumerate(lines) if line.startswith(f'{{"step": {step},')]
    if not marked:
        return None
    read = [_parse(line) for line in lines[marked[0] : marked[-1] + 1 + _LATE_LINES]]
    begin = read[0][1]
    later = [other - begin for number, other, _ in read if number > step]
    clocks: dict[ActorId, BusyClock] = {}
    for _, other, lanes in read:
        for actor, busy in lanes.items():
            moved = {
                what: [(a + other - begin, b + other - begin) for a, b in intervals] for what, intervals in busy.items()
            }
            # Cut before merging: the clock joins intervals that are close together, but must not join two steps.
            clocks.setdefault(actor, BusyClock()).merge(_within(moved, min(later, default=float("inf"))))
    whole = {actor: clock.take() for actor, clock in clocks.items()}
    # The end is not the start of the next step: the run may have been stopped for a night between the two.
    end = max((b for intervals in whole.get(DRIVER, {}).values() for _, b in intervals), default=0.0)
    cut = {actor: _within(busy, end) for actor, busy in whole.items()}
    return StepLanes({actor: busy for actor, busy in cut.items() if busy}, end, bool(later))


def _within(busy: Busy, end: float) -> Busy:
    """Cut the intervals to the range from 0 to `end`. Intervals whose length was rounded to 0 are also kept."""
    cut = {
        what: [(max(0.0, a), min(b, end)) for a, b in intervals if b > 0 and (a < end or a == b == end)]
        for what, intervals in busy.items()
    }
    return {what: intervals for what, intervals in cut.items() if intervals}


def _parse(line: str) -> tuple[int, float, dict[ActorId, Busy]]:
    try:
        record = json.loads(line)
        lanes = {
            ActorId.parse(actor): {
                str(what): [(float(a), float(b)) for a, b in intervals] for what, intervals in busy.items()
            }
            for actor, busy in record["lanes"].items()
        }
        return int(record["step"]), float(record["begin"]), lanes
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise ValueError(
            f"{run_files.TIMELINE}: expected an object with 'step', 'begin' and 'lanes', got {line[:80]!r}; "
            "remove the line, or move the file away"
        ) from problem
