"""Conversations over generators whose engines only count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from conversations.small_chat import PLAIN, small_tokenizer

from grpo.conversation.renderer import ChatRenderer
from grpo.environments.contract import Answer, Event, Opening
from grpo.messages import ChatMessage, WorldReward
from grpo.rollout.conversations import Conversations
from grpo.rollout.plays import ConversationLimits
from grpo.types import Finished, Prompt, Request


def token_of(seed: int) -> int:
    """The token that a turn with this seed has."""
    return 10 + seed % 200


class CountingTurns:
    """Turns whose prompt begins with a token that tells the engine to finish at once, and whose token is the seed."""

    def __init__(self, stream: Any, first: int) -> None:
        self.stream, self.first = stream, first

    @property
    def unfinished(self) -> int:
        return int(self.stream.unfinished)

    def submit(self, requests: Sequence[Request], prompts: Sequence[Prompt] = ()) -> None:
        self.stream.submit([replace(each, token_ids=(self.first, *each.token_ids)) for each in requests])

    def finished(self, wait: bool = True) -> Finished:
        return [
            (index, tuple(replace(each, token_ids=(token_of(each.token_ids[0]),)) for each in group))
            for index, group in self.stream.finished(wait)
        ]


class Answering:
    """Worlds that answer every turn, and call a function before their first answer."""

    tools = ()

    def __init__(self, before: Callable[[], object]) -> None:
        self.before: Callable[[], object] | None = before
        self.queue: list[tuple[int, Event]] = []

    def open(self, key: int, row: Any) -> None:
        self.queue.append((key, Opening()))

    def answer(self, key: int, turn: ChatMessage) -> None:
        if self.before:
            self.before()
            self.before = None
        self.queue.append((key, Answer((ChatMessage("tool", "Go on."),), calls=1)))

    def close(self, key: int) -> None:
        self.queue.append((key, WorldReward(score=1.0)))

    def abandon(self, key: int) -> None:
        raise AssertionError("no conversation is given up")

    def events(self, wait_s: float = 0.0) -> list[tuple[int, Event]]:
        done, self.queue = self.queue, []
        return done


def three_turns(stream: Any, first: int, before: Callable[[], object], groups: int) -> Conversations:
    """Begin groups of two conversations of three turns."""
    turns = CountingTurns(stream, first)
    limits = ConversationLimits(
        prompt_tokens=500, turns=3, tokens=200, turn_tokens=60, observation_tokens=40, seconds=60.0
    )
    playing = Conversations(turns, Answering(before), ChatRenderer(small_tokenizer(PLAIN)), limits, 2)
    question = ({"role": "user", "content": "What?"},)
    playing.submit(
        [Request(group, (1,), 100 * group) for group in range(groups)],
        [Prompt(f"row {group}", "?", (1,), None, {"n": group}, messages=question) for group in range(groups)],
    )
    return playing
