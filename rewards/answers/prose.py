"""English text around a value: formulas and numbers in sentences, and words that change their values."""

from __future__ import annotations

import re

# A dollar sign before an amount does not open a formula: "$5 and got $3" contains no formula.
FORMULA = re.compile(
    r"\$\$([^$]+)\$\$|\$(\s[^$]*|[^$\s](?:[^$]*[^$\s])?)\$(?!\d)|\\\(((?:(?!\\[(\[]).)+?)\\\)|\\\[((?:(?!\\[(\[]).)+?)\\\]",
    re.DOTALL,
)
SENTENCE_END = re.compile(
    r"(?<=[^\d\s.][.!?\u3002])(?<!\bsq\.)(?<!approx\.)(?<!\bvs\.)(?<!i\.e\.)(?<!e\.g\.)(?:\s|$)"
    r"|(?<=\d[.!?\u3002])(?:\s|$)|\u3002"
)
_PLAIN_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_ROOT = r"(?:\u221a\s?\d+|\\sqrt\s?\{[^{}]{1,40}\})"
_FRACTION = r"\\[dt]?frac\s?(?:\{[^{}]{1,60}\}|\d)\s?(?:\{[^{}]{1,60}\}|\d)"
NUMBER = re.compile(
    rf"[$\u20ac\u00a3]?\s?[-+\u2212]?(?:(?:{_PLAIN_NUMBER})(?:[eE][-+]?\d{{1,3}}(?![\w.]))?(?::\d+)*(?:\s*/\s*\d+(?:\.\d+)?)?"
    rf"|{_FRACTION}|{_ROOT}|\u03c0|\\pi\b)(?:\s?(?:\u03c0|\\pi\b|pi\b|{_ROOT}|{_FRACTION}))*(?:\s?/\s?\d+)?"
    r"(?:\s(?:hundred|thousand|[mbtr]+illion)\b)*\s?(?:\\?%)?"
)
COMPARISON = re.compile(
    r"[<>\u2264\u2265\u2260\u2248]|!=|\\(?:leq?|geq?|neq?|lt|gt|leqslant|geqslant|approx|in|equiv|to)"
    r"(?![A-Za-z])"
)

# Text before a number that makes the number part of another value: an operator, an index, a bound, a function.
_BOUND = re.compile(
    r"(?:[\w)\]%}]\s{0,9}[-+/\u2212\u00d7\u00b7\u00f7]|[\w)}]\s{0,9}(?:\*|\\times|\\cdot)|[\^_<>\u2264\u2265\u2260]|!=|[A-Za-z]\("
    r"|\\[A-Za-z]+\s?[\{(]?)\s{0,9}$|[A-Za-z_]$"
)
_CHANGED_BEFORE = re.compile(
    r"(?:\b(?:sqrt|root|roots|log|ln|exp|sin|cos|tan|half|half of|twice|double|triple|thrice|third of|quarter of|times"
    r"|plus|than|least|most|under|over|above|below|exceeds?|(?:is|are|was|be|of) up to|almost|nearly|never|not|neither"
    r"|nor|divided by|multiplied by"
    r"|out of|power|power of|mod|modulo|base|factorial of|square of|cube of|reciprocal of|inverse of|opposite of"
    r"|negation of|instead of|except|without)|n['\u2019]t(?:\s{1,3}(?:be|equal|equal to|exactly))?"
    r"|\d\s{1,3}(?:to|in|by|of every)|\d\s{1,3}(?:minus|negative))\s{1,3}$",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(r"\b(?:negative|minus)\s{1,3}$", re.IGNORECASE)
_CHANGED_AFTER = re.compile(
    r"[(\[](?=[\dA-Za-z]\b)|\s{0,3}(?:[-+*/\u2212\u00d7\u00b7\u00f7]\s{0,3}(?:[\d(\\\u221a\u03c0$]|[A-Za-z]\b)"
    r"|[<>\u2264\u2265\u2260^_]|!=|\\(?:times|cdot|leq?|geq?|neq?|pm)"
    r"|(?:plus|minus|divided|multiplied|mod|modulo|choose|squared|cubed|doubled|tripled|halved|factorial|dozens?|lakhs?"
    r"|crores?|gross|scores?|half(?!-)|halves|quarter|(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth)"
    r"(?:s|(?= of\b)|(?=[.*\s]*$))|pi|point|percent off|in \d|out of \d|to \d|or (?:more|less|fewer|so)|and a half"
    r"|times(?=\s{1,3}(?:[\d$\\(]|(?:that|as much|two|three|four|five|six|seven|eight|nine|ten|[b-hj-z])\b))"
    r"|(?:is|was) (?:wrong|incorrect|not)|does not|is(?:n't|n\u2019t))\b)",
    re.IGNORECASE,
)
_LETTERS_AFTER = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
_CHANCE = re.compile(r"\b(?:probability|chance|odds|likelihood)\b", re.IGNORECASE)
_ONE_IN = re.compile(r"(\d{1,9}) (?:in|out of) (\d{1,9})[.*\s]*$")
_RATIO = re.compile(r"(\d{1,9}) to (\d{1,9})[.*\s]*$")


def changed(sentence: str, start: int, end: int, units: frozenset[str]) -> bool:
    """True when the number is only part of a sum, a power, a bound, a name or a phrase."""
    start = end - len(sentence[start:end].lstrip("$\u20ac\u00a3 "))
    # "6-7" is a difference, but "is -7" contains a negative number.
    signed = sentence[start] in "-+\u2212" and start > 0 and not sentence[start - 1].isspace()
    before = sentence[max(0, start - 48) : start] + (sentence[start] if signed else "")
    if _BOUND.search(before) or _CHANGED_BEFORE.search(before) or _CHANGED_AFTER.match(sentence, end):
        return True
    letters = _LETTERS_AFTER.match(sentence, end) if not sentence[end - 1].isspace() else None
    return letters is not None and letters.group() not in units


def negated(sentence: str, start: int) -> bool:
    """True when "negative" or "minus" stands before the number."""
    return _NEGATIVE.search(sentence[max(0, start - 20) : start]) is not None


def proportion(sentence: str) -> str | None:
    """Read a chance or ratio at the end of a sentence: `1/5` for "1 in 5", `1 to 5` for a ratio in words; else None."""
    ratio = _RATIO.search(sentence[-40:])
    if ratio is not None:
        return f"{ratio[1]} to {ratio[2]}" if re.search(r"\bratio\b|\bodds\b", sentence, re.IGNORECASE) else None
    chance = _ONE_IN.search(sentence[-40:])
    return f"{chance[1]}/{chance[2]}" if chance is not None and _CHANCE.search(sentence) else None


def formulas(sentence: str) -> list[re.Match[str]]:
    """Matches of the formulas in dollars or LaTeX brackets."""
    return list(FORMULA.finditer(sentence)) if "$" in sentence or "\\" in sentence else []


def inside(formula: re.Match[str]) -> str:
    """A formula without its dollars."""
    return str(next(part for part in formula.groups() if part)).strip()


def masked(sentence: str) -> str:
    """The sentence with its formulas replaced by NUL characters, so that only words outside formulas match."""
    return (
        FORMULA.sub(lambda formula: "\0" * len(formula.group()), sentence)
        if "$" in sentence or "\\" in sentence
        else sentence
    )
