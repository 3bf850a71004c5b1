"""Rows in the shapes of published data sets, described by config alone: what the policy reads, and the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from row_shapes import ALL_SHAPES, CHAT
from tiny_policy import make_tiny_policy
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from grpo.config import DatasetConfig, NewPolicyConfig
from grpo.config.evaluation import TaskConfig
from grpo.config.inputs import dataset_problems
from grpo.data.prompts import load_prompts
from grpo.data.supervised import load_supervised
from grpo.evaluation.problems import load_problems
from rewards.build import build_verifier
from rewards.verdict import Status


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    new = NewPolicyConfig(hidden_size=8, layers=1, heads=2, key_value_heads=1, intermediate_size=8)
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(make_tiny_policy(tmp_path_factory.mktemp("p"), new))
    made.chat_template = CHAT
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    new = NewPolicyConfig(hidden_size=8, layers=1, heads=2, key_value_heads=1, intermediate_size=8)
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(make_tiny_policy(tmp_path_factory.mktemp("q"), new))
    return made


def source_of(tmp_path: Path, rows: list[dict[str, Any]], **keys: Any) -> DatasetConfig:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = DatasetConfig.model_validate({"path": str(path), **keys})
    assert dataset_problems("data", source) == []
    return source


@pytest.mark.parametrize("name", ALL_SHAPES)
def test_published_rows_are_described_by_the_config_alone(
    tmp_path: Path, chatty: PreTrainedTokenizerBase, name: str
) -> None:
    shape = ALL_SHAPES[name]
    source = source_of(tmp_path, [shape.row], **shape.keys)
    (prompt,) = load_prompts(source, chatty, max_tokens=1000).prompts
    assert prompt.text == shape.text
    judge = build_verifier(shape.verifier["use"], shape.verifier.get("options", {}))
    right = judge(shape.right, prompt.reference, prompt.row)
    assert right.status is Status.CORRECT, right
    wrong = judge(shape.wrong, prompt.reference, prompt.row)
    assert wrong.status is Status.WRONG, wrong
    if isinstance(shape.row.get(source.prompt), str):
        # An evaluation reads the same description.
        task = TaskConfig.model_validate(
            {"name": "mine", "source": "here", "data": source.model_dump(), "verifier": shape.verifier}
        )
        (problem,) = load_problems(task)
        assert problem.reference == prompt.reference and problem.row == prompt.row
        assert f"[user:{problem.question}]" in shape.text


GPQA = {"Question": "Which?", "Correct Answer": "one", "Incorrect Answer 1": "two", "Incorrect Answer 2": "three"}


def test_options_in_columns_are_shuffled_in_training_as_in_evaluation(
    tmp_path: Path, chatty: PreTrainedTokenizerBase
) -> None:
    rows = [GPQA | {"Question": f"Which is {number}?"} for number in range(30)]
    source = source_of(
        tmp_path, rows, prompt="Question", template="{prompt}\n{choices}",
        choices={"right": "Correct Answer", "wrong": ["Incorrect Answer 1", "Incorrect Answer 2"]},
    )  # fmt: skip
    prompts = load_prompts(source, chatty, max_tokens=1000).prompts
    assert {prompt.reference for prompt in prompts} == {"A", "B", "C"}
    assert all(f"{prompt.reference}) one" in prompt.text for prompt in prompts)


TALK = [
    {"role": "user", "content": "2+3?"},
    {"role": "assistant", "content": "5"},
    {"role": "user", "content": "4+4?"},
    {"role": "assistant", "content": "8"},
]
SHARED = [{"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]} for turn in TALK]


@pytest.mark.parametrize("turns", [TALK, SHARED])
def test_every_turn_of_the_assistant_is_learned_or_the_last(
    tmp_path: Path, chatty: PreTrainedTokenizerBase, turns: list[dict[str, str]]
) -> None:
    source = source_of(tmp_path, [{"messages": turns}], messages="messages")
    found = load_supervised(source, chatty, max_tokens=200).sequences
    learned = [chatty.decode(row.token_ids[row.prompt_length :]) for row in found]
    assert learned == [f"5{chatty.eos_token}", f"8{chatty.eos_token}"]
    before = chatty("[user:2+3?][assistant:5][user:4+4?][bot:", add_special_tokens=False)["input_ids"]
    assert list(found[1].token_ids[: found[1].prompt_length]) == before
    (last,) = load_supervised(source.model_copy(update={"learn_turns": "last"}), chatty, max_tokens=200).sequences
    assert last == found[1]


def test_conversations_that_cannot_be_learned_are_refused(
    tmp_path: Path, chatty: PreTrainedTokenizerBase, plain: PreTrainedTokenizerBase
) -> None:
    source = source_of(tmp_path, [{"messages": TALK}, {"messages": TALK[:1]}], messages="messages")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2\): .* has no message of the assistant after a message of the"):
        load_supervised(source, chatty, max_tokens=200)
    kept = load_supervised(source.model_copy(update={"on_bad_row": "drop"}), chatty, max_tokens=200)
    assert len(kept.sequences) == 2 and kept.left_out.total() == 1
    with pytest.raises(
        ValueError, match=r"data\.messages='messages' holds chat messages, which need the policy's chat"
    ):
        load_supervised(source.model_copy(update={"on_bad_row": "drop"}), plain, max_tokens=200)
    (problem,) = dataset_problems("data", source.model_copy(update={"template": "Q: {prompt}"}))
    assert "data.template has no place in whole conversations" in problem
