"""Groups of conversations that programs play: their calls reach the generators, and a group waits for all members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from conversations.made_up import make_conversation, make_dialogue
from conversations.scripted_turns import Turns
from conversations.small_chat import small_tokenizer

from grpo.environments.contract import WorldFailed
from grpo.messages import ConversationEnd
from grpo.rollout.agent_conversations import AgentCalls, AgentConversations
from grpo.types import Completion, Prompt, Request

FAILED = WorldFailed("error", "the program ended with exit code 1")


class ScriptedPrograms:
    """Programs that end when a test says so.

    Attributes:
        started: key, row, messages and seed of each start.
        ended: what `finished` returns next.
        fails: number of next starts whose program fails at once.
    """

    def __init__(self, fails: int = 0) -> None:
        self.started: list[tuple[int, Any, Any, int]] = []
        self.ended: list[tuple[int, Completion | WorldFailed]] = []
        self.fails = fails

    def start(self, key: int, row: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], *, seed: int) -> None:
        self.started.append((key, row, messages, seed))
        if self.fails:
            self.fails -= 1
            self.ended.append((key, FAILED))

    def finished(self, wait_s: float = 0.0) -> list[tuple[int, Completion | WorldFailed]]:
        done, self.ended = self.ended, []
        return done

    def end(self, key: int, completion: Completion) -> None:
        self.ended.append((key, completion))


class Setup:
    """Conversations of groups of two, whose policy says `yes` to each call."""

    def __init__(self, fails: int = 0) -> None:
        self.turns, self.calls, self.programs = Turns(small_tokenizer(), ["yes"]), AgentCalls(), ScriptedPrograms(fails)
        self.playing = AgentConversations(self.turns, self.programs, self.calls, samples=2)

    def submit(self, *groups: int) -> None:
        question = ({"role": "user", "content": "6*7?"},)
        self.playing.submit(
            [Request(group, (1,), 100 * group) for group in groups],
            [Prompt(f"row {group}", "?", (1,), None, {"row": group}, messages=question) for group in groups],
        )


def said(text: str, **fields: Any) -> Completion:
    return make_conversation([[3, 4], [5], [6]], [-1.0, -1.0, -1.0], make_dialogue(**fields), text)


def test_calls_become_requests_and_the_completions_answer_them() -> None:
    setup = Setup()
    setup.submit(7)
    first = setup.calls.sample(0, [4, 5], 9, seed=31)
    dropped = setup.calls.sample(1, [8], 9, seed=32)
    second = setup.calls.sample(1, [6], 2, seed=33)
    assert dropped.cancel()
    assert setup.playing.finished(wait=False) == []
    asked = [(request.token_ids, request.max_tokens, request.seed) for request in setup.turns.asked]
    # The server no longer waits for the cancelled call, so nothing is sampled for it.
    assert asked == [((4, 5), 9, 31), ((6,), 2, 33)]
    assert len({request.index for request in setup.turns.asked}) == 2
    assert first.result(0).text == "yes" and first.result(0).finish_reason == "stop"
    assert len(second.result(0).token_ids) == 2
    third = setup.calls.sample(0, [7], 9, seed=34)
    setup.playing.finished(wait=False)
    assert third.done() and setup.turns.asked[-1].token_ids == (7,)


def test_a_group_is_finished_when_all_its_programs_have_ended() -> None:
    setup = Setup()
    setup.submit(7, 8)
    assert [(row["row"], seed) for _, row, _, seed in setup.programs.started] == [
        (7, 700),
        (7, 701),
        (8, 800),
        (8, 801),
    ]
    assert setup.programs.started[0][2] == ({"role": "user", "content": "6*7?"},)
    keys = [key for key, *_ in setup.programs.started]
    setup.programs.end(keys[1], said("second"))
    setup.programs.end(keys[2], said("other group"))
    assert setup.playing.finished(wait=False) == [] and setup.playing.unfinished == 2
    setup.programs.end(keys[0], said("first"))
    ((group, completions),) = setup.playing.finished()
    # The members have their places, whichever ended first.
    assert group == 7 and [each.text for each in completions] == ["first", "second"]
    assert setup.playing.unfinished == 1
    with pytest.raises(ValueError, match="group 8 is unfinished"):
        setup.submit(8)


def test_a_program_that_fails_before_its_first_call_starts_again_twice() -> None:
    setup = Setup(fails=2)
    setup.submit(7)
    assert setup.playing.finished(wait=False) == []
    seeds = [seed for _, _, _, seed in setup.programs.started]
    assert sorted(seeds) == [700, 700, 701, 701]
    for key in {key for key, *_ in setup.programs.started}:
        setup.programs.end(key, said("yes"))
    ((_, completions),) = setup.playing.finished()
    assert len(completions) == 2


def test_a_program_that_fails_three_times_ends_the_run_with_its_reason() -> None:
    setup = Setup(fails=6)
    setup.submit(7)
    told = "failed 3 times on prompt row 7 before the policy answered a call: the program ended with exit code 1"
    with pytest.raises(RuntimeError, match=told):
        setup.playing.finished()
    assert len(setup.programs.started) == 6


def test_a_failed_conversation_with_tokens_stays_in_its_group() -> None:
    setup = Setup()
    setup.submit(7)
    failed = said("half", ended=ConversationEnd.FAILED, reason="exit code 1")
    for (key, *_), completion in zip(setup.programs.started, [failed, said("whole")], strict=True):
        setup.programs.end(key, completion)
    ((_, completions),) = setup.playing.finished()
    assert [each.dialogue and each.dialogue.ended for each in completions] == [
        ConversationEnd.FAILED,
        ConversationEnd.ANSWER,
    ]
    # It is not played again.
    assert len(setup.programs.started) == 2


def test_a_wait_without_groups_is_refused() -> None:
    setup = Setup()
    assert setup.playing.finished(wait=False) == []
    with pytest.raises(RuntimeError, match="would never end: no conversation is under way"):
        setup.playing.finished()
