"""New policies with `chat`: the cold start learns exactly the tokens that the policy later reads and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conversations.small_chat import answered, sampled
from tiny_policy import make_tiny_policy
from transformers import PreTrainedTokenizerBase

from grpo.config import DatasetConfig, NewPolicyConfig
from grpo.config.inputs import dataset_problems
from grpo.conversation.calls import CallStyle
from grpo.conversation.renderer import ChatRenderer
from grpo.data import maze_games, tool_sums
from grpo.data.supervised import SupervisedSet, load_supervised
from grpo.messages import ChatMessage, Role, ToolCall
from grpo.policy.stored import end_tokens, load_tokenizer

CONFIGS = Path(__file__).parents[3] / "configs"
SMALL: dict[str, Any] = {
    "hidden_size": 8, "layers": 1, "heads": 2, "key_value_heads": 1, "intermediate_size": 8, "chat": True
}  # fmt: skip
# The policies of the quickstarts, but for their size.
TOOLS = NewPolicyConfig(
    **SMALL,
    tags=('<tool_call>{"name": "python", "arguments": {"code": "', '"}}</tool_call>', "<answer>", "</answer>"),
    alphabet="0123456789+-*/=?.:,()' _abcdefghijklmnopqrstuvwxyzETNSV\n",
)
BYTES = NewPolicyConfig(**SMALL, tokenizer="bpe", vocabulary=300, tags=("<tool_call>", "</tool_call>"))


@pytest.fixture(scope="module", params=[TOOLS, BYTES], ids=["characters", "bpe"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_policy(tmp_path_factory.mktemp("chat") / "policy", request.param))


def loaded(tokenizer: PreTrainedTokenizerBase, folder: Path, rows: list[Any], **changes: Any) -> SupervisedSet:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = DatasetConfig(**{"path": str(path), "messages": "messages", "tools": "tools"} | changes)
    return load_supervised(source, tokenizer, max_tokens=2000)


def test_every_role_can_speak_in_the_template(policy: str) -> None:
    tokenizer = load_tokenizer(policy)
    renderer = ChatRenderer(tokenizer, end_ids=end_tokens(policy, tokenizer))
    assert renderer.refusals == {} and renderer.rewrites_after == frozenset()
    assert renderer.calls is CallStyle.HERMES and not renderer.begins_in_thought
    roles: tuple[Role, ...] = ("system", "user", "assistant", "tool", "user")
    text = tokenizer.decode(renderer.begin([ChatMessage(role, "so") for role in roles]).context)
    assert text == "".join(f"<|{role}|>so<end>" for role in roles) + "<|assistant|>"


def test_the_policy_reads_names_and_arguments_of_the_tools(policy: str) -> None:
    tokenizer = load_tokenizer(policy)
    properties = {"a": {"type": "integer"}, "b": {"type": "integer"}}
    add = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": properties}}}
    prompt = ChatRenderer(tokenizer).begin([ChatMessage("user", "so")], [tool_sums.PYTHON, add]).segments[0]
    text = tokenizer.decode(prompt.token_ids)
    assert text == "<|tools|>python(code), add(a, b)<end><|user|>so<end><|assistant|>"
    # Each role is a single token.
    names = tokenizer.convert_ids_to_tokens(list(prompt.token_ids))
    assert [name for name in names if name.startswith("<|")] == ["<|tools|>", "<|user|>", "<|assistant|>"]


def test_the_cold_start_learns_the_tokens_of_the_conversation(policy: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(policy)
    renderer = ChatRenderer(tokenizer, end_ids=end_tokens(policy, tokenizer))
    (row,) = tool_sums.demonstrations(1, calling_share=1.0)
    question, call, result, answer = (message["content"] for message in row["messages"])
    first, second = loaded(tokenizer, tmp_path, [row]).sequences

    opening = [ChatMessage("user", question)]
    begun = renderer.begin(opening, row["tools"])
    assert first.token_ids[: first.prompt_length] == begun.context
    assert tokenizer.decode(first.token_ids[first.prompt_length :]) == f"{call}<end>"
    after = answered(renderer, begun, first.token_ids[first.prompt_length :], [ChatMessage("tool", result)])
    (asked,) = after.messages[1].calls
    assert asked == ToolCall("python", {"code": question.removesuffix("=?")})
    assert second.token_ids[: second.prompt_length] == after.context
    turn = sampled(second.token_ids[second.prompt_length :])
    assert renderer.turn_message(turn).content == answer


def test_tools_of_a_row_may_be_json_text(policy: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(policy)
    rows = list(tool_sums.demonstrations(3))
    listed = loaded(tokenizer, tmp_path, rows)
    written = loaded(tokenizer, tmp_path, [row | {"tools": json.dumps(row["tools"])} for row in rows])
    assert written == listed
    without = loaded(tokenizer, tmp_path, [row | {"tools": None} for row in rows[:1]], tools=None)
    assert "<|tools|>" not in tokenizer.decode(without.sequences[0].token_ids)


@pytest.mark.parametrize(
    ("tools", "told"),
    [
        ("[{", r"column 'tools' \(data.tools\) is text, but not JSON"),
        ('{"type": "function"}', r"column 'tools' \(data.tools\) is dict; expected a list of JSON schemas of tools"),
        (7, r"column 'tools' \(data.tools\) is int; expected a list"),
    ],
)
def test_tools_that_cannot_be_read_are_refused(policy: str, tmp_path: Path, tools: Any, told: str) -> None:
    (row,) = tool_sums.demonstrations(1)
    with pytest.raises(ValueError, match=told):
        loaded(load_tokenizer(policy), tmp_path, [row | {"tools": tools}])


def test_tools_belong_to_conversations(policy: str, tmp_path: Path) -> None:
    (problem,) = dataset_problems("data", DatasetConfig(path="rows.jsonl", tools="tools"))
    assert "data.tools belong to conversations" in problem
    with pytest.raises(ValueError, match="tols"):
        loaded(load_tokenizer(policy), tmp_path, list(tool_sums.demonstrations(1)), tools="tols")


@pytest.mark.parametrize("name", ["tools_quickstart_sft", "maze_quickstart_sft"])
def test_the_policy_of_a_quickstart_can_write_its_demonstrations(tmp_path: Path, name: str) -> None:
    job = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    new = NewPolicyConfig(**job["policy"]["new"] | SMALL)
    tokenizer = load_tokenizer(str(make_tiny_policy(tmp_path / "policy", new)))
    source = DatasetConfig(**job["data"] | {"options": job["data"]["options"] | {"count": 100}})
    kept = load_supervised(source, tokenizer, max_tokens=job["sft"]["max_tokens"])
    assert kept.dropped == 0
    assert not any(tokenizer.unk_token_id in sequence.token_ids for sequence in kept.sequences)
    assert max(len(sequence.token_ids) for sequence in kept.sequences) <= job["policy"]["new"]["max_position"]


def test_a_game_is_a_conversation_that_the_policy_can_read(policy: str, tmp_path: Path) -> None:
    rows = list(maze_games.demonstrations(2))
    kept = loaded(load_tokenizer(policy), tmp_path, rows, tools=None)
    moves = sum(message["role"] == "assistant" for row in rows for message in row["messages"])
    assert len(kept.sequences) + kept.dropped == moves
