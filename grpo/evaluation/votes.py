"""Which completions of a problem give the same answer, as the task's own verifier sees it."""

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

# (completion, reference, the row's other columns).
Call = tuple[str, Any, Mapping[str, Any]]
# A future for each call's verdict.
Judge = Callable[[Sequence[Call]], Sequence[Future[Verdict]]]


def vote(
    records: Sequence[Record], answers: Answers, judge: Judge, wait_s: float
) -> tuple[list[str | None], list[int | None], int]:
    """Class the completions of one problem and seed by what they answer.

    All that are correct are one class: each was verified against the same reference. Of the others, two are of the same
    class where the verifier calls the one correct with the other's answer as reference. Completions without an answer,
    and those whose verdict failed, do not vote.

    Args:
        records: completions of one problem and seed, in order.
        answers: how they state an answer.
        judge: starts verdicts.
        wait_s: longest wait for one of them.

    Returns:
        Each completion's answer; each completion's class; how many pairs the verifier could not decide, which count as
        different.
    """
    found = [answers.find(record.completion) for record in records]
    wrong: dict[str, str] = {}
    for record, answer in zip(records, found, strict=True):
        if answer is not None and not record.correct and not record.status.failed:
            wrong.setdefault(answer, record.completion)
    texts = list(wrong)
    undecided, same = 0, set[tuple[str, str]]()
    if answers.by_verifier:
        pairs = [(one, other) for at, one in enumerate(texts) for other in texts[at + 1 :]]
        futures = judge([(wrong[other], one, {}) for one, other in pairs])
        for pair, future in zip(pairs, futures, strict=True):
            verdict = future.result(wait_s)
            undecided += verdict.status.failed
            if verdict.status is Status.CORRECT:
                same.add(pair)
    numbers = dict(zip(texts, equivalence_classes(texts, lambda one, other: (one, other) in same), strict=True))
    # Class 0 is the right answer's.
    classes = [
        0 if record.correct else numbers[answer] + 1 if answer in numbers and not record.status.failed else None
        for record, answer in zip(records, found, strict=True)
    ]
    return found, classes, undecided


@dataclass(frozen=True, slots=True)
class Answers:
    """How a task's completions vote.

    Attributes:
        find: the answer in a completion; None where there is none.
        by_verifier: whether two texts are the same answer is the verifier's to say; otherwise the texts are compared.
    """

    find: Callable[[str], str | None]
    by_verifier: bool


def answers_of(task: TaskConfig) -> Answers | None:
    """How the task's completions vote; None where they cannot: programs, and verifiers of a user's own."""
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
