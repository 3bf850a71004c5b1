"""Rows in the shapes of published data sets, described by config alone: what the policy reads, and the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
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

CHAT = (
    "{% for one in messages %}[{{ one['role'] }}:{{ one['content'] }}]{% endfor %}"
    "{% if add_generation_prompt %}[bot:{% endif %}"
)
ASKED = [{"role": "user", "content": "What is 2+3?"}]


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


SOLUTION = "First $2+2=\\boxed{4}$ is not it. The sum is $\\boxed{\\frac{10}{2}}$."
MATH = {"use": "math"}
# Name of the shape: (row, keys of `data`, verifier, what the policy reads, a right and a wrong completion)
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str, str, str]] = {
    "gsm8k": (
        {"question": "What is 2+3?", "answer": "2 and 3 are <<2+3=5>>5.\n#### 5"},
        {"prompt": "question", "reference_after": "####"},
        MATH, "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{6}",
    ),
    "math": (
        {"problem": "What is 2+3?", "level": "Level 1", "type": "Algebra", "solution": SOLUTION},
        {"prompt": "problem", "reference": "solution", "reference_boxed": True},
        MATH, "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
    ),
    "numina_math": (
        {"source": "olympiads", "problem": "What is 2+3?", "solution": SOLUTION, "messages": ASKED},
        {"prompt": "problem", "reference": "solution", "reference_boxed": True, "template": "{source}: {prompt}"},
        MATH, "[user:olympiads: What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
    ),
    "open_r1": (
        {"problem": "What is 2+3?", "solution": SOLUTION, "answer": "5", "messages": ASKED},
        {"prompt": "problem", "reference": "answer", "system": "Think."},
        MATH, "[system:Think.][user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
    ),
    "verl": (
        {
            "data_source": "openai/gsm8k", "prompt": ASKED, "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "5"}, "extra_info": {"question": "2+3", "index": 0},
        },
        {"reference": "reward_model.ground_truth", "template": "{extra_info.question} = {prompt}"},
        MATH, "[user:2+3 = What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
    ),
    "trl": (
        {"prompt": ASKED, "answer": "$5$"},
        {}, MATH, "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
    ),
    "content_parts": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "What "}, {"type": "text", "text": "is?"}]}],
         "answer": "5"},
        {}, MATH, "[user:What is?][bot:", "\\boxed{5}", "\\boxed{4}",
    ),
    "openrlhf": (
        {"input": "What is 2+3?", "label": "5"},
        {"prompt": "input", "reference": "label"}, MATH, "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
    ),
    "openrlhf_messages": (
        {"context_messages": ASKED, "datasource": "math", "label": "5"},
        {"prompt": "context_messages", "reference": "label"},
        MATH, "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
    ),
    "prime_rl": (
        {"prompt": ASKED, "task": "math", "info": '{"ground_truth": "5", "turns": [1]}'},
        {"reference": "info.ground_truth"}, MATH, "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
    ),
    "synthetic_1": (
        {"task_type": "verifiable_math", "prompt": "What is 2+3?", "verification_info": '{"ground_truth": "5"}'},
        {"reference": "verification_info.ground_truth"}, MATH,
        "[user:What is 2+3?][bot:", "\\boxed{5}", "\\boxed{4}",
    ),
    "olympiadbench": (
        {"question": "Roots?", "final_answer": ["$2$", "$-3$"], "is_multiple_answer": True},
        {"prompt": "question", "reference": "final_answer", "reference_join": ", "},
        MATH, "[user:Roots?][bot:", "\\boxed{-3, 2}", "\\boxed{2}",
    ),
    "accepted_answers": (
        {"question": "Capital?", "answer": ["Paris", "Paris, France"]},
        {"prompt": "question"}, {"use": "exact"}, "[user:Capital?][bot:", "\\boxed{paris, france}", "\\boxed{Lyon}",
    ),
    "accepted_numbers": (
        {"question": "What is 2+3?", "answer": ["5", "5.0 cm"]},
        {"prompt": "question"}, {"use": "math", "options": {"any_of": True}},
        "[user:What is 2+3?][bot:", "\\boxed{10/2}", "\\boxed{5, 6}",
    ),
    "mmlu": (
        {"question": "Which?", "subject": "x", "choices": ["one", "two", "three", "four"], "answer": 2},
        {"prompt": "question", "template": "{prompt}\n{choices}", "choices": {"column": "choices"}},
        {"use": "choice"}, "[user:Which?\nA) one\nB) two\nC) three\nD) four][bot:", "\\boxed{C}", "\\boxed{A}",
    ),
    "mmlu_pro": (
        {"question": "Which?", "options": ["one", "two", "three"], "answer": "B", "answer_index": 1},
        {"prompt": "question", "template": "{prompt}\n{choices}", "choices": {"column": "options"}},
        {"use": "choice"}, "[user:Which?\nA) one\nB) two\nC) three][bot:", "\\boxed{B}", "\\boxed{A}",
    ),
    "arc": (
        {"question": "Which?", "choices": {"text": ["one", "two"], "label": ["A", "B"]}, "answerKey": "B"},
        {"prompt": "question", "reference": "answerKey", "template": "{prompt}\n{choices}",
         "choices": {"column": "choices"}},
        {"use": "choice"}, "[user:Which?\nA) one\nB) two][bot:", "\\boxed{B}", "\\boxed{A}",
    ),
    "hellaswag": (
        {"ctx": "He", "endings": ["runs", "flies"], "label": "1"},
        {"prompt": "ctx", "reference": "label", "template": "{prompt} ...\n{choices}",
         "choices": {"column": "endings"}},
        {"use": "choice"}, "[user:He ...\nA) runs\nB) flies][bot:", "\\boxed{B}", "\\boxed{A}",
    ),
    "alpaca": (
        {"instruction": "Add.", "input": "2 and 3", "output": "5"},
        {"prompt": "instruction", "reference": "output", "template": "{prompt}\n{input}\nWrite \\boxed{output}."},
        MATH, "[user:Add.\n2 and 3\nWrite \\boxed{output}.][bot:", "\\boxed{5}", "\\boxed{4}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_published_rows_are_described_by_the_config_alone(
    tmp_path: Path, chatty: PreTrainedTokenizerBase, shape: str
) -> None:
    row, keys, verifier, text, right, wrong = SHAPES[shape]
    source = source_of(tmp_path, [row], **keys)
    (prompt,) = load_prompts(source, chatty, max_tokens=1000).prompts
    assert prompt.text == text
    judge = build_verifier(verifier["use"], verifier.get("options", {}))
    assert judge(right, prompt.reference, prompt.row).status is Status.CORRECT
    assert judge(wrong, prompt.reference, prompt.row).status is Status.WRONG
    if isinstance(row[source.prompt], str):
        # An evaluation reads the same description.
        task = TaskConfig.model_validate(
            {"name": "mine", "source": "here", "data": source.model_dump(), "verifier": verifier}
        )
        (problem,) = load_problems(task)
        assert problem.reference == prompt.reference and problem.row == prompt.row
        assert f"[user:{problem.question}]" in text


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
