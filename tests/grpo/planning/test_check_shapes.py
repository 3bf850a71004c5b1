"""`grpo check` on a row of each published shape: its exit status, its verdict, and what it says about gold answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from row_shapes import ALL_SHAPES, CHAT
from row_shapes.answers import Shape
from tiny_policy import PRINTABLE, make_tiny_policy
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from grpo.cli.app import app


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert PRINTABLE.alphabet
    new = PRINTABLE.model_copy(update={"alphabet": PRINTABLE.alphabet + "\n", "max_position": 2048})
    folder = make_tiny_policy(tmp_path_factory.mktemp("policy"), new)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def check(tmp_path: Path, policy: Path, shape: Shape, row: dict[str, Any]) -> Result:
    rows, config = tmp_path / "rows.jsonl", tmp_path / "mine.yaml"
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    settings = {
        "run": {"folder": str(tmp_path / "run")},
        "policy": {"path": str(policy)},
        "data": {"path": str(rows), **shape.keys},
        "verifiers": [{"name": "answer", **shape.verifier}],
        "verification": {"deadline_s": 30},
        "rollout": {"prompts_per_step": 1, "group_size": 4, "max_prompt_tokens": 1000, "max_completion_tokens": 100},
        "train": {"steps": 2},
        "cluster": {"device": "cpu"},
    }
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    # Wide enough that no line is broken.
    return CliRunner(env={"COLUMNS": "400", "TERM": "dumb"}).invoke(app, ["check", str(config), "--strict"])


# Each check starts processes. The quick round takes a shape of each kind: a text, options, a program with and without a
# solution.
QUICK = ("gsm8k", "mmlu", "humaneval", "live_code_bench_calls", "verifiable_coding_problems")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALL_SHAPES]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_a_published_shape_is_ready(tmp_path: Path, policy: Path, name: str) -> None:
    shape = ALL_SHAPES[name]
    result = check(tmp_path, policy, shape, shape.row)
    print(result.output)
    assert result.exit_code == 0, result.output
    lines = [line.strip() for line in result.stdout.splitlines()]
    for line in shape.text.split("\n"):
        assert f"| {line}".strip() in lines
    if shape.golds:
        assert any(line.startswith("gold answers: good: 1 of 1 are judged `correct`; 0 of ") for line in lines)
        assert any(line.startswith("answer: 1 of 1 gold answers are `correct`; of ") for line in lines)
        assert lines[-1] == "verdict: ready: a run would start"
    else:
        assert "gold answers: not checked: no row has a gold answer to try" in lines
        assert any(line.startswith("answer: 1 of 1 rows cannot be checked: ") for line in lines)
        assert lines[-1] == "verdict: ready: a run would start; gold answers were not checked (no row has one)"
    # No bar of a library stands between the lines.
    assert "split" not in result.stderr and "examples" not in result.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_gold_answer_is_told(tmp_path: Path, policy: Path, name: str) -> None:
    shape = ALL_SHAPES[name]
    result = check(tmp_path, policy, shape, shape.row | shape.spoiled)
    print(result.output)
    assert result.exit_code == 1, result.output
    (headline,) = [line for line in result.stdout.splitlines() if line.startswith("gold answers: ")]
    assert headline.startswith("gold answers: FAILED: "), headline
    verdict = result.stdout.splitlines()[-1]
    assert verdict == "verdict: a run would not start; look at `gold answers: FAILED` above"
    assert "a run would not start on these data:" in result.stderr and "check_golds=warn" in result.stderr
