"""Play conversations: the policy's turns are requests to the generators, and the worlds answer them.

`Conversations` has the interface of a stream of requests, so that a group of conversations is collected, verified and
trained on as a group of completions is.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

from grpo.conversation.played import completion_of
from grpo.conversation.renderer import ChatRenderer
from grpo.conversation.segments import Conversation, Segment
from grpo.environments.contract import Answer, Event, Opening, WorldFailed, Worlds
from grpo.environments.opening import first_messages
from grpo.messages import ConversationEnd, WorldReward
from grpo.rollout.collector import RequestStream
from grpo.rollout.members import Members
from grpo.rollout.plays import ConversationLimits, Play, RecordedPlay, as_read, messages_of, turn_seed
from grpo.rollout.turn_pace import TurnPace
from grpo.rollout.under_way import group_from_under_way, group_under_way, record_of
from grpo.types import Finished, Prompt, Request

# How often a world may fail before its first message, until the run ends with its reason.
OPENINGS = 3


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
        self._plays: dict[int, Play] = {}
        # The beginning that the conversations of a group share.
        self._begun: dict[int, Conversation] = {}
        self._due: list[Request] = []
        self._pace = TurnPace()
        self._keys = itertools.count()
        # State of the groups that are submitted again after a resume.
        self._expected: dict[int, Mapping[str, Any]] = {}
        self._replayed = self._begun_anew = 0

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
        restored = {
            request.index: group_from_under_way(self._expected.pop(request.index))
            for request in requests
            if request.index in self._expected
        }
        for request, member, prompt in self._members.open(requests, prompts):
            done, records = restored.get(request.index, ({}, {}))
            if member in done:
                self._members.end(request.index, member, done[member])
            else:
                self._begin(request, member, prompt, records.get(member))

    def _begin(self, request: Request, member: int, prompt: Prompt, recorded: RecordedPlay | None) -> None:
        key, now = next(self._keys), time.monotonic()
        play = Play(request.index, member, request.seed, prompt, now, now, recorded=recorded)
        if recorded is not None:
            play.began, play.waited_s = now - recorded.lasted_s, recorded.waited_s
        self._plays[key] = play
        self._worlds.open(key, prompt.row)

    def under_way(self) -> dict[int, dict[str, Any]]:
        """Return index -> state of the groups under way, for a checkpoint."""
        groups = self._members.under_way()
        records: dict[int, dict[int, RecordedPlay]] = {group: {} for group in groups}
        for play in self._plays.values():
            if (record := record_of(play)) is not None:
                records[play.group][play.member] = record
        return {group: group_under_way(done, records[group]) for group, done in groups.items()}

    def expect(self, groups: Mapping[int, Mapping[str, Any]]) -> None:
        """Take the state of groups that will be submitted again: their finished turns are repeated, and not sampled.

        Each world begins anew and gets the recorded turns. If it answers otherwise than before, its conversation begins
        anew.
        """
        self._expected = dict(groups)

    def take_resumed(self) -> dict[str, float]:
        """Return how many conversations went on after a resume, and how many began anew, since the last call."""
        counts = {"replayed": float(self._replayed), "begun_anew": float(self._begun_anew)}
        self._replayed = self._begun_anew = 0
        return {f"rollout/conversations_{name}": count for name, count in counts.items()}

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
        while wait and not self._members.ready:
            if self._worlds_work:
                self._look(self._pace.gather_s)
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

    def _request(self) -> None:
        """Request the turns that are due, all in one message to each generator."""
        if self._due:
            self._turns.submit(self._due)
            self._due = []

    def _heard(self, key: int, event: Event) -> None:
        play = self._plays[key]
        if play.waiting_since is not None:
            if not play.repeats_answer:
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

    def _beginning(self, play: Play, opening: Opening) -> Conversation:
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
        if play.recorded is not None and play.recorded.opening != self._begun[play.group].messages:
            raise ValueError(
                f"reset gave other first messages for prompt {play.prompt.id} than before the resume; resume with the "
                "same environment and data, or with conversation.resume=anew"
            )
        if self._begun[play.group].messages != messages:
            raise ValueError(
                f"reset gave the conversations of prompt {play.prompt.id} different first messages, so their rewards "
                "cannot be compared; let the first messages depend on the row alone, for example on a seed in the row"
            )
        return self._begun[play.group]

    def _next_turn(self, key: int, play: Play) -> None:
        """Request the next turn of the policy, repeat the turn before a resume, or end the conversation at a limit."""
        conversation, limits = play.played, self._limits
        if (recorded := play.recorded) is not None:
            done = len(conversation.turns)
            if done < len(recorded.turns):
                self._said(key, play, recorded.turns[done], cut=recorded.cut and done == len(recorded.turns) - 1)
                return
            self._went_on(play)
        remaining = limits.tokens - sum(len(segment.token_ids) for segment in conversation.segments[1:])
        if remaining < 1:
            self._close(key, play, ConversationEnd.TOKENS)
        elif len(conversation.turns) >= limits.turns:
            self._close(key, play, ConversationEnd.TURNS)
        elif time.monotonic() - play.began > limits.seconds:
            self._close(key, play, ConversationEnd.SECONDS)
        else:
            seed = turn_seed(play.seed, play.member, len(conversation.turns))
            play.requested = time.monotonic()
            self._due.append(Request(key, conversation.context, seed, max_tokens=min(remaining, limits.turn_tokens)))

    def _sampled(self, turns: Finished) -> None:
        for key, (completion,) in turns:
            play = self._plays[key]
            self._pace.took(time.monotonic() - play.requested)
            self._said(key, play, Segment.from_completion(completion), cut=completion.finish_reason == "length")

    def _said(self, key: int, play: Play, turn: Segment, cut: bool) -> None:
        """Let the world answer a turn of the policy; end the conversation if a limit of tokens cut the turn off."""
        play.conversation = play.played.with_turn(self._renderer.turn_message(turn), turn)
        if cut:
            self._close(key, play, ConversationEnd.TOKENS)
        else:
            play.waiting_since = time.monotonic()
            self._worlds.answer(key, play.conversation.messages[-1])

    def _went_on(self, play: Play) -> None:
        """Note that all turns before a resume are repeated."""
        if play.recorded is not None:
            play.recorded = None
            self._replayed += 1

    def _anew(self, key: int, play: Play) -> None:
        """Begin a conversation anew whose world answered otherwise than before the resume."""
        self._begun_anew += 1
        play.begin_anew()
        self._worlds.abandon(key)
        play.waiting_since = time.monotonic()
        self._worlds.open(key, play.prompt.row)

    def _answered(self, key: int, play: Play, answer: Answer) -> None:
        answer = as_read(answer, self._limits.observation_tokens, self._renderer.count)
        if not play.note(answer):
            self._anew(key, play)
            return
        play.calls += answer.calls
        play.failures.update(answer.failures)
        if answer.over:
            self._close(key, play, ConversationEnd.OVER)
        elif not answer.messages:
            self._close(key, play, ConversationEnd.ANSWER)
        elif len(play.played.turns) >= self._limits.turns:
            self._close(key, play, ConversationEnd.TURNS)
        else:
            play.conversation = self._renderer.answered(play.played, answer.messages)
            self._next_turn(key, play)

    def _close(self, key: int, play: Play, ended: ConversationEnd) -> None:
        self._went_on(play)
        play.ended = ended
        play.waiting_since = time.monotonic()
        self._worlds.close(key)

    def _failed(self, key: int, play: Play, failure: WorldFailed) -> None:
        """End a conversation without a score; begin it again if the policy has not yet said anything."""
        if play.repeats_answer and play.conversation is not None:
            self._anew(key, play)
            return
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

    def _end(self, key: int, play: Play, reward: WorldReward, failure: WorldFailed | None = None) -> None:
        del self._plays[key]
        dialogue = play.dialogue(reward, failure)
        cut = play.ended is ConversationEnd.TOKENS
        completion = completion_of(play.played, dialogue, "length" if cut else "stop")
        if self._members.end(play.group, play.member, completion):
            del self._begun[play.group]
