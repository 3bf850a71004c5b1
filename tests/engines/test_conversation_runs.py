"""A run whose policy plays conversations, with the real engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from grpo.config import NewPolicyConfig
from grpo.policy.new import make_policy
from grpo.report.rollout_store import read_groups

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]


def test_a_run_trains_on_conversations(tmp_path: Path) -> None:
    """The policy plays a maze while the learner trains, so turns of a conversation have different versions.

    Its letters are so few that most turns end at a stop string after some tokens.
    """
    small = NewPolicyConfig(
        hidden_size=64,
        layers=1,
        heads=2,
        key_value_heads=1,
        intermediate_size=96,
        max_position=512,
        chat=True,
        tags=("up", "down", "left", "right"),
        alphabet="#SG. \nabcdefghiklmnoprstuvw",
    )
    make_policy(small, [], tmp_path / "policy", seed=0)
    questions = {"generator": "grpo.environments.maze:questions", "options": {"count": 16, "same": True}}
    config = {
        "run": {"folder": str(tmp_path / "run")},
        "policy": {"path": str(tmp_path / "policy")},
        "data": questions,
        "environment": {"use": "maze", "options": {"show": "cell"}},
        "verifiers": [
            {"name": "goal", "use": "environment"},
            {"name": "letters", "use": f"{tmp_path / 'letters.py'}:letters"},
        ],
        "verification": {"check_golds": "off"},
        "conversation": {"max_turns": 4, "max_turn_tokens": 24, "max_observation_tokens": 40},
        "rollout": {
            "prompts_per_step": 4,
            "group_size": 4,
            "max_prompt_tokens": 200,
            "max_completion_tokens": 240,
            "max_policy_lag": 1,
            "stop": ["up", "down", "left", "right", "a", "e", "o"],
        },
        "algorithm": {"preset": "cispo"},
        "learner": {"microbatch_tokens": 1024},
        "evaluation": {"data": {**questions, "options": {"count": 2, "same": True}}},
        "train": {"steps": 3},
        "cluster": {"device": "cpu"},
    }
    # The goal is out of reach, and groups of equal rewards teach nothing.
    (tmp_path / "letters.py").write_text(
        "def letters(completion, reference, prompt):\n"
        "    assert prompt['messages'][-1]['content'] == completion\n"
        "    return len(completion) % 3 / 2\n"
    )
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "from grpo.cli.app import app; app()", "train", str(file)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3] and "eval/accuracy" in lines[0]
    for line in lines[1:]:
        assert line["conversation/turns_mean"] > 1 and line["conversation/observation_tokens_mean"] > 0
        assert line["conversation/ended_failed"] == 0
    # Learner and engine read the same tokens of several turns, those of the world among them.
    assert lines[1]["learner/mismatch_kl_first"] < 1e-6
    rollouts = [rollout for group in read_groups(tmp_path / "run", 3) for rollout in group.rollouts]
    told = [message.content for each in rollouts if each.dialogue for message in each.dialogue.messages[2::2]]
    assert told and all("row " in text or "are left out]" in text for text in told)
