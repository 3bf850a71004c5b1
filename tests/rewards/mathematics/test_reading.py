"""The parts of the reading: tokens, digits that repeat, the precision of a written value, copies of the problem."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.mathematics.comparing.rational import Budget, exact
from rewards.mathematics.nodes import Apply, RatioNode, Text
from rewards.mathematics.reading.parse_answer import parse
from rewards.mathematics.reading.restated import is_restated
from rewards.mathematics.reading.tokens import tokenise
from rewards.mathematics.reading.written import half_step


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("NO:BO", ["N", "O", ":", "B", "O"]),
        ("NO = 3", ["N", "O", "=", "3"]),
        ("3 = NO", ["3", "=", "N", "O"]),
        ("NO", ["NO"]),
        ("no: 3", ["no", ":", "3"]),
    ],
)
def test_capitals_beside_a_sign_of_mathematics_name_points(text: str, texts: list[str]) -> None:
    assert [token.text for token in tokenise(text)][:-1] == texts


@given(st.integers(0, 99), st.text("0123456789", max_size=3), st.text("0123456789", min_size=1, max_size=3))
def test_digits_that_repeat_have_the_value_of_their_series(whole: int, fixed: str, period: str) -> None:
    node = parse(f"{whole}.{fixed}{period * 4}\\ldots")
    scale = 10 ** len(fixed)
    series = Fraction(int(period), scale * (10 ** len(period) - 1))
    assert exact(node, {}, Budget()) == whole + Fraction(int(fixed or 0), scale) + series


@pytest.mark.parametrize(
    ("text", "half"),
    [
        ("3.14", Fraction(1, 200)),
        ("-0.5", Fraction(1, 20)),
        ("8.7 \\times 10^8", Fraction(10**8, 20)),
        ("8.7 \\times 10^{-2}", Fraction(1, 2000)),
        ("9 \\times 10^3", 500),
        ("41.8^\\circ", Fraction(1, 20)),
        ("41.8\\%", Fraction(1, 20)),
        ("3", None),
        ("\\frac{1}{2}", None),
        ("10^6", None),
        ("3.5 x", None),
        ("2 \\times 3^2", None),
        ("2 \\times 10^{1/2}", None),
        ("x", None),
        ("3.5 + 1", None),
    ],
)
def test_the_precision_of_a_written_value_is_half_its_last_digit(text: str, half: Fraction | None) -> None:
    step = half_step(parse(text))
    if isinstance(step, Apply) and step.op in ("percent", "degree"):
        step = step.args[0]
    assert (None if step is None else exact(step, {}, Budget())) == half


@pytest.mark.parametrize("text", ["blue )", "the line is (", "red ^"])
def test_words_that_are_no_mathematics_are_text(text: str) -> None:
    assert isinstance(parse(text), Text)


@pytest.mark.parametrize(
    ("problem", "answer", "copied"),
    [
        ("What is 1+1?", "1+1", True),
        ("What is 3!?", "3!", False),
        ("What is 12!?", "12!", True),
        ("What is (2+3)(4+5)?", "(2+3)(4+5)", True),
        ("What is 2+3?", "((2+3))", True),
        ("What is 20?", "20", False),
        (None, "1+1", False),
    ],
)
def test_the_shortest_copy_has_three_characters(problem: str | None, answer: str, copied: bool) -> None:
    assert is_restated(answer, "2", problem) == copied


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1666", Fraction(1, 6)),
        ("0.100100", Fraction(100, 999)),
        ("0.233233", Fraction(233, 999)),
        ("0.5000", Fraction(1, 2)),
        ("0.33", Fraction(1, 3)),
        ("0.1231", Fraction(1231, 10000)),
    ],
)
def test_the_period_is_what_repeats_over_most_digits(text: str, value: Fraction) -> None:
    assert exact(parse(text + "\\ldots"), {}, Budget()) == value


@pytest.mark.parametrize(
    ("text", "values", "clock"),
    [
        ("7:30 p.m.", [7, 30], 19 * 3600 + 30 * 60),
        ("7:30:15 am", [7, 30, 15], 7 * 3600 + 30 * 60 + 15),
        ("12:30 a.m.", [12, 30], 30 * 60),
        ("7:05", [], 7 * 3600 + 5 * 60),
        ("24:10", [24, 10], None),
    ],
)
def test_a_time_of_day_is_a_ratio_with_its_seconds(text: str, values: list[int], clock: int | None) -> None:
    node = parse(text)
    assert isinstance(node, RatioNode) and node.clock == clock
    assert [exact(item, {}, Budget()) for item in node.items] == values
