"""Token in, token out: the calls of an agent as sequences of tokens that a learner trains on."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from grpo.agents.chains import AnsweredCall, played
from grpo.agents.replies import AgentReply, Finish
from grpo.agents.requests import AgentCall, RefusedCall
from grpo.conversation.calls import text_before_calls, written_calls
from grpo.conversation.renderer import ChatRenderer
from grpo.conversation.segments import Conversation, Segment
from grpo.messages import ChatMessage, ConversationEnd, Dialogue, MalformedCall, ToolCall, WorldReward
from grpo.types import Completion


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """Limits of an agent's conversation.

    Attributes:
        max_turns: largest number of calls. The call after them ends the conversation (`turns`).
        max_turn_tokens: longest answer of the policy, in tokens; None for no limit but the next two.
        max_tokens: tokens that all calls together may sample, or add to an earlier call. A call beyond them ends the
            conversation (`tokens`). Calls at the same time may pass it by the length of their answers.
        max_context: longest sequence, in tokens, with its prompt: what the engine can read.
        deadline_s: longest time of a conversation, in seconds.
    """

    max_turns: int
    max_turn_tokens: int | None
    max_tokens: int
    max_context: int
    deadline_s: float


@dataclass(frozen=True, slots=True)
class OpenCall:
    """A call that the policy answers now.

    Attributes:
        number: number of the call in its conversation, from 0.
        call: what the client asked for.
        parent: number of the call that this call continues; None if it begins a sample of its own.
        before: the conversation up to the answer.
        prompt_ids: tokens that the policy reads.
        max_tokens: largest length of the answer, in tokens.
        seed: seed of the answer.
    """

    number: int
    call: AgentCall
    parent: int | None
    before: Conversation
    prompt_ids: tuple[int, ...]
    max_tokens: int
    seed: int


class AgentRecord:
    """All calls of an agent in a conversation.

    A call continues an earlier call if its messages are those of the earlier call, then the answer that the client
    got, then messages of tools, users or the system, and if it offers the same tools. The tokens of the earlier call
    are then kept as they are. Every other call (a fork whose history was edited, a sub-agent with a system message of
    its own) begins a sample of its own.

    Not thread-safe: the server's event loop alone calls it.

    Attributes:
        ended: the limit that ended the conversation; None while no limit has.
        failures: kind -> number of tool calls that failed: `malformed`, `unknown_tool`.
    """

    def __init__(self, renderer: ChatRenderer, limits: AgentLimits, seed: int) -> None:
        self._renderer, self._limits, self._seed = renderer, limits, seed
        self._numbers = itertools.count()
        self._answered: list[AnsweredCall] = []
        # Meaning of the messages and tools up to an answer -> the calls with this answer.
        self._by_meaning: dict[Hashable, list[AnsweredCall]] = {}
        self._prompts: Counter[tuple[int, ...]] = Counter()
        self._used = 0
        self._open = 0
        self._began: float | None = None
        self._opened = 0.0
        self._sampling_s = 0.0
        self.ended: ConversationEnd | None = None
        self.failures: Counter[str] = Counter()

    def begin(self, call: AgentCall) -> OpenCall:
        """Return the tokens and limits of a call.

        Raises:
            RefusedCall: a limit ended the conversation, or the chat template cannot write the messages.
        """
        number = next(self._numbers)
        if number >= self._limits.max_turns:
            self._end(ConversationEnd.TURNS, f"its limit of {self._limits.max_turns} calls (conversation.max_turns)")
        parent, before, prompt_ids = self._prompt(call)
        given = before.segments[-1]
        if parent is not None and not given.rewrites:
            self._used += len(given.token_ids)
        room = min(self._limits.max_tokens - self._used, self._limits.max_context - len(prompt_ids))
        if parent is None and len(prompt_ids) >= self._limits.max_context:
            raise RefusedCall(
                f"the messages have {len(prompt_ids):,} tokens; a sequence has at most {self._limits.max_context:,} "
                "with its answer (rollout.max_prompt_tokens + rollout.max_completion_tokens)",
                400,
                "context_length_exceeded",
                "messages",
            )
        if room < 1:
            self._end(ConversationEnd.TOKENS, "its limit of tokens (rollout.max_completion_tokens)")
        limits = [size for size in (call.max_tokens, self._limits.max_turn_tokens) if size is not None]
        seed = self._seed_of(prompt_ids)
        if not self._open:
            self._opened = time.monotonic()
        self._open += 1
        self._began = self._began or self._opened
        return OpenCall(number, call, parent, before, prompt_ids, min([room, *limits]), seed)

    def drop(self) -> None:
        """Take back a call whose answer nobody read."""
        self._open -= 1
        if not self._open:
            self._sampling_s += time.monotonic() - self._opened

    def answer(self, opened: OpenCall, completion: Completion, name: str) -> AgentReply:
        """Keep the answer of the policy, and return it as the client gets it. `name` is the answer's name."""
        self.drop()
        segment = Segment.from_completion(completion)
        self._used += len(segment.token_ids)
        message = self._renderer.turn_message(segment)
        calls = self._readable_calls(message, opened.call)
        if not opened.call.reads_calls:
            message = replace(message, calls=())
        content = message.content
        if calls and self._renderer.calls:
            content = text_before_calls(content, self._renderer.calls).rstrip()
        finish: Finish = "length" if completion.finish_reason == "length" else "tool_calls" if calls else "stop"
        conversation = opened.before.with_turn(message, segment)
        call = AnsweredCall(opened.number, opened.parent, opened.prompt_ids, conversation, finish == "length")
        self._answered.append(call)
        seen = ChatMessage("assistant", content, calls=calls)
        self._by_meaning.setdefault(_meaning([*opened.call.messages, seen], opened.call), []).append(call)
        return AgentReply(name, content, calls, finish, len(opened.prompt_ids), len(segment.token_ids))

    def result(
        self,
        ended: ConversationEnd,
        *,
        reason: str = "",
        timed_out: bool = False,
        reward: WorldReward | None = None,
        answer: str | None = None,
    ) -> Completion | None:
        """Return the finished conversation; None if the policy answered no call.

        Args:
            ended: what ended the conversation.
            reason: what failed, if the end is `failed`.
            timed_out: whether a deadline passed, if the end is `failed`.
            reward: reward that the program printed.
            answer: answer that the program printed; by default the policy's last answer is judged.
        """
        if not self._answered:
            return None
        lasted_s = time.monotonic() - (self._began or 0.0)
        dialogue = Dialogue(
            messages=(),
            opening=0,
            ended=ended,
            reason=reason,
            reward=reward or WorldReward(),
            failures=dict(self.failures),
            waited_s=max(0.0, lasted_s - self._sampling_s),
            lasted_s=lasted_s,
            timed_out=timed_out,
        )
        return played(self._answered, dialogue, answer)

    def _end(self, end: ConversationEnd, limit: str) -> None:
        self.ended = self.ended or end
        raise RefusedCall(f"the conversation is over: it reached {limit}", 410, "conversation_over")

    def _prompt(self, call: AgentCall) -> tuple[int | None, Conversation, tuple[int, ...]]:
        if call.tools and self._renderer.calls is None:
            raise RefusedCall(
                "the policy's chat template does not show how tool calls are written; send no tools", field="tools"
            )
        try:
            if (parent := self._continued(call)) is not None:
                following = call.messages[_turn_end(call.messages) :]
                before = self._renderer.answered(parent.conversation, following)
                return parent.number, before, before.context
            opening = [self._as_text(message) for message in call.messages]
            before = self._renderer.begin(opening, call.tools)
            return None, before, before.context
        except ValueError as problem:
            raise RefusedCall(str(problem), field="messages") from problem

    def _continued(self, call: AgentCall) -> AnsweredCall | None:
        """Return the newest answered call that this call continues. A call that nobody continued yet comes first."""
        known = call.messages[: _turn_end(call.messages)]
        same_answer = self._by_meaning.get(_meaning(known, call), []) if known else []
        continued = {answered.parent for answered in self._answered}
        return max(same_answer, key=lambda answered: (answered.number not in continued, answered.number), default=None)

    def _readable_calls(self, message: ChatMessage, call: AgentCall) -> tuple[ToolCall, ...]:
        """Return the calls for the client: all of the turn, or none if one is malformed or of an unknown tool.

        Frameworks end with an error at a call of a tool that they do not have. As text, the client can answer it.
        """
        if not call.reads_calls:
            return ()
        malformed = sum(isinstance(written, MalformedCall) for written in message.calls)
        calls = tuple(written for written in message.calls if isinstance(written, ToolCall))
        unknown = sum(written.name not in call.tool_names for written in calls)
        self.failures += Counter(malformed=malformed, unknown_tool=unknown)
        return () if malformed or unknown else calls

    def _as_text(self, message: ChatMessage) -> ChatMessage:
        """Return a message of a history that the policy did not sample, with its calls as text."""
        if not message.calls or self._renderer.calls is None:
            return replace(message, calls=())
        readable = [call for call in message.calls if isinstance(call, ToolCall)]
        between = "\n" if message.content else ""
        return ChatMessage("assistant", message.content + between + written_calls(readable, self._renderer.calls))

    def _seed_of(self, prompt_ids: tuple[int, ...]) -> int:
        """Return the seed of a call: of its tokens, not of its place, because parallel calls come in any order."""
        repeated = self._prompts[prompt_ids]
        self._prompts[prompt_ids] += 1
        text = json.dumps([self._seed, repeated, *prompt_ids])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def _turn_end(messages: Sequence[ChatMessage]) -> int:
    """Return the number of messages up to the last of the assistant; 0 if the assistant has not spoken."""
    return max((at + 1 for at, message in enumerate(messages) if message.role == "assistant"), default=0)


def _meaning(messages: Sequence[ChatMessage], call: AgentCall) -> Hashable:
    """Return what messages and tools say, without what clients may add, drop or respell (ids, names, nulls, spaces)."""
    meanings = tuple(
        (
            message.role,
            message.content.strip() if message.role == "assistant" else message.content,
            tuple(
                (written.name, json.dumps(dict(written.arguments), sort_keys=True))
                for written in message.calls
                if isinstance(written, ToolCall)
            ),
        )
        for message in messages
    )
    return meanings, json.dumps(call.tools, sort_keys=True)
