"""What a checkpoint keeps of a group under way: its finished conversations, and the finished turns of the others.

The state is plain data and tensors.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from grpo.conversation.segments import Segment
from grpo.environments.contract import Answer
from grpo.messages import ConversationEnd
from grpo.rollout.dialogue_state import message_from_state, message_state
from grpo.rollout.group_state import completions_from_state, completions_state
from grpo.rollout.plays import Play, RecordedPlay
from grpo.types import Completion


def record_of(play: Play) -> RecordedPlay | None:
    """Return what a checkpoint keeps of a conversation; None if the policy has not finished a turn.

    A conversation that repeats its turns after a resume keeps the record of the resume until all are repeated.
    """
    lasted_s = time.monotonic() - play.began
    if play.recorded is not None:
        return play.recorded
    if play.conversation is None or not play.conversation.turns:
        return None
    conversation, answers = play.conversation, tuple(play.answers)
    cut = play.ended is ConversationEnd.TOKENS and len(answers) < len(conversation.turns)
    opening = conversation.messages[: conversation.opening]
    return RecordedPlay(opening, conversation.turns, answers, cut, play.waited_s, lasted_s)


def record_state(record: RecordedPlay) -> dict[str, Any]:
    """Return a record as plain data and tensors."""
    return {
        "opening": [message_state(message) for message in record.opening],
        "turns": [
            {
                "token_ids": torch.tensor(turn.token_ids, dtype=torch.int64),
                "logprobs": torch.tensor(turn.logprobs, dtype=torch.float64),
                "versions": torch.tensor(turn.versions, dtype=torch.int64),
            }
            for turn in record.turns
        ],
        "answers": [
            {
                "messages": [message_state(message) for message in answer.messages],
                "over": answer.over,
                "reward": answer.reward,
                "calls": answer.calls,
                "failures": dict(answer.failures),
            }
            for answer in record.answers
        ],
        "cut": record.cut,
        "waited_s": record.waited_s,
        "lasted_s": record.lasted_s,
    }


def record_from_state(state: Mapping[str, Any]) -> RecordedPlay:
    """Restore a record from the data of `record_state`."""
    return RecordedPlay(
        opening=tuple(message_from_state(each) for each in state["opening"]),
        turns=tuple(
            Segment(
                tuple(turn["token_ids"].tolist()),
                True,
                tuple(turn["logprobs"].tolist()),
                tuple(turn["versions"].tolist()),
            )
            for turn in state["turns"]
        ),
        answers=tuple(
            Answer(
                tuple(message_from_state(each) for each in answer["messages"]),
                answer["over"],
                answer["reward"],
                answer["calls"],
                answer["failures"],
            )
            for answer in state["answers"]
        ),
        cut=state["cut"],
        waited_s=state["waited_s"],
        lasted_s=state["lasted_s"],
    )


def group_under_way(done: Mapping[int, Completion], records: Mapping[int, RecordedPlay]) -> dict[str, Any]:
    """Return a group as data.

    Args:
        done: number of the member -> its completion, if it has ended.
        records: number of the member -> its turns, if it is under way and has turns.
    """
    return {
        "done": list(done),
        "completions": completions_state(list(done.values())),
        "records": {member: record_state(record) for member, record in records.items()},
    }


def sampled_group(completions: Sequence[Completion]) -> dict[str, Any]:
    """Return a group whose conversations have all ended as data, as `group_under_way` does."""
    return group_under_way(dict(enumerate(completions)), {})


def group_from_under_way(state: Mapping[str, Any]) -> tuple[dict[int, Completion], dict[int, RecordedPlay]]:
    """Restore `done` and `records` of `group_under_way`."""
    done = dict(zip(state["done"], completions_from_state(state["completions"]), strict=True))
    return done, {member: record_from_state(record) for member, record in state["records"].items()}
