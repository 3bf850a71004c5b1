from __future__ import annotations

import pytest

from rewards.find import after_thinking, answer_tag, hash_mark, last_box, last_number
from rewards.stated import last_sentence, stated


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{1}, \\boxed{2}", "1, 2"),
        ("\\boxed{1} and $\\boxed{2}$", "1, 2"),
        ("\\boxed{1}. No, \\boxed{2}", "2"),
        ("\\boxed{\\frac{1}{\\sqrt{2}}}", "\\frac{1}{\\sqrt{2}}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{1} \\boxed{2", "1"),
        ("\\boxed 5", "5"),
        ("\\boxed{}", ""),
        ("\\fbox{7}", "7"),
        ("no box", None),
        ("\\boxed{", None),
    ],
)
def test_last_box(text, found) -> None:
    assert last_box(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<answer> 5 </answer>", "5"),
        ("<answer>1</answer><answer>2</answer>", "2"),
        ("<ANSWER>5</Answer>", "5"),
        ("<answer>a<answer>b</answer>", "b"),
        ("<answer>1</answer> <answer>2", "1"),
        ("\u0130\u0130\u0130<answer>5</answer>", "5"),
        ("</answer>5<answer>", None),
        ("5", None),
    ],
)
def test_answer_tag(text, found) -> None:
    assert answer_tag(text) == found


def test_thinking_that_never_ended_has_no_answer() -> None:
    assert after_thinking("a</think>b") == "b"
    assert after_thinking("<think>a</think>b") == "b"
    assert after_thinking("plain") == "plain"
    assert after_thinking("<think>a") is None
    assert after_thinking("<think>a</think>b<think>c") is None


def test_hash_and_last_number() -> None:
    assert hash_mark("#### 5\n#### 1,200 \nmore") == "1,200"
    assert hash_mark("a #### 5") is None
    assert last_number("from 3 to -1,234.5 apples") == "-1,234.5"
    assert last_number("1/2") == "1/2"
    assert last_number("none") is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The answer is 5. It was easy.", "5"),
        ("**Final Answer:** $\\frac12$ dollars", "\\frac12"),
        ("The answer is $5$ or $6$.", "$5$ or $6$"),
        ("The answer is 3.14.", "3.14"),
        ("answer: x = 5\nthanks", "x = 5"),
        ("#### 5\nThe answer is 6", "6"),
        ("nothing said", None),
    ],
)
def test_stated(text, found) -> None:
    assert stated(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("First 3.\nSo she earns $18.50 in all.", "$18.50"),
        ("Hence $x = 7$.", "7"),
        ("I could not find 5.", None),
        ("Words only.", None),
        ("", None),
    ],
)
def test_last_sentence(text, found) -> None:
    assert last_sentence(text) == found
