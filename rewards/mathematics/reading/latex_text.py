"""Gives texts that look the same the same spelling: unicode, spacing, fonts, outer marks."""

from __future__ import annotations

import re

from rewards.answers.formulas import without_dollars
from rewards.mathematics.nodes import Unreadable

# A person would not write a longer answer. A matrix of 20 by 20 entries is within this limit.
MAX_ANSWER = 3000

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

# Macros whose argument consists of words.
TEXT_MACROS = (
    "text|textbf|textit|textrm|textsf|texttt|textnormal|textup|textsc|textmd|emph|mbox|hbox|mathrm|operatorname"
)
# A font macro with its content.
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
# For each first character: the marks that may stand around a whole answer.
_OUTER = {
    "\\": ((r"\(", r"\)"), (r"\[", r"\]")),
    "$": (("$$", "$$"), ("$", "$")),
    "*": (("**", "**"),),
    "`": (("`", "`"),),
    "'": (("'", "'"),),
    '"': (('"', '"'),),
}


def normalise(text: str) -> str:
    r"""Give texts that look the same one spelling: unicode to LaTeX, no spacing or sizing macros, no outer `$`.

    Raises:
        Unreadable: the text is longer than `MAX_ANSWER` characters.
    """
    if len(text) > MAX_ANSWER:
        raise Unreadable(f"an answer of {len(text)} characters; the most that is read is {MAX_ANSWER}")
    if "$" in text:
        text = without_dollars(text)
    if not text.isascii():
        text = text.replace("\u00b3\u221a", "\u221b")
        text = _UPPER_RUN.sub(lambda run: "^{" + run.group().translate(_UPPER) + "}", text)
        text = _LOWER_RUN.sub(lambda run: "_{" + run.group().translate(_LOWER) + "}", text)
        text = _VULGAR.sub(lambda sign: "\\frac{{{}}}{{{}}}".format(*_FRACTIONS[sign.group()]), text)
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
    """Remove outer dollars and markdown, the final period, and a trailing line break."""
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
