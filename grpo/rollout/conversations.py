"""Play conversations: the policy's turns are requests to the generators, and the worlds answer them.

`Conversations` has the interface of a stream of requests, so that a group of conversations is collected, verified and
trained on as a group of completions is.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from grpo.conversation.observation import shortened
from grpo.conversation.played import completion_of
from grpo.conversation.renderer import ChatRenderer
from grpo.conversation.segments import Conversation, Segment
from grpo.environments.contract import Answer, Event, Opening, WorldFailed, Worlds
from grpo.environments.opening import first_messages
from grpo.messages import ChatMessage, ConversationEnd, Dialogue, WorldReward
from grpo.rollout.collector import RequestStream
from grpo.rollout.members import Members
from grpo.types import Finished, Prompt, Request
from rewards.selection import place_of

# While turns and worlds are both under way, the driver collects what the worlds say for a time, and then sends all due
# turns in a message to each generator. This time is a share of a turn's time, so that a conversation waits little, and
# the driver's work for a message counts for several turns. Seconds, shortest and longest.
GATHERED_SHARE, GATHER_S = 0.05, (0.02, 0.1)
# Smallest weight of the newest turn in the mean time of a turn.
_NEWEST = 0.05
# How often a world may fail before its first message, until the run ends with its reason.
OPENINGS = 3


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


@dataclass(slots=True)
class _Play:
    """A conversation under way. `waiting_since` is set while its world works, `requested` when a turn is requested."""

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

    @property
    def played(self) -> Conversation:
        """The conversation, which has begun."""
        assert self.conversation is not None
        return self.conversation


class Conversations:
    """Groups of conversations under way."""

    def __init__(
        self,
        turns: RequestStream,
        worlds: Worlds,
        renderer: ChatRenderer,
        limits: ConversationLimits,
        samples: int,
    ) -> None:
        """Begin without conversations.

        Args:
            turns: stream that samples one completion for each request; no other object may use it.
            worlds: tools and environments; no other object may use them.
            renderer: the policy's chat template.
            limits: limits of each conversation.
            samples: number of conversations for each prompt.
        """
        self._turns, self._worlds, self._renderer = turns, worlds, renderer
        self._limits, self._members = limits, Members(samples)
        self._plays: dict[int, _Play] = {}
        # The beginning that the conversations of a group share.
        self._begun: dict[int, Conversation] = {}
        self._due: list[Request] = []
        # Mean time of a turn, in seconds. Before the first turn ends, nothing is gained by many looks.
        self._turn_s, self._turns_heard = math.inf, 0
        self._keys = itertools.count()

    @property
    def unfinished(self) -> int:
        """Number of submitted groups that are not yet returned."""
        return self._members.unfinished

    def submit(self, requests: Sequence[Request], prompts: Sequence[Prompt] = ()) -> None:
        """Begin the conversations of groups; return at once.

        Args:
            requests: requests with the index and the seed of each group.
            prompts: prompt of each request.

        Raises:
            ValueError: an unfinished group already has one of these indices.
        """
        for request, member, prompt in self._members.open(requests, prompts):
            key, now = next(self._keys), time.monotonic()
            self._plays[key] = _Play(request.index, member, request.seed, prompt, now, now)
            self._worlds.open(key, prompt.row)

    def finished(self, wait: bool = True) -> Finished:
        """Return the groups whose conversations have all ended since the last call.

        Args:
            wait: whether to wait until a group has finished.

        Raises:
            TimeoutError: no turn was sampled within the deadline of the stream.
            ValueError: `reset` gave the conversations of a group different messages, or a first prompt is too long.
            RuntimeError: a world failed again and again before its first message; or `wait` is set and no group is
                unfinished.
        """
        if wait:
            self._members.require_unfinished()
        self._look(wait_s=0.0)
        least, most = GATHER_S
        while wait and not self._members.ready:
            if self._worlds_work:
                self._look(wait_s=min(most, max(least, GATHERED_SHARE * self._turn_s)))
            else:
                self._sampled(self._turns.finished())
        return self._members.take()

    @property
    def _worlds_work(self) -> bool:
        """Whether a world has not answered yet."""
        return any(play.waiting_since is not None for play in self._plays.values())

    def _look(self, wait_s: float) -> None:
        """Hear the worlds for a time; then send the due turns, and hear the generators.

        Args:
            wait_s: the time, in seconds. It ends early if neither worlds nor generators can say more.
        """
        until = time.monotonic() + wait_s
        remaining_s = wait_s
        while True:
            for key, event in self._worlds.events(remaining_s):
                self._heard(key, event)
            remaining_s = until - time.monotonic()
            if remaining_s <= 0 or not (self._turns.unfinished or self._worlds_work):
                break
            # The driver wakes up for several events, and not for each.
            time.sleep(min(remaining_s, wait_s / 4))
        # The engines begin with the new turns before the driver reads the turns that they finished.
        self._request()
        if self._turns.unfinished:
            self._sampled(self._turns.finished(wait=False))

    def _took(self, seconds: float) -> None:
        """Note the time of a turn."""
        self._turns_heard += 1
        weight = max(_NEWEST, 1 / self._turns_heard)
        self._turn_s = seconds if weight == 1 else self._turn_s + weight * (seconds - self._turn_s)

    def _request(self) -> None:
        """Request the turns that are due, all in one message to each generator."""
        if self._due:
            self._turns.submit(self._due)
            self._due = []

    def _heard(self, key: int, event: Event) -> None:
        play = self._plays[key]
        if play.waiting_since is not None:
            play.waited_s += time.monotonic() - play.waiting_since
            play.waiting_since = None
        if isinstance(event, WorldFailed):
            self._failed(key, play, event)
        elif isinstance(event, Opening):
            play.conversation = self._beginning(play, event)
            self._next_turn(key, play)
        elif isinstance(event, Answer):
            self._answered(key, play, event)
        else:
            self._end(key, play, event)

    def _beginning(self, play: _Play, opening: Opening) -> Conversation:
        """Return the first messages and their tokens, which all conversations of a group share."""
        messages = first_messages(messages_of(play.prompt), opening)
        if play.group not in self._begun:
            begun = self._renderer.begin(messages, self._worlds.tools)
            if len(begun.context) > self._limits.prompt_tokens:
                raise ValueError(
                    f"the first prompt of {play.prompt.id} has {len(begun.context):,} tokens with its tools, more "
                    f"than max_prompt_tokens={self._limits.prompt_tokens}; raise it, or shorten the prompts"
                )
            self._begun[play.group] = begun
        if self._begun[play.group].messages != messages:
            raise ValueError(
                f"reset gave the conversations of prompt {play.prompt.id} different first messages, so their rewards "
                "cannot be compared; let the first messages depend on the row alone, for example on a seed in the row"
            )
        return self._begun[play.group]

    def _next_turn(self, key: int, play: _Play) -> None:
        """Request the next turn of the policy, or end the conversation at a limit."""
        conversation, limits = play.played, self._limits
        remaining = limits.tokens - sum(len(segment.token_ids) for segment in conversation.segments[1:])
        if remaining < 1:
            self._close(key, play, ConversationEnd.TOKENS)
        elif len(conversation.turns) >= limits.turns:
            self._close(key, play, ConversationEnd.TURNS)
        elif time.monotonic() - play.began > limits.seconds:
            self._close(key, play, ConversationEnd.SECONDS)
        else:
            seed = _turn_seed(play.seed, play.member, len(conversation.turns))
            play.requested = time.monotonic()
            self._due.append(Request(key, conversation.context, seed, max_tokens=min(remaining, limits.turn_tokens)))

    def _sampled(self, turns: Finished) -> None:
        for key, (completion,) in turns:
            play = self._plays[key]
            self._took(time.monotonic() - play.requested)
            segment = Segment.from_completion(completion)
            play.conversation = play.played.with_turn(self._renderer.turn_message(segment), segment)
            if completion.finish_reason == "length":
                self._close(key, play, ConversationEnd.TOKENS)
            else:
                play.waiting_since = time.monotonic()
                self._worlds.answer(key, play.conversation.messages[-1])

    def _answered(self, key: int, play: _Play, answer: Answer) -> None:
        play.calls += answer.calls
        play.failures.update(answer.failures)
        if answer.over:
            self._close(key, play, ConversationEnd.OVER)
        elif not answer.messages:
            self._close(key, play, ConversationEnd.ANSWER)
        elif len(play.played.turns) >= self._limits.turns:
            self._close(key, play, ConversationEnd.TURNS)
        else:
            most = max(1, self._limits.observation_tokens // len(answer.messages))
            said = [self._shortened(message, most) for message in answer.messages]
            play.conversation = self._renderer.answered(play.played, said)
            self._next_turn(key, play)

    def _shortened(self, message: ChatMessage, most: int) -> ChatMessage:
        text = shortened(message.content, most, self._renderer.count)
        return message if text is message.content else replace(message, content=text)

    def _close(self, key: int, play: _Play, ended: ConversationEnd) -> None:
        play.ended = ended
        play.waiting_since = time.monotonic()
        self._worlds.close(key)

    def _failed(self, key: int, play: _Play, failure: WorldFailed) -> None:
        """End a conversation without a score; begin it again if the policy has not yet said anything."""
        if play.conversation is not None and play.conversation.turns:
            play.ended = ConversationEnd.FAILED
            self._end(key, play, WorldReward(), failure)
            return
        if play.openings == OPENINGS:
            raise RuntimeError(
                f"the world of prompt {play.prompt.id} failed {OPENINGS} times before its first message: "
                f"{failure.reason}; its row has the columns {', '.join(play.prompt.row)}"
            )
        play.openings += 1
        play.waiting_since = time.monotonic()
        self._worlds.open(key, play.prompt.row)

    def _end(self, key: int, play: _Play, reward: WorldReward, failure: WorldFailed | None = None) -> None:
        del self._plays[key]
        assert play.ended is not None
        conversation = play.played
        dialogue = Dialogue(
            messages=conversation.messages,
            opening=conversation.opening,
            ended=play.ended,
            reason=failure.reason if failure else "",
            reward=reward,
            calls=play.calls,
            failures=dict(play.failures),
            waited_s=play.waited_s,
            lasted_s=time.monotonic() - play.began,
            timed_out=failure is not None and failure.status == "timeout",
        )
        cut = play.ended is ConversationEnd.TOKENS
        completion = completion_of(conversation, dialogue, "length" if cut else "stop")
        if self._members.end(play.group, play.member, completion):
            del self._begun[play.group]


def messages_of(prompt: Prompt) -> list[ChatMessage]:
    """Return the messages of a prompt.

    Raises:
        ValueError: a message cannot stand in a conversation.
    """
    try:
        return [ChatMessage(each["role"], each["content"], name=each.get("name", "")) for each in prompt.messages]
    except ValueError as problem:
        raise ValueError(f"{place_of(prompt.id)}: {problem}") from problem


def _turn_seed(seed: int, member: int, turn: int) -> int:
    """Return the seed of a turn. A first turn has the seed of the completion that a single-turn run would sample."""
    if turn == 0:
        return seed + member
    digest = hashlib.blake2b(f"{seed}/{member}/{turn}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "big")
