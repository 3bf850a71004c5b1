"""Group the completions of a problem by their answer. The task's verifier decides which answers are the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from grpo.config.evaluation import TaskConfig
from grpo.evaluation.statistics import equivalence_classes
from grpo.evaluation.store import Record
from rewards.verdict import Status, Verdict
from rewards.verifiers.choice import Choice
from rewards.verifiers.exact import Exact
from rewards.verifiers.math import Math
from rewards.verifiers.numeric import Numeric

# (completion, reference, other columns of the row).
Call = tuple[str, Any, Mapping[str, Any]]
# Returns a future verdict for each call.
Judge = Callable[[Sequence[Call]], Sequence[Future[Verdict]]]


def vote(
    records: Sequence[Record], answers: Answers, judge: Judge, wait_s: float
) -> tuple[list[str | None], list[int | None], int]:
    """Put the completions of a problem and seed into classes by their answer.

    All correct completions form a class, because each was verified against the same reference. Two wrong completions
    are in the same class if the verifier accepts the first with the answer of the second as reference. A completion
    without an answer, or with a failed verdict, does not vote.

    Args:
        records: completions of a problem and seed, in order.
        answers: rules that find and compare the answers.
        judge: function that starts the verdicts.
        wait_s: longest wait for a verdict, in seconds.

    Returns:
        Each completion's answer; each completion's class; the number of pairs that the verifier could not decide.
        Undecided pairs count as different.
    """
    answer_texts = [answers.find(record.completion) for record in records]
    wrong: dict[str, str] = {}
    for record, answer in zip(records, answer_texts, strict=True):
        if answer is not None and not record.correct and not record.status.failed:
            wrong.setdefault(answer, record.completion)
    texts = list(wrong)
    undecided, same = 0, set[tuple[str, str]]()
    if answers.by_verifier:
        pairs = [(text, other) for at, text in enumerate(texts) for other in texts[at + 1 :]]
        futures = judge([(wrong[other], text, {}) for text, other in pairs])
        for pair, future in zip(pairs, futures, strict=True):
            verdict = future.result(wait_s)
            undecided += verdict.status.failed
            if verdict.status is Status.CORRECT:
                same.add(pair)
    numbers = dict(zip(texts, equivalence_classes(texts, lambda text, other: (text, other) in same), strict=True))
    # Class 0 is the class of the correct answer.
    classes = [
        0 if record.correct else numbers[answer] + 1 if answer in numbers and not record.status.failed else None
        for record, answer in zip(records, answer_texts, strict=True)
    ]
    return answer_texts, classes, undecided


@dataclass(frozen=True, slots=True)
class Answers:
    """How a task's completions vote.

    Attributes:
        find: function that finds the answer in a completion; it returns None if there is no answer.
        by_verifier: whether the verifier decides if two answers are the same. Otherwise their texts are compared.
    """

    find: Callable[[str], str | None]
    by_verifier: bool


def answers_of(task: TaskConfig) -> Answers | None:
    """Return how the task's completions vote; None if its verifier runs programs or is user-defined."""
    use, options = task.verifier.use, dict(task.verifier.options)
    options.pop("bounds", None)
    if use == "math":
        return Answers(Math(**options).find_answer, by_verifier=True)
    if use == "exact":
        return Answers(Exact(**options).find_answer, by_verifier=True)
    if use == "choice":
        return Answers(Choice(**options).find_answer, by_verifier=False)
    if use == "numeric":
        numeric = Numeric(**options)
        return Answers(lambda text: _number(text, numeric), by_verifier=False)
    return None


def _number(text: str, numeric: Numeric) -> str | None:
    value = numeric.find_answer(text)
    return None if value is None else str(value)
