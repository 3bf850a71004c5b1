"""Cuts normalised text into tokens: numerals of every form, words, macros, signs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rewards.mathematics.nodes import Unreadable
from rewards.mathematics.reading.latex_text import TEXT_MACROS
from rewards.mathematics.units import BARE_UNITS

MAX_TOKENS = 1500
MAX_DIGITS = 1000


@dataclass(frozen=True, slots=True)
class Token:
    """`kind` is `number`, `symbol`, `command`, `text`, `unit`, `join`, `sign` or `end`."""

    kind: str
    text: str
    value: Fraction | None = None
    decimals: int | None = None
    spaced: bool = False


_NUMERAL = (
    r"(?P<repeat>\d*\.\d*(?:\(\d+\)|\\(?:overline|bar|dot)\s*(?:\{\s*\d+\s*\}|\d)))"
    r"|(?P<dots>\d*\.\d{2,}\s*(?:\.\.\.|\\[lc]?dots(?![A-Za-z])))"
)
_PLAIN = r"|(?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,4}(?![\d.]))?)"
_THOUSANDS = r"|(?P<thousands>(?<![_^])(?<!\d,)\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?![\d])(?!,\d)(?! \d)(?:\.\d+)?)"
_REST = (
    rf"|(?P<text>\\(?:{TEXT_MACROS}|operatorname\*|mathop)\s*\{{(?P<inner>[^{{}}]*)\}})"
    r"|(?P<command>\\[A-Za-z]+|\\[{}|$%&#_]|\\\\(?:\[[^\]]*\])?)"
    r"|(?P<word>[A-Za-z]+)"
    r"|(?P<sign>\*\*|<=|>=|!=|==|\.\.\.|[-+*/^_=<>()\[\]{},;:|!%&'$\u20ac\u00a3\u00a5\u20b9])"
)
_INSIDE = re.compile(r"(?P<space>\s+)|" + _NUMERAL + _PLAIN + _REST)
_OUTSIDE = re.compile(r"(?P<space>\s+)|" + _NUMERAL + _THOUSANDS + _PLAIN + _REST)

_FUNCTION_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth log ln lg exp sqrt frac gcd lcm max min "
    "pi theta alpha beta gamma lambda phi infty cbrt asin acos atan arcsinh arccosh arctanh arcsec arccsc"
)
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_ALSO_WORDS = frozenset(("max", "min", "sec", "det", "infty", "sqrt", "frac", "cbrt"))
_NAMES = {
    "infinity": "infty", "inf": "infty", "oo": "infty", "asin": "arcsin", "acos": "arccos", "atan": "arctan",
    "arsinh": "arcsinh", "arcosh": "arccosh", "artanh": "arctanh", "asinh": "arcsinh", "acosh": "arccosh",
    "atanh": "arctanh", "acot": "arccot", "asec": "arcsec", "acsc": "arccsc", "cosec": "csc",
}  # fmt: skip
_WORDS = "yes no odd even one two six ten red and the not none mon tue wed thu fri sat sun"
_SHORT_WORDS = frozenset(_WORDS.split())
_BESIDE_NAMES = frozenset("{=:+-/*")
_REPEAT = re.compile(r"(\d*)\.(\d*)\D+(\d+)\D*")


def tokenise(text: str) -> list[Token]:
    """Cut normalised text into tokens. The last token has the kind `end`.

    Raises:
        Unreadable: an unknown character, too many tokens, or a numeral of more than `MAX_DIGITS` digits.
    """
    tokens: list[Token] = []
    at, depth, spaced = 0, 0, False
    while at < len(text):
        match = (_INSIDE if depth else _OUTSIDE).match(text, at)
        if match is None:
            raise Unreadable(f"{text[at : at + 12]!r} is not understood")
        at = match.end()
        kind, piece = match.lastgroup, match.group()
        if kind == "space":
            spaced = True
            continue
        if kind in ("number", "thousands", "repeat", "dots"):
            tokens.append(_numeral(kind, piece, spaced))
        elif kind == "text" or kind == "inner":
            # \mathrm{i} and the like are upright letters, not words.
            tokens.append(_in_font(piece, match["inner"], spaced))
        elif kind == "command":
            depth += (piece == "\\{") - (piece == "\\}")
            tokens.append(Token("command", piece, spaced=spaced))
        elif kind == "word":
            _word(piece, tokens, spaced, text, at)
        else:
            depth += (piece in "([") - (piece in ")]")
            tokens.append(Token("sign", piece, spaced=spaced))
        spaced = False
        if len(tokens) > MAX_TOKENS:
            raise Unreadable(f"more than {MAX_TOKENS} tokens")
    tokens.append(Token("end", ""))
    return tokens


def _in_font(piece: str, inner: str, spaced: bool) -> Token:
    """Return the content of a font macro as one token: an upright letter, the name of a function, or words."""
    if inner in ("i", "e", "d") and piece.startswith("\\math"):
        return Token("symbol", inner, spaced=spaced)
    name = _NAMES.get(inner, inner)
    if name in FUNCTIONS and (piece.startswith("\\oper") or name not in _ALSO_WORDS):
        return Token("command", "\\" + name, spaced=spaced)
    return Token("text", inner, spaced=spaced)


def _numeral(kind: str, piece: str, spaced: bool) -> Token:
    if len(piece) > MAX_DIGITS:
        raise Unreadable(f"a numeral of {len(piece)} characters")
    if kind == "repeat":
        match = _REPEAT.fullmatch(piece)
        assert match is not None
        return Token("number", piece, _repeating(match[1], match[2], match[3]), spaced=spaced)
    if kind == "dots":
        digits = re.split(r"\.\.\.|\\", piece)[0].strip()
        return Token("number", piece, _guess_period(digits), spaced=spaced)
    plain = piece.replace(",", "").replace(" ", "")
    mantissa, _, exponent = plain.lower().partition("e")
    if len(mantissa) < 12 and mantissa.isdigit() and not exponent:
        return Token("number", piece, Fraction(int(mantissa)), 0, spaced)
    value = Fraction(mantissa)
    if exponent:
        value *= Fraction(10) ** int(exponent)
    return Token("number", piece, value, len(mantissa.partition(".")[2]) if not exponent else None, spaced)


def _repeating(whole: str, fixed: str, period: str) -> Fraction:
    scale = 10 ** len(fixed)
    return Fraction(int(whole + fixed or "0"), scale) + Fraction(int(period), scale * (10 ** len(period) - 1))


def _guess_period(digits: str) -> Fraction:
    """Read `0.1666...` and `0.233233...`: the period is the shortest run whose repetitions cover most of the end."""
    whole, _, tail = digits.partition(".")
    begin, period = len(tail), ""
    for length in range(1, len(tail) // 2 + 1):
        start = len(tail)
        while start >= length and tail[start - length : start] == tail[-length:]:
            start -= length
        if len(tail) - start >= 2 * length and start < begin:
            begin, period = start, tail[-length:]
    return _repeating(whole, tail[:begin], period) if period else Fraction(digits)


def _names_points(tokens: list[Token], text: str, at: int) -> bool:
    r"""True when capitals name points, as in `NO:BO` and `\frac{NO}{BO}`: a sign of mathematics is beside them."""
    return bool(tokens and tokens[-1].text in _BESIDE_NAMES) or text[at : at + 2].lstrip()[:1] in ("=", ":")


def _word(word: str, tokens: list[Token], spaced: bool, text: str, at: int) -> None:
    """Add tokens for a run of letters: a function, connective, unit after a number, word, or product of variables."""
    low = word.lower()
    if len(word) == 1:
        tokens.append(Token("symbol", word, spaced=spaced))
    elif low in _NAMES or low in FUNCTIONS:
        tokens.append(Token("command", "\\" + _NAMES.get(low, low), spaced=spaced))
    elif low in ("or", "and"):
        tokens.append(Token("join", low, spaced=spaced))
    elif word in BARE_UNITS or low in BARE_UNITS:
        tokens.append(Token("unit", word, spaced=spaced))
    elif low == "mod":
        tokens.append(Token("command", "\\bmod", spaced=spaced))
    elif len(word) > 3 or (low in _SHORT_WORDS and not (word.isupper() and _names_points(tokens, text, at))):
        tokens.append(Token("text", word, spaced=spaced))
    else:
        split = re.match(r"(.*?)(pi|sqrt)$", word)
        letters = split[1] if split else word
        tokens.extend(Token("symbol", letter, spaced=spaced and not at) for at, letter in enumerate(letters))
        if split:
            tokens.append(Token("command", "\\" + split[2]))
