r"""Rewrites some spellings before an answer is cut into tokens: `\text{14}`, `2.5\text{ million}`, `]0,1[`.

Each rule first searches for a short mark, so a rule takes almost no time for an answer without its mark.
"""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.answers.counted import with_noun
from rewards.mathematics.nodes import Constant, Node, Number, Quantity, RatioNode, Sequence, Text
from rewards.mathematics.reading.chinese import chinese
from rewards.mathematics.reading.latex_text import TEXT_MACROS
from rewards.mathematics.reading.spelled import number_of
from rewards.mathematics.units import BARE_UNITS, read_unit

# In these patterns, every repetition is possessive or bounded, and no text that may follow it begins with a repeated
# character. So a pattern never reads a run of blanks or digits twice.
_FONT = rf"\\(?:{TEXT_MACROS})\s*+"
_NO_WORDS = re.compile(_FONT + r"\{\s*+\}")
_NUMERAL = re.compile(_FONT + r"\{\s*+(-?\d[\d,]*+(?:\.\d++)?)\s*+\}")
# A number with its unit inside one font macro: digits first, words after a space.
_MEASURE = re.compile(
    _FONT + r"\{\s*+([-+]?(?:\\?[$]|[\u20ac\u00a3\u20b9])?\s*+\d[\d.,:]*+(?:/\d++)?\s*+"
    r"(?:\\?%\s*+|(?<=\s)[A-Za-z.\d][A-Za-z.\d\s]*+)?)\}"
)
_UNIT_AND = re.compile(r"\\text\s*+\{(\s*+[A-Za-z]{1,20})\s++and\s*+\}")
# Words joined by "and" inside a font macro are a list, just as without the macro.
_WORDS_AND = re.compile(_FONT + r"\{((?:\s*+[A-Za-z]{1,20}(?:,|(?=[\s}]))){1,12}\s*+)\}")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_SCALED = re.compile(
    r"(?<![\d.,])(\d{1,12}(?:,\d{3}){0,5}+(?:\.\d{1,12})?)\s*+(\\text\s*+\{|\\mathrm\s*+\{)?"
    r"\s*+(hundred|thousand|[mbtr]{1,2}illion)\b\s*+(\})?"
)
_DOTTED = re.compile(r"(?<=\.)(\d*+)\\dot\s*+\{?(\d)\}?(\d*+)\\dot\s*+\{?(\d)\}?(?!\d)")
_APOSTROPHES = re.compile(r"(?<=\d)'(?=\d{3}(?!\d))")
_DOT_THOUSANDS = re.compile(r"-?[1-9]\d{0,2}(?:\.\d{3}){2,}")
_RUPEES = re.compile(r"^(?:\\text\s*+\{\s*+)?(?:Rs\.?|INR)\s*+\}?\s*+(?=\d)")
_TEMPERATURE = re.compile(r"\^\s*+\{?\\circ\s*+\}?\s*+(?:\\(?:text|mathrm)\s*+\{)?\s*+([FC])\s*+\}?$")
_TRANSPOSED = re.compile(r"\^\s*+\{?\\(?:top|intercal)\}?")
_POWER_FIRST = re.compile(r"([A-Za-z])\^(\d|[A-Za-z]|\{[^{}]{1,20}\})_(\d|[A-Za-z]|\{[^{}]{1,20}\})")
_PRIMES = re.compile(r"\^\s*+(?:\{\s*+((?:\\prime\s*+){1,4})\}|(\\prime)(?![A-Za-z]))")
_MODULUS = re.compile(
    rf"\(\s*+(?:(?:\\bmod|\\mod|\\pmod|mod)(?![A-Za-z])|\\(?:{TEXT_MACROS})\s*+\{{\s*+mod\s*+\}})\s*+([^()]{{1,40}})\)"
)
_ONE_SIDED = re.compile(r"\\\{\s*+\\begin\s*+\{(array|aligned|matrix|gathered|split)\}(?:\s*+\{[lcr|@{} ]{1,12}\})?")
_MINUS = re.compile(r"(?:negative|minus)\s{1,3}(?=[\d.$\\])", re.IGNORECASE)
_OUTWARD = re.compile(r"([\[\]])([^\[\]]{1,200}[,;][^\[\]]{1,200})([\[\]])")
_NOT_THERE = re.compile(
    r"(?:(?:the |this )?(?:limit|answer|value|it|solution|maximum|minimum|derivative|integral) )?"
    r"(?:does not|doesn't|do not|don't|not) exist|d\.? ?n\.? ?e"
)
_NO_SOLUTION = re.compile(r"(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?|empty set")


def respell(text: str) -> str:
    r"""Rewrite the spellings of this file in an answer. `text` must be normalised."""
    if "\\" in text:
        text = _in_fonts(text)
    if "illion" in text or "hundred" in text or "thousand" in text:
        for _ in range(3):  # more than once, for "5 hundred thousand"
            text = _SCALED.sub(_scaled, text)
    if not text.isascii():
        text = chinese(text)
    if "mod" in text and "(" in text:
        text = _MODULUS.sub(r"\\pmod{\1}", text)
    if "_" in text and "^" in text:
        text = _POWER_FIRST.sub(r"\1_\3^\2", text)
    if "'" in text:
        text = _APOSTROPHES.sub("", text)
    if text.count(".") > 1 and _DOT_THOUSANDS.fullmatch(text):
        text = text.replace(".", "")
    if text.endswith("$") and text.count("$") == 1 and not text.endswith("\\$"):
        text = text[:-1].rstrip()
    if "Rs" in text or "INR" in text:
        text = _RUPEES.sub("\u20b9", text)
    if text.startswith("]") or text.endswith("["):
        text = _OUTWARD.sub(_inward, text)
    if text[:1] in "nmNM":
        text = _MINUS.sub("-", text)
    return with_noun(text)


def _in_fonts(text: str) -> str:
    if "\\text" in text or "\\m" in text or "\\operatorname" in text:
        text = _NUMERAL.sub(r" \1 ", _NO_WORDS.sub(" ", text)).strip()
        text = _UNIT_AND.sub(r"\\text{\1} \\text{ and }", text) if " and" in text else text
        whole = _MEASURE.fullmatch(text) or (_WORDS_AND.fullmatch(text) if " and " in text else None)
        if whole is not None:
            text = whole[1].strip()
    if "\\dot" in text:
        text = _DOTTED.sub(r"\1\\overline{\2\3\4}", text)
    if "\\circ" in text:
        text = _TEMPERATURE.sub(r"\\text{ deg\1}", text)
    if "\\prime" in text:
        text = _PRIMES.sub(lambda m: "'" * (m[1] or m[2]).count("p"), text)
    if "\\{" in text and "\\begin" in text and text.count("\\{") > text.count("\\}"):
        text = _one_sided(text)
    if "^" in text and ("\\top" in text or "\\intercal" in text):
        text = _TRANSPOSED.sub("^T", text)
    return text


def _one_sided(text: str) -> str:
    r"""Rewrite `\{ \begin{array}{ll}...\end{array}`, with a brace only on the left, as `cases`, the same formula."""
    match = _ONE_SIDED.search(text)
    if match is None:
        return text
    before, after = text[: match.start()], text[match.end() :]
    return f"{before}\\begin{{cases}}{after}".replace(f"\\end{{{match[1]}}}", "\\end{cases}", 1)


def _scaled(match: re.Match[str]) -> str:
    """Write `2.5 million` as 2500000. The rest of the text in the same braces stays in them."""
    if match[3] not in _SCALES or (match[4] and not match[2]):
        return match[0]
    value = Fraction(match[1].replace(",", "")) * _SCALES[match[3]]
    digits = str(int(value)) if value.denominator == 1 else str(float(value))
    return digits + ("" if not match[2] or match[4] else match[2])


def _inward(match: re.Match[str]) -> str:
    """Rewrite `]0,1[` as `(0,1)`: in this notation, an end is excluded if its bracket opens to the outside."""
    opening, inside, closing = match.groups()
    return ("(" if opening == "]" else "[") + inside + (")" if closing == "[" else "]")


def meant(words: str) -> Node:
    """The meaning of words: a number with or without a unit, the empty set, infinity, or the words themselves."""
    number = number_of(words)
    if number is not None:
        return Number(Fraction(number))
    if _NO_SOLUTION.fullmatch(words):
        return Sequence("{}", ())
    counted, _, noun = words.rpartition(" ")
    # "two pi" and "three quarters" are not counts of things.
    counts = noun.isalpha() and (len(noun) > 2 or noun in BARE_UNITS) and noun not in ("quarter", "quarters")
    number = number_of(counted) if counted and counts else None
    unit = read_unit(noun) if number is not None else None
    if number is not None and unit is not None:
        return Quantity(Number(Fraction(number)), unit)
    if words == "infinity":
        return Constant("infinity")
    return Text("does not exist" if _NOT_THERE.fullmatch(words) else words)


_HOUR = re.compile(r"(1[0-2]|0?[1-9])(?:\s*([AP])\.?M\.?|\s+([ap])\.?\s?m\.?|\s*([ap])\.\s?m\.?)")
_TO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(?:\\text\s*\{\s*to\s*\}|\bto\b)\s*(\d{1,9}(?:\.\d{1,9})?)")
_HEXADECIMAL = re.compile(r"(?:\\(?:text|mathrm|texttt)\s*\{)?\s*0[xX]([0-9A-Fa-f]{1,60})\s*\}?")


def in_another_notation(text: str, plain: str) -> Node | None:
    """Read `6 PM`, `3 to 4`, `0xFF` and `DNE`, which the parser cannot read. `plain` is the text without macros."""
    if plain[:1] in "Dd" and _NOT_THERE.fullmatch(plain.lower().rstrip(".")):
        return Text("does not exist")
    if not any(character.isdigit() for character in text):
        return None
    hour = _HOUR.fullmatch(plain)
    if hour is not None:
        hours = int(hour[1]) % 12 + 12 * ((hour[2] or hour[3] or hour[4]).lower() == "p")
        return RatioNode((Number(Fraction(int(hour[1]))),), hours * 3600, True)
    ratio = _TO.fullmatch(text)
    if ratio is not None:
        return RatioNode((Number(Fraction(ratio[1])), Number(Fraction(ratio[2]))))
    numeral = _HEXADECIMAL.fullmatch(text)
    return Number(Fraction(int(numeral[1], 16))) if numeral is not None else None
