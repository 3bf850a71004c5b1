"""Grades or ranks completions by a language model that reads a rubric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.judges.client import JudgeClient, Spend, judge_settings
from rewards.judges.server import JudgeFailed, JudgeServer
from rewards.verdict import Status, Verdict, error
from rewards.verifier import PROBLEM_COLUMN, ReadsNoReference

SINGLE, GROUP = "single", "group"


class JudgeVerifier(ReadsNoReference):
    """A judge behind a server. `compare` decides whether he sees single answers or whole groups.

    A judge that cannot be reached, or whose answer has not the form that was asked for, gives an `error` and no score.

    Args:
        compare: `single` grades each completion by the choices of the rubric. `group` ranks the completions of a
            prompt together; a completion that comes alone, as in an evaluation, is graded.
        options: the other options, in `rewards.judges.client.judge_settings`.

    Raises:
        ValueError: an option is unknown or missing, or has a wrong value.
    """

    def __new__(cls, *, compare: str = SINGLE, **options: Any) -> JudgeVerifier:
        """Choose the class, because the signature of `__call__` says whether a verifier judges groups."""
        kinds: dict[str, type[JudgeVerifier]] = {SINGLE: _GradingJudge, GROUP: _RankingJudge}
        if compare not in kinds:
            raise ValueError(f"compare must be {SINGLE} or {GROUP}, got {compare!r}")
        return object.__new__(kinds[compare])

    def __init__(self, *, compare: str = SINGLE, **options: Any) -> None:
        self.client = JudgeClient(judge_settings(options))

    def use(self, server: JudgeServer) -> None:
        """Ask another server, in tests."""
        self.client = JudgeClient(self.client.settings, server)

    @property
    def cache_hits(self) -> int:
        """Number of answers that came from the cache."""
        return self.client.cache_hits

    async def _grade(self, completion: str, reference: Any, row: Mapping[str, Any]) -> Verdict:
        rubric = self.client.settings.rubric
        try:
            choice, reason, spend = await self.client.grade(_problem(row), completion, self._shown(reference))
        except JudgeFailed as problem:
            return error(str(problem))
        status = Status.SCORED
        if rubric.correct:
            status = Status.CORRECT if choice in rubric.correct else Status.WRONG
        return Verdict(rubric.choices[choice], status, _line(f"{choice}: {reason}"), spend.parts())

    def _shown(self, reference: Any) -> str | None:
        return str(reference) if self.client.settings.rubric.show_reference else None


class _GradingJudge(JudgeVerifier):
    async def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        return await self._grade(completion, reference, prompt)


class _RankingJudge(JudgeVerifier):
    async def __call__(self, completions: Sequence[str], reference: Any, prompt: Mapping[str, Any]) -> list[Verdict]:
        # Equal completions are one answer, so they get the same score.
        answers = list(dict.fromkeys(completions))
        if len(completions) == 1:
            return [await self._grade(completions[0], reference, prompt)]
        if len(answers) == 1:
            equal = "all answers of the group are equal, so none is better"
            return [Verdict(0.5, Status.SCORED, equal, Spend(0, 0, 0.0, False).parts())] * len(completions)
        try:
            scores, reason, spend = await self.client.rank(_problem(prompt), answers, self._shown(reference))
        except JudgeFailed as problem:
            return [error(str(problem))] * len(completions)
        by_answer, parts = dict(zip(answers, scores, strict=True)), spend.parts(len(completions))
        return [Verdict(by_answer[text], Status.SCORED, _line(reason), parts) for text in completions]


def _problem(row: Mapping[str, Any]) -> str:
    return str(row.get(PROBLEM_COLUMN, ""))


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
