"""Detect a generator that is much slower than its peers over several steps of a run."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from grpo.types import ActorId

# Steps over which speeds are compared. One step is not enough, because it may end with one long completion.
STEPS = 5
# A generator is reported if the median speed of the other generators is at least this many times its speed.
NOTABLE = 2.0


@dataclass(frozen=True, slots=True)
class GeneratorThroughput:
    """The work of one generator over a period.

    Attributes:
        generator: id of the generator.
        process: process id; a restarted generator has a new process.
        address: IP address of the generator's node.
        tokens: number of tokens of the generator's finished groups.
        busy_s: time in which the generator had work, in seconds, measured by the driver.
    """

    generator: ActorId
    process: int
    address: str
    tokens: int
    busy_s: float

    @property
    def source(self) -> tuple[ActorId, int, str]:
        """Return the generator and its process. This value changes only if the generator restarts."""
        return self.generator, self.process, self.address

    def __str__(self) -> str:
        return f"{self.generator} (pid {self.process} on {self.address})"


class SlowGenerators:
    """Compares the tokens that generators sample per second while they have work."""

    def __init__(self) -> None:
        self._last: collections.deque[Sequence[GeneratorThroughput]] = collections.deque(maxlen=STEPS)
        self._named: set[tuple[ActorId, int, str]] = set()

    def step(self, sampled: Sequence[GeneratorThroughput]) -> tuple[dict[str, float], list[str]]:
        """Add a step's throughputs; return metrics, and a line about each generator that is slow for the first time.

        A restarted generator counts as a new generator and is compared after `STEPS` steps. If fewer than two
        generators can be compared, there are no metrics.
        """
        self._last.append(sampled)
        if len(self._last) < STEPS:
            return {}, []
        speeds = {}
        for current in sampled:
            steps = [past for step in self._last for past in step if past.source == current.source]
            busy_s = sum(past.busy_s for past in steps)
            if len(steps) == STEPS and busy_s > 0:
                # A generator without finished groups is slow too. The minimum of one token avoids a division by zero.
                speeds[current] = max(1, sum(past.tokens for past in steps)) / busy_s
        if len(speeds) < 2:
            return {}, []
        slower, lines = [], []
        for slow, speed in speeds.items():
            peers = statistics.median(other for who, other in speeds.items() if who is not slow)
            slower.append(peers / speed)
            if peers / speed >= NOTABLE and slow.source not in self._named:
                self._named.add(slow.source)
                lines.append(
                    f"{slow} is slow: it samples {speed:.0f} tokens/s while it has work, {peers / speed:.1f} times "
                    f"fewer than the median of the others ({peers:.0f} tokens/s, last {STEPS} steps); it slows the "
                    "whole run: look for other programs on its node, and check its devices"
                )
        return {"throughput/slowest_generator": max(slower)}, lines
