"""Functions written for other trainers, and functions whose parameters do not say what they are."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest

from rewards.adapt import Adapted
from rewards.calling import Batch
from rewards.verdict import Status, correct

ROW = {"answer": "4", "kind": "sum", "problem": "2+2?", "question": "2+2?"}
GROUP = Batch(("4", "5", "4"), "4", ROW, {"completion_tokens": [1, 2, 3]})


def trl_standard(completions, answer, **kwargs):
    return [1.0 if text == gold else 0.0 for text, gold in zip(completions, answer, strict=True)]


def trl_all(prompts, completions, **kwargs):
    """What TRL hands over, but for what only its trainer has."""
    assert prompts == ["2+2?"] * 3 and kwargs["kind"] == ["sum"] * 3 and kwargs["completion_tokens"] == [1, 2, 3]
    return [float(text == gold) for text, gold in zip(completions, kwargs["answer"], strict=True)]


def trl_by_task(prompts, completions, kind, trainer_state=None, log_extra=None, **kwargs):
    return [None if each == "sum" else 1.0 for each in kind]


def trl_conversational(completions, solution, **kwargs):
    contents = [completion[0]["content"] for completion in completions]
    return [float(text == gold) for text, gold in zip(contents, solution, strict=True)]


async def trl_async(completions, answer, **kwargs):
    return trl_standard(completions, answer)


def verl(data_source, solution_str, ground_truth, extra_info=None):
    assert extra_info["kind"] == "sum"
    return 1.0 if solution_str == ground_truth else 0.0


def verl_dict(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    right = solution_str == ground_truth
    return {"score": 1.0 if right else -1.0, "acc": right, "pred": solution_str, "length": 7}


def verl_one_set(solution_str, ground_truth, method="strict", format_score=0.0, score=1.0):
    return score if solution_str == ground_truth else format_score


def verl_batch(data_sources, solution_strs, ground_truths, extra_infos):
    return [verl("", *each) for each in zip(solution_strs, ground_truths, extra_infos, strict=True)]


def openrlhf(queries, prompts, labels, **kwargs):
    return [q[len(p) :] == label for q, p, label in zip(queries, prompts, labels, strict=True)]


def openrlhf_dict(queries, prompts, labels):
    import numpy as np

    rewards = np.array([float(r) for r in openrlhf(queries, prompts, labels)], dtype=np.float32)
    return {"rewards": rewards, "scores": rewards, "extra_logs": {}}


def own_group(completions, reference, prompt, best=1.0):
    assert prompt["completion_tokens"] == [1, 2, 3] and prompt["kind"] == "sum"
    return [correct(score=best) if text == reference else False for text in completions]


def by_info(completion, answer, info):
    return info["level"] == 2


def by_task(completion, answer, task=None):
    return task is None


@pytest.mark.parametrize(
    ("function", "row", "told"),
    [
        (by_info, {"info": {"level": 2}, "kind": "sum"}, None),
        (by_info, {"kind": "sum"}, "ValueError: by_info takes 'info', .* it has kind.* call the parameter prompt"),
        (by_task, {"kind": "sum"}, None),
    ],
)
def test_a_parameter_of_the_library_verifiers_gets_its_column(function, row: dict[str, Any], told: str | None) -> None:
    verdict = Adapted(function)("1", "1", row)
    assert verdict.status is Status.CORRECT if told is None else re.search(told, verdict.reason), verdict.reason


RIGHT = [Status.CORRECT, Status.WRONG, Status.CORRECT]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (trl_standard, RIGHT),
        (trl_all, RIGHT),
        (trl_async, RIGHT),
        (functools.partial(trl_by_task, kind=["product"] * 3), [Status.CORRECT] * 3),
        (trl_by_task, [Status.SCORED] * 3),
        (verl_batch, RIGHT),
        (openrlhf, RIGHT),
        (openrlhf_dict, RIGHT),
        (own_group, RIGHT),
        (functools.partial(own_group, best=0.5), RIGHT),
        (lambda completions, reference: [text == reference for text in completions], RIGHT),
        (lambda prompts, completions: [text == completions[0] for text in completions], RIGHT),
        (lambda completions, **row: [text == row["answer"][0] for text in completions], RIGHT),
    ],
)
def test_functions_of_groups_get_what_their_parameters_name(function: Callable[..., Any], expected) -> None:
    verifier = Adapted(function)
    assert verifier.judges_groups
    assert [(verdict.status, verdict.reason) for verdict in verifier.judge(GROUP)] == [
        (status, "the function returned None: it does not judge this row" if status is Status.SCORED else "")
        for status in expected
    ]


@pytest.mark.parametrize("function", [verl, verl_dict, verl_one_set])
def test_functions_of_verl(function) -> None:
    verifier = Adapted(function)
    assert verifier("4", "4", ROW).status is Status.CORRECT
    assert verifier("5", "4", ROW).status is Status.WRONG
    # The column that verl's own data sets have, given whole.
    assert verifier("4", {"style": "rule", "ground_truth": "4"}, ROW).status is Status.CORRECT
    assert Adapted(verl_dict)("5", "4", ROW).score == -1.0 and Adapted(verl_dict)("5", "4", ROW).parts["length"] == 7


def test_conversations_are_those_of_trl() -> None:
    texts = Batch(("4", "5"), "4", {"prompt": "2+2?"})
    assert [one.status for one in Adapted(trl_conversational, conversational=True).judge(texts)] == RIGHT[:2]
    assert Adapted(trl_conversational).judge(texts)[0].status is Status.ERROR
    talk = Batch(("4", "5"), "4", {"prompt": [{"role": "user", "content": "2+2?"}]})
    assert [one.status for one in Adapted(trl_conversational).judge(talk)] == RIGHT[:2]


def test_a_column_that_is_not_there_is_told() -> None:
    def function(completions, hardness, **kwargs):
        return [1.0] * len(completions)

    verdict = Adapted(function).judge(GROUP)[0]
    assert verdict.status is Status.ERROR and "no column 'hardness'" in verdict.reason and "kind" in verdict.reason


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda prompt, completion: 0, r"return <lambda>\(prompt\['problem'\], completion\)"),
        (lambda question, answer: 0, r"return <lambda>\(prompt\['question'\], reference\)"),
        (lambda reference, completion: 0, r"return <lambda>\(reference, completion\)"),
        (lambda completion, question: 0, "parameter 2 gets the reference answer, which is not what 'question' means"),
        (lambda completion, answer, state: 0, "parameter 3 gets the row's columns"),
        (lambda prompt, completion, answer, state: 0, "parameter 1"),
        (lambda data_source, response: 0, "parameter 1"),
        (lambda completions, gold: [], "'gold'"),
        (lambda completions, completion_ids, **kwargs: [], "completion_ids, which a verifier does not get"),
        (lambda queries, prompts, labels, tokenizer: [], "'tokenizer'"),
        (lambda solution_str, ground_truth, tokenizer: 0, "'tokenizer'"),
        (lambda completion, reference, *, threshold: 0, "options"),
        (lambda completion: 0, "must take"),
    ],
)
def test_parameters_that_would_get_the_wrong_values_are_refused(function, told) -> None:
    with pytest.raises(ValueError, match=told):
        Adapted(function)


def test_columns_reach_named_parameters_and_never_options() -> None:
    seen: dict[str, Any] = {}

    def columns(completion, reference, threshold=0.5, **row):
        seen.update(row=row, threshold=threshold)
        return True

    row = {"kind": "sum", "threshold": "a column", "reference": "a column"}
    assert Adapted(columns)("4", "4", row).status is Status.CORRECT
    assert seen == {"row": {"kind": "sum"}, "threshold": 0.5}
    Adapted(functools.partial(columns, threshold=2))("4", "4", row)
    assert seen == {"row": {"kind": "sum"}, "threshold": 2}

    def all_by_name(completion, **row):
        return completion == row["reference"]

    assert Adapted(all_by_name)("4", "4", {"kind": "sum"}).status is Status.CORRECT

    def option(completion, reference, threshold=0.5):
        return threshold

    assert Adapted(option)("4", "4", row).score == 0.5, "a third parameter with a value of its own is an option"

    def third(completion, reference, anything):
        return anything["kind"] == "sum"

    assert Adapted(third)("4", "4", row).status is Status.CORRECT


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ([1.0], "returned 1 verdicts for a group of 3"),
        (1.0, "expected a list of 3"),
        (None, "NoneType"),
        ("abc", "expected a list"),
    ],
)
def test_a_group_that_fails_is_an_error_for_each(returned, told) -> None:
    verdicts = Adapted(lambda completions, reference: returned).judge(GROUP)
    assert [one.status for one in verdicts] == [Status.ERROR] * 3 and told in verdicts[0].reason


def test_one_bad_value_in_a_group_is_that_ones_error() -> None:
    verdicts = Adapted(lambda completions, reference: [1.0, "x", float("nan")]).judge(GROUP)
    assert [one.status for one in verdicts] == [Status.CORRECT, Status.ERROR, Status.ERROR]
    assert Adapted(lambda completions, reference: [0.5])("a", "b", {}).status is Status.SCORED, "a group of one"
