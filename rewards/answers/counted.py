"""Numbers with a unit or a noun, rewritten so that the parser reads the words as a unit."""

from __future__ import annotations

import re

from rewards.answers.nouns import noun
from rewards.mathematics.reading.latex_text import FONT
from rewards.mathematics.reading.parse import FUNCTIONS, GREEK
from rewards.mathematics.units import CURRENCY, JOINED, UNITS

_COUNTED = re.compile(
    r"(?P<name>[A-Za-z](?:_\w)?\s?=\s?)?(?P<sign>-?)\s?(?P<money>\\?\$|\\pounds|\\euro|[\u20ac\u00a3\u00a5\u20b9])?\s?"
    r"(?P<number>\d[\d,]{0,30}(?:\.\d{1,30})?(?:/\d{1,15})?|\.\d{1,30}|(?:\d{1,15}\s?)?\\[dt]?frac\{\d{1,15}\}\{\d{1,15}\}"
    r"|\d{1,15}\s\d{1,15}/\d{1,15})\s{0,3}(?P<behind>[A-Za-z(/\\].{0,150})",
    re.DOTALL,
)
_NOUN_ENDS = frozenset(")}.")
_MONEY = {sign: unit.dimensions[0][0] for sign, unit in CURRENCY.items()}
_CURRENCY_NAMES = frozenset(word.lower() for word, (base, _) in UNITS.items() if base in _MONEY.values()) | {"pounds"}
_RATES = frozenset(("per", "a", "an", "every"))
_PERCENT = re.compile(r"(?:percent|pct|percentage|per cent)\.?(?: of .*)?", re.IGNORECASE)
# Short words that must not be read as products of their letters.
_SHORT_NAMES = (
    "men cup cups can cans box pie pies egg eggs cat cats dog dogs kid kids toy toys pen pens car cars bus fox hen "
    "hens cow cows pig pigs ant ants bee bees bat bats cap caps hat hats bag bags mug mugs jar jars tin tins bar bars "
    "pot pots pan pans row rows way ways pts ppl pcs pct old a per"
)
_SHORT_NOUNS = frozenset(_SHORT_NAMES.split())
_WORD = re.compile(r"[A-Za-z]+")
_PLURAL = re.compile(r"[A-Z]{2,}s")
_MATHEMATICAL = FUNCTIONS | GREEK | {"infty", "infinity", "frac", "cbrt", "binom", "floor", "ceil", "bmod", "union"}


def with_noun(text: str) -> str:
    r"""Rewrite `18 pieces of candy`, `\$18/day` and `18 (apples) in total` with the noun as a unit in `\text{...}`.

    Any other text is returned unchanged.
    """
    match = _COUNTED.fullmatch(text) if text[-1:].isalpha() or text[-1:] in _NOUN_ENDS else None
    if match is None:
        return text
    behind = match["behind"]
    words = " ".join(FONT.sub(r" \1 ", behind).split()).replace(" / ", "/")
    rate = words.startswith("/")
    unit_words = noun(words[1:] if rate else words)
    if unit_words is None or not (rate or behind.startswith(("\\", "(")) or _are_words(words)):
        return text
    number = f"{match['name'] or ''}{match['sign']}{match['number']}"
    if _PERCENT.fullmatch(unit_words):
        return number + "\\%"
    phrase = f"per {unit_words}" if rate else unit_words
    first = phrase.split(" ", 1)[0].lower()
    if match["money"] and first not in _CURRENCY_NAMES:
        unit = _MONEY[match["money"]]
        phrase = f"{unit} per {phrase.split(' ', 1)[1]}" if first in _RATES and " " in phrase else unit
    return f"{number}\\text{{ {phrase}}}" if phrase else number


def _are_words(behind: str) -> bool:
    """True when letters without a font macro are words, not a product of variables."""
    spelled = _WORD.findall(behind.translate(JOINED))
    words = [word.lower() for word in spelled]
    if any(_PLURAL.fullmatch(word) for word in spelled):  # such as "CDs"
        return True
    if any(word in _MATHEMATICAL or (len(word) == 1 and word != "a") for word in words):
        return False
    return any(len(word) > 3 for word in words) or all(word in _SHORT_NOUNS or word in UNITS for word in words)
