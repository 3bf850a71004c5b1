"""What stands around a value: prose, units and nouns, corrections, several formulas, reasoning tags, ends of turns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from rewards.answers.find import hash_mark, last_box, last_number
from rewards.answers.thinking import final_text
from rewards.mathematics.reading.spelled import number_of
from rewards.verdict import Status
from rewards.verifiers.choice import Choice
from rewards.verifiers.exact import Exact
from rewards.verifiers.format import Format
from rewards.verifiers.math import Math
from rewards.verifiers.numeric import Numeric, rational
from rewards.verifiers.ordered_list import OrderedList

MATH, NUMERIC = Math(), Numeric()


def accepted(gold: object, completion: str, verify: Callable[..., object] = MATH, **prompt: object) -> bool:
    verdict = verify(completion, gold, prompt)
    assert not verdict.status.failed, verdict  # type: ignore[attr-defined]
    return verdict.status is Status.CORRECT  # type: ignore[attr-defined]


def table(text: str) -> list[str]:
    """The lines of a table; the sign for the return key stands for a line's end in a completion."""
    return [line.replace("\u23ce", "\n") for line in text.strip("\n").splitlines()]


# Each line: the golds that the completion is right for, those that it is not right for, and the completion.
PROSE = r"""
34 ;; n ;; Final Answer: The largest $n$ is 34.
120 ;; ABCDEFGH ;; Final Answer: The volume of $ABCDEFGH$ is 120. I hope it is correct.
5 ;; x ;; The answer: the value of $x$ is 5
12 ;; 3 ;; Since $n=3$, the total is 12.
14 ;; (x,y) ;; Therefore, there are 14 such pairs $(x, y)$.
7 ;; ABC ;; Hence the polygon $ABC$ has 7 sides.
x \leq 2 ;; 2 ;; Thus $x <= 2$ is our answer.
x \neq 5 ;; 5 ;; The solution is $x != 5$.
;; 5 ;; So $x \ge 5$
(1,2) ;; 1 ;; The answer is $(1, 2)$, where $x = 1$.
5 ;; 3 ;; The answer is 5 apples because 2 and 3 are 5.
5, x=5 ;; 6 ;; Therefore\n\[\nx = 5\n\]
25 ;; 7 ;; Then $m+n = 25$.
5 ;; 6 ;; **Final Answer**\n\n$5$\n\nI hope it is correct.
9 ;; 8 ;; Answer \[ 9 \]
9 ;; 8 ;; Answer \[ \n 9 \n \]
42 ;; 24 ;; '42'
42 ;; 24 ;; The answer is "42".
5 ;; 3 ;; 3+2
(2,3) ;; 3 ;; (2, 3)
12 ;; 13 ;; Respuesta: 12
6 ;; 5 ;; The answer is 5. Wait, no, it is 6.
6 ;; 5 ;; The answer is 5. That is wrong. It is 6.
no ;; yes ;; The answer is yes. No, it is no.
6 ;; 5 ;; The answer is 5. Actually, it's 6.
6 ;; 5 ;; The answer is 5. Sorry, I made a mistake. It should be 6.
6 ;; 5 ;; The answer is 5. I meant 6.
6 ;; 5 ;; #### 5\nWait, that is wrong. So the total is 2 + 4 = 6.
6 ;; 5 ;; It is 5. No, it is 6.
;; 5 ;; The answer is 5. Hmm, that is not right.
;; 5 ;; The answer is 5. I was wrong.
;; 5, 6 ;; The answer is 5. It could also be 6.
;; 5, 6 ;; The answer is 5. Or maybe 6.
;; 5, 6 ;; The answer is 5. Hmm, maybe 6.
;; 5, 6 ;; The answer is 5. Could be 6.
;; 5, 6 ;; The answer is 5. If not, 6.
;; 5, 6 ;; The answer is 5. If that is wrong, it is 6.
;; 5, 6 ;; The answer is 5. Unless it is 6.
;; 5, 6 ;; It is 5. Hmm, maybe 6.
;; 5, 6 ;; It is 5. Or 6.
6 ;; 5 ;; The answer is 5. Wait, 6.
5 ;; 6 ;; The answer is 5. If x = 6, the sum is 7.
5 ;; 6 ;; The answer is 5. No other values work.
5 ;; 6 ;; The answer is 5. Let me double check: 2+3 = 5. Yes.
5 ;; 6 ;; The answer is 5. This is not a mistake, as the sum shows.
;; 5 ;; The answer isn't 5.
-5 ;; 5 ;; The result is negative 5.
-5 ;; 5 ;; Answer: minus 5
;; 5 ;; The result is sqrt 5.
;; 5 ;; It is less than 5.
;; 5 ;; It is 6 times 5.
;; 5 ;; It is twice 5.
1/5 ;; 5 ;; The probability is 1 in 5.
1:5 ;; 5 ;; The ratio is 1 to 5.
2\pi ;; 2 ;; The area is 2π.
1/2 ;; 2 ;; So it is \frac{1}{2}.
2\sqrt{3} ;; 2, 3 ;; So it is 2√3.
;; 2 ;; The code is AZYUK2A.
;; 5 ;; It is 5x.
;; 7 ;; She has 7 dozen eggs.
-10 ;; 10 ;; The temperature is -10 degrees.
20 ;; 4 ;; L = 4*5 = 20 m
"""


def lines(table: str) -> list[tuple[list[str], list[str], str]]:
    rows = []
    for line in table.strip().splitlines():
        right, wrong, completion = (part.strip() for part in line.split(";;"))
        golds = [[gold for gold in part.split(", ") if gold] for part in (right, wrong)]
        rows.append((golds[0], golds[1], completion.replace("\\n", "\n")))
    return rows


@pytest.mark.parametrize(("right", "wrong", "completion"), lines(PROSE))
def test_prose_around_a_value(right, wrong, completion) -> None:
    assert {gold: accepted(gold, completion) for gold in right + wrong} == dict.fromkeys(right, True) | dict.fromkeys(
        wrong, False
    )


FORMS = {
    "stated": "So we add. The answer is {}.",
    "box": "So $\\boxed{{{}}}$.",
    "tag": "<answer>{}</answer>",
    "hash": "We add.\n#### {}",
    "bare": "{}",
}
COUNTED = table(r"""
18 miles per hour
18 pieces of candy
18 years old
18 apples in total
$18 each
\$18/day
18 comic books
18 men
18 CDs
18 t-shirts
18 sq. inches
18 push-ups
18 third graders
18 times
18 (apples)
\$18 \text{ per day}
18 kg of flour
18
""")
CHANGED = table(r"""
18 lakh
18 crore
18 gross
18 dozen
18 scores
18 million
18 percent off
18 pi
18 doubled
18 squared
18 minus two
18 or so
18 more than that
18 times ten
18 less
18 hundred
18 thirds
18 maybe
18 if even
18 not
18 twelfths
18 threes
18 hexadecimal
18 permille
18 fold
18 too low
18 x
""")


@pytest.mark.parametrize("form", FORMS)
def test_a_unit_or_a_noun_behind_a_number_changes_nothing_and_other_words_do(form) -> None:
    for verify in (MATH, NUMERIC):
        if verify is MATH or form != "stated":
            assert [each for each in COUNTED if not accepted("18", FORMS[form].format(each), verify)] == []
        # What numeric finds by the last number is not read as a statement.
        if verify is MATH or form not in ("stated", "bare"):
            assert [each for each in CHANGED if accepted("18", FORMS[form].format(each), verify)] == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18^\\circ", 18), ("x=18", 18), ("18\\,000", 18000), ("(18)", 18), ("'18'", 18), ("2\\frac12", None),
        ("2\\frac{1}{2}", 2.5), ("5% of the class", 5), ("5% of 40", None), ("20% of 25 oranges is 5", None),
        ("18cm", 18), ("18 m^2", 18), ("- 5", -5), ("5x", None), ("12/", None), ("18 children's books", 18),
    ],
)  # fmt: skip
def test_rational(text, value) -> None:
    assert rational(text) == value


@pytest.mark.parametrize(
    ("words", "number"),
    [("twenty-five", 25), ("one hundred and five", 105), ("two hundred twelve thousand ten", 212010), ("fifty", 50),
     ("five ten", None), ("one two", None), ("fifty twenty", None), ("ten five", None), ("hundred", None)],
)  # fmt: skip
def test_numbers_in_words(words, number) -> None:
    assert number_of(words) == number


def test_the_last_number_with_what_changes_it() -> None:
    assert last_number("it is negative 5") == "-5"
    assert not accepted("5", "it makes 5 million", NUMERIC)
    assert not accepted("5", "It is not 5.", NUMERIC)


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        ("$69$,$840$", "840, 69", "69840"),
        ("$x=0$ or $x=2$", "0, 2", "2"),
        ("$21,16$ or $11$", "11, 16, 21", "11, 21"),
        ("$1$ and $2$ and $3$", "1,2,3", "1,2"),
        ("$x=1$ and $y=2$", "x=1, y=2", "x=2, y=1"),
        ("$125$ miles", "125", "126"),
        ("\\$40", "$\\$40$", "$\\$4$"),
        ("5, 6", "\\$5 and \\$6", "\\$5"),
        ("9 (apples)", "9", "8"),
        ("The difference is $8-4=\\boxed{4}$.", "4", "8"),
        ("16 - 9 = <<16-9=7>>7 eggs\n#### 7", "7", "9"),
    ],
)
def test_golds_as_data_sets_write_them(gold, right, wrong) -> None:
    assert accepted(gold, f"\\boxed{{{right}}}")
    assert not accepted(gold, f"\\boxed{{{wrong}}}")


def test_worked_solutions_and_brackets_as_golds_of_the_other_verifiers() -> None:
    solution = "20% of 25 oranges is 5 oranges.\n#### 17"
    assert accepted(solution, "#### 17", NUMERIC) and not accepted(solution, "#### 20", NUMERIC)
    assert accepted("9 (apples)", "#### 9", NUMERIC)
    assert accepted(solution, "<answer>17</answer>", Exact())
    assert accepted("As B is too small, $\\boxed{\\text{C}}$.", "(C)", Choice())


def test_each_verifier_says_what_is_wrong_with_a_reference() -> None:
    assert NUMERIC.reference_problem("18 (apples)", {}) == "" and "math" in NUMERIC.reference_problem("x+1", {})
    assert Exact().reference_problem("x", {}) == "" and "empty" in Exact().reference_problem(["x", ""], {})
    assert Choice().reference_problem("B", {}) == ""
    assert "options" in Choice().reference_problem("heads", {"choices": ["tails", "edge"]})
    assert OrderedList().reference_problem("a, b", {}) == "" and OrderedList().reference_problem([], {}) != ""
    assert OrderedList().reference_problem(5, {}) != ""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("$x = \\boxed{2}$ and $x = \\boxed{3}$.", "2, 3"),
        ("$y_1 = \\boxed{2}$ and $y_2 = \\boxed{3}$", "2, 3"),
        ("$x = \\boxed{2}$, $y = \\boxed{3}$", "x = 2, y = 3"),
        ("$$\\boxed{(3, 3)} \\text{ for part (a) and } \\boxed{(1, 1)}$$", "(3, 3), (1, 1)"),
        ("The first root is \\boxed{2}, and the second root is \\boxed{3}.", "2, 3"),
        ("$2x = \\boxed{6}$, $x = \\boxed{3}$", "3"),
        ("$x = \\boxed{2}$, so $y = \\boxed{3}$", "3"),
    ],
)
def test_named_boxes(text, found) -> None:
    assert last_box(text) == found


def test_named_boxes_do_not_change_places() -> None:
    assert not accepted("x=2, y=3", "$x = \\boxed{3}$, $y = \\boxed{2}$")
    assert accepted("(2,3)", "$x = \\boxed{2}$ and $y = \\boxed{3}$")
    assert accepted("x=2, y=3", "\\boxed{2, 3}")
    assert not accepted("x=2, y=3", "\\boxed{x=2, x=3}")


CHOSEN = table(r"""
D
(D)
**D**
D.
d
(D) budding
Budding.
Option D is correct.
The correct option is D.
I choose D.
D - budding
The answer is D, because B is wrong.
The answer: D, it does not make sense for it to be A or B
A is wrong, D is correct
Let me think. B is wrong. Option D is correct.⏎Hope this helps!
The answer is B. Wait, no, D.
D⏎⏎Explanation: it buds.
Answer: $D$
\boxed{\text{D}}
It's D
Neither A nor B; it is D
The answer is D<|im_end|>
**Answer:** (D)
""")
UNCHOSEN = table(r"""
A or D
The answer is A or D.
A, D
A and D
Both A and D
D, or maybe B
D. Or B.
The answer is D. Hmm, maybe B.
The answer is D, but it could be B
Option D is wrong.
I think D is correct, but B is also correct.
It is not D.
A) osmosis⏎B) mitosis⏎C) 60⏎D) budding
either D or A
D?
cell
""")


def test_choice_reads_letters_and_sentences_that_choose() -> None:
    options = ["osmosis", "Both A and C", "60", "budding"]
    assert [each for each in CHOSEN if not accepted("D", each, Choice(), choices=options)] == []
    statuses = {each: Choice()(each, "D", {"choices": options}).status for each in UNCHOSEN}
    assert statuses == dict.fromkeys(UNCHOSEN, Status.UNPARSEABLE)
    assert accepted("B", "B. Both A and C", Choice(), choices=options)
    assert Choice()("E", "D", {"choices": options}).status is Status.UNPARSEABLE


RANKED = table(r"""
<answer>BRCA1, TP53, and EGFR</answer>
<answer>BRCA1, TP53 and EGFR</answer>
Answer:⏎1. BRCA1⏎2. TP53⏎3. EGFR
**Answer:**⏎⏎1. **BRCA1**⏎2. **TP53**⏎3. **EGFR**⏎⏎Thanks.
The answer is:⏎* BRCA1⏎* TP53⏎* EGFR
<answer>1. BRCA1 2. TP53 3. EGFR</answer>
Answer: 1. BRCA1 2. TP53 3. EGFR
The answer is BRCA1, TP53, and EGFR.
""")


@pytest.mark.parametrize("completion", RANKED)
def test_ordered_list_reads_and_and_numbered_lists(completion) -> None:
    assert accepted(["BRCA1", "TP53", "EGFR"], completion, OrderedList())
    assert not accepted(["TP53", "BRCA1", "EGFR"], completion, OrderedList())


def test_an_item_with_and_in_it_stays_whole() -> None:
    assert accepted(["salt and pepper", "oil"], "<answer>salt and pepper, oil</answer>", OrderedList())
    assert not accepted(["salt", "oil"], "<answer>salt and pepper, oil</answer>", OrderedList())


@pytest.mark.parametrize(
    "tags",
    ["<think> </think>", "<thinking> </thinking>", "<reasoning> </reasoning>", "[THINK] [/THINK]",
     "\u25c1think\u25b7 \u25c1/think\u25b7", "<|channel|>analysis<|message|> <|end|><|channel|>final<|message|>"],
)  # fmt: skip
def test_a_box_in_the_reasoning_does_not_count(tags) -> None:
    opening, closing = tags.split(" ")
    assert not accepted("5", f"{opening}\\boxed{{5}}{closing} Done.")
    assert not accepted("5", f"{opening}\\boxed{{5}}")
    assert accepted("6", f"{opening}\\boxed{{5}}{closing}\\boxed{{6}}")


def test_reasoning_tags_are_a_setting() -> None:
    text = "<plan>\\boxed{5}</plan>\\boxed{6}<<note>>\\boxed{7}<</note>>"
    for verify in (Math, Numeric, Exact):
        assert accepted("7", text, verify())
        assert accepted("5", "<think>\\boxed{5}</think>", verify(thinking=[]))
        assert accepted("6", "<plan>\\boxed{5}</plan>\\boxed{6}", verify(thinking=["plan"]))
        assert not accepted("5", "<plan>\\boxed{5}</plan>", verify(thinking=["think", "plan"]))
        assert not accepted("5", "{{\\boxed{5}}} no", verify(thinking=[["{{", "}}}"]]))
    for odd in ("think", ["think", ["a"]], ["<think>"], [[1, 2]], [""]):
        with pytest.raises(ValueError, match="thinking"):
            Math(thinking=odd)


@pytest.mark.parametrize(
    "token",
    ["<|im_end|>", "<|eot_id|>", "</s>", "<|endoftext|>", "<end_of_turn>", "<\uff5cend\u2581of\u2581sentence\uff5c>"],
)
def test_a_token_that_ends_the_turn_is_not_part_of_the_answer(token) -> None:
    assert final_text(f"42{token}") == "42"
    for completion in ("The answer is 42", "42", "So it is \\boxed{42}", "#### 42"):
        assert accepted("42", f"{completion}{token}") and accepted("42", f"{completion}{token}\n", NUMERIC)
    assert final_text("5 <s>6</s> 7") == "5 <s>6</s> 7"


def test_tags_of_format_are_names_in_a_list() -> None:
    for options in ({"tags": "think"}, {"opened": "think"}, {"tags": ["<think>"]}, {"tags": [""]}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Format(**options)  # type: ignore[arg-type]


SCRAPS = [
    "\\boxed{6}",
    "\\boxed{",
    "<answer>",
    "</answer>",
    "6",
    " ",
    "  ",
    "\n",
    "\t",
    "*",
    "-",
    "#### ",
    "answer",
    "answer is",
    "Answer:",
    "it is ",
    "no, ",
    "wait",
    "or",
    "and",
    "maybe ",
    ". ",
    ".",
    ", ",
    "(",
    ")",
    "(a)",
    "1) ",
    "1. ",
    "$",
    "$$",
    "\\(",
    "\\)",
    "\\[",
    "\\]",
    "\\text{",
    "\\text{ and }",
    "for part (a)",
    "x = ",
    "=",
    "<",
    "\\frac{1}{2}",
    "/",
    "1,111",
    "π",
    "^",
    "!",
    "%",
    "D",
    "A) ",
    "because ",
    "that is wrong ",
    "</think>",
    "[THINK]",
    "<|im_end|>",
    "</s>",
    "times ",
    "minus ",
    "not ",
    "half of ",
    "}",
    "apples ",
    "per ",
    "in total",
    "'",
    "1 in ",
    "to ",
]


def test_no_search_takes_long_on_repeated_units() -> None:
    """Texts of one unit repeated, as exponential and quadratic patterns need them; two seconds of them."""
    source = random.Random(5)
    verifiers = [(NUMERIC, "5"), (Exact(find=("boxed", "hash", "stated", "last_sentence")), "5"), (Choice(), "C")]
    verifiers += [(OrderedList(), "a, b")]
    begun, slowest = time.perf_counter(), (0.0, "")
    while time.perf_counter() - begun < 2.0:
        unit = "".join(source.choices(SCRAPS, k=source.randint(1, 4)))
        head, tail = (
            source.choice(("", "\\boxed{6}", "<answer>6</answer>", "The answer is 5. ")),
            source.choice(("", "x", "\\boxed{7}")),
        )
        text = head + unit * source.choice((30, 300, 50_000 // (len(unit) + 1))) + tail
        for verify, gold in verifiers:
            started = time.process_time()
            verify(text, gold, {})
            slowest = max(slowest, (time.process_time() - started, repr(unit)))
        started = time.process_time()
        MATH.find_answer(text)
        slowest = max(slowest, (time.process_time() - started, repr(unit)))
    assert slowest[0] < 1.0, slowest


def test_the_known_explosions() -> None:
    for between in ("\n* (a)" * 40, "**\n" * 40, " 1)." * 40, "#### " + " " * 90_000 + "x"):
        begun = time.process_time()
        for text in (f"\\boxed{{6}}{between} so \\boxed{{7}}", f"<answer>6</answer>{between}x<answer>7</answer>"):
            assert accepted("7", text)
        assert hash_mark("#### a" + " " * 90_000 + "x") is not None
        assert time.process_time() - begun < 1.0
