"""Numeric answers, compared exactly as rational numbers: the cheap verifier for GSM8K-like data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from rewards.answers import find as places
from rewards.answers.nouns import noun
from rewards.answers.thinking import thinking_tags
from rewards.mathematics.reading.latex_text import FONT
from rewards.mathematics.units import UNITS
from rewards.verdict import Verdict, correct, error, unparseable, wrong
from rewards.verifiers.exact import check_places, first_place

PLACES: Mapping[str, Callable[[str], str | None]] = {
    "answer_tag": places.answer_tag,
    "boxed": places.last_box,
    "hash": places.hash_mark,
    "last_number": places.last_number,
}
# No question that a person asks has a longer answer. The limit is needed because the time to convert digits is
# quadratic.
MAX_CHARACTERS = 400
_TEXT = re.compile(FONT.pattern + r"|\\[,;: ]|\\quad\b|~")
_DROPPED = re.compile(
    r"\\left|\\right|\\!\s*|\\?\$|\\[()\[\]]|[\u20ac\u00a3\u00a5\u20b9]|(?<=\d)\{(?=,\})|(?<=,)\}(?=\d)"
)
_WRAPPED = ("()", "''", '""', "``", "\u2018\u2019", "\u201c\u201d", "**", "{}")
_NAME = re.compile(r"[A-Za-z](?:_\w|_\{\w{1,8}\})?\s*=\s*(?=[-+.\d\\])")
_SIGN = r"(?P<sign>[-+]?)"
_FRACTION = re.compile(_SIGN + r"\\[dt]?frac(?:\{\s?(?P<a>-?\d+)\s?\}\{\s?(?P<b>-?\d+)\s?\}|(?P<c>\d)(?P<d>\d))")
_MIXED = re.compile(
    _SIGN + r"(?P<whole>\d+)(?:\s+(?P<above>\d+)/(?P<below>\d+)|\s?\\[dt]?frac\{(?P<over>\d+)\}\{(?P<under>\d+)\})"
)
_SPACED_THOUSANDS = re.compile(r"(?P<spaced>[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?)")
_NUMBER = re.compile(
    r"(?P<whole>[-+]?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d*)?)(?:[eE](?P<exponent>[-+]?\d{1,3}))?"
    r"(?:\s*/\s*(?P<below>\d+(?:\.\d+)?))?"
)
_BEHIND = re.compile(
    r"\s?(?:(?P<percent>%|\\%)|\u00b0|\^\s?\{?\s?\\circ\s?\}?)?\s?(?:/\s?(?=[A-Za-z(]))?(?P<noun>[A-Za-z(].*)?",
    re.DOTALL,
)
_POWER = re.compile(r"\s?\^\s?\{?[23]\}?")


def rational(text: str) -> Fraction | None:
    r"""Read a number written as digits, a decimal, `a/b`, `a b/c`, `\frac{a}{b}` or `1.5e3`; None for other text.

    Currency signs, thousands separators, fonts, quotes, brackets, a name (`x =`), a degree sign, a unit or a noun
    after the number, and a final period are ignored; `25%` is 25. A text with any other word is not a number:
    `5 million`, `5 minus two` and `5 not really` are not 5.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    plain = _unwrapped(_DROPPED.sub("", _TEXT.sub(r" \1 ", text.replace("\u2212", "-"))))
    plain = plain[named.end() :] if (named := _NAME.match(plain)) is not None else plain
    plain = plain[0] + plain[2:] if plain[:2] in ("- ", "+ ") else plain
    for pattern in (_FRACTION, _MIXED, _SPACED_THOUSANDS, _NUMBER):
        match = pattern.match(plain)
        value = _value(match.groupdict()) if match is not None else None
        if match is not None and value is not None and _counts(plain, match.end()):
            return value
    return None


def _unwrapped(text: str) -> str:
    """The text without fonts, quotes and brackets around the whole text, and with single blanks."""
    plain = " ".join(text.split())
    while True:
        inner = plain.strip(" *").rstrip(".").rstrip()
        if len(inner) > 2 and inner[0] + inner[-1] in _WRAPPED and not set(inner[:1] + inner[-1:]) & set(inner[1:-1]):
            inner = inner[1:-1]
        if inner == plain:
            return plain
        plain = inner


def _value(parts: dict[str, str | None]) -> Fraction | None:
    """The value of a match of one of the patterns; None for a division by zero."""
    sign = -1 if parts.get("sign") == "-" else 1
    if "whole" not in parts and "spaced" not in parts:
        above, below = int(parts["a"] or parts["c"] or 0), int(parts["b"] or parts["d"] or 0)
        return sign * Fraction(above, below) if below else None
    if "above" in parts:
        above, below = int(parts["above"] or parts["over"] or 0), int(parts["below"] or parts["under"] or 0)
        return sign * (int(parts["whole"] or 0) + Fraction(above, below)) if below else None
    digits = (parts.get("whole") or parts.get("spaced") or "").replace(",", "").replace(" ", "")
    if not any(character.isdigit() for character in digits):
        return None
    value, divisor = Fraction(digits), Fraction(parts.get("below") or 1)
    if parts.get("exponent"):
        value *= Fraction(10) ** int(parts["exponent"] or 0)
    return value / divisor if divisor else None


def _counts(text: str, at: int) -> bool:
    """True when the text after the number does not change it: it is empty, a unit, or a noun."""
    behind = _BEHIND.fullmatch(text, at)
    if behind is None:
        return False
    if behind["noun"] is None:
        return True
    words = _POWER.sub("", behind["noun"])
    if words != behind["noun"]:
        return words in UNITS
    if behind["percent"]:
        # "5% of the class" means five percent, but "5% off" and "5% of 40" do not.
        return words.startswith("of ") and noun(words[3:]) is not None
    if not text[at : behind.start("noun")]:
        # Letters right after the digits must be a known unit: 5x is not 5.
        return words in UNITS and len(words) > 1
    counted = noun(words)
    # A single letter is a variable, unless it is a unit.
    return counted is not None and (len(counted) != 1 or counted in UNITS)


class Numeric:
    """Finds a number in the completion and compares it with the reference exactly.

    Args:
        find: places to look in, in order: `answer_tag` (`<answer>...</answer>`), `boxed`, `hash` (`#### N`),
            `last_number`. The first place that occurs in the text after the thinking decides. If its content is
            not a number, the verdict is `unparseable`, and the other places are not tried.
        thinking: reasoning tags; see `rewards.verifiers.exact.Exact`.

    The reference is a number, with or without a unit, or a worked solution that marks the number (`#### 18`, or a box).

    Raises:
        ValueError: `find` is empty or names an unknown place.
    """

    def __init__(
        self,
        find: Sequence[str] = ("answer_tag", "boxed", "hash", "last_number"),
        thinking: Sequence[str | Sequence[str]] | None = None,
    ) -> None:
        self.find, self.tags = check_places(find, PLACES), thinking_tags(thinking)

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return the verdict. It is an `error` if the reference is not a number."""
        gold = _gold(reference)
        if gold is None:
            return error(self.reference_problem(reference, prompt))
        place, answer = first_place(completion, self.find, self.tags, PLACES)
        if answer is None:
            return unparseable(f"no answer found in {', '.join(self.find)}")
        value = rational(answer)
        if value is None:
            return unparseable(f"{place}: not a number: {answer[:60]!r}")
        return correct(place) if value == gold else wrong(f"{place}: {answer[:60]!r} is not {str(reference)[:60]!r}")

    def reference_problem(self, reference: Any, prompt: Mapping[str, Any]) -> str:
        """Why the reference cannot be used; empty when it can be used."""
        if _gold(reference) is not None:
            return ""
        return f"the reference {str(reference)[:60]!r} is not a number; use the math verifier for such rows"

    def find_answer(self, completion: str) -> Fraction | None:
        """The number that the completion gives as its answer; None if it gives no number."""
        answer = first_place(completion, self.find, self.tags, PLACES)[1]
        return rational(answer) if answer is not None else None


def _gold(reference: Any) -> Fraction | None:
    return rational(places.marked_answer(str(reference)))
