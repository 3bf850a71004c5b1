"""Reads numbers in English words, and answers that say something twice: `8 (eight)` and "yes, it is"."""

from __future__ import annotations

import re

from rewards.mathematics.units import read_unit

_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = {word: value for value, word in enumerate(_ONES)} | {word: 10 * at for at, word in enumerate(_TENS, 2)}
_SCALES = {"thousand": 1000, "million": 10**6, "billion": 10**9}
_GLOSS = re.compile(
    r"(?P<value>-?\d{1,12})\s*(?:\\(?:text|mathrm|textbf)\s*\{\s*)?\(\s*(?:\\(?:text|mathrm|textbf)\s*\{\s*)?"
    r"(?P<words>[A-Za-z][A-Za-z -]{2,80})\}?\s*\)\s*\}?"
)
_NOUN_IN_BRACKETS = re.compile(
    r"(?<=[\d}])\s{0,3}(?:\\text\s{0,3}\{\s{0,3})?\((?:\\text\s{0,3}\{)?\s{0,3}"
    r"([A-Za-z]{2,20}(?:[ /][A-Za-z]{2,20}){0,3})"
    r"\s{0,3}\}?\)\}?$"
)
_SUBJECT = r"(?:it|he|she|they|we|i|you|this|that|there|these|those)"
_VERB = r"(?:is|are|am|was|were|does|do|did|can|could|will|would|has|have|had|must|should|may)"
_SHORT_ANSWER = re.compile(rf"(yes|no), {_SUBJECT} (?:{_VERB}( not|n't)?|(ca|wo)n't|(cannot))")


def number_of(text: str) -> int | None:
    """The whole number that English words name; None for other words."""
    total = group = 0
    has_number = False
    for word in text.lower().replace("-", " ").split():
        value = _VALUES.get(word)
        # "Five ten" and "one two" are two numbers.
        if value is not None and (group % 100 == 0 or (0 < value < 10 and group % 10 == 0 and group % 100 >= 20)):
            group += value
        elif word == "hundred" and 0 < group < 10:
            group *= 100
        elif word in _SCALES and 0 < group < 1000:
            total, group = total + group * _SCALES[word], 0
        elif word != "and" or not has_number:
            return None
        has_number = True
    return total + group if has_number else None


def without_gloss(plain: str) -> str:
    r"""Write `8 (eight)` as `8` and `9 (apples)` as `9 \text{ apples}`. Return any other text unchanged."""
    if not plain.endswith((")", ")}")):
        return plain
    match = _GLOSS.fullmatch(plain.strip())
    if match is not None:
        named = number_of(match["words"])
        if named is not None:
            return match["value"] if named == int(match["value"]) else plain
    noun = _NOUN_IN_BRACKETS.search(plain)
    # The noun must have two letters or more, because "5 (x)" is a product.
    if noun is None or number_of(noun[1]) is not None or read_unit(noun[1]) is None:
        return plain
    return f"{plain[: noun.start()]} \\text{{ {noun[1]} }}"


def without_echo(words: str) -> str:
    """Write `yes, it is` and `no, it is not` as `yes` and `no`. A text that contradicts its first word is unchanged."""
    match = _SHORT_ANSWER.fullmatch(words)
    if match is None:
        return words
    denied = any(match.groups()[1:])
    return match[1] if denied == (match[1] == "no") else words
