"""Conversations that were under way at a checkpoint: finished turns are repeated, and not sampled again."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch
from conversations.scripted_turns import Turns
from conversations.small_chat import PLAIN, small_tokenizer
from test_rollout import ANSWER, make_completion, make_prompt

from grpo.conversation.renderer import ChatRenderer
from grpo.environments.contract import Answer, Event, WorldFailed
from grpo.environments.spec import EnvironmentSpec, WorldSpec
from grpo.environments.world import ToolWorld, make_world
from grpo.messages import ChatMessage, ConversationEnd
from grpo.rollout.collector import Collector
from grpo.rollout.conversations import Conversations
from grpo.rollout.groups import Verifying
from grpo.rollout.mixed_stream import MixedStream
from grpo.rollout.plays import ConversationLimits
from grpo.rollout.staleness import OpenGroups
from grpo.types import Completion, Finished, Prompt, Request

LIMITS = ConversationLimits(prompt_tokens=500, turns=5, tokens=300, turn_tokens=60, observation_tokens=40, seconds=60.0)
TEXTS = ("I guess 1.", "I guess 2.", "I guess 3.")
CLASS = '''
class Counting:
    """Says how often it was asked; ends after three turns."""

    def __init__(self, greeting="asked"):
        self.greeting, self.turns = greeting, 0

    def reset(self, row):
        return "Guess."

    def step(self, message):
        self.turns += 1
        if self.greeting == "fails":
            raise RuntimeError("the world is gone")
        return f"{self.greeting} {self.turns} times" if self.turns < 3 else None

    def reward(self):
        return self.turns / 4
'''


class Worlds:
    """The worlds of real classes, in this process."""

    tools = ()

    def __init__(self, use: str, greeting: str = "asked") -> None:
        self.spec = WorldSpec((), (EnvironmentSpec(use, {"greeting": greeting}),))
        self.worlds, self.queue = dict[int, ToolWorld](), list[tuple[int, Event]]()

    def open(self, key: int, row: Any) -> None:
        self.worlds[key] = make_world(self.spec, row)
        self.queue.append((key, self.worlds[key].open(row)))

    def answer(self, key: int, turn: ChatMessage) -> None:
        try:
            self.queue.append((key, self.worlds[key].answer(turn)))
        except RuntimeError as problem:
            del self.worlds[key]
            self.queue.append((key, WorldFailed("error", str(problem))))

    def close(self, key: int) -> None:
        self.queue.append((key, self.worlds.pop(key).close()))

    def abandon(self, key: int) -> None:
        self.worlds.pop(key, None)

    def events(self, wait_s: float = 0.0) -> list[tuple[int, Event]]:
        done, self.queue = self.queue, []
        return done


class Stopping(Turns):
    """Turns of which only so many are sampled. A turn's versions and log-probabilities belong to its number."""

    def __init__(self, most: int = 100) -> None:
        super().__init__(small_tokenizer(PLAIN), TEXTS)
        self.most = most

    def finished(self, wait: bool = True) -> Finished:
        done, self.pending = self.pending[: self.most], self.pending[self.most :]
        self.most -= len(done)
        return [(request.index, (self._completion(request),)) for request in done]

    def _completion(self, request: Request) -> Completion:
        # How often the policy has spoken is what stands in the tokens, also after a resume.
        self.said[request.index] = self.tokenizer.decode(request.token_ids).count("I guess")
        completion = super()._completion(request)
        spans = tuple(replace(span, policy_version=span.policy_version + 3) for span in completion.spans)
        return replace(completion, logprobs=(-request.seed / 1e15,) * len(completion.token_ids), spans=spans)


@pytest.fixture(scope="module")
def use(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("world") / "counting.py"
    file.write_text(CLASS)
    return f"{file}:Counting"


def playing(use: str, turns: Turns, greeting: str = "asked") -> Conversations:
    return Conversations(turns, Worlds(use, greeting), ChatRenderer(turns.tokenizer), LIMITS, 2)


def submit(stream: Any) -> None:
    question = ({"role": "user", "content": "What?"},)
    stream.submit([Request(7, (1,), 100)], [Prompt("row 0", "?", (1,), None, {"problem": "?"}, messages=question)])


def stored(state: Any) -> Any:
    """A state as a checkpoint gives it back: only plain data and tensors."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def stopped(use: str, turns: int) -> Mapping[int, Any]:
    """The state of a group of two after so many turns of the policy."""
    before = playing(use, Stopping(turns))
    submit(before)
    for _ in range(20):
        assert before.finished(wait=False) == []
    return stored(before.under_way())


def timeless(group: Sequence[Completion]) -> list[Completion]:
    return [replace(each, dialogue=replace(each.dialogue, waited_s=0.0, lasted_s=0.0)) for each in group]


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 5])
def test_a_resumed_group_is_that_of_an_uninterrupted_run(use: str, turns: int) -> None:
    whole = playing(use, Stopping())
    submit(whole)
    ((_, expected),) = whole.finished()
    assert [len(each.dialogue.messages) for each in expected if each.dialogue] == [6, 6]

    later = Stopping()
    resumed = playing(use, later)
    resumed.expect(stopped(use, turns))
    submit(resumed)
    ((index, group),) = resumed.finished()
    assert index == 7 and resumed.unfinished == 0
    assert timeless(group) == timeless(expected)
    # No finished turn is sampled again.
    assert len(later.asked) == 6 - turns
    # The world played along, so its reward knows all turns.
    assert [each.dialogue.reward.score for each in group if each.dialogue] == [0.75, 0.75]
    counts = resumed.take_resumed()
    # Members take turns: the first ends with the fifth turn, and is kept whole.
    assert counts == {
        "rollout/conversations_replayed": float(min(turns, 2) - (turns == 5)), "rollout/conversations_begun_anew": 0.0
    }  # fmt: skip
    assert set(resumed.take_resumed().values()) == {0.0}


def test_a_world_that_answers_otherwise_begins_anew(use: str) -> None:
    later = Stopping()
    resumed = playing(use, later, greeting="heard")
    resumed.expect(stopped(use, 3))
    submit(resumed)
    ((_, group),) = resumed.finished()
    assert all("heard 1 times" in each.dialogue.messages[2].content for each in group if each.dialogue)
    assert len(later.asked) == 6
    assert resumed.take_resumed() == {
        "rollout/conversations_replayed": 0.0, "rollout/conversations_begun_anew": 2.0
    }  # fmt: skip


def test_a_world_that_fails_while_it_repeats_begins_anew(use: str) -> None:
    later = Stopping()
    resumed = playing(use, later, greeting="fails")
    resumed.expect(stopped(use, 2))
    submit(resumed)
    ((_, group),) = resumed.finished()
    # Anew, the policy speaks once, and the world fails again: now without a score.
    assert [each.dialogue.ended for each in group if each.dialogue] == [ConversationEnd.FAILED] * 2
    assert len(later.asked) == 2 and resumed.take_resumed()["rollout/conversations_begun_anew"] == 2.0


def test_other_first_messages_are_refused(use: str, tmp_path: Any) -> None:
    file = tmp_path / "other.py"
    file.write_text(CLASS.replace('"Guess."', '"Guess a number."'))
    resumed = playing(f"{file}:Counting", Stopping())
    resumed.expect(stopped(use, 2))
    submit(resumed)
    with pytest.raises(ValueError, match=r"other first messages for prompt row 0.*conversation.resume=anew"):
        resumed.finished()


def test_a_turn_that_was_cut_off_ends_the_conversation_again(use: str) -> None:
    class Cut(Stopping):
        def _completion(self, request: Request) -> Completion:
            return replace(super()._completion(request), finish_reason="length")

    class Slow(Worlds):
        def close(self, key: int) -> None:
            pass

    before = Conversations(turns := Cut(), Slow(use), ChatRenderer(turns.tokenizer), LIMITS, 2)
    submit(before)
    for _ in range(5):
        assert before.finished(wait=False) == []
    later = Stopping()
    resumed = playing(use, later)
    resumed.expect(stored(before.under_way()))
    submit(resumed)
    ((_, group),) = resumed.finished()
    assert [each.finish_reason for each in group] == ["length", "length"] and not later.asked


class Resumed:
    """A stream that only keeps what it gets."""

    unfinished = 0

    def __init__(self) -> None:
        self.expected: Any = None

    def submit(self, requests: Sequence[Request], prompts: Sequence[Prompt] = ()) -> None:
        self.requests = list(requests)

    def finished(self, wait: bool = True) -> Finished:
        return []

    def under_way(self) -> dict[int, dict[str, Any]]:
        return {0: {"records": "of the stream"}}

    def expect(self, groups: Mapping[int, Mapping[str, Any]]) -> None:
        self.expected = groups

    def take_resumed(self) -> dict[str, float]:
        return {"rollout/conversations_replayed": 2.0}


def collector(stream: Resumed, verifying: Verifying, resumed: Resumed | None) -> Collector:
    numbers = iter(range(9))
    return Collector(
        stream,
        verifying,
        OpenGroups(2, 0, steps=9),
        lambda count: [make_prompt(next(numbers)) for _ in range(count)],
        run_seed=0,
        verdict_wait_s=0.2,
        resumed=resumed,
    )


def test_a_checkpoint_keeps_groups_whose_verdicts_are_missing(use: str) -> None:
    """They are sampled whole, so their conversations would be the most costly to lose."""

    verifying = Verifying(lambda prompt, completions: [{"answer": Future()}], ANSWER)
    stream = Resumed()
    before = collector(stream, verifying, stream)
    before.fill()
    completion = make_completion("1")
    stream.finished = lambda wait=True: [(1, (completion,))]
    stream.unfinished = 1
    before.drain()
    stream.finished = lambda wait=True: []
    state = stored(before.state_dict())
    assert set(state) == {"open", "buffer", "asked", "under_way"}
    assert set(state["asked"]) == {0, 1} and state["under_way"][0] == {"records": "of the stream"}
    assert before.metrics()["rollout/conversations_replayed"] == 2.0

    later = Resumed()
    after = collector(later, Verifying(lambda *_: [], ANSWER), later)
    prompts = [make_prompt(number) for number in range(2)]
    after.load_state_dict(state, prompts)
    after.fill()
    assert [request.index for request in later.requests] == [0, 1]
    stream_of_group = playing(use, Stopping())
    stream_of_group.expect(later.expected)
    # The group is back without a turn of the policy.
    members = Conversations(Stopping(), Worlds(use), ChatRenderer(small_tokenizer(PLAIN)), LIMITS, 1)
    members.expect({1: later.expected[1]})
    members.submit([later.requests[1]], [prompts[1]])
    assert members.finished() == [(1, (completion,))]
    # Without `resumed`, a checkpoint has none of it, and a checkpoint that has it is read all the same.
    anew = collector(other := Resumed(), Verifying(lambda *_: [], ANSWER), None)
    anew.load_state_dict(state, prompts)
    assert other.expected is None and "under_way" not in anew.state_dict()
    old = {name: value for name, value in state.items() if name != "under_way"}
    after.load_state_dict(old, prompts)
    assert later.expected == {}


def test_among_several_streams_the_conversations_resume_and_programs_do_not(use: str) -> None:
    turns = Stopping(2)
    inner, programs = playing(use, turns), Resumed()
    mixed = MixedStream([programs, inner], lambda prompt: 1)
    submit(mixed)
    for _ in range(20):
        mixed.finished(wait=False)
    state = stored(mixed.under_way())
    assert set(state) == {7}
    later = Stopping()
    again = MixedStream([Resumed(), playing(use, later)], lambda prompt: 1)
    again.expect(state)
    submit(again)
    assert len(again.finished()) == 1 and len(later.asked) == 4
    assert again.take_resumed()["rollout/conversations_replayed"] == 2.0


def test_what_the_policy_read_is_what_is_compared(use: str) -> None:
    """An answer is kept as the policy reads it: cut, because a tool may return a million characters."""

    class Long(Worlds):
        def answer(self, key: int, turn: ChatMessage) -> None:
            self.queue.append((key, Answer((ChatMessage("user", "x" * 5000),))))

    before = Conversations(turns := Stopping(2), Long(use), ChatRenderer(turns.tokenizer), LIMITS, 2)
    submit(before)
    for _ in range(5):
        before.finished(wait=False)
    records = before.under_way()[7]["records"]
    assert all(len(each["answers"][0]["messages"][0]["content"]) < 200 for each in records.values())
