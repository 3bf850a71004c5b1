"""Learner and generators on the same GPUs use the GPUs' memory in turns."""

from __future__ import annotations

from typing import Literal, Protocol


class Sleeper(Protocol):
    """Gives most of its memory back between `sleep` and `wake`."""

    def sleep(self) -> None:
        """Give memory back."""
        ...

    def wake(self) -> None:
        """Take the memory again."""
        ...


class Turns:
    """Puts one side to sleep before the other side wakes. Both sides are awake at first."""

    def __init__(self, learner: Sleeper, generators: Sleeper, *, enabled: bool) -> None:
        """Begin with both sides awake; if not `enabled`, both stay awake."""
        self._learner = learner
        self._generators = generators
        self._enabled = enabled
        self._asleep: Literal["learner", "generators"] | None = None

    def generate(self) -> None:
        """Begin the generators' turn, in which they sample and receive weights."""
        if self._enabled and self._asleep != "learner":
            self._learner.sleep()
            if self._asleep == "generators":
                self._generators.wake()
            self._asleep = "learner"

    def learn(self) -> None:
        """Begin the learner's turn, in which it trains and writes its state."""
        if self._enabled and self._asleep != "generators":
            self._generators.sleep()
            if self._asleep == "learner":
                self._learner.wake()
            self._asleep = "generators"
