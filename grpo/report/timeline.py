"""Who was busy when in each step: a line of `timeline.jsonl` per step, from what every actor measured by its own clock.

`{"step": 3, "begin": 1760000000.0, "lanes": {"generator 0": {"generate": [[0.012, 1.5]], "sync": [[2.1, 2.2]]}}}`:
intervals are seconds from `begin`, at which the step began, and below 0 where they are of the step before. What an
actor did travels with what it answers anyway, so some of it comes one step late; a reader looks into the next line.
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
# Where the file is larger, the older half of its steps is dropped: some 10,000 steps of ten actors.
MOST_BYTES = 16 << 20
# An interval of one step is in its line, or in one of so many after it.
_LATE_LINES = 2


@dataclass(frozen=True, slots=True)
class StepLanes:
    """Who was busy when in a step and until the next one began.

    Attributes:
        lanes: by actor, what it did and when: seconds since the step began, from 0 to `end`.
        end: the last moment at which the driver did something: an evaluation or a checkpoint may come after the step.
        complete: False for the newest step, of which some is still to come.
    """

    lanes: Mapping[ActorId, Busy]
    end: float
    complete: bool


class TimeLine(JsonLines):
    """Written once per step."""

    def __init__(self, run_dir: Path, most_bytes: int = MOST_BYTES) -> None:
        """Open a run's time line, made where it is missing; it is kept below `most_bytes`."""
        # Nothing hangs on it, and a step of a small policy should not wait for a disk.
        super().__init__(run_dir / run_files.TIMELINE, durable=False)
        self._most_bytes = most_bytes

    def append(self, step: int, begin: float, lanes: Mapping[ActorId, Busy]) -> None:
        """Write what every actor has told since the last line.

        Args:
            step: the newest one.
            begin: when it began, in seconds since the epoch.
            lanes: by actor; times in seconds since the epoch.
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
    """One step out of the lines of `timeline.jsonl`; None where it is not among them.

    Raises:
        ValueError: a line is not one of ours.
    """
    # A resume or the end of a run may add a line to a step: the first one says when it began.
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
            # What is of other steps must not be joined with what is near to it in this one.
            clocks.setdefault(actor, BusyClock()).merge(_within(moved, min(later, default=float("inf"))))
    whole = {actor: clock.take() for actor, clock in clocks.items()}
    # Not all the time until the next line: between the two the run may have been stopped for a night.
    end = max((b for intervals in whole.get(DRIVER, {}).values() for _, b in intervals), default=0.0)
    cut = {actor: _within(busy, end) for actor, busy in whole.items()}
    return StepLanes({actor: busy for actor, busy in cut.items() if busy}, end, bool(later))


def _within(busy: Busy, end: float) -> Busy:
    """What lies between 0 and `end`, cut there; what took no time that a line shows is kept too."""
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
