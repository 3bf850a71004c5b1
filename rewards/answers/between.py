"""Decides whether the text between two boxes or tags joins them to one answer, and finds the name of the second value.

The text is cut into tokens from left to right. At each position, the first pattern that fits gives the token. No
character is read twice, so the time is linear.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rewards.mathematics.reading.latex_text import FONT

_NAME = r"(?:\\[a-z]{2,8}|[A-Za-z]{1,3})(?:_(?:\w|\{\w{1,8}\}))?'?(?:\(\w{1,4}\))?"
_NAMED = re.compile(rf"(?<![\w\\}})])({_NAME})\s{{0,3}}(?:=|\\approx\b|\u2248)\s{{0,3}}")
_NAMED_BEFORE = re.compile(rf"(?<![\w\\}}).+*/^-])({_NAME})\s{{0,3}}(?:=|\\approx|\u2248)[\s$]{{0,3}}$")
_CONNECTIVE = re.compile(
    r"\b(?:and|or|else|either|also|maybe|perhaps|possibly|alternatively|otherwise|respectively)\b", re.IGNORECASE
)
_PART = re.compile(r"\(?\bfor\s{1,3}(?:part|case|question|item)\s{1,3}\(?\w\)?\)?", re.IGNORECASE)
_ANOTHER = re.compile(
    r"\b(?:the|its)\s+(?:other|first|second|third|fourth|last|next|remaining|larger|smaller)\b"
    r"(?:\s{1,3}(?:one|root|solution|value|answer|number)\b)?(?:\s{1,3}(?:is|equals)\b)?",
    re.IGNORECASE,
)
_NUMBERING = re.compile(
    r"(?:\b(?:option|case|answer|solution|possibility|candidate|part)s?\s{0,9})?"
    r"\(?\b(?:\d{1,2}|[a-z])\b\)?\s{0,9}[:.)]",
    re.IGNORECASE,
)
_PUNCTUATION = re.compile(r"[\s$.,;/&|*]|\\(?:[,;: ()\[\]]|q?quad\b)|(?<=\n)-")
# Words that show that the values around them are only candidates for the answer.
_DOUBT = re.compile(
    r"[^.!?\n]{0,80}\b(?:or(?!\s+rather)|vs|versus|maybe|perhaps|possibly|might|may\s+(?:also\s+)?be|alternatively)\b"
    r"[^.!?\n]{0,80}",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Link:
    """How two values are joined: the name of the second value (`x` in `x = `), and whether a word joins the values."""

    name: str = ""
    worded: bool = False


def link(between: str) -> Link | None:
    """Return how the text between two values joins them; None if the values are separate answers."""
    plain = FONT.sub(r" \1 ", between) if "{" in between else between
    at, name, worded = 0, "", False
    while at < len(plain):
        if word := _CONNECTIVE.match(plain, at) or _PART.match(plain, at) or _ANOTHER.match(plain, at):
            worded = True
        elif word := _NAMED.match(plain, at):
            # A text with two names is an equation, and so a separate value.
            if name:
                return None
            name = word[1]
        else:
            word = _NUMBERING.match(plain, at) or _PUNCTUATION.match(plain, at)
        if word is None:
            return Link(worded=True) if _DOUBT.fullmatch(between) is not None else None
        at = word.end()
    return Link(name, worded)


def name_before(text: str) -> str:
    """Return the name that the end of a text gives to the next value (`x` in `so $x = `); empty if there is no name."""
    named = _NAMED_BEFORE.search(text[-40:])
    return named[1] if named is not None else ""


def together(values: list[str], names: list[str]) -> str:
    """Join several values to one answer. If all names differ, the names are kept, so that the order does not matter."""
    letters = {re.split(r"[_('\d]", name, maxsplit=1)[0] for name in names}
    if "" not in names and len(letters) == len(names) and not any("=" in value for value in values):
        values = [f"{name} = {value}" for name, value in zip(names, values, strict=True)]
    return ", ".join(values) if all(value.strip() for value in values) else ""
