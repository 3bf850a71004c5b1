"""Tasks of reasoning-gym as an environment: the answer is scored by the task's own scorer. An optional extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.verdict import Status
from rewards.verifiers.gym import ReasoningGym


class Gym:
    """The environment `gym`: the policy answers the row's question, and may try again after a wrong answer.

    Rows come from `rewards.verifiers.gym:rows`, or have reasoning-gym's columns.

    Args:
        task: name of the task, if all rows have the same task; see `rewards.verifiers.gym.ReasoningGym`.
        tries: largest number of answers.
        find: places of an answer; see `rewards.verifiers.exact.Exact`.

    Raises:
        ValueError: reasoning-gym is not installed, or an option has a wrong value.
    """

    def __init__(
        self, task: str | None = None, tries: int = 1, find: Sequence[str] = ("answer_tag", "boxed", "stated")
    ) -> None:
        if tries < 1:
            raise ValueError(f"gym: tries is {tries}; expected 1 or more")
        self._scorer, self._tries = ReasoningGym(task, find), tries
        self._score = 0.0
        self.over = False

    def reset(self, row: Mapping[str, Any]) -> None:
        """Begin. The row's prompt is the question."""
        self._row, self._rest, self._score, self.over = dict(row), self._tries, 0.0, False

    def step(self, message: str) -> str:
        """Score an answer.

        Raises:
            ValueError: the row does not name its task.
        """
        verdict = self._scorer(message, self._row.get("answer"), self._row)
        if verdict.status is Status.ERROR:
            raise ValueError(f"gym: {verdict.reason}")
        self._rest -= 1
        self._score = verdict.score or 0.0
        self.over = verdict.status is Status.CORRECT or not self._rest
        if verdict.status is Status.CORRECT:
            return "Your answer is right."
        if verdict.status is Status.UNPARSEABLE:
            text = "Your message states no answer. Write it as <answer>...</answer>."
        else:
            text = "Your answer is wrong." if verdict.status is Status.WRONG else "Your answer is not quite right."
        return text if self.over else f"{text} Try again; answers left: {self._rest}."

    def reward(self) -> float:
        """Return the score of the last answer, between 0 and 1."""
        return self._score
