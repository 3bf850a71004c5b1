"""A generator that is much slower than its peers, noticed over the steps of a run."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Steps over which speeds are compared: the last long completion of one step says nothing of the engine.
STEPS = 5
# Times slower than the median of the others, from which on it is told.
NOTABLE = 2.0


@dataclass(frozen=True, slots=True)
class GeneratorThroughput:
    """What one generator did in a while.

    Attributes:
        generator: its number.
        told: how it is named: number, process and node.
        tokens: of the groups that it handed over.
        busy_s: seconds in which it had something to sample, as the driver saw it.
    """

    generator: int
    told: str
    tokens: int
    busy_s: float


class SlowGenerators:
    """Compares the tokens that generators sample per second while they have work."""

    def __init__(self) -> None:
        self._last: collections.deque[Sequence[GeneratorThroughput]] = collections.deque(maxlen=STEPS)
        self._named: set[str] = set()

    def step(self, sampled: Sequence[GeneratorThroughput]) -> tuple[dict[str, float], list[str]]:
        """Add what generators did in a step; the step's metrics, and a line about each that is newly found slow.

        One that was started again is another, and compared when it has its own `STEPS` steps; where only one is left to
        compare, there is nothing to say.
        """
        self._last.append(sampled)
        if len(self._last) < STEPS:
            return {}, []
        speeds = {}
        for now in sampled:
            found = [one for step in self._last for one in step if one.told == now.told]
            busy_s = sum(one.busy_s for one in found)
            if len(found) == STEPS and busy_s > 0:
                # One that has handed over nothing is slow too; a token keeps its speed a number to divide by.
                speeds[now] = max(1, sum(one.tokens for one in found)) / busy_s
        if len(speeds) < 2:
            return {}, []
        slower, lines = [], []
        for one, speed in speeds.items():
            peers = statistics.median(other for who, other in speeds.items() if who is not one)
            slower.append(peers / speed)
            if peers / speed >= NOTABLE and one.told not in self._named:
                self._named.add(one.told)
                lines.append(
                    f"{one.told} is slow: it samples {speed:.0f} tokens/s while it has work, {peers / speed:.1f} times "
                    f"fewer than the median of the others ({peers:.0f} tokens/s, last {STEPS} steps); the run goes on "
                    "at its pace: look at what else its node does, and at its devices"
                )
        return {"throughput/slowest_generator": max(slower)}, lines
