"""What verifiers are handed, of a prompt and its completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from rewards import verdict
from rewards.judging import columns_of, judge
from rewards.verdict import Verdict


class Noting:
    """A pool that notes what it is handed; `rank` judges groups."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def judges_groups(self, name: str) -> bool:
        return name == "rank"

    def submit_many(self, calls: Sequence[tuple[str, str, Any, Mapping[str, Any]]], /) -> list[Future[Verdict]]:
        self.calls += calls
        return [_decided(f"{name} {text}") for name, text, *_ in calls]

    def submit_group(self, name: str, completions: Sequence[str], *rest: Any) -> list[Future[Verdict]]:
        self.calls.append((name, list(completions), *rest))
        return [_decided(f"{name} {text}") for text in completions]


def _decided(reason: str) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(verdict.correct(reason))
    return future


def test_each_completion_gets_its_own_verdicts_in_the_order_of_the_config() -> None:
    pool = Noting()
    names = ["form", "rank", "math"]
    named = judge(pool, names, "4", columns_of("2+2=?", {"kind": "sum"}), ["4", "5"], [2, 3])
    assert [{name: future.result().reason for name, future in one.items()} for one in named] == [
        {"form": "form 4", "rank": "rank 4", "math": "math 4"},
        {"form": "form 5", "rank": "rank 5", "math": "math 5"},
    ]
    assert [list(one) for one in named] == [names] * 2
    row = {"problem": "2+2=?", "kind": "sum"}
    assert pool.calls == [
        ("rank", ["4", "5"], "4", row, {"completion_tokens": [2, 3]}),
        *[(name, text, "4", row | {"completion_tokens": count}) for text, count in (("4", 2), ("5", 3))
          for name in ("form", "math")],
    ]  # fmt: skip


def test_verifiers_get_the_prompts_text_unless_the_row_has_a_problem_of_its_own() -> None:
    pool = Noting()
    for row in ({}, {"problem": "its own"}):
        judge(pool, ["it"], "4", columns_of("2+2=?", row), ["4"], [2])
    assert [call[3]["problem"] for call in pool.calls] == ["2+2=?", "its own"]
