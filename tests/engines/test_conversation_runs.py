"""A run whose policy plays conversations, with the real engines: the recipe of a tool, cut short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from docs_pages import block

from grpo.evaluation.store import TABLE, read_table
from grpo.report.rollout_store import StoredRollout, read_groups

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
BRIEF = (
    "learner.ranks=1",
    "generator.replicas=1",
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "train.steps=2",
    "algorithm.minibatches=1",
)


def grpo(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from grpo.cli.app import app; app()", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rollouts(folder: Path, step: int) -> list[StoredRollout]:
    return [rollout for group in read_groups(folder, step) for rollout in group.rollouts]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cold start of the tools quickstart: too short to copy a number, but each conversation begins with a call."""
    folder = tmp_path_factory.mktemp("sft")
    small = ("policy.new.hidden_size=64", "policy.new.heads=2", "policy.new.key_value_heads=1", "learner.ranks=1")
    brief = ("sft.steps=60", "sft.checkpoint_every=60", "learner.warmup_steps=5", "sft.batch_size=32")
    rows = ("data.options.count=1500", "data.options.calling_share=1.0")
    grpo("sft", "configs/tools_quickstart_sft.yaml", f"run.folder={folder}", *small, *brief, *rows)
    return folder / "policy"


def test_a_run_trains_on_calls_of_python(policy: Path, tmp_path: Path) -> None:
    """While the learner trains, conversations go on, so their turns may have different versions."""
    run = tmp_path / "run"
    overrides = (f"policy.path={policy}", f"run.folder={run}", "rollout.max_policy_lag=1", "algorithm.preset=cispo")
    # Few answers are right, and groups of equal rewards teach nothing.
    letters = tmp_path / "letters.py"
    letters.write_text(
        "def letters(completion, reference, prompt):\n"
        "    assert completion == [m['content'] for m in prompt['messages'] if m['role'] == 'assistant'][-1]\n"
        "    return len(completion) % 3 / 2\n"
    )
    verifiers = f"verifiers=[{{name: letters, use: '{letters}:letters'}}]"
    # A loaded machine may need longer than the recipe's deadline for a call.
    checks = ("verification.check_golds='off'", "evaluation.data.options.count=4", "conversation.tool_deadline_s=120")
    grpo("train", "configs/tools_quickstart.yaml", *BRIEF, *overrides, verifiers, *checks)
    lines = metrics(run)
    assert [line["step"] for line in lines] == [0, 1, 2] and "eval/accuracy" in lines[0]
    for line in lines[1:]:
        assert line["conversation/turns_mean"] > 1 and line["conversation/calls_mean"] > 0.5
        assert line["conversation/observation_tokens_mean"] > 0 and line["conversation/ended_failed"] == 0
    # Learner and engine read the same tokens of several turns, those of the tool among them.
    assert lines[1]["learner/mismatch_kl_first"] < 1e-6
    dialogues = [each.dialogue for each in rollouts(run, 2) if each.dialogue]
    results = [message for each in dialogues for message in each.messages if message.role == "tool"]
    assert results and any(message.name == "python" for message in results)

    # `grpo eval` plays the same conversations.
    task = tmp_path / "sums.yaml"
    task.write_text(block("conversations.md", "yaml", "name: tool_sums"))
    grpo("eval", str(run), "--task", str(task), "--limit", "4", "--out", str(tmp_path / "eval"))
    evaluated = [row.record.conversation for row in read_table(tmp_path / "eval" / "tool_sums" / TABLE)]
    assert len(evaluated) == 4 and any(message["role"] == "tool" for each in evaluated for message in each["messages"])
