"""A conversation under way: its limits, its state, and what a resume needs of it."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from grpo.conversation.observation import shortened
from grpo.conversation.segments import Conversation, Segment
from grpo.environments.contract import Answer, WorldFailed
from grpo.messages import ChatMessage, ConversationEnd, Dialogue, WorldReward
from grpo.types import Prompt
from rewards.selection import place_of


@dataclass(frozen=True, slots=True)
class ConversationLimits:
    """Limits of a conversation; the config's section `conversation` describes them.

    Attributes:
        prompt_tokens: longest first prompt, with its tools, in tokens.
        turns: largest number of the policy's turns.
        tokens: largest number of tokens after the first prompt, of all turns and answers.
        turn_tokens: longest turn of the policy, in tokens.
        observation_tokens: longest answer of the world, in tokens.
        seconds: longest time of a conversation.
    """

    prompt_tokens: int
    turns: int
    tokens: int
    turn_tokens: int
    observation_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RecordedPlay:
    """What a checkpoint keeps of a conversation under way.

    Attributes:
        opening: the first messages.
        turns: the policy's finished turns.
        answers: what the world said to them. The last turn may be without an answer.
        cut: whether a limit of tokens cut the last turn off.
        waited_s: time that the conversation waited for its world, in seconds.
        lasted_s: time since its beginning, in seconds.
    """

    opening: tuple[ChatMessage, ...]
    turns: tuple[Segment, ...]
    answers: tuple[Answer, ...]
    cut: bool
    waited_s: float
    lasted_s: float


@dataclass(slots=True)
class Play:
    """A conversation under way.

    Attributes:
        group: index of its group.
        member: its number in the group.
        seed: seed of the group.
        prompt: prompt of the row.
        began: time of its beginning, in seconds of the monotonic clock.
        waiting_since: time since which its world works; None while the world waits.
        requested: time at which the present turn was requested.
        openings: number of beginnings of its world.
        conversation: messages and tokens; None before the world's first message.
        ended: what ended it; None while it goes on.
        calls: number of tool calls.
        failures: kind -> number of failed calls.
        waited_s: time that it waited for its world, in seconds.
        answers: what the world said to each turn, as the policy reads it.
        recorded: turns before a resume that are not yet repeated; None if there are none.
    """

    group: int
    member: int
    seed: int
    prompt: Prompt
    began: float
    waiting_since: float | None = None
    requested: float = 0.0
    openings: int = 1
    conversation: Conversation | None = None
    ended: ConversationEnd | None = None
    calls: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    waited_s: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    recorded: RecordedPlay | None = None

    @property
    def played(self) -> Conversation:
        """The conversation, which has begun."""
        assert self.conversation is not None
        return self.conversation

    def note(self, answer: Answer) -> bool:
        """Note what the world said; return False if it said something else before the resume."""
        before = self.recorded.answers if self.recorded else ()
        expected = before[len(self.answers)] if self.repeats_answer else answer
        self.answers.append(answer)
        return answer == expected

    @property
    def repeats_answer(self) -> bool:
        """Whether the next answer of the world was already given before a resume."""
        return self.recorded is not None and len(self.answers) < len(self.recorded.answers)

    def dialogue(self, reward: WorldReward, failure: WorldFailed | None) -> Dialogue:
        """Return what the ended conversation has beside its tokens.

        Args:
            reward: reward of the environment.
            failure: why the world failed; None if it did not.
        """
        assert self.ended is not None
        return Dialogue(
            messages=self.played.messages,
            opening=self.played.opening,
            ended=self.ended,
            reason=failure.reason if failure else "",
            reward=reward,
            calls=self.calls,
            failures=dict(self.failures),
            waited_s=self.waited_s,
            lasted_s=time.monotonic() - self.began,
            timed_out=failure is not None and failure.status == "timeout",
        )

    def begin_anew(self) -> None:
        """Forget all turns, also those before a resume."""
        self.conversation = self.ended = self.recorded = None
        self.calls, self.failures, self.answers = 0, Counter(), []
        self.waited_s, self.began = 0.0, time.monotonic()


def as_read(answer: Answer, most: int, count: Callable[[str], int]) -> Answer:
    """Return an answer as the policy reads it, with long messages cut.

    Args:
        answer: what the world said.
        most: largest number of tokens of all messages.
        count: function that returns the number of tokens of a text.
    """
    each = max(1, most // max(1, len(answer.messages)))
    texts = [shortened(message.content, each, count) for message in answer.messages]
    said = [replace(message, content=text) for message, text in zip(answer.messages, texts, strict=True)]
    return replace(answer, messages=tuple(said))


def messages_of(prompt: Prompt) -> list[ChatMessage]:
    """Return the messages of a prompt.

    Raises:
        ValueError: a message cannot stand in a conversation.
    """
    try:
        return [ChatMessage(each["role"], each["content"], name=each.get("name", "")) for each in prompt.messages]
    except ValueError as problem:
        raise ValueError(f"{place_of(prompt.id)}: {problem}") from problem


def turn_seed(seed: int, member: int, turn: int) -> int:
    """Return the seed of a turn. A first turn has the seed of the completion that a single-turn run would sample."""
    if turn == 0:
        return seed + member
    digest = hashlib.blake2b(f"{seed}/{member}/{turn}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")
