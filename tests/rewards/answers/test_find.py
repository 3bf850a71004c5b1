from __future__ import annotations

import pytest

from rewards.answers.find import answer_tag, hash_mark, last_box, last_number
from rewards.answers.last_sentence import last_sentence
from rewards.answers.stated import stated
from rewards.answers.thinking import without_thinking


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{1}, \\boxed{2}", "1, 2"),
        ("\\boxed{1} and $\\boxed{2}$", "1, 2"),
        ("\\boxed{1}. No, \\boxed{2}", "2"),
        ("\\boxed{1} \\boxed{2}", "1, 2"),
        ("$\\boxed{1}$ or possibly $\\boxed{2}$", "1, 2"),
        ("either \\boxed{1} or else \\boxed{2}", "1, 2"),
        ("Option 1: \\boxed{1}. Option 2: \\boxed{2}.", "1, 2"),
        ("\\boxed{1} was wrong, or rather \\boxed{2}", "2"),
        ("\\boxed{1}. In case 2 holds: \\boxed{2}", "2"),
        ("\\boxed{1}\\boxed{}", ""),
        ("(a) \\boxed{1} (b) \\boxed{2}", "1, 2"),
        ("- \\boxed{1}\n- \\boxed{2}", "1, 2"),
        ("\\boxed{1}, but it may also be \\boxed{2}", "1, 2"),
        ("\\boxed{1}, or, where x is negative, \\boxed{2}", "1, 2"),
        ("It may be \\boxed{1}. Now we see that it is \\boxed{2}", "2"),
        ("x = \\boxed{1}, so the perimeter is \\boxed{2}", "2"),
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
        ("<answer>1</answer><answer>2</answer>", "1, 2"),
        ("<answer>1</answer> or <answer>2</answer>", "1, 2"),
        ("<answer>1</answer>\n<answer>1</answer>", "1"),
        ("<answer>1</answer> No, wait. <answer>2</answer>", "2"),
        ("<answer>1</answer><answer></answer>", ""),
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
    assert without_thinking("a</think>b") == "b"
    assert without_thinking("<think>a</think>b") == "b"
    assert without_thinking("plain") == "plain"
    assert without_thinking("<think>a") is None
    assert without_thinking("<think>a</think>b<think>c") is None


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
        ("The answer is 6\n#### 5", "5"),
        ("The answer is 5. Wait, no: the answer is 6.", "6"),
        ("The answer is 5. <answer>6</answer>", "6"),
        ("<answer>6</answer> So the answer is 5.", "5"),
        ("<answer>6</answer> This answer is correct.", "6"),
        ("The final answer is: <answer>6</answer>", "6"),
        ("<answer>The answer is $6$.</answer>", "6"),
        ("<answer>a<answer>5</answer>", "5"),
        ("The answer is 5. This answer is correct.", "5"),
        ("The answer is 5. This answer is wrong.", "wrong"),
        ("The answer is correct.", "correct"),
        ("The answer is:\n\n5\nthanks", "5"),
        ("The answer is:\n\n$$\n5\n$$", "5"),
        ("**Answer:**\n\\[\nx = 5\n\\]", "x = 5"),
        ("The answer is below:\n5", "5"),
        ("####\n5", "5"),
        ("The answers are 6 and 7.", "6 and 7"),
        ("The answer is 10, as desired.", "10"),
        ("The answer is $x = 10$, which is positive.", "x = 10"),
        ("The answer is \\(10\\) and we are done.", "10"),
        ("The answer is 10 (see the table).", "10"),
        ("The answer is 10 since 5+5=10.", "10"),
        ("The answer is (1, 2), as desired.", "(1, 2)"),
        ("The answer is 10 (or maybe more).", "10 (or maybe more)"),
        ("The answer is 10, not twelve.", "10, not twelve"),
        ("The answer is 10, if x is even.", "10, if x is even"),
        ("The answer is 10 and negative ten.", "10 and negative ten"),
        ("The answer is 8 (eight).", "8 (eight)"),
        ("The answer is $5 and got $3", "$5 and got $3"),
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
        ("It is either 3 or 5.", "3, 5"),
        ("It could be 3, 4 or 5.", "3, 4, 5"),
        ("Maybe 5, maybe 6.", "5, 6"),
        ("x is 3 or x is 5", "3, 5"),
        ("So we get 1 2 3", "1, 2, 3"),
        ("$x=6$ or $x=7$", "x=6, x=7"),
        ("Either $6$ or 7.", "6, 7"),
        ("There are 5 apples or 6 apples.", "5, 6"),
        ("3? 5?", None),
        ("I would say 5, though 6 is also possible.", "5, 6"),
        ("It may be 5 but also 6.", "5, 6"),
        ("So it is 5 million.", "5 million"),
        ("It is at 7:30.", "7:30"),
        ("It is 2^5.", None),
        ("5 < x < 6", "5 < x < 6"),
        ("It is sqrt(5).", None),
        ("6 - 7", "6 - 7"),
        ("6+7", "6+7"),
        ("- 7", "7"),
        ("It is **7**", "7"),
        ("It is 5-7=-2", "-2"),
        ("There are 5 apples and 6 pears, 11 in all.", "11"),
        ("She has 5 apples, which leaves 6.", "6"),
        ("If 3 or more come, there are 6.", "6"),
        ("It is 3*4m = 12m.", "12"),
        ("He paid $5 and got $3 back.", "$3"),
        ("She spent $10 + $5 = $15", "$15"),
        ("", None),
    ],
)
def test_last_sentence(text, found) -> None:
    assert last_sentence(text) == found
