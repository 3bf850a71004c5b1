from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewards.gold import GoldRow, check_gold, one_by_one
from rewards.math import Math
from rewards.verdict import Status


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


@pytest.mark.parametrize("name", ["math500", "aime24", "amc23"])
def test_every_gold_answer_verifies_against_itself_and_not_scrambled(data_folder, name) -> None:
    listed = [GoldRow(row["answer"], {"problem": row["problem"]}, name) for row in rows(data_folder / f"{name}.jsonl")]
    report = check_gold(one_by_one(Math()), listed)
    assert report.rows == len(listed)
    assert report.accepted == report.rows, report.refused
    # Degrees are a unit, which may be missing.
    assert [one.row.reference for one in report.fooled] == (["120^\\circ"] if name == "math500" else []), report.fooled
    assert not report.unreadable


@pytest.mark.parametrize("name", ["gsm8k_test", "gsm8k_train"])
def test_the_worked_solutions_of_gsm8k_verify(data_folder, name) -> None:
    verify = Math()
    for row in rows(data_folder / f"{name}.jsonl"):
        gold = row["answer"].partition("####")[2].strip()
        assert verify(row["answer"], gold, {"problem": row["question"]}).status is Status.CORRECT, row
        assert verify(f"\\boxed{{{gold}}}", gold, {}).status is Status.CORRECT, row
