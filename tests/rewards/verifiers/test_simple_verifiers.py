from __future__ import annotations

import math
import sys
from fractions import Fraction
from types import SimpleNamespace

import pytest

from rewards.verdict import Status
from rewards.verifiers.choice import Choice
from rewards.verifiers.exact import Exact
from rewards.verifiers.format import Format
from rewards.verifiers.length import Length
from rewards.verifiers.numeric import Numeric, rational
from rewards.verifiers.ordered_list import OrderedList
from rewards.verifiers.repetition import Repetition

RIGHT, WRONG, NONE = Status.CORRECT, Status.WRONG, Status.UNPARSEABLE


@pytest.mark.parametrize(
    ("completion", "gold", "status"),
    [
        ("<answer>42</answer>", "42", RIGHT),
        ("<answer>42</answer> or 43", "43", WRONG),
        ("<think>\\boxed{1}</think>\\boxed{2}", "2", RIGHT),
        ("<think>\\boxed{2}", "2", NONE),
        ("so 3 + 4 = 7\n#### 7", "7", RIGHT),
        ("#### 1,234", "1234", RIGHT),
        ("#### $18.50", "18.5", RIGHT),
        ("it makes 18 dollars", 18.0, RIGHT),
        ("\\boxed{\\frac{1}{2}} 7", "0.5", RIGHT),
        ("\\boxed{x} 5", "5", NONE),
        ("<answer>5 or 6</answer>", "5", NONE),
        ("<answer>5 million</answer>", "5", NONE),
        ("<answer>2 1/2</answer>", "2.5", RIGHT),
        ("<answer>0.333</answer>", "1/3", WRONG),
        ("<answer>9007199254740993</answer>", "9007199254740992", WRONG),
        *(
            (f"<answer>5 {words}</answer>", "5", NONE)
            for words in (
                "plus six",
                "minus two",
                "point five",
                "to six",
                "squared",
                "not really",
                "maybe six",
                "hundredths",
                "times ten",
                "k",
                "x",
                "below",
                "red or blue",
            )
        ),
        *(
            (f"<answer>5 {words}</answer>", "5", RIGHT)
            for words in ("apples", "km/h", "miles per hour", "square inches", "dollars", "percent")
        ),
        ("\\boxed{1.5\\text{ million}}", "1.5", NONE),
        ("\\boxed{\\text{14 dollars}}", "14", RIGHT),
        ("\\boxed{\\text{15 dollars}}", "14", WRONG),
        ("nothing here", "5", NONE),
        ("", "5", NONE),
        ("\\boxed{5}", "a word", Status.ERROR),
    ],
)
def test_numeric(completion, gold, status) -> None:
    assert Numeric()(completion, gold, {}).status is status


def test_numeric_looks_only_where_it_is_told_and_in_that_order() -> None:
    text = "<answer>1</answer> \\boxed{2}\n#### 3\n4"
    for place, value in (("answer_tag", "1"), ("boxed", "2"), ("hash", "3"), ("last_number", "4")):
        assert Numeric(find=(place,))(text, value, {}).status is RIGHT
    assert Numeric(find=("boxed", "hash"))(text, "2", {}).status is RIGHT
    assert Numeric(find=("hash",))("\\boxed{2}", "2", {}).status is NONE


@pytest.mark.parametrize("text", ["1" * 10**6, "1e999", "1/0", "1e9999999", "..", "-", "1,2,3", "12/", "½"])
def test_rational_of_odd_texts_is_quick(text) -> None:
    assert rational(text) is None or text == "1e999"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7), ("-7", -7), ("+7", 7), ("- 7", -7), ("3/4", "3/4"), ("-3/4", "-3/4"), ("1.5e3", 1500),
        ("-1.5e-1", "-0.15"),
        ("\\frac{1}{2}", "1/2"), ("-\\frac{1}{2}", "-1/2"), ("+\\frac12", "1/2"), ("-\\dfrac{-1}{2}", "1/2"),
        ("2 1/2", "5/2"), ("-2 1/2", "-5/2"), ("2\\frac{1}{2}", "5/2"), ("-2 \\frac{1}{2}", "-5/2"), ("2 1/0", None),
        ("-1,234.5", "-1234.5"), ("-1 234.5", "-1234.5"), ("1 000 000", 10**6), ("25%", 25), ("x = 3", 3), ("(5)", 5),
        ("\\frac{1}{0}", None), ("1" * 400, int("1" * 400)), ("1" * 401, None),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_each_way_to_write_a_number_has_its_value(text, value) -> None:
    assert rational(text) == (None if value is None else Fraction(value))


THINK = "<think>a</think>\n<answer>b</answer>"


@pytest.mark.parametrize(
    ("options", "completion", "good"),
    [
        ({}, THINK, True),
        ({}, "x" + THINK + "y", True),
        ({"only_tags": True}, THINK, True),
        ({"only_tags": True}, "x" + THINK, False),
        ({"only_tags": True}, THINK + " y", False),
        ({"only_tags": True}, "<think>a</think> x <answer>b</answer>", False),
        ({}, "<answer>b</answer><think>a</think>", False),
        ({}, THINK + THINK, False),
        ({}, "<think>a<answer>b</answer></think>", False),
        ({}, "<think>a<think>b</think><answer>c</answer>", False),
        ({}, "<think>a</think></think><answer>b</answer>", False),
        ({}, "<think>a</think><answer></answer>", False),
        ({}, "<think>a</think><answer>b", False),
        ({}, "a</think><answer>b</answer>", False),
        ({"opened": ["think"]}, "a</think><answer>b</answer>", True),
        ({"opened": ["think"]}, THINK, True),
        ({"tags": ["plan", "code", "test"]}, "<plan>a</plan><code>b</code><test>c</test>", True),
        ({"tags": ["plan", "code", "test"]}, "<plan>a</plan><test>c</test><code>b</code>", False),
        ({"tags": [], "pattern": r"a.*\d"}, "a\n\n5", True),
        ({"tags": [], "pattern": r"a.*\d"}, "a\n\n5 ", False),
        ({"pattern": r".*\\boxed\{.+\}.*"}, THINK, False),
    ],
)
def test_format(options, completion, good) -> None:
    verdict = Format(**options)(completion, None, {})
    assert verdict.status is (RIGHT if good else WRONG)
    assert verdict.score == float(good)


def test_format_can_score_in_part_and_names_each_check() -> None:
    verdict = Format(partial=True)("<think>a</think><answer></answer>", None, {})
    assert verdict.status is Status.SCORED and verdict.score == pytest.approx(2 / 3)
    assert verdict.parts == {"once": 1.0, "order": 1.0, "filled": 0.0}


@pytest.mark.parametrize("options", [{"tags": ()}, {"opened": ("plan",)}, {"tags": (), "pattern": "("}])
def test_format_refuses_what_it_cannot_check(options) -> None:
    with pytest.raises(ValueError):
        Format(**options)


def test_exact() -> None:
    verify = Exact()
    assert verify("<answer> New  York. </answer>", "new york", {}).status is RIGHT
    assert verify("<answer>NYC</answer>", ["New York", "NYC"], {}).status is RIGHT
    assert verify("<answer>Newark</answer>", "New York", {}).status is WRONG
    assert verify("<think>New York", "New York", {}).status is NONE
    assert verify("New York", "New York", {}).status is NONE
    assert Exact(find=["whole"])("New York", "New York", {}).status is RIGHT
    assert Exact(case_sensitive=True)("<answer>new york</answer>", "New York", {}).status is WRONG
    assert Exact(strict=True)("<answer>New York.</answer>", "New York", {}).status is WRONG
    assert verify("<answer></answer>", "x", {}).status is NONE
    for empty in ("", " ", None, [], ["x", ""], [None]):
        assert verify("<answer>x</answer>", empty, {}).status is Status.ERROR


@pytest.mark.parametrize(("reference", "answer"), [(5, "5"), (0, "0"), (False, "false"), (2.5, "2.5"), ((7, "x"), "7")])
def test_exact_references_that_are_no_text(reference, answer) -> None:
    assert Exact()(f"<answer>{answer}</answer>", reference, {}).status is RIGHT
    assert Exact()(f"<answer>{answer}1</answer>", reference, {}).status is WRONG


@pytest.mark.parametrize(
    ("answer", "gold", "status"),
    [
        ("(C)", "C", RIGHT),
        ("c", "C", RIGHT),
        ("C) mitosis", "C", RIGHT),
        ("mitosis", "C", RIGHT),
        ("Mitosis.", 2, RIGHT),
        ("osmosis", "C", WRONG),
        ("A or C", "C", NONE),
        ("(C) or (A)", "C", NONE),
        ("something else", "C", NONE),
        ("B) mitosis", "C", WRONG),
        ("", "C", NONE),
        ("C", "budding", WRONG),
        ("C", "photosynthesis", Status.ERROR),
        ("C", 9, Status.ERROR),
    ],
)
def test_choice(answer, gold, status) -> None:
    prompt = {"choices": ["osmosis", "meiosis", "mitosis", "budding"]}
    assert Choice()(f"<answer>{answer}</answer>", gold, prompt).status is status


def test_choice_reads_labelled_options() -> None:
    prompt = {"choices": {"label": ["A", "B"], "text": ["tails", "heads"]}}
    assert Choice()("The answer is heads.", "B", prompt).status is RIGHT
    assert Choice()("The answer is (A).", "B", prompt).status is WRONG


def ranked(answer: str, gold="BRCA1, TP53, KRAS", **options):
    return OrderedList(**options)(f"<answer>{answer}</answer>", gold, {})


def test_ordered_list_scores() -> None:
    assert ranked("BRCA1, TP53, KRAS").status is RIGHT
    assert ranked("1. brca1\n2. tp53\n3. kras").status is RIGHT
    assert ranked("BRCA1 > TP53 > KRAS", ["BRCA1", "TP53", "KRAS"]).status is RIGHT
    swapped = ranked("TP53, BRCA1, KRAS")
    assert swapped.status is WRONG and swapped.parts["f1"] == 1.0
    ideal = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    assert swapped.parts["rank"] == pytest.approx((2 + 3 / math.log2(3) + 1 / math.log2(4)) / ideal)
    half = ranked("TP53", score="f1")
    assert half.score == pytest.approx(0.5) and half.status is Status.SCORED
    assert ranked("MYC", score="rank").score == 0.0
    assert ranked("").status is NONE


def test_listing_everything_or_the_same_thing_gains_nothing() -> None:
    genes = ", ".join(f"G{n}" for n in range(50)) + ", BRCA1, TP53, KRAS"
    assert ranked(genes, score="rank").score == 0.0
    assert ranked("BRCA1, BRCA1, BRCA1", score="f1").score == pytest.approx(0.5)
    assert ranked("BRCA1, BRCA1, BRCA1", score="rank").parts["rank"] < 0.7


@pytest.mark.parametrize(
    "answer",
    ["BRCA1, TP53, KRAS, BRCA1", "BRCA1, TP53, KRAS</answer> or else <answer>KRAS, TP53, BRCA1"],
)
def test_a_second_order_behind_the_first_is_another_list(answer: str) -> None:
    assert ranked(answer).status is WRONG


@pytest.mark.parametrize(
    ("tokens", "score"), [(0, 0.0), (800, 0.0), (900, -0.5), (1000, -1.0), (5000, -1.0), (801, -0.005)]
)
def test_length_is_daposs_soft_punishment(tokens, score) -> None:
    verdict = Length(limit=1000, buffer=200)("x", None, {"completion_tokens": tokens})
    assert verdict.score == pytest.approx(score)
    assert verdict.status is {0.0: RIGHT, -1.0: WRONG}.get(score, Status.SCORED)


def test_length_needs_the_tokens() -> None:
    assert Length(limit=10, buffer=5)("x" * 100, None, {}).status is Status.ERROR
    assert Length(limit=10, buffer=5, characters_per_token=4)("x" * 30, None, {}).score == pytest.approx(-0.5)
    with pytest.raises(ValueError, match="0 < buffer <= limit"):
        Length(limit=5, buffer=10)


def test_repetition() -> None:
    verify = Repetition(size=3)
    assert verify("one two three four five six seven", None, {}).score == 0.0
    assert verify("wait but " * 200, None, {}).score < -0.95
    once = verify("a b c d e f a b c", None, {})
    assert once.parts["repeated"] == pytest.approx(1 / 7)
    assert once.score == pytest.approx(-(1 / 7 - 0.1) / 0.9)
    assert Repetition(size=3, free=0.2)("a b c d e f a b c", None, {}).score == 0.0
    assert Repetition(size=4, unit="characters")("好" * 100, None, {}).score < -0.9
    assert verify("", None, {}).score == 0.0


def test_reasoning_gym_rows_score_by_their_own_task() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra `gym` is not installed")
    from rewards.verifiers.gym import ReasoningGym, rows

    verify = ReasoningGym()
    for row in rows("leg_counting", size=3, seed=1):
        assert verify(f"<answer>{row['answer']}</answer>", row["answer"], row).status is RIGHT
        assert verify("<answer>100000</answer>", row["answer"], row).status is WRONG
        assert verify("no answer", row["answer"], row).status is NONE
    own = {"question": "?", "metadata": {"source_dataset": "leg_counting"}}
    assert verify("<answer>12</answer>", "12", own).status is RIGHT
    assert verify("<answer>1</answer>", "1", {}).status is Status.ERROR


@pytest.mark.parametrize(
    ("score", "mark", "status"),
    [(1.0, 1.0, RIGHT), (0.5, 1.0, Status.SCORED), (0.5, 0.5, RIGHT), (0.01, 0.5, Status.SCORED), (0.0, 0.5, WRONG)],
)
def test_reasoning_gym_scores_keep_their_value(score, mark, status, monkeypatch) -> None:
    scorers = {"a task": lambda answer, entry: score if (answer, entry["answer"]) == ("7", "8") else None}
    library = SimpleNamespace(get_score_answer_fn=scorers.__getitem__)
    monkeypatch.setitem(sys.modules, "reasoning_gym", library)
    from rewards.verifiers.gym import ReasoningGym

    verdict = ReasoningGym(pass_mark=mark)("<answer>7</answer>", "8", {"metadata": {"source_dataset": "a task"}})
    assert (verdict.score, verdict.status, verdict.reason) == (score, status, "a task")


@pytest.mark.parametrize("task", ["arc_agi", "futoshiki", "graph_color", "knights_knaves", "codeio", "spell_backward"])
def test_reasoning_gym_rows_survive_the_way_through_the_data(task) -> None:
    """Tuples, keys that are no text and fields of several types: each has broken a scorer."""
    gym = pytest.importorskip("reasoning_gym", reason="the extra `gym` is not installed")
    from grpo.config import DatasetConfig
    from grpo.data.rows import load_rows
    from rewards.verifiers.gym import ReasoningGym

    options = {"task": task, "size": 6, "seed": 1}
    loaded = load_rows(DatasetConfig(generator="rewards.verifiers.gym:rows", options=options)).to_list()
    verify, scorer = ReasoningGym(), gym.get_score_answer_fn(task)
    for row, entry in zip(loaded, gym.create_dataset(**{"name": task, "size": 6, "seed": 1}), strict=True):
        assert row["question"] == entry["question"]
        for answer in (entry["answer"] or "{}", "7"):
            assert verify(f"<answer>{answer}</answer>", row["answer"], row).score == float(scorer(answer, entry))


def test_reasoning_gym_says_how_to_install_it(monkeypatch) -> None:
    from rewards.verifiers.gym import ReasoningGym

    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match="verigrpo\\[gym\\]"):
        ReasoningGym()
