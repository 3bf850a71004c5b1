"""If learner and generators share GPUs, only one of the two sides uses the GPUs' memory at a time."""

from __future__ import annotations

from typing import Literal, Protocol


class Sleeper(Protocol):
    """A learner or generator that frees most of its memory between `sleep` and `wake`."""

    def sleep(self) -> None:
        """Free memory."""
        ...

    def wake(self) -> None:
        """Allocate the memory again."""
        ...


class Turns:
    """Puts one side to sleep before the other side wakes. At first the learner sleeps."""

    def __init__(self, learner: Sleeper, generators: Sleeper, *, enabled: bool) -> None:
        """Begin with the learner asleep; if not `enabled`, both sides are awake and stay awake."""
        self._learner = learner
        self._generators = generators
        self._enabled = enabled
        self._asleep: Literal["learner", "generators"] = "learner"

    def generate(self) -> None:
        """Let the generators use the memory: they sample and receive weights."""
        if self._enabled and self._asleep == "generators":
            self._learner.sleep()
            self._generators.wake()
            self._asleep = "learner"

    def learn(self) -> None:
        """Let the learner use the memory: it trains and writes its state."""
        if self._enabled and self._asleep == "learner":
            self._generators.sleep()
            self._learner.wake()
            self._asleep = "generators"
