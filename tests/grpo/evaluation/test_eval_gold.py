"""Whole evaluations on real data: what is right scores 1, what is not scores 0."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_sampler import FakeSampler, evaluate

from grpo.evaluation.problems import Problem, load_problems, load_task
from grpo.evaluation.questions import Question

FILES = {"gsm8k": "gsm8k_test", "math500": "math500", "aime24": "aime24", "amc23": "amc23", "humaneval": "humaneval"}


def accuracy_of(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    data_folder: Path,
    name: str,
    said: Callable[[list[Problem]], list[str]],
) -> float:
    """Accuracy where each problem is answered by what `said` makes of all of them."""
    task = load_task(name, [f"data.path={data_folder / FILES[name]}.jsonl"])
    problems = load_problems(task)
    texts = dict(zip([problem.question for problem in problems], said(problems), strict=True))

    def answer(question: Question) -> str:
        return texts[question.text]

    found = evaluate(monkeypatch, FakeSampler(answer), folder, [task], k=1, temperature=0.0)[name]
    assert found.problems == len(problems) and found.statuses["error"] == found.statuses["timeout"] == 0
    return found.estimates["accuracy"].value


def boxed(problem: Problem) -> str:
    return f"So it is $\\boxed{{{problem.reference}}}$."


@pytest.mark.parametrize("name", ["gsm8k", "math500", "aime24", "amc23"])
def test_right_answers_score_1_and_shuffled_ones_about_0(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def shuffled(problems: list[Problem]) -> list[str]:
        # Another problem's answer, and never one that reads the same.
        generator = random.Random(0)
        return [
            boxed(generator.choice([one for one in problems if str(one.reference) != str(problem.reference)]))
            for problem in problems
        ]

    right = accuracy_of(monkeypatch, tmp_path / "right", data_folder, name, lambda all_: [boxed(one) for one in all_])
    assert right == 1.0
    assert accuracy_of(monkeypatch, tmp_path / "shuffled", data_folder, name, shuffled) <= 0.01


@pytest.mark.slow
def test_the_canonical_solutions_of_humaneval_score_164_of_164_and_empty_bodies_none(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def block(body: Callable[[Problem], str]) -> Callable[[list[Problem]], list[str]]:
        return lambda problems: [f"```python\n{one.row['prompt']}{body(one)}\n```" for one in problems]

    canonical = block(lambda problem: problem.row["canonical_solution"])
    assert accuracy_of(monkeypatch, tmp_path / "canonical", data_folder, "humaneval", canonical) == 1.0
    empty = block(lambda problem: "    pass\n")
    assert accuracy_of(monkeypatch, tmp_path / "empty", data_folder, "humaneval", empty) == 0.0
