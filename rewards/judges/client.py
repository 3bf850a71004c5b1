"""A judge: a server, a rubric, principles if there are any, and a cache of answers."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rewards.judges.cache import AnswerCache, StoredAnswer
from rewards.judges.questions import (
    TIE,
    BadAnswer,
    JudgeQuestion,
    comparing,
    grading,
    ranking,
    read_better,
    read_choice,
    read_ranking,
    read_text,
)
from rewards.judges.rubric import Rubric, draw_principle, read_principles, read_rubric
from rewards.judges.server import JudgeFailed, JudgeReply, JudgeServer, JudgeServerSettings, server_settings

_Read = TypeVar("_Read")
_SERVER_OPTIONS = (
    "url", "model", "key", "patience_s", "timeout_s", "temperature", "max_tokens", "schema", "extra_body", "plain_key",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Spend:
    """What an answer cost: tokens of the request and of the answer, seconds, and whether it came from the cache."""

    prompt_tokens: int
    completion_tokens: int
    seconds: float
    cached: bool

    def parts(self, answers: int = 1) -> dict[str, float]:
        """The spend of each of the answers that were judged together, for the parts of a verdict."""
        return {
            "prompt_tokens": self.prompt_tokens / answers,
            "completion_tokens": self.completion_tokens / answers,
            "seconds": self.seconds / answers,
            "cached": float(self.cached),
        }


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """A judge as a config describes it.

    Attributes:
        server: how to reach the server.
        rubric: question and choices.
        principles: principles of a constitution; for each prompt one of them is drawn. Empty if there are none.
        seed: seed of these draws.
        cache: folder of the cache; None keeps answers in memory.
    """

    server: JudgeServerSettings
    rubric: Rubric
    principles: tuple[str, ...] = ()
    seed: int = 0
    cache: str | None = None


def judge_settings(options: Mapping[str, Any]) -> JudgeSettings:
    """Check the options of a judge: those of `server_settings`, and rubric, choices, principles, seed, cache.

    Raises:
        ValueError: an option is unknown or missing, or has a wrong value.
    """
    settings = _settings("judge", options, ("rubric", "choices"), needed="rubric")
    return replace(settings, rubric=read_rubric(options["rubric"], options.get("choices")))


def critic_settings(options: Mapping[str, Any]) -> JudgeSettings:
    """Check the options of a critic, who writes texts: those of `server_settings`, and principles, seed, cache.

    Raises:
        ValueError: an option is unknown or missing, or has a wrong value.
    """
    return _settings("critic", options, (), needed="principles")


def _settings(who: str, options: Mapping[str, Any], others: Sequence[str], *, needed: str) -> JudgeSettings:
    """Check the options that judges and critics share; the rubric is empty."""
    known = (*_SERVER_OPTIONS, *others, "principles", "seed", "cache")
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"a {who} has no option {unknown[0]!r}; it takes {', '.join(known)}")
    if missing := [name for name in ("url", "model", needed) if options.get(name) is None]:
        raise ValueError(f"a {who} needs the option {missing[0]!r}; it needs url, model and {needed}")
    # The key comes first: no later message may show it.
    server = server_settings(**{name: options[name] for name in _SERVER_OPTIONS if name in options})
    principles, seed, cache = options.get("principles"), options.get("seed", 0), options.get("cache")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    return JudgeSettings(
        server,
        Rubric("", {}),
        read_principles(principles) if principles is not None else (),
        seed,
        None if cache is None else str(cache),
    )


class JudgeClient:
    """Asks a judge, at most once for each content of a question."""

    def __init__(self, settings: JudgeSettings, server: JudgeServer | None = None) -> None:
        """Make the client; `server` replaces the network in tests."""
        self.settings = settings
        self._server = server or JudgeServer(settings.server)
        self._cache = AnswerCache(settings.cache)
        self.cache_hits = 0

    async def grade(self, problem: str, answer: str, reference: str | None) -> tuple[str, str, Spend]:
        """Let the judge choose for an answer; return the choice, the reason and the spend.

        Raises:
            JudgeFailed: there is no usable answer.
        """
        rubric = self.settings.rubric
        question = grading(rubric, problem, answer, reference, self._principle(problem))
        (choice, reason), spend = await self.ask(question, lambda text: read_choice(text, rubric.choices))
        return choice, reason, spend

    async def rank(self, problem: str, answers: Sequence[str], reference: str | None) -> tuple[list[float], str, Spend]:
        """Let the judge rank two or more different answers; return a score from 0 to 1 for each, reason and spend.

        The best answer has the score 1, the worst 0, and the others lie between at equal distances. Answers that share
        a place share the mean of its scores.

        Raises:
            JudgeFailed: there is no usable answer.
        """
        # In the order of their hashes the place of an answer says nothing, and the cache finds the group again.
        order = sorted(range(len(answers)), key=lambda at: AnswerCache.key(answers[at]))
        question = ranking(
            self.settings.rubric, problem, [answers[at] for at in order], reference, self._principle(problem)
        )
        (places, reason), spend = await self.ask(question, lambda text: read_ranking(text, len(answers)))
        scores, better, last = [0.0] * len(answers), 0, len(answers) - 1
        for place in places:
            for each in place:
                scores[order[each]] = (last - better - (len(place) - 1) / 2) / last
            better += len(place)
        return scores, reason, spend

    async def compare(self, problem: str, first: str, second: str) -> tuple[str, str, Spend]:
        """Let the judge compare two answers in this order; return `1`, `2` or `tie`, the reason and the spend.

        Raises:
            JudgeFailed: there is no usable answer.
        """
        if first == second:
            return TIE, "the answers are equal", Spend(0, 0, 0.0, False)
        question = comparing(self.settings.rubric, problem, first, second, self._principle(problem, first, second))
        (better, reason), spend = await self.ask(question, read_better)
        return better, reason, spend

    async def ask(self, question: JudgeQuestion, read: Callable[[str], _Read]) -> tuple[_Read, Spend]:
        """Ask any question; return its answer, as `read` reads it, and the spend.

        Only answers that `read` accepts are kept.

        Raises:
            JudgeFailed: there is no usable answer.
        """
        return await self._ask(question.content(), question.messages, question.schema, read)

    async def write(self, question: JudgeQuestion) -> tuple[str, Spend]:
        """Ask for a text, and return the text and the spend.

        Raises:
            JudgeFailed: there is no answer, or it is empty.
        """
        return await self.ask(question, read_text)

    async def answer(self, prompt: str) -> tuple[str, Spend]:
        """Let the server's model answer a prompt as it stands; return the answer and the spend.

        Raises:
            JudgeFailed: there is no answer, or it is empty.
        """
        content = json.dumps(["answer", prompt])
        return await self._ask(content, lambda: [{"role": "user", "content": prompt}], None, read_text)

    async def _ask(
        self,
        content: str,
        messages: Callable[[], list[dict[str, str]]],
        schema: Mapping[str, Any] | None,
        read: Callable[[str], _Read],
    ) -> tuple[_Read, Spend]:
        begun = time.perf_counter()
        key = AnswerCache.key(json.dumps([self.settings.server.identity, content]))
        async with self._cache.alone(key):
            if (stored := self._cache.get(key)) is not None:
                self.cache_hits += 1
                return read(stored.text), Spend(0, 0, time.perf_counter() - begun, True)
            reply: JudgeReply = await self._server.ask(messages(), schema)
            try:
                answer = read(reply.text)
            except BadAnswer as problem:
                raise JudgeFailed(str(problem)) from problem
            self._cache.put(key, StoredAnswer(reply.text, reply.prompt_tokens, reply.completion_tokens))
        return answer, Spend(reply.prompt_tokens, reply.completion_tokens, time.perf_counter() - begun, False)

    def _principle(self, *texts: str) -> str:
        principles = self.settings.principles
        return draw_principle(principles, self.settings.seed, *texts) if principles else ""
