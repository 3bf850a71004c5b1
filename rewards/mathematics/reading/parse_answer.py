"""Reads the text of an answer as a node. Numerals in a base, dates and times of day are read without tokens."""

from __future__ import annotations

import re
from functools import lru_cache

from rewards.mathematics.nodes import (
    Apply,
    Constant,
    Expression,
    Node,
    Number,
    RatioNode,
    Symbol,
    Text,
    Unreadable,
    children,
)
from rewards.mathematics.reading.answer_parser import MACROS, AnswerParser, words
from rewards.mathematics.reading.families import family, parameter_in
from rewards.mathematics.reading.latex_text import normalise
from rewards.mathematics.reading.parse_primary import based
from rewards.mathematics.reading.respelled import in_another_notation, meant, respell
from rewards.mathematics.reading.spelled import without_gloss
from rewards.mathematics.reading.tokens import tokenise
from rewards.mathematics.reading.vectors import with_components

# In a chain such as 1/2/3/4, each sign adds a level to the tree. Deeper trees could exceed Python's stack.
MAX_TREE_DEPTH = 120
_LEAVES = (Number, Symbol, Constant, Text)
_ON_SETS = frozenset(("union", "intersection", "difference", "neg", "pm"))
_MONTH_NAMES = (
    "january jan|february feb|march mar|april apr|may|june jun|july jul|august aug|september sep sept|october oct|"
    "november nov|december dec"
)
_MONTHS = {name: number for number, names in enumerate(_MONTH_NAMES.split("|"), 1) for name in names.split()}
_MONTH = re.compile("|".join(name for name in _MONTHS if len(name) == 3), re.IGNORECASE)
# A quick test for `6 PM`, `3 to 4`, `0xFF` and `DNE`, which few other answers pass.
_OTHER_NOTATION = re.compile(r"[mM]|to|0[xX]|(?<![A-Za-z])[dD]")
_DATE = re.compile(
    r"(?:(?P<month>[a-z]+)\.? (?P<day>\d{1,2})(?:st|nd|rd|th)?"
    r"|(?P<day2>\d{1,2})(?:st|nd|rd|th)? (?:of )?(?P<month2>[a-z]+)\.?)"
    r"(?:,? (?P<year>\d{4}))?"
)
_CLOCK = re.compile(r"(\d{1,2}) ?: ?(\d{2})(?: ?: ?(\d{2}))?\s*(?:([ap])\.? ?m\.?)?", re.IGNORECASE)
_BASED = re.compile(r"\(?(?:\\text\{)?(?=[0-9A-F]*\d|[0-9A-F]{2}|(?<=\{)[A-F]\}_\{?1)([0-9A-F]+)\}?\)?_\{?(\d{1,2})\}?")


def parse(text: str) -> Node:
    """Read an answer.

    Raises:
        Unreadable: the answer has no known form, or is too large.
    """
    try:
        return _parse(text)
    except RecursionError:
        raise Unreadable("nested too deep") from None


def _parse(text: str) -> Node:
    plain = respell(without_gloss(normalise(text)))
    if not plain:
        raise Unreadable("an empty answer")
    special = _special(plain)
    if special is not None:
        return special
    spoken = parameter_in(plain)
    if spoken is not None:
        try:
            return _checked(family(AnswerParser(tokenise(spoken[0])).answer(), spoken[1]))
        except Unreadable:
            pass  # the phrase about the parameter may belong to the value
    tokens = tokenise(plain)
    has_words = any(token.kind in ("text", "join", "unit") for token in tokens)
    try:
        node = AnswerParser(tokens).answer()
    except Unreadable:
        if has_words:
            return meant(words(plain))
        raise
    if isinstance(node, Text):
        return meant(node.words)
    return _checked(with_components(node) if "\\hat" in plain else node)


@lru_cache(maxsize=4096)
def parse_gold(text: str) -> Node:
    """Like `parse`, with a cache: the gold answer of a prompt is read once for all completions of the prompt."""
    return parse(text)


def _checked(node: Node) -> Node:
    """Refuse sets and text inside arithmetic, which have no meaning, and trees that are too deep."""
    level, depth = [node], 0
    while level:
        depth += 1
        if depth > MAX_TREE_DEPTH:
            raise Unreadable(f"operations nested more than {MAX_TREE_DEPTH} deep")
        following: list[Node] = []
        for below in level:
            if isinstance(below, Apply):
                parts = below.args
                # Sets can be united, and quantities can have a sign; other operations need expressions.
                if below.op not in _ON_SETS:
                    for part in parts:
                        if not isinstance(part, Expression):
                            raise Unreadable("a list, a text or a unit inside arithmetic")
                following.extend(parts)
            elif not isinstance(below, _LEAVES):
                following.extend(children(below))
        level = following
    return node


def _special(plain: str) -> Node | None:
    """Read numerals in a base, dates, and times of day, before the text is cut into tokens; None for other text."""
    if len(plain) < 80 and _OTHER_NOTATION.search(plain):
        node = in_another_notation(plain, MACROS.sub("", plain).strip())
        if node is not None:
            return node
    if "_" in plain:
        numeral = _BASED.fullmatch(plain.replace(" ", ""))
        if numeral is not None and 2 <= int(numeral[2]) <= 36:
            return based(numeral[1], int(numeral[2]))
    if ":" in plain:
        clock = _CLOCK.fullmatch(MACROS.sub("", plain).strip())
        if clock is not None:
            return _clock(clock)
    if len(plain) < 60 and _MONTH.search(plain):
        date = _DATE.fullmatch(words(plain).strip())
        if date is not None:
            month = _MONTHS.get(date["month"] or date["month2"])
            if month is not None:
                return Text(f"date {date['year'] or ''} {month} {int(date['day'] or date['day2'])}")
    return None


def _clock(match: re.Match[str]) -> Node:
    hours, minutes, seconds = int(match[1]), int(match[2]), int(match[3] or 0)
    items = tuple(AnswerParser(tokenise(piece)).answer() for piece in match.groups()[:3] if piece)
    if match[4] is not None:
        hours = hours % 12 + (12 if match[4].lower() == "p" else 0)
    possible = hours < 24 and minutes < 60 and seconds < 60
    if possible and match[2].startswith("0"):
        items = ()  # 7:05 can only be a time, not a ratio of seven to five
    if match[4] is not None and not possible:
        raise Unreadable("a time that no clock shows")
    return RatioNode(items, hours * 3600 + minutes * 60 + seconds if possible else None, match[4] is not None)
