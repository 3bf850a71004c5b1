"""From the answer's characters to tokens: unicode, spacing, fonts, numerals of every form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rewards.answers.formulas import without_dollars
from rewards.mathematics.nodes import Unreadable
from rewards.mathematics.units import BARE_UNITS

# A longer answer is not one that a person would write; matrices of 20 by 20 fit.
MAX_ANSWER = 3000
MAX_TOKENS = 1500
MAX_DIGITS = 1000

_TABLE = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00d7": "*", "\u00b7": "*", "\u22c5": "*", "\u2217": "*",
        "\u00f7": "/", "\u2215": "/", "\u2044": "/", "\u2236": ":", "\u2264": "<=", "\u2265": ">=", "\u2a7d": "<=",
        "\u2a7e": ">=", "\u2260": "!=", "\u2248": "\\approx ", "\u221e": "\\infty ", "\u222a": "\\cup ",
        "\u2229": "\\cap ", "\u2208": "\\in ", "\u2205": "\\emptyset ", "\u00b1": "\\pm ", "\u2213": "\\mp ",
        "\u00b0": "^\\circ ", "\u221a": "\\sqrt ", "\u221b": "\\sqrt[3] ", "\u03c0": "\\pi ", "\u03b8": "\\theta ",
        "\u03b1": "\\alpha ", "\u03b2": "\\beta ", "\u03b3": "\\gamma ", "\u03bb": "\\lambda ", "\u03bc": "\\mu ",
        "\u03c6": "\\phi ", "\u03c9": "\\omega ", "\u03c3": "\\sigma ", "\u03c1": "\\rho ", "\u03c4": "\\tau ",
        "\u03b4": "\\delta ", "\u03b5": "\\epsilon ", "\u0394": "\\Delta ", "\u03a9": "\\Omega ",
        "\u2211": "\\sum ", "\u222b": "\\int ", "\u220f": "\\prod ", "\u211d": "\\mathbb{R} ", "\u2124": "\\mathbb{Z} ",
        "\u27e8": "\\langle ", "\u27e9": "\\rangle ", "\u230a": "\\lfloor ", "\u230b": "\\rfloor ",
        "\u2308": "\\lceil ", "\u2309": "\\rceil ", "\u2026": "...", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
        "\u3000": " ", "\u2032": "'", "\u2019": "'", "\uff0c": ",", "\u3001": ",", "\uff1b": ";", "\uff1a": ":",
        "\uff08": "(", "\uff09": ")", "\uff1d": "=", "\uff0b": "+", "\uff0d": "-", "\uff05": "%", "\u3002": ".",
        "\uff0e": ".", "\u2192": "\\to ", "\u2245": "\\approx ", "\u2102": "\\mathbb{C} ", "\u2115": "\\mathbb{N} ",
        "\u211a": "\\mathbb{Q} ", "\u22ef": "...", "\u2016": "\\|", "\u2220": "\\angle ", "\u6216": " or ",
        "\u548c": " and ",
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
        **{chr(0xFF21 + offset): chr(65 + offset) for offset in range(26)},
    }
)  # fmt: skip
_FRACTIONS = {
    "\u00bd": (1, 2), "\u2153": (1, 3), "\u2154": (2, 3), "\u00bc": (1, 4), "\u00be": (3, 4), "\u2155": (1, 5),
    "\u2156": (2, 5), "\u2157": (3, 5), "\u2158": (4, 5), "\u2159": (1, 6), "\u215a": (5, 6), "\u215b": (1, 8),
    "\u215c": (3, 8), "\u215d": (5, 8), "\u215e": (7, 8),
}  # fmt: skip
_UPPER = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix")
_LOWER = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₙₓᵢ", "0123456789+-nxi")
_UPPER_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ]+")
_LOWER_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋ₙₓᵢ]+")
_VULGAR = re.compile("[" + "".join(_FRACTIONS) + "]")

# Macros whose argument is words.
TEXT_MACROS = (
    "text|textbf|textit|textrm|textsf|texttt|textnormal|textup|textsc|textmd|emph|mbox|hbox|mathrm|operatorname"
)
# A font with what it holds.
FONT = re.compile(rf"\\(?:{TEXT_MACROS}|mathbf)\s{{0,3}}\{{([^{{}}]*)\}}")
_SIZES = re.compile(
    r"\\(?:(?:left|right)\s*\.(?!\d)|(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|scriptstyle"
    r"|limits|nolimits|rm|bf|it|sf|tt|tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge"
    r"|normalfont|centering|middle)(?![A-Za-z]))"
)
_BAR_SIDES = re.compile(r"\\(left|right|[bB]igg?[lr])\s*(?:\||\\vert(?![A-Za-z]))")
_SPACES = re.compile(
    r"(?<!\\)\\[,;: ]|~|\\q?quad|\\(?:hfill|hfil|indent|noindent|space|medspace|thickspace)(?![A-Za-z])"
    r"|\\(?:enspace|thinspace|hspace\*?\{[^{}]*\}|phantom\{[^{}]*\})"
)
_NO_SPACE = re.compile(r"\\!\s*")
_COLOURS = re.compile(r"\\(?:text|page)?color(?:box)?\s*+(?:\[[^\[\]]{0,20}\])?\s*+\{[^{}]{0,40}\}")
_OTHER_NAMES = {
    "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")", "nicefrac": "frac",
    "sfrac": "frac", "flatfrac": "frac", "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta",
    "varrho": "rho", "varsigma": "sigma", "land": "wedge", "lor": "vee", "imath": "i", "jmath": "j",
    "geqq": "ge", "leqq": "le", "dotsc": "ldots", "dotsb": "cdots",
}  # fmt: skip
_RENAMED = re.compile(r"\\(" + "|".join(_OTHER_NAMES) + r")(?![A-Za-z])")
_LETTERS_ALONE = frozenset(("lbrack", "rbrack", "lparen", "rparen", "imath", "jmath"))
_MARK = r"\\(?:mathbf|boldsymbol|bm|pmb|textbf|hat|widehat|vec|overrightarrow)(?![A-Za-z])\s*+"
_UNIT_VECTOR = re.compile(
    _MARK + rf"(?:\{{\s*+{_MARK}\{{\s*+([ijk])\s*+\}}\s*+\}}|\{{\s*+(?:{_MARK})?([ijk])\s*+\}}|([ijk])(?![A-Za-z]))"
)
_FONTS = re.compile(
    r"\\(?:mathbf|mathnormal|mathtt|mathds|mathscr|boldsymbol|bm|mathit|mathsf|mathcal|pmb|underline|boxed|fbox|ensuremath)"
    r"(?![A-Za-z])"
)
_GROUPING = re.compile(r"(?<=\d)\{([,.])\}(?=(\d+))")
# What may stand around a whole answer, by its first character.
_OUTER = {
    "\\": ((r"\(", r"\)"), (r"\[", r"\]")),
    "$": (("$$", "$$"), ("$", "$")),
    "*": (("**", "**"),),
    "`": (("`", "`"),),
    "'": (("'", "'"),),
    '"': (('"', '"'),),
}


def normalise(text: str) -> str:
    r"""One spelling for what looks the same: unicode to LaTeX, no spacing or sizing macros, no outer `$`.

    Raises:
        Unreadable: longer than `MAX_ANSWER` characters.
    """
    if len(text) > MAX_ANSWER:
        raise Unreadable(f"an answer of {len(text)} characters; the most that is read is {MAX_ANSWER}")
    if "$" in text:
        text = without_dollars(text)
    if not text.isascii():
        text = text.replace("\u00b3\u221a", "\u221b")
        text = _UPPER_RUN.sub(lambda run: "^{" + run.group().translate(_UPPER) + "}", text)
        text = _LOWER_RUN.sub(lambda run: "_{" + run.group().translate(_LOWER) + "}", text)
        text = _VULGAR.sub(lambda one: "\\frac{{{}}}{{{}}}".format(*_FRACTIONS[one.group()]), text)
        text = text.translate(_TABLE)
    text = _strip(text)
    if "\\" in text or "~" in text:
        text = _NO_SPACE.sub("", text)
        if "color" in text:
            text = _COLOURS.sub("", text)
        text = _RENAMED.sub(_renamed, text)
        if "{i}" in text or "{j}" in text or "hat" in text or "vec" in text:
            text = _UNIT_VECTOR.sub(lambda m: f"\\hat{{{m[1] or m[2] or m[3]}}}", text)
        text = _BAR_SIDES.sub(lambda m: "\\lvert " if m[1] == "left" or m[1].endswith("l") else "\\rvert ", text)
        text = _SPACES.sub(" ", _FONTS.sub("", _SIZES.sub("", text)))
        text = _strip(text)
    if "{,}" in text or "{.}" in text:
        text = _GROUPING.sub(lambda m: "," if m[1] == "," and len(m[2]) == 3 else ".", text)
    return text


def _renamed(match: re.Match[str]) -> str:
    name = match[1]
    return ("" if name in _LETTERS_ALONE else "\\") + _OTHER_NAMES[name]


def _strip(text: str) -> str:
    """Take away outer dollars and markdown, the sentence's period, and a trailing line break."""
    while True:
        before = text
        text = text.strip()
        if text.endswith("\\\\"):
            text = text[:-2].rstrip()
        if text.endswith((".", ",", ";")) and not text.endswith(("..", "\\,", "\\;")):
            text = text[:-1].rstrip()
        for opening, closing in _OUTER.get(text[:1], ()):
            if not (len(text) > len(opening) and text.startswith(opening) and text.endswith(closing)):
                continue
            inner = text[len(opening) : -len(closing)]
            if closing not in (inner.replace("\\$", "") if "$" in closing else inner) and not inner.endswith("\\"):
                text = inner
        if text == before:
            return text


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
    """Cut normalised text into tokens, the last of kind `end`.

    Raises:
        Unreadable: a character that no answer has, too many tokens, or a numeral of more than `MAX_DIGITS` digits.
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
    """What a font macro holds: an upright letter, a function's name, or words."""
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
    """Read `0.1666...`.

    The shortest run that the written digits end with at least twice goes on for ever; without one, the digits are
    taken as they stand.
    """
    whole, _, tail = digits.partition(".")
    for length in range(1, len(tail) // 2 + 1):
        period = tail[-length:]
        start = len(tail)
        while start >= length and tail[start - length : start] == period:
            start -= length
        if len(tail) - start >= 2 * length:
            return _repeating(whole, tail[:start], period)
    return Fraction(digits)


def _names_points(tokens: list[Token], text: str, at: int) -> bool:
    r"""True when capitals name points, as in `NO:BO` and `\frac{NO}{BO}`: beside a sign, inside the mathematics."""
    return bool(tokens and tokens[-1].text in _BESIDE_NAMES) or text[at : at + 2].lstrip()[:1] in ("=", ":")


def _word(word: str, tokens: list[Token], spaced: bool, text: str, at: int) -> None:
    """A run of letters: a function, a connective, a unit after a number, a word, or a product of variables."""
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
