"""Public preference sets are read in the shape in which they are published, here with a few rows written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grpo.config import DatasetConfig
from grpo.data.preferences import ranked_answers


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(**keys: Any) -> list[tuple[Any, tuple[str, ...]]]:
    return [(each.question, each.answers) for each in ranked_answers(DatasetConfig.model_validate(keys))[0]]


def generated(name: str, path: str) -> list[tuple[Any, tuple[str, ...]]]:
    return read(generator=f"grpo.data.published.preferences:{name}", options={"path": path})


def test_summaries_that_people_compared(tmp_path: Path) -> None:
    row = {
        "info": {"id": "t3", "post": "My cat is fat.", "title": "Cat", "subreddit": "pets"},
        "summaries": [{"text": " Fat cat.", "policy": "a"}, {"text": " A dog.", "policy": "b"}],
        "choice": 0,
        "split": "train",
    }
    path = write(tmp_path / "tldr.jsonl", [row, {**row, "choice": 1}])
    first, second = generated("tldr_comparisons", path)
    assert first == ("TITLE: Cat\n\nMy cat is fat.\n\nTL;DR:", ("Fat cat.", "A dog."))
    assert second[1] == ("A dog.", "Fat cat.")
    with pytest.raises(ValueError, match=r"line 1: choice must be 0 or 1, got -1"):
        generated("tldr_comparisons", write(tmp_path / "bad.jsonl", [{**row, "choice": -1}]))


def test_conversations_of_hh_rlhf(tmp_path: Path) -> None:
    before = "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: 1+1?\n\nAssistant:"
    rows = [
        {"chosen": f"{before} 2", "rejected": f"{before} 3"},
        {"chosen": f"{before} 2", "rejected": f"{before} 2"},
        {"chosen": f"{before} 2", "rejected": "\n\nHuman: Else\n\nAssistant: 3"},
    ]
    ((question, answers),) = generated("hh_rlhf", write(tmp_path / "hh.jsonl", rows))
    assert [message["role"] for message in question] == ["user", "assistant", "user"]
    assert question[-1]["content"] == "1+1?" and answers == ("2", "3")
    with pytest.raises(ValueError, match="does not end with an answer"):
        generated("hh_rlhf", write(tmp_path / "bad.jsonl", [{"chosen": f"{before} 2\n\nHuman: ?", "rejected": "x"}]))


def test_ultrafeedback_and_rewardbench_need_no_keys(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    ultra = {"prompt": "1+1?", "chosen": talk, "rejected": [talk[0], {"role": "assistant", "content": "3"}]}
    scores = {"prompt_id": "x", "messages": talk, "score_chosen": 9.0, "score_rejected": 3.0}
    ((question, answers),) = read(path=write(tmp_path / "ultra.jsonl", [ultra | scores]))
    assert question == talk[:1] and answers == ("2", "3")
    bench = {"prompt": "1+1?", "chosen": "2", "rejected": "3", "subset": "math-prm", "id": 1, "chosen_model": "m"}
    assert read(path=write(tmp_path / "bench.jsonl", [bench])) == [("1+1?", ("2", "3"))]
