"""`grpo eval` plays the conversations of training: tools, environments, failures, and what an evaluation stores."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from conversations.scripted_policy import CALL, WITH_TOOLS
from conversations.scripted_turns import Turns
from conversations.small_chat import small_tokenizer
from rich.console import Console
from transformers import Qwen3Config

from grpo.config.evaluation import EvalConfig
from grpo.config.file import resolve
from grpo.evaluation import jobs
from grpo.evaluation.engine_sampler import EngineSampler
from grpo.evaluation.evaluate import evaluate
from grpo.evaluation.metrics import TaskMetrics
from grpo.evaluation.problems import load_task
from grpo.evaluation.store import LINES, TABLE, read_table
from grpo.types import SamplingParams

TOOL = '''
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first
        b: the second
    """
    return a + b
'''
# The verifier fails as long as the file `broken` exists beside it.
LAST_RESULT = """
from pathlib import Path

def last_result(completion, reference, prompt):
    if Path(__file__).with_name("broken").exists():
        raise OSError("the judge is out")
    results = [message["content"] for message in prompt["messages"] if message["role"] == "tool"]
    return float(results[-1] == reference)
"""
# A world that breaks for the second row as long as the file `broken` exists beside it.
GUESSING = """
from pathlib import Path

class Guessing:
    def reset(self, row):
        self.answer, self.right = row["answer"], False
        return "Guess."

    def step(self, message):
        if self.answer == "11" and Path(__file__).with_name("broken").exists():
            raise OSError("the dice are lost")
        self.right = self.answer in message
        return None if self.right else "No. Guess again."

    def reward(self):
        return float(self.right)
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A folder with a tokenizer whose chat template shows tools, and a config without weights."""
    folder = tmp_path_factory.mktemp("policy")
    small_tokenizer(WITH_TOOLS).save_pretrained(folder)
    Qwen3Config(max_position_embeddings=2048).save_pretrained(folder)
    yield str(folder)


class Runs:
    """Evaluations of a task in a folder, with an engine that says the given texts in each conversation."""

    def __init__(self, folder: Path, policy: str, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
        self.folder, self.policy, self.monkeypatch = folder, policy, monkeypatch
        rows = [{"prompt": f"{n}+3?", "answer": str(n + 3)} for n in (2, 8)]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (folder / "task.yaml").write_text(
            f"name: sums\nsource: ours\ndata: {{path: {folder / 'rows.jsonl'}}}\n{task.format(folder=folder)}\n"
        )

    def evaluate(self, *texts: str, **settings: Any) -> tuple[TaskMetrics, Turns]:
        turns = Turns(small_tokenizer(WITH_TOOLS), texts)

        class Engines(EngineSampler):
            def __enter__(self) -> Engines:
                return self

            def stream(self, sampling: SamplingParams) -> Turns:
                return turns

        self.monkeypatch.setattr(jobs, "EngineSampler", Engines)
        data = {
            "model": self.policy,
            "folder": str(self.folder / "out"),
            "check_golds": "off",
            "max_tokens": 500,
            **settings,
        }
        task = load_task(str(self.folder / "task.yaml"), ["conversation.memory_mib=null"])
        chosen, self.shown = resolve(EvalConfig, data | settings, [], "a test"), StringIO()
        return evaluate(chosen, [task], Console(file=self.shown, width=200))["sums"], turns

    def stored(self) -> list[Mapping[str, Any]]:
        return [json.loads(line) for line in (self.folder / "out" / "sums" / LINES).read_text().splitlines()]


def test_tools_answer_and_the_verifier_reads_the_messages(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tools.py").write_text(TOOL)
    (tmp_path / "judge.py").write_text(LAST_RESULT)
    (tmp_path / "broken").touch()
    task = "tools: ['{folder}/tools.py:add']\nverifier: {{use: '{folder}/judge.py:last_result'}}"
    runs = Runs(tmp_path, policy, monkeypatch, task)
    with pytest.raises(RuntimeError, match=r"The verifier failed for 2; the first: error: .*the judge is out"):
        runs.evaluate(CALL, "It is 5.")
    (tmp_path / "broken").unlink()
    # The conversations are judged again, and not played again.
    metrics, turns = runs.evaluate()
    assert turns.asked == []
    assert metrics.estimates["accuracy"].value == 0.5
    assert (metrics.estimates["turns"].value, metrics.estimates["calls"].value) == (2.0, 1.0)
    assert re.search(r"turns +│ +2\.0 │", runs.shown.getvalue())
    first, second = (row.record for row in read_table(tmp_path / "out" / "sums" / TABLE))
    assert first.correct and not second.correct and first.completion == "It is 5."
    conversation = first.conversation
    assert [message["content"] for message in conversation["messages"]] == ["2+3?", CALL, "5", "It is 5."]
    assert (conversation["ended"], conversation["opening"], conversation["failures"]) == ("answer", 1, {})
    card = json.loads((tmp_path / "out" / "sums" / "card.json").read_text())
    assert "Add two numbers." in card["first_prompt"] and card["identity"]["tools"] == [f"{tmp_path}/tools.py:add"]


def test_an_environment_rewards_and_a_conversation_that_failed_is_played_again(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "guessing.py").write_text(GUESSING)
    (tmp_path / "broken").touch()
    runs = Runs(tmp_path, policy, monkeypatch, "environment: {{use: '{folder}/guessing.py:Guessing'}}")
    with pytest.raises(RuntimeError, match=r"A tool or environment failed in 1 conversations; the first: .*dice are"):
        runs.evaluate("It is 5.", "It is 11.")
    failed = next(line for line in runs.stored() if line["finish_reason"] == "failed")
    assert (failed["problem"], failed["score"], failed["completion"]) == ("sums:1", None, "")
    (tmp_path / "broken").unlink()
    metrics, turns = runs.evaluate("It is 5.", "It is 11.")
    assert metrics.estimates["accuracy"].value == 1.0 and metrics.estimates["turns"].value == 1.5
    # Both turns are those of the conversation that had failed.
    assert len(turns.asked) == 2 and len(runs.stored()) == 3


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": "http://127.0.0.1:9/v1"}, "name the policy's folder in place of the URL"),
        ({"max_tokens": 2000}, "the policy's context has 2,048; give a smaller --max-tokens"),
    ],
)
def test_what_cannot_be_played_is_refused(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch, settings: Mapping[str, Any], reason: str
) -> None:
    runs = Runs(tmp_path, policy, monkeypatch, "environment: {{use: maze}}")
    with pytest.raises(ValueError, match=reason):
        runs.evaluate(**settings)


def test_the_task_of_a_conversation_is_checked(tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(tmp_path, policy, monkeypatch, "verifier: {{use: environment}}")
    with pytest.raises(ValueError, match="takes the reward of an environment, and there is none"):
        runs.evaluate()
