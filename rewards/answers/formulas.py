"""Removes the dollars in answers of several formulas, as data sets write them: `$69$,$84$`, `$x=0$ or $x=2$`."""

from __future__ import annotations

import re

_DOLLARS = re.compile(r"\\.|\$\$?", re.DOTALL)
_BETWEEN = re.compile(r"[\s,;.\u3001\uff0c&]*")
_MOST_FORMULAS = 100


def without_dollars(text: str) -> str:
    """The text without the dollars around its formulas; adjacent formulas are joined by commas.

    The text is unchanged if its dollars are currency signs, or do not form pairs.
    """
    marks = [mark for mark in _DOLLARS.finditer(text) if mark.group()[0] == "$"]
    if not marks or len(marks) % 2 or len(marks) > 2 * _MOST_FORMULAS:
        return text
    pieces: list[str] = []
    end = 0
    for opening, closing in zip(marks[::2], marks[1::2], strict=True):
        outside, inside = text[end : opening.start()], text[opening.end() : closing.start()]
        end = closing.end()
        # "$5 and $6" are amounts.
        if opening.group() != closing.group() or not inside.strip() or text[end : end + 1].isdigit():
            return text
        if opening.group() == "$" and outside.strip() == "" == text[end:].strip() and not pieces:
            return inside.strip()
        if _BETWEEN.fullmatch(outside):
            outside = ", " if pieces else ""
        pieces += [outside, inside.strip().strip(",;").strip()]
    return "".join([*pieces, text[end:]])
