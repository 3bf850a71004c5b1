"""Learner and generators on the same GPUs take turns in their memory."""

from __future__ import annotations

from typing import Literal, Protocol


class Sleeper(Protocol):
    """Gives most of its memory back between `sleep` and `wake`."""

    def sleep(self) -> None:
        """Give memory back."""
        ...

    def wake(self) -> None:
        """Take it again."""
        ...


class Turns:
    """Whose turn it is; the one who has worked sleeps before the other wakes. Both are awake at first."""

    def __init__(self, learner: Sleeper, generators: Sleeper, *, enabled: bool) -> None:
        """Hold both; where not enabled, both stay awake."""
        self._learner = learner
        self._generators = generators
        self._enabled = enabled
        self._asleep: Literal["learner", "generators"] | None = None

    def generate(self) -> None:
        """The generators' turn, and that of carrying weights to them."""
        if self._enabled and self._asleep != "learner":
            self._learner.sleep()
            if self._asleep == "generators":
                self._generators.wake()
            self._asleep = "learner"

    def learn(self) -> None:
        """The learner's turn, and that of writing its state."""
        if self._enabled and self._asleep != "generators":
            self._generators.sleep()
            if self._asleep == "learner":
                self._learner.wake()
            self._asleep = "generators"
