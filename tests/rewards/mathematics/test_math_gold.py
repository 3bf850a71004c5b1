from __future__ import annotations

import json
from pathlib import Path

import pytest
from gold_judge_here import one_by_one

from rewards.checks.gold import check_gold
from rewards.checks.gold_forms import GoldRow
from rewards.verdict import Status
from rewards.verifiers.math import Math
from rewards.verifiers.numeric import Numeric


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]


@pytest.mark.parametrize("name", ["math500", "aime24", "amc23"])
def test_every_gold_answer_verifies_against_itself_and_not_scrambled(data_folder, name) -> None:
    listed = [GoldRow(row["answer"], {"problem": row["problem"]}, name) for row in rows(data_folder / f"{name}.jsonl")]
    report = check_gold(one_by_one(Math()), listed)
    assert report.rows == len(listed)
    assert report.accepted == report.rows, report.refused
    # 120 and 120 degrees may mean the same, and are not tried for each other.
    assert not report.fooled
    assert not report.unreadable


@pytest.mark.parametrize("name", ["gsm8k_test", "gsm8k_train"])
def test_the_worked_solutions_of_gsm8k_verify(data_folder, name) -> None:
    verify = Math()
    for row in rows(data_folder / f"{name}.jsonl"):
        gold = row["answer"].partition("####")[2].strip()
        assert verify(row["answer"], gold, {"problem": row["question"]}).status is Status.CORRECT, row
        assert verify(f"\\boxed{{{gold}}}", gold, {}).status is Status.CORRECT, row


def golds(data_folder: Path, name: str) -> list[dict]:
    path = data_folder / "golds" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no golds at {path}")
    return rows(path)


def test_every_gold_of_olympiadbench_verifies_as_the_task_reads_it(data_folder) -> None:
    from grpo.data.references import reference_of
    from grpo.evaluation.problems import load_task

    task = load_task("olympiadbench")
    verify = Math(**task.verifier.options)
    for row in golds(data_folder, "olympiadbench"):
        gold = reference_of(task.data, row, "task.data")
        for answer in (gold, ", ".join(row["final_answer"])):
            assert verify(f"\\boxed{{{answer}}}", gold, {}).status is Status.CORRECT, row


@pytest.mark.parametrize(
    "form",
    ["The answer is {} {}.", "\\boxed{{{} {}}}", "\\boxed{{{} \\text{{ {}}}}}", "<answer>{} {}</answer>", "#### {} {}",
     "{} {}", "So in the end there are {} {}.", "The answer is {} {} in total."],
)  # fmt: skip
def test_the_units_and_nouns_of_asdiv(data_folder, form) -> None:
    listed = golds(data_folder, "asdiv_units")
    for verify in (Math(), Numeric()):
        for gold in ("{number}", "{number} ({unit})"):
            refused = [
                row
                for row in listed
                if verify(form.format(row["number"], row["unit"]), gold.format(**row), {}).status is not Status.CORRECT
            ]
            assert len(refused) <= 0.005 * len(listed), refused
