"""Where a completion states its final answer: the stage before any parsing.

Every search here is linear in the text and knows nothing of mathematics. A place that is present but unreadable is
still the place: callers must not go on looking elsewhere, or a policy learns to hide a second answer there.
"""

from __future__ import annotations

import re

from rewards.answers.between import Link, link, name_before, together
from rewards.answers.prose import negated

_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s+(\\?[A-Za-z]+\b(?!\s*\{)|[-+]?[\d.,/]*\d|[A-Za-z])")
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_NUMBER = re.compile(
    r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+(?![\d.]))?|[-+\u2212]?\.\d+"
)
# What around a number makes another one of it, or none.
_DENIED = re.compile(r"\b(?:not|isn't|isn\u2019t)(?:\s{1,3}equal\s{1,3}to)?\s{1,3}$", re.IGNORECASE)
_SCALE = re.compile(r"\s{0,3}(?:hundreds?|thousands?|[mbtr]+illions?|dozens?|lakhs?|crores?)\b", re.IGNORECASE)
# A box further back than this many unclosed ones is not looked for, so that a text of nothing but "\boxed{" stays
# linear.
_UNCLOSED_BOXES_TRIED = 4
# Values of one answer are near each other, and few.
_NEAR, _MOST_JOINED = 300, 16


def _closing(text: str, start: int, end: int | None = None) -> int:
    """Index of the brace that closes the group opened just before `start`, or -1."""
    first = text.find("}", start, end)
    within = text[start:first]
    if first < 0 or ("{" not in within and "\\" not in within):
        return first
    depth = 1
    for match in _BRACE.finditer(text, start, len(text) if end is None else end):
        token = match.group()
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return -1


def _box_before(text: str, end: int, least: int = 0) -> int:
    r"""Where the last `\boxed` or `\fbox` before `end` begins, or -1."""
    while (end := text.rfind("box", least, end)) >= 0:
        if text.startswith("\\boxed", end - 1):
            return end - 1
        if text.startswith("\\fbox", end - 2):
            return end - 2
    return -1


def last_box(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}`, or None.

    Boxes that nothing, a connective such as "and", "or" or "maybe", punctuation, numbering ("Option 2:") or a name
    (`x = `) stands between are one answer with several values and come back joined by commas, an empty one among them
    as the empty text; a box that follows other words replaces the earlier ones.
    """
    end = len(text)
    for _ in range(_UNCLOSED_BOXES_TRIED):
        start = _box_before(text, end)
        if start < 0:
            return None
        opening = _BOX.match(text, start)
        if opening is not None:
            close = _closing(text, opening.end())
            if close >= 0:
                return _with_neighbours(text, start, text[opening.end() : close])
        else:
            bare = _BARE_BOX.match(text, start)
            if bare is not None:
                return bare.group(1)
        end = start
    return None


def has_unclosed_box(text: str) -> bool:
    r"""True when the last `\boxed{` is never closed: an answer was begun there, and nothing else stands for it."""
    openings = list(_BOX.finditer(text, max(_box_before(text, len(text)), 0)))
    return bool(openings) and _closing(text, openings[-1].end()) < 0


def _with_neighbours(text: str, start: int, content: str) -> str:
    """Join to `content` the boxes directly before `start` that are values of the same answer."""
    values, names = [content], []
    while len(values) < _MOST_JOINED:
        # Only a short distance is looked at: neighbours are neighbours.
        previous = _box_before(text, start, max(0, start - _NEAR))
        opening = _BOX.match(text, previous) if previous >= 0 else None
        if opening is None:
            break
        close = _closing(text, opening.end(), start)
        joined = link(text[close + 1 : start]) if close >= 0 else None
        if joined is None or not _named_alike(joined, text[:previous]):
            break
        values.append(text[opening.end() : close])
        names.append(joined.name)
        start = previous
    if len(values) == 1:
        return content
    names.append(name_before(text[max(0, start - 40) : start]))
    return together(values[::-1], names[::-1])


def _named_alike(joined: Link, before: str) -> bool:
    """`2x = [6], x = [3]` are two steps; `x = [2], y = [3]`, and what a word joins, are two values."""
    return not joined.name or joined.worded or bool(name_before(before[-40:]))


def answer_tag(text: str) -> str | None:
    """The content of the last complete `<answer>...</answer>`, stripped, or None; see `tagged_answer`."""
    found = tagged_answer(text)
    return found[0] if found is not None else None


def tagged_answer(text: str) -> tuple[str, int] | None:
    """The content of the last complete `<answer>...</answer>`, stripped, and where its closing tag begins; or None.

    As with boxes, answers that only a connective, punctuation or numbering stands between are one with several values,
    joined by commas; the same one told twice is told once.
    """
    # Not by searching text.lower(): lower case may be longer than the text, and its places are not the text's.
    marks = list(_ANSWER_TAG.finditer(text)) if "</" in text else []
    contents: list[str] = []
    begin = end = 0
    for at in range(len(marks) - 1, 0, -1):
        if not marks[at].group(1) or marks[at - 1].group(1):
            continue
        if contents and (begin - marks[at].end() > _NEAR or link(text[marks[at].end() : begin]) is None):
            break
        end, begin = end or marks[at].start(), marks[at - 1].start()
        contents.append(text[marks[at - 1].end() : marks[at].start()].strip())
        if len(contents) == _MOST_JOINED:
            break
    distinct = list(dict.fromkeys(reversed(contents)))
    return (", ".join(distinct) if all(distinct) else "", end) if contents else None


def hash_mark(text: str) -> str | None:
    """What follows the last `####` at the start of a line (GSM8K's mark), or None."""
    at = len(text)
    while (at := text.rfind("####", 0, at)) >= 0:
        at = text.rfind("\n", 0, at) + 1
        end = text.find("\n", at)
        line = text[at : end if end >= 0 else None].strip()
        if line.startswith("####") and not line.startswith("#####"):
            return line[4:].strip()
    return None


def marked_answer(reference: str) -> str:
    """The answer that a data set's worked solution marks, after its last `####` or in its last box; else all of it."""
    if "####" not in reference and "box" not in reference:
        return reference
    marked = hash_mark(reference) if "####" in reference else last_box(reference)
    return reference if marked is None else marked


def last_number(text: str) -> str | None:
    """The last number written in the text, with its sign, its separators and a word that scales it, or None.

    A number that is denied ("it is not 5") comes back with the denial, which is no number.
    """
    # Only the tail is read: a number further from the end than this is not a final answer.
    tail = text[-2000:]
    numbers = list(_NUMBER.finditer(tail))
    if not numbers:
        return None
    found = numbers[-1]
    before, number = tail[max(0, found.start() - 24) : found.start()], found.group()
    scale = _SCALE.match(tail, found.end())
    number += scale.group() if scale is not None else ""
    if negated(tail, found.start()) and number[0].isdigit():
        return "-" + number
    return "not " + number if _DENIED.search(before) else number
