"""Judges for the check of gold answers, and limits for the time that the check waits for verdicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent import futures

from rewards.checks.gold_forms import Call
from rewards.pool import VerifierPool
from rewards.verdict import Verdict

Judge = Callable[[Sequence[Call]], Sequence[Verdict]]
_LOOK_S = 0.2


class CheckStopped(Exception):
    """A judge gave up; the message says why.

    Attributes:
        verdicts: verdict of each call, or None if the call did not end. The list is empty if no verdict counts.
    """

    def __init__(self, why: str, verdicts: Sequence[Verdict | None] = ()) -> None:
        super().__init__(why)
        self.verdicts = verdicts


class Patience:
    """Limits for waiting for the verdicts of a pool.

    Args:
        pool: the pool.
        most_killed: number of calls that may hang until the pool's deadline, counted from now.
        most_s: longest wait in seconds, counted from now.
    """

    def __init__(self, pool: VerifierPool, most_killed: int, most_s: float) -> None:
        self._pool, self._killed_before, self._most_killed = pool, pool.stats().killed, most_killed
        self._most_s, self._ends_at = most_s, time.monotonic() + most_s

    @property
    def killed(self) -> int:
        """Number of calls that have hung until their deadline."""
        return self._pool.stats().killed - self._killed_before

    def wait(self, answers: Sequence[futures.Future[Verdict]]) -> str:
        """Wait for all answers.

        If the wait ends early, cancel the remaining calls and return the reason; otherwise return an empty text.
        """
        why = ""
        while not why and futures.wait(answers, timeout=_LOOK_S).not_done:
            if self.killed >= self._most_killed:
                why = f"{self.killed} calls of the verifier hung until their deadline"
            elif time.monotonic() > self._ends_at:
                why = f"the check took longer than {self._most_s:g} s"
        if why:
            for answer in answers:
                answer.cancel()
        return why


def through(pool: VerifierPool, *, most_killed: int = 5, most_s: float = 300.0) -> Judge:
    """Return a judge that calls `questioned` verifiers in a pool, whose workers can be killed.

    Raises:
        CheckStopped: raised by the judge after `most_killed` calls have hung until the pool's deadline, or after
            `most_s` seconds.
    """
    patience = Patience(pool, most_killed, most_s)

    def judge(calls: Sequence[Call]) -> list[Verdict]:
        answers = pool.submit_many(calls)
        if why := patience.wait(answers):
            ended = [answer.result() if answer.done() and not answer.cancelled() else None for answer in answers]
            raise CheckStopped(why, ended if patience.killed >= most_killed else ())
        return [answer.result() for answer in answers]

    return judge
