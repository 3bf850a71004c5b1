"""The verifier of instructions: a right, a wrong and a hostile answer for each kind; hostile text in linear time."""

from __future__ import annotations

import importlib.util
import re
import time
from typing import Any

import pytest

from rewards.build import build_verifier
from rewards.instructions import kinds, language
from rewards.instructions.counting import count_capital_words, count_sentences
from rewards.instructions.kinds import KINDS
from rewards.verdict import Status, Verdict
from rewards.verifiers import instructions as module

WORDS = {"en": "the this is of a dog house", "de": "der das und ist hund haus", "fr": "le la les est un chien"}


def stand_in(text: str) -> str:
    """The language with the most words in the text; empty without letters."""
    said = re.findall(r"[a-z]+", text)
    return max(WORDS, key=lambda code: sum(word in WORDS[code].split() for word in said)) if said else ""


@pytest.fixture(autouse=True)
def languages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra `ifeval`, a stand-in tells three languages apart."""
    if importlib.util.find_spec("langdetect") is None:
        monkeypatch.setattr(kinds, "language_of", stand_in)
        monkeypatch.setattr(module, "detector_factory", lambda: True)


# kind -> arguments, right, wrong, hostile: an answer that seems to follow, or that a careless check accepts.
CASES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "keywords:existence": ({"keywords": ["mom", "Mother"]}, "Mom is a mother.", "Mom is here.", "m.o.m mother m o m"),
    "keywords:frequency": (
        {"keyword": "a.b", "frequency": 2, "relation": "at least"}, "a.b and A.B", "a.b once", "axb and ayb and azb",
    ),
    "keywords:forbidden_words": ({"forbidden_words": ["rock", "c++"]}, "Rocky C", "No ROCK here", "a (rock) with C++"),
    "keywords:letter_frequency": (
        {"letter": "T", "let_frequency": 2, "let_relation": "less than"}, "a t", "t and T", "TTTTTTTT",
    ),
    "language:response_language": (
        {"language": "de"}, "der hund und das haus ist da und der hund ist hier", "this is the dog of the house",
        "123 !",
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "at least"}, "One. Two! Is it \"three?\"", "Mr. J. Doe said it. Dr. No. 5.",
        "... !!! ??? . . . .",
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2}, "One.\n***\nTwo.\n***", "One.\n\nTwo.", "One.\n***\n\n***\nTwo.",
    ),
    "length_constraints:number_words": (
        {"num_words": 4, "relation": "at least"}, "one two three four", "one two three", "!! ?? ,, .. -- ;;",
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"}, "A.\n\n\"weekend\" is near.",
        "Weekend.\n\nB.", "Weekend.\n\nWeekends are near.",
    ),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2}, "[name] lives in [city]", "[name] lives", "[[[[ name\n] ] ]",
    ),
    "detectable_content:postscript": ({"postscript_marker": "P.P.S"}, "Bye.\nP.P.S. Call.", "Bye.\nP.S. Call.", "PPS"),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2}, "Here:\n* one\n  - two", "* one\n* two\n* three", "**one**\n* two\n***",
    ),
    "detectable_format:constrained_response": ({}, "My answer is no.", "No.", "My answer is: no."),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2}, "*one* and **two**", "*one* and two", "** ** * * ****",
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1\na\nSECTION 2\nb", "SECTION 1\na",
        "SECTION one\nSECTION two",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": [1]}\n```', "{a: 1}", "[" * 100_000),
    "detectable_format:title": ({}, "<<Joy>>\nA poem.", "<Joy>\nA poem.", "<<<<>>>> << >> << joy\n>>"),
    "combination:two_responses": ({}, "Yes.\n******\nNo.", "Yes.\n***\nNo.", "Yes.******Yes."),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Write a poem."}, "Write a poem.\nRoses.", "Roses.", "Sure! Write a poem.\nRoses.",
    ),
    "startend:end_checker": ({"end_phrase": "Any questions?"}, '"Hi. any questions?"', "Hi.", "Any questions? No."),
    "startend:quotation": ({}, '"All of it."', '"Some" of it.', '"'),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"}, "ONE and WELL-KNOWN", "One and TWO", "1 2 3 4 5",
    ),
    "change_case:english_capital": ({}, "THIS IS THE HOUSE OF THE DOG", "This is the house", "123 456"),
    "change_case:english_lowercase": (
        {}, "this is the house of the dog", "This is the house", "das ist der hund und das haus",
    ),
    "punctuation:no_comma": ({}, "one and two", "one, two", "one,"),
}  # fmt: skip


def judged(completion: str, *instructions: tuple[str, dict[str, Any]], **options: Any) -> Verdict:
    row = {"kwargs": [arguments for _, arguments in instructions]}
    return build_verifier("instructions", options)(completion, [name for name, _ in instructions], row)


def test_every_kind_has_its_cases() -> None:
    assert KINDS.keys() == CASES.keys() and len(CASES) == 25


@pytest.mark.parametrize("name", CASES)
def test_each_kind_knows_right_from_wrong(name: str) -> None:
    arguments, right, wrong, hostile = CASES[name]
    assert judged(right, (name, arguments)).status is Status.CORRECT
    for refused in (wrong, hostile, "", " \n"):
        assert judged(refused, (name, arguments)).status is Status.WRONG, refused[:80]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[0]])
def test_arguments_of_another_form_are_refused(name: str) -> None:
    arguments, right, _, _ = CASES[name]
    for key in arguments:
        for bad in (None, -1, "", [3], float("inf")):
            found = judged(right, (name, arguments | {key: bad}))
            assert found.status is Status.ERROR and f"{name}: {key} must be" in found.reason


HOSTILE = [
    "*", "**\n", "[", "<", "<<", "p. ", "p.p", ".", "!\" ", "-\n", "\n", "\n\n", "A", "a, ", '"', "{", "[1,",
    "SECTION ", "```", "***", "<think>", "\u3002", "1.", "a.b",
]  # fmt: skip


@pytest.mark.parametrize("loose", [False, True])
def test_hostile_text_takes_linear_time(loose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "language_of", stand_in)
    rows = [(name, arguments) for name, (arguments, _, _, _) in CASES.items()]
    started = time.monotonic()
    for piece in HOSTILE:
        judged(piece * (100_000 // len(piece)) + "x", *rows, loose=loose)
    # Quadratic checks would take minutes. This takes a few seconds.
    assert time.monotonic() - started < 60


def test_the_score_is_the_share_and_only_all_is_correct() -> None:
    three = [
        (name, CASES[name][0]) for name in ("punctuation:no_comma", "startend:quotation", "detectable_format:title")
    ]
    found = judged("<think>a, b</think>no comma", *three)
    assert (found.status, found.score) == (Status.SCORED, pytest.approx(1 / 3))
    assert found.reason == "not followed: startend:quotation, detectable_format:title"
    assert found.parts == {"instructions": 3.0, "followed": 1.0, "followed_loosely": 1.0, "all_loosely": 0.0}
    assert judged('"<<Title>> here"', *three).score == 1.0
    assert judged("<think>no comma", *three).status is Status.UNPARSEABLE


def test_loose_ignores_the_lines_around_the_answer_and_asterisks() -> None:
    quoted = ("startend:quotation", {})
    framed = 'Sure, here it is:\n"All of it."\nBye'
    assert judged(framed, quoted).status is Status.WRONG and judged(framed, quoted).parts["all_loosely"] == 1.0
    assert judged(framed, quoted, loose=True).status is Status.CORRECT
    assert judged('**"All."**', quoted, loose=True).status is Status.CORRECT
    assert judged('a\nb\n"All."', quoted, loose=True).status is Status.WRONG


def test_rows_that_cannot_be_checked_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def problem(reference: Any, row: dict[str, Any]) -> str:
        return module.Instructions().reference_problem(reference, row)

    # As the hub has them: every instruction has all keys, most of them empty.
    empty = {"num_words": None, "relation": None}
    assert problem(["punctuation:no_comma"], {"kwargs": [empty]}) == problem(["punctuation:no_comma"], {}) == ""
    words = '[{"num_words": 4, "relation": "at least"}]'
    assert problem(["length_constraints:number_words"], {"kwargs": words}) == ""
    assert "no instruction is called 'punctuation:no_comas'; did you mean punctuation:no_comma?" in problem(
        ["punctuation:no_comas"], {"kwargs": [{}]}
    )
    assert "must be a list of instructions" in problem("punctuation:no_comma", {})
    for kwargs, got in (([{}], "1 of them"), ("{", "'{'"), ([3, 4], "[3, 4]")):
        found = problem(["punctuation:no_comma", "startend:quotation"], {"kwargs": kwargs})
        assert "must have arguments for 2 instructions" in found and got in found
    monkeypatch.setattr(module, "detector_factory", lambda: None)
    assert "pip install 'verigrpo[ifeval]'" in problem(["change_case:english_capital"], {})


def test_langdetect_gives_the_same_language_each_time() -> None:
    pytest.importorskip("langdetect", reason="the extra `ifeval` is not installed")
    text = "Es war einmal ein Hund, der in einem kleinen Haus am Rande der Stadt wohnte."
    assert {language.language_of(text) for _ in range(20)} == {"de"}
    assert language.language_of("12345 !!") == ""


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Hello there. How are you? Fine!", 3),
        ("Dr. Smith went to the U.S. in 1990. Then he left.", 2),
        ("1. Eat. 2. Sleep.", 2),
        ("No mark at the end", 1),
        ("He said \"Stop!\" Then he ran.", 2),
        ("It costs 3.5 dollars, i.e. little. See example.com for more.", 2),
        ("\u4f60\u597d\u3002\u518d\u89c1\u3002", 2),
        ("", 0),
    ],
)  # fmt: skip
def test_sentences_are_counted(text: str, count: int) -> None:
    assert count_sentences(text) == count


def test_words_in_capitals_are_counted() -> None:
    assert count_capital_words("I am NOT a WELL-KNOWN (BIG) **STAR**, U.S.-made; Not.") == 5
