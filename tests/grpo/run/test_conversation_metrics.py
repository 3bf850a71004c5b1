"""The numbers of conversations in a step."""

from __future__ import annotations

import pytest
import torch
from conversations.made_up import make_conversation, make_dialogue
from documented_metrics import is_documented
from test_step_metrics import GROUPS, PROMPT, SETTINGS

from grpo.messages import ConversationEnd
from grpo.run.metrics import rollout_metrics
from grpo.types import Group, Rollout
from rewards import verdict


def test_conversations_in_numbers() -> None:
    said = {"answer": verdict.correct()}
    first = make_dialogue(calls=3, failures={"raised": 1}, waited_s=1.0, lasted_s=2.0)
    second = make_dialogue(ended=ConversationEnd.TURNS, calls=1, waited_s=2.0, lasted_s=4.0)
    talked = [make_conversation([[3, 4], [5] * 4, [6]], [-1.0] * 3, each) for each in (first, second)]
    group = Group(PROMPT, tuple(Rollout(each, said, 1.0) for each in talked))
    found = rollout_metrics([group], SETTINGS, torch.zeros(1, 2))
    assert found["rollout/completion_tokens_mean"] == 3
    expected = {"turns_mean": 2, "calls_mean": 2, "call_failures_raised": 0.25, "ended_answer": 0.5, "ended_turns": 0.5}
    expected |= {"ended_failed": 0, "waited_s_mean": 1.5, "waited_share": 0.5, "observation_tokens_mean": 4}
    assert {name: found[f"conversation/{name}"] for name in expected} == pytest.approx(expected)
    assert [name for name in found if not is_documented(name)] == []


def test_single_turns_have_no_such_metrics() -> None:
    found = rollout_metrics(GROUPS, SETTINGS, torch.zeros(2, 2))
    assert [name for name in found if name.startswith("conversation/")] == []
