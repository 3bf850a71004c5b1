"""How long the driver collects the answers of worlds before it sends the next turns to the generators."""

from __future__ import annotations

import math

# While turns and worlds are both under way, the driver collects what the worlds say for a time, and then sends all due
# turns in a message to each generator. This time is a share of a turn's time, so that a conversation waits little, and
# the driver's work for a message counts for several turns. Seconds, shortest and longest.
GATHERED_SHARE, GATHER_S = 0.05, (0.02, 0.1)
# Smallest weight of the newest turn in the mean time of a turn.
_NEWEST = 0.05


class TurnPace:
    """The mean time of a turn, and the time to collect answers."""

    def __init__(self) -> None:
        """Begin before any turn has ended. Until then nothing is gained by many looks, so the time is the longest."""
        self._turn_s, self._turns = math.inf, 0

    @property
    def gather_s(self) -> float:
        """Time to collect answers, in seconds."""
        least, most = GATHER_S
        return min(most, max(least, GATHERED_SHARE * self._turn_s))

    def took(self, seconds: float) -> None:
        """Note the time of a turn, from its request to its end."""
        self._turns += 1
        weight = max(_NEWEST, 1 / self._turns)
        self._turn_s = seconds if self._turns == 1 else self._turn_s + weight * (seconds - self._turn_s)
