"""What the page gets of a conversation."""

from __future__ import annotations

import json
from pathlib import Path

from conversations.made_up import make_conversation, make_dialogue

from grpo.messages import ChatMessage, ConversationEnd
from grpo.report.rollout_store import write_step
from grpo.types import Group, Prompt, Rollout
from grpo.view.payloads import group_details
from grpo.view.runs import open_runs
from rewards import verdict


def test_the_page_gets_the_turns_and_which_tokens_the_world_gave(tmp_path: Path) -> None:
    messages = (
        ChatMessage("user", "2+3?"),
        ChatMessage("assistant", "add(2, 3)"),
        ChatMessage("tool", "<b>5</b>\x1b[31m", name="add"),
        ChatMessage("assistant", "5"),
    )
    dialogue = make_dialogue(
        messages=messages, ended=ConversationEnd.TURNS, calls=1, failures={"raised": 1}, waited_s=0.25
    )
    completion = make_conversation([[7, 8], [9], [10]], [-0.1, -0.2, -0.3], dialogue)
    rollout = Rollout(completion, {"answer": verdict.correct()}, 1.0)
    write_step(tmp_path, 1, [Group(Prompt("p", "2+3?", (1,), "5", {}), (rollout,))], [[0.0]])
    (run,) = open_runs([tmp_path])
    (detail,) = group_details(run, "training", 1, [0], shaded_tokens=100)
    (shown,) = detail["completions"]
    assert [(turn["role"], turn["name"]) for turn in shown["turns"]] == [
        ("assistant", ""),
        ("tool", "add"),
        ("assistant", ""),
    ]
    assert "\\u001b" not in json.dumps(shown["turns"]) and "<b>5</b>" in shown["turns"][1]["content"]
    facts = (shown["calls"], shown["call_failures"], shown["ended"], shown["waited_s"])
    assert facts == (1, "1 raised", "turns", 0.25)
    assert [logprob for _, logprob, _ in shown["tokens"]] == [-0.1, -0.2, None, -0.3]
