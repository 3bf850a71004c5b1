from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.conversation.samples import ConversationSample, training_samples
from grpo.conversation.segments import Conversation, Segment
from grpo.messages import ChatMessage, MalformedCall, ToolCall
from grpo.types import Completion, VersionSpan

USER, TOOL, POLICY = ChatMessage("user", "?"), ChatMessage("tool", "!"), ChatMessage("assistant", "hm")


def given_tokens(*ids: int, rewrites: bool = False) -> Segment:
    return Segment(ids, rewrites=rewrites)


def turn(*ids: int, version: int = 0) -> Segment:
    return Segment(ids, True, tuple(-float(token) for token in ids), (version,) * len(ids))


def test_a_completion_becomes_a_segment_with_a_version_for_each_token() -> None:
    completion = Completion((5, 6, 7), (-0.1, -0.2, -0.3), "abc", "stop", (VersionSpan(0, 2, 4), VersionSpan(2, 3, 5)))
    assert Segment.from_completion(completion) == Segment((5, 6, 7), True, (-0.1, -0.2, -0.3), (4, 4, 5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"token_ids": ()}, "at least one token"),
        ({"token_ids": (1, 2), "sampled": True, "logprobs": (-1.0,), "versions": (0, 0)}, "needs 2 log-probabilities"),
        ({"token_ids": (1, 2), "sampled": True, "logprobs": (-1.0, -1.0)}, "got 2 and 0"),
        ({"token_ids": (1,), "logprobs": (-1.0,), "versions": (0,)}, "1 given tokens needs 0"),
        ({"token_ids": (1,), "sampled": True, "logprobs": (float("nan"),), "versions": (0,)}, "log-probability nan"),
        (
            {"token_ids": (1,), "sampled": True, "logprobs": (-1.0,), "versions": (0,), "rewrites": True},
            "cannot rewrite",
        ),
    ],
)
def test_a_segment_that_does_not_fit_together_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Segment(**values)


@pytest.mark.parametrize(
    ("messages", "segments", "message"),
    [
        ((), (given_tokens(1),), "begins with at least one message"),
        ((USER,), (), "begins with at least one message"),
        ((USER,), (given_tokens(1, rewrites=True),), "no history to rewrite"),
        ((USER, POLICY, POLICY), (given_tokens(1), turn(2), turn(3)), "twice in a row"),
        ((USER, TOOL), (given_tokens(1),), "the assistant answers it first"),
        ((USER, POLICY, TOOL), (given_tokens(1), turn(2)), "do not follow its messages"),
        ((USER, POLICY), (given_tokens(1), given_tokens(2)), "do not follow its messages"),
        ((USER,), (turn(1),), "do not follow its messages"),
    ],
)
def test_segments_that_do_not_follow_the_messages_are_refused(
    messages: tuple[ChatMessage, ...], segments: tuple[Segment, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Conversation(messages, 1, segments)


def test_a_conversation_grows_turn_by_turn() -> None:
    conversation = Conversation.begin([USER, POLICY, USER], given_tokens(1, 2), [{"name": "python"}])
    conversation = conversation.with_turn(POLICY, turn(3)).with_answer([TOOL, TOOL], given_tokens(4, 5))
    assert conversation.opening == 3 and conversation.messages[3:] == (POLICY, TOOL, TOOL)
    assert conversation.context == (1, 2, 3, 4, 5) and conversation.turns == (turn(3),)
    rewritten = conversation.with_turn(POLICY, turn(6)).with_answer([USER], given_tokens(1, 9, rewrites=True))
    assert rewritten.context == (1, 9) and rewritten.tools == ({"name": "python"},)
    assert rewritten.with_turn(POLICY, turn(7)).context == (1, 9, 7)


def test_one_sample_where_nothing_was_rewritten_and_no_tokens_after_the_last_turn() -> None:
    conversation = Conversation.begin([USER], given_tokens(1, 2))
    assert training_samples(conversation) == ()
    conversation = conversation.with_turn(POLICY, turn(3, 4, version=7)).with_answer([TOOL], given_tokens(5))
    (sample,) = training_samples(conversation)
    assert sample == ConversationSample(
        (1, 2, 3, 4), (False, False, True, True), (0.0, 0.0, -3.0, -4.0), (-1, -1, 7, 7), 0
    )
    (longer,) = training_samples(conversation.with_turn(POLICY, turn(6, version=8)))
    assert longer.token_ids == (1, 2, 3, 4, 5, 6) and longer.versions == (-1, -1, 7, 7, -1, 8)
    assert longer.sampled == (False, False, True, True, False, True)


def test_a_rewritten_history_begins_another_sample_that_shares_its_first_tokens() -> None:
    conversation = Conversation.begin([USER], given_tokens(1, 2)).with_turn(POLICY, turn(3, 4, 5))
    conversation = conversation.with_answer([USER], given_tokens(1, 2, 5, 6, rewrites=True))
    assert len(training_samples(conversation)) == 1, "nothing was sampled after the rewriting"
    first, second = training_samples(conversation.with_turn(POLICY, turn(7)))
    assert first.token_ids == (1, 2, 3, 4, 5) and first.shared_prefix == 0
    assert second.token_ids == (1, 2, 5, 6, 7) and second.shared_prefix == 2
    assert second.sampled == (False, False, False, False, True), "5 carries its loss in the first sample"


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.booleans()), max_size=6))
def test_each_sampled_token_carries_loss_in_exactly_one_sample(plan: list[tuple[int, int, bool]]) -> None:
    token = iter(range(1, 1000))
    conversation = Conversation.begin([USER], given_tokens(0))
    for version, (sampled, given_count, rewrites) in enumerate(plan):
        conversation = conversation.with_turn(POLICY, turn(*[next(token) for _ in range(sampled)], version=version))
        ids = [next(token) for _ in range(given_count)]
        ids = [*conversation.context[:-1], *ids] if rewrites else ids
        conversation = conversation.with_answer([TOOL], given_tokens(*ids, rewrites=rewrites))
    samples = training_samples(conversation)
    learned = [
        (token_id, logprob, version)
        for sample in samples
        for token_id, sampled, logprob, version in zip(
            sample.token_ids, sample.sampled, sample.logprobs, sample.versions, strict=True
        )
        if sampled
    ]
    assert learned == [
        (token_id, logprob, version)
        for segment in conversation.turns
        for token_id, logprob, version in zip(segment.token_ids, segment.logprobs, segment.versions, strict=True)
    ]
    for before, after in pairwise(samples):
        assert before.token_ids[: after.shared_prefix] == after.token_ids[: after.shared_prefix]
        assert before.token_ids[: after.shared_prefix + 1] != after.token_ids[: after.shared_prefix + 1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (((1, 2), (False, True), (0.0, -1.0), (-1,), 0), "values for other numbers"),
        (((1, 2), (False, False), (0.0, 0.0), (-1, -1), 0), "needs sampled tokens"),
        (((1, 2), (True, True), (0.0, 0.0), (0, 0), 0), "a given token before them"),
    ],
)
def test_a_sample_that_cannot_be_trained_on_is_refused(values: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConversationSample(*values)


def test_messages_hold_text_that_every_reader_can_hold() -> None:
    assert ChatMessage("tool", "a\ud83d\ude00b\ud800c\x00").content == "a\U0001f600b\ufffdc\x00"
    assert ChatMessage("assistant", "", calls=(ToolCall("python", {}), MalformedCall("no"))).calls[0].name == "python"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"role": "ipython", "content": ""}, "role 'ipython'"),
        ({"role": "tool", "content": b"x"}, "is bytes; expected text"),
        ({"role": "tool", "content": None}, "is NoneType"),
        ({"role": "user", "content": "", "calls": (MalformedCall("no"),)}, "only the assistant calls"),
        ({"role": "tool", "content": "", "name": "<|im_end|>"}, "expected 1 to 64 letters"),
    ],
)
def test_a_message_that_cannot_be_said_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatMessage(**values)
    with pytest.raises(ValueError, match="expected 1 to 64"):
        ToolCall("a b", {})
