"""Numeric answers, compared exactly as rational numbers: the cheap verifier for GSM8K-like data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from rewards import find as places
from rewards.units import is_unit
from rewards.verdict import Verdict, correct, error, unparseable, wrong

PLACES: Mapping[str, Callable[[str], str | None]] = {
    "answer_tag": places.answer_tag,
    "boxed": places.last_box,
    "hash": places.hash_mark,
    "last_number": places.last_number,
}
# Digits beyond this are no answer to a question a person asked, and quadratic to convert.
MAX_CHARACTERS = 400
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}|\\[,;:! ]")
_DROPPED = re.compile(r"\\left|\\right|\\?\$|[\u20ac\u00a3]|(?<=\d)\{(?=,\})|(?<=,)\}(?=\d)")
_FRACTION = re.compile(r"(?P<sign>[-+]?)\\[dt]?frac(?:\{(?P<a>-?\d+)\}\{(?P<b>-?\d+)\}|(?P<c>\d)(?P<d>\d))")
_MIXED = re.compile(r"(?P<sign>[-+]?)(?P<whole>\d+)\s+(?P<above>\d+)/(?P<below>\d+)")
_SPACED_THOUSANDS = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?")
_NUMBER = re.compile(
    r"(?P<whole>[-+]?(?:\d{1,3}(?:,\d{3})+|\d*)(?:\.\d*)?)(?:[eE](?P<exponent>[-+]?\d{1,3}))?"
    r"(?:\s*/\s*(?P<below>\d+(?:\.\d+)?))?\s*(?:%|\\%)?(?:(?<=[\s%])(?P<unit>[A-Za-z][A-Za-z /^0-9]*))?"
)


def rational(text: str) -> Fraction | None:
    r"""Read a number written as digits, a decimal, `a/b`, `a b/c`, `\frac{a}{b}` or `1.5e3`; None where it is none.

    Currency signs, thousands separators, fonts, a known unit or one noun after the number, and a final period are
    ignored; `25%` is 25. Any other word makes it none: `5 million`, `5 minus two` and `5 not really` are not 5.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    plain = _DROPPED.sub("", _TEXT.sub(r" \1 ", text.replace("\u2212", "-"))).strip(" \t\n*").rstrip(".").strip()
    fraction = _FRACTION.fullmatch(plain)
    if fraction is not None:
        above, below = int(fraction["a"] or fraction["c"]), int(fraction["b"] or fraction["d"])
        return (Fraction(above, below) * (-1 if fraction["sign"] == "-" else 1)) if below else None
    mixed = _MIXED.fullmatch(plain)
    if mixed is not None:
        below = int(mixed["below"])
        value = int(mixed["whole"]) + Fraction(int(mixed["above"]), below) if below else None
        return -value if value is not None and mixed["sign"] == "-" else value
    if _SPACED_THOUSANDS.fullmatch(plain):
        plain = plain.replace(" ", "")
    match = _NUMBER.fullmatch(plain)
    if match is None or not any(character.isdigit() for character in match["whole"]):
        return None
    if match["unit"] is not None and not is_unit(match["unit"]):
        return None
    value = Fraction(match["whole"].replace(",", ""))
    if match["exponent"]:
        value *= Fraction(10) ** int(match["exponent"])
    below_value = Fraction(match["below"]) if match["below"] else Fraction(1)
    return value / below_value if below_value else None


class Numeric:
    """Finds a number in the completion and compares it with the reference exactly.

    Args:
        find: the places to look, in order: `answer_tag` (`<answer>...</answer>`), `boxed`, `hash` (`#### N`),
            `last_number`. The first place that is present decides; a place whose content is no number makes the
            verdict `unparseable`, and later places are not tried. Only text after `</think>` is read.

    Raises:
        ValueError: `find` is empty or names an unknown place.
    """

    def __init__(self, find: Sequence[str] = ("answer_tag", "boxed", "hash", "last_number")) -> None:
        unknown = [place for place in find if place not in PLACES]
        if unknown or not find:
            raise ValueError(f"find must name one or more of {', '.join(PLACES)}; got {list(find)}")
        self.find = tuple(find)

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """The verdict; `error` where the reference itself is not a number, which is the dataset's fault."""
        gold = rational(str(reference))
        if gold is None:
            # GSM8K's reference is the whole worked solution, which ends with `#### N`.
            marked = places.hash_mark(str(reference))
            gold = rational(marked) if marked is not None else None
        if gold is None:
            return error(f"the reference {str(reference)[:60]!r} is not a number; use the math verifier for such rows")
        text = places.after_thinking(completion)
        if text is None:
            return unparseable("thinking never ended")
        for place in self.find:
            answer = PLACES[place](text)
            if answer is None:
                continue
            value = rational(answer)
            if value is None:
                return unparseable(f"{place}: not a number: {answer[:60]!r}")
            return (
                correct(place) if value == gold else wrong(f"{place}: {answer[:60]!r} is not {str(reference)[:60]!r}")
            )
        return unparseable(f"no answer found in {', '.join(self.find)}")
