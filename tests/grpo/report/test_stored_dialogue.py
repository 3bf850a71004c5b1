"""Conversations in stored rollouts, in checkpoints and in the ledger."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conversations.made_up import MESSAGES, make_continuation, make_conversation, make_dialogue
from fake_run import make_rollout

from grpo.messages import ChatMessage, ConversationEnd, MalformedCall, WorldReward
from grpo.report.conversations.columns import COLUMNS
from grpo.report.ledger import Ledger, read_ledger
from grpo.report.rollout_store import SCHEMA, read_groups, step_path, write_step
from grpo.rollout.group_state import group_from_state, group_state
from grpo.types import Group, Prompt, Rollout
from rewards import verdict

PROMPT = Prompt("p:1", "2+3?", (1, 2), "5", {})
DIALOGUE = make_dialogue(
    reward=WorldReward(0.5, {"speed": 0.25}, (0.0, 0.5)),
    further=(make_continuation([1, 2, 9], [[7, 8], [9], [6]], [-0.5, -0.25, -0.125]),),
    calls=2,
    failures={"malformed": 1},
    waited_s=1.5,
    lasted_s=4.0,
)


@pytest.fixture
def group() -> Group:
    talked = make_conversation([[3, 4], [5, 5, 5], [6]], [-1.0, -2.0, -3.0], DIALOGUE, "It is 5.")
    said = {"answer": verdict.correct()}
    return Group(PROMPT, (Rollout(talked, said, 1.0), make_rollout("55", said | {}, version=2)))


def saved(state: Any) -> Any:
    """The state after a checkpoint, which is read without pickled classes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_a_conversation_goes_through_a_checkpoint(group: Group) -> None:
    assert group_from_state(saved(group_state(group)), {PROMPT.id: PROMPT}) == group
    late = dataclasses.replace(DIALOGUE, ended=ConversationEnd.FAILED, reason="slow", timed_out=True, further=())
    failed = make_conversation([[3]], [-1.0], late)
    lone = Group(PROMPT, (Rollout(failed, {"environment": verdict.timeout("slow")}, None),))
    assert group_from_state(saved(group_state(lone)), {PROMPT.id: PROMPT}) == lone


def test_states_of_single_turns_have_what_they_always_had(group: Group) -> None:
    single = group_state(group)["rollouts"][1]
    assert set(single) == {"tokens", "text", "finish_reason", "spans", "verdicts", "reward"}


def test_a_conversation_is_stored_whole(tmp_path: Path, group: Group) -> None:
    first, second = pq.read_table(write_step(tmp_path, 1, [group], [[0.5, -0.5]])).to_pylist()
    assert first["given"] == [{"start": 2, "stop": 5}] and first["token_ids"] == [3, 4, 5, 5, 5, 6]
    assert first["completion_tokens"] == 6
    assert [message["content"] for message in first["messages"]] == [message.content for message in MESSAGES]
    assert json.loads(first["messages"][1]["calls"]) == [
        {"name": "add", "arguments": {"of": [2, 3], "deep": {"x": None}}},
        {"malformed": "no JSON"},
    ]
    (part,) = first["further"]
    assert (part["prompt_ids"], part["token_ids"], part["given"]) == (
        [1, 2, 9],
        [7, 8, 9, 6],
        [{"start": 2, "stop": 3}],
    )
    assert {name: second[name] for name, _ in COLUMNS} == {name: None for name, _ in COLUMNS}
    ((read,),) = [stored.rollouts[:1] for stored in read_groups(tmp_path, 1)]
    assert read.dialogue is not None
    assert (read.dialogue.ended, read.dialogue.calls, read.dialogue.failures) == ("answer", 2, {"malformed": 1})
    assert (read.dialogue.turn_rewards, read.dialogue.waited_s, read.dialogue.lasted_s) == ((0.0, 0.5), 1.5, 4.0)
    assert (read.dialogue.messages[2].role, read.dialogue.messages[2].name) == ("tool", "add")


def test_files_without_the_columns_of_conversations_are_read(tmp_path: Path, group: Group) -> None:
    path = write_step(tmp_path, 1, [group], [[0.5, -0.5]])
    added = [name for name, _ in COLUMNS]
    pq.write_table(pq.read_table(path).drop_columns(added), step_path(tmp_path, 1))
    (stored,) = read_groups(tmp_path, 1)
    assert [rollout.dialogue for rollout in stored.rollouts] == [None, None]
    assert stored.rollouts[0].completion == "It is 5." and set(added) < set(SCHEMA.names)


def test_the_policy_s_words_are_stored_whatever_they_are(tmp_path: Path) -> None:
    wild = ChatMessage("assistant", "\ud800 <|im_end|> \x00", (MalformedCall("no name \ud800"),))
    talked = make_conversation([[3]], [-1.0], make_dialogue(messages=(MESSAGES[0], wild)))
    write_step(tmp_path, 1, [Group(PROMPT, (Rollout(talked, {"a": verdict.wrong()}, 0.0),))], [[0.0]])
    (stored,) = read_groups(tmp_path, 1)
    assert stored.rollouts[0].dialogue is not None
    assert stored.rollouts[0].dialogue.messages[1].content == "\ufffd <|im_end|> \x00"


def test_the_ledger_s_fingerprint_knows_the_further_parts(tmp_path: Path, group: Group) -> None:
    ledger = Ledger(tmp_path)
    other = dataclasses.replace(
        group.rollouts[0].completion,
        dialogue=dataclasses.replace(DIALOGUE, further=(make_continuation([1, 2, 9], [[7, 7]], [-0.5, -0.25]),)),
    )
    ledger.append(1, [group])
    ledger.append(2, [Group(PROMPT, (Rollout(other, {"a": verdict.wrong()}, 0.0), group.rollouts[1]))])
    first, second = read_ledger(tmp_path)
    assert first.sample != second.sample
