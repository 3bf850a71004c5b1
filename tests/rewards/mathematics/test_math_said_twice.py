"""Answers that say one thing twice, lists of words, and what an absolute value or an unclosed box means."""

from __future__ import annotations

import pytest

from rewards.mathematics.reading.spelled import number_of
from rewards.verdict import Status
from rewards.verifiers.math import Math

VERIFY = Math()


def accepted(gold: str, answer: str, verify: Math = VERIFY) -> bool:
    return verify(f"\\boxed{{{answer}}}", gold, {}).status is Status.CORRECT


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        # Who writes an absolute value means negative values too; who writes none may not.
        ("\\sqrt{x}", "\\sqrt{|x|}", False),
        ("\\sqrt{|x|}", "\\sqrt{x}", False),
        ("\\ln|y|+1", "\\ln y+1", False),
        ("2\\ln|x|", "\\ln x^2", True),
        ("\\ln(ab)", "\\ln a+\\ln b", True),
        ("|a-b|", "|b-a|", True),
        # A bare list of words has no order, and its words still count.
        ("\\text{red, blue}", "\\text{blue, red}", True),
        ("\\text{red, blue and green}", "green, red, blue", True),
        ("\\text{red, blue}", "\\text{blue}", False),
        ("\\text{cat, cat, dog}", "\\text{cat, dog, dog}", False),
        ("\\text{red or blue}", "\\text{blue, red}", False),
        # A quantity and what it is in another unit.
        ("60", "60 \\text{ seconds} = 1 \\text{ minute}", True),
        ("1", "60 seconds = 1 minute", True),
        ("60 \\text{ s}", "60 seconds = 1 minute", True),
        ("60", "60 \\text{ seconds} = 2 \\text{ minutes}", False),
        ("60", "1 \\text{ hour} = 60 \\text{ seconds}", False),
        ("30", "60 \\text{ seconds} = 1 \\text{ minute}", False),
        ("3", "3 = 2 + 2", False),
        # A short answer that repeats the question's verb.
        ("\\text{yes}", "\\text{yes, it is}", True),
        ("\\text{No}", "no, they do not.", True),
        ("\\text{no}", "\\text{no, it isn't}", True),
        ("\\text{yes}", "\\text{yes, it is not}", False),
        ("\\text{no}", "\\text{no, it is}", False),
        ("\\text{yes}", "\\text{no, it is not}", False),
        ("\\text{yes}", "\\text{yes, it is, or no}", False),
        # A numeral with its name.
        ("8", "8 \\text{ (eight)}", True),
        ("125", "125 (one hundred and twenty-five)", True),
        ("8", "8 \\text{ (nine)}", False),
        ("9", "8 \\text{ (nine)}", False),
        ("8", "8 \\text{ (eight or nine)}", False),
    ],
)
def test_what_counts_as_the_same(gold: str, answer: str, equal: bool) -> None:
    assert accepted(gold, answer) == equal


def test_where_order_is_asked_for_words_have_one() -> None:
    assert not accepted("\\text{red, blue}", "\\text{blue, red}", Math(ordered=True))
    assert accepted("\\text{red, blue}", "\\text{Red, blue}", Math(ordered=True))


@pytest.mark.parametrize("completion", ["\\boxed{5", "So it is 5. \\boxed{5", "5 \\boxed{\\frac{1}{2} is 5"])
def test_an_unclosed_box_is_no_answer_whatever_else_is_said(completion: str) -> None:
    assert VERIFY(completion, "5", {}).status is Status.UNPARSEABLE


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("zero", 0),
        ("Forty-two", 42),
        ("two thousand and six", 2006),
        ("three million five hundred thousand", 3_500_000),
        ("one hundred hundred", None),
        ("and two", None),
        ("two apples", None),
        ("", None),
    ],
)
def test_numbers_in_words(words: str, value: int | None) -> None:
    assert number_of(words) == value
