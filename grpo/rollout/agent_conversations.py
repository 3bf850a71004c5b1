"""Groups of conversations that the user's programs play: their calls become requests to the generators."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from grpo.environments.contract import WorldFailed
from grpo.rollout.collector import RequestStream
from grpo.rollout.members import Members
from grpo.types import Completion, Finished, Prompt, Request

# While programs are at work: seconds between two looks at their calls and at the generators.
POLL_S = 0.005
# How often a program may end without a call of the policy, until the run ends with the reason.
STARTS = 3


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a program that no generator has yet."""

    token_ids: tuple[int, ...]
    max_tokens: int
    seed: int
    answer: Future[Completion]


class AgentCalls:
    """The calls of the programs, on their way from the agents' thread to the driver (`PolicySampler`)."""

    def __init__(self) -> None:
        """Begin without calls."""
        self._waiting: queue.SimpleQueue[_Call] = queue.SimpleQueue()

    def sample(self, key: int, token_ids: Sequence[int], max_tokens: int, seed: int) -> Future[Completion]:
        """Note a call, for the driver's next look. Any thread may call this."""
        call = _Call(tuple(token_ids), max_tokens, seed, Future())
        self._waiting.put(call)
        return call.answer

    def take(self) -> list[_Call]:
        """Return the calls since the last look for which the server still waits."""
        calls = []
        while not self._waiting.empty():
            call = self._waiting.get_nowait()
            if call.answer.set_running_or_notify_cancel():
                calls.append(call)
        return calls


class Programs(Protocol):
    """The user's programs: the part of `grpo.agents.agents.Agents` that a group needs."""

    def start(self, key: int, row: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], *, seed: int) -> None:
        """Start the program of a conversation."""
        ...

    def finished(self, wait_s: float = 0.0) -> list[tuple[int, Completion | WorldFailed]]:
        """Return the conversations that ended since the last call; wait at most `wait_s` seconds for the first."""
        ...


@dataclass(slots=True)
class _ProgramPlay:
    """A conversation whose program runs."""

    group: int
    member: int
    prompt: Prompt
    seed: int
    starts: int = 1


class AgentConversations:
    """Groups of conversations that programs play."""

    def __init__(self, turns: RequestStream, programs: Programs, calls: AgentCalls, samples: int) -> None:
        """Begin without conversations.

        Args:
            turns: stream that samples one completion for each request; no other object may use it.
            programs: the user's programs; no other object may use them.
            calls: calls of these programs.
            samples: number of conversations for each prompt.
        """
        self._turns, self._programs, self._calls = turns, programs, calls
        self._members = Members(samples)
        self._plays: dict[int, _ProgramPlay] = {}
        self._answers: dict[int, Future[Completion]] = {}
        self._keys, self._numbers = itertools.count(), itertools.count()

    @property
    def unfinished(self) -> int:
        """Number of submitted groups that are not yet returned."""
        return self._members.unfinished

    def submit(self, requests: Sequence[Request], prompts: Sequence[Prompt] = ()) -> None:
        """Start the programs of groups; return at once.

        Args:
            requests: requests with the index and the seed of each group.
            prompts: prompt of each request.

        Raises:
            ValueError: an unfinished group already has one of these indices.
        """
        for request, member, prompt in self._members.open(requests, prompts):
            key = next(self._keys)
            self._plays[key] = _ProgramPlay(request.index, member, prompt, request.seed + member)
            self._start(key)

    def finished(self, wait: bool = True) -> Finished:
        """Return the groups whose conversations have all ended since the last call.

        Args:
            wait: whether to wait until a group has finished.

        Raises:
            RuntimeError: a program failed again and again before its first call; or `wait` is set and no group is
                unfinished; or the agents' thread has died.
        """
        if wait:
            self._members.require_unfinished()
        self._look(0.0)
        while wait and not self._members.ready:
            self._look(POLL_S)
        return self._members.take()

    def _start(self, key: int) -> None:
        play = self._plays[key]
        self._programs.start(key, play.prompt.row, play.prompt.messages, seed=play.seed)

    def _look(self, wait_s: float) -> None:
        if calls := self._calls.take():
            numbered = [(next(self._numbers), call) for call in calls]
            self._answers |= {number: call.answer for number, call in numbered}
            self._turns.submit(
                [Request(at, call.token_ids, call.seed, max_tokens=call.max_tokens) for at, call in numbered]
            )
        if self._turns.unfinished:
            for number, (completion,) in self._turns.finished(wait=False):
                self._answers.pop(number).set_result(completion)
        for key, ended in self._programs.finished(wait_s):
            self._ended(key, ended)

    def _ended(self, key: int, ended: Completion | WorldFailed) -> None:
        play = self._plays[key]
        if isinstance(ended, Completion):
            del self._plays[key]
            self._members.end(play.group, play.member, ended)
            return
        # Without a sampled token there is nothing to train on, and no completion that could stand for the failure.
        if play.starts == STARTS:
            raise RuntimeError(
                f"the agent's program failed {STARTS} times on prompt {play.prompt.id} before the policy answered a "
                f"call: {ended.reason}"
            )
        play.starts += 1
        self._start(key)
