"""Decides whether an answer is an expression that was copied from the problem, perhaps in another spelling."""

from __future__ import annotations

import re
from functools import lru_cache

# Greatest numbers of characters of an answer and of a problem that are compared.
_ANSWER, _PROBLEM = 2000, 20_000
_SHORTEST = 3
_WORK_LEFT = re.compile(
    r"(?<!^)[-+*/^!\u00d7\u00f7\u00b7\u22c5\u2212]|\\(?:[dt]?frac|sqrt|binom|cdot|times|div|ast|log|ln|sin|cos|tan)|\d\s?\("
)
_SPACING = re.compile(r"[\s$~]|\\(?:[,;:! ]|left|right|displaystyle|q?quad)|\\[dtc](?=frac)|\\(?=[()\[\]])")
_SIZES = re.compile(r"\\(?:left|right)(?![A-Za-z])")
_SIGNS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00d7": "*", "\u00b7": "*", "\u22c5": "*", "\u2217": "*",
                        "\u00f7": "/", "\u2215": "/", "\u2044": "/"})  # fmt: skip
_TIMES = re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])|\*\*?")
_OVER = re.compile(r"\\div(?![A-Za-z])")
# Signs in words, between numbers: "17 times 23".
_WORDS = (
    (re.compile(r"(?<=\d)\s{0,3}(?:times|multiplied by)\s{0,3}(?=\d)"), "*"),
    (re.compile(r"(?<=\d)\s{0,3}divided by\s{0,3}(?=\d)"), "/"),
    (re.compile(r"(?<=\d)\s{0,3}plus\s{0,3}(?=\d)"), "+"),
    (re.compile(r"(?<=\d)\s{0,3}minus\s{0,3}(?=\d)"), "-"),
)
_SHORT_FRACTION = re.compile(r"\\frac(\d)(\d)")
_FRACTION = re.compile(r"\\frac\{([^{}]*)\}\{([^{}]*)\}")
_NUMBER = r"\d[\d.]*+"
_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_PLAIN_BRACES = re.compile(r"\{(\w{1,20})\}")
_NEXT_TO_BRACKET = re.compile(r"(?<=[\d)])\s*+(?=\()|(?<=\))\s*+(?=\d)")
_LONE_NUMBER = re.compile(rf"(?<![A-Za-z])\(\s*+({_NUMBER}|{_NUMBER}\^{_NUMBER}(?=\s*+\)[^\^!]|\s*+\)$))\s*+\)")
_ONE_FACTOR = re.compile(r"[\w.]{0,20}")
_NAMED = re.compile(r"[A-Za-z]=")
_JOINED = re.compile(r"[-+*^]")
_MOST_NESTED = 4


def is_restated(answer: str, gold: str, problem: object) -> bool:
    r"""True when an unworked expression was copied from the problem.

    If the reference is not a whole number, a single value in the problem may be the answer (`\frac{1}{4}` for 0.25).
    Then a text is a copy only if it joins several values ("Factor x^2+2x+1."), and the reference does not contain it.
    """
    if not isinstance(problem, str) or not _WORK_LEFT.search(answer):
        return False
    copied = _flat(answer[:_ANSWER])
    named = _NAMED.match(copied)
    copied = copied[named.end() :] if named is not None else copied
    while copied.startswith("(") and _closes_last(copied):
        copied = copied[1:-1]
    if len(copied) < _SHORTEST or copied.isdigit() or copied not in _flat_problem(problem[:_PROBLEM]):
        return False
    whole = _SPACING.sub("", gold).replace(",", "").lstrip("-").isdigit()
    return whole or (_JOINED.search(copied, 1) is not None and copied not in _flat(gold[:_ANSWER]))


@lru_cache(maxsize=256)
def _flat_problem(problem: str) -> str:
    """`_flat` for a problem, with a cache, because all answers of a group have the same problem."""
    return _flat(problem)


def _flat(text: str) -> str:
    r"""Give `17 \times 23`, `17*23`, `(17)(23)` and `17 times 23` one spelling; also `\frac{6}{3}` and `6 \div 3`."""
    text = text.translate(_SIGNS)
    for pattern, sign in _WORDS:
        text = pattern.sub(sign, text)
    # Do this before the blanks are removed, so that a bracket directly after a letter still means a function.
    text = _LONE_NUMBER.sub(r"\1", _NEXT_TO_BRACKET.sub("*", _SIZES.sub("", text)))
    text = _SPACING.sub("", text)
    text = _OVER.sub("/", _TIMES.sub(lambda match: "^" if match[0] == "**" else "*", text))
    text = _SHORT_FRACTION.sub(r"\1/\2", _GROUPED.sub("", text))
    for _ in range(_MOST_NESTED):
        flat = _FRACTION.sub(_divided, text)
        if flat == text:
            break
        text = flat
    return _LONE_NUMBER.sub(r"\1", _NEXT_TO_BRACKET.sub("*", _PLAIN_BRACES.sub(r"\1", text)))


def _divided(match: re.Match[str]) -> str:
    above, below = (part if _ONE_FACTOR.fullmatch(part) else f"({part})" for part in match.groups())
    return f"{above}/{below}"


def _closes_last(text: str) -> bool:
    """True when the first bracket is closed by the last character."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return at == len(text) - 1
    return False
