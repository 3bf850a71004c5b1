"""Finds the final answer of a completion, before any parsing.

Every search is linear in the text and uses no mathematics. If a place (such as a box) is present but its content cannot
be read, callers must not look in other places. Otherwise a policy would learn to hide a second answer in those places.
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
# Characters and words around a number that change its value, or show that the text is not a number.
_DENIED = re.compile(r"\b(?:not|isn't|isn\u2019t)(?:\s{1,3}equal\s{1,3}to)?\s{1,3}$", re.IGNORECASE)
_SCALE = re.compile(r"\s{0,3}(?:hundreds?|thousands?|[mbtr]+illions?|dozens?|lakhs?|crores?)\b", re.IGNORECASE)
# Greatest number of unclosed boxes that are skipped. If there were no limit, a text that only repeats "\boxed{" would
# take quadratic time.
_UNCLOSED_BOXES_TRIED = 4
# Greatest distance of two boxes of one answer, in characters, and greatest number of boxes of one answer.
_NEAR, _MOST_JOINED = 300, 16


def _closing(text: str, start: int, end: int | None = None) -> int:
    """Return the index of the brace that closes the group opened just before `start`; -1 if there is no such brace."""
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
    r"""Return the index of the last `\boxed` or `\fbox` before `end`; -1 if there is none."""
    while (end := text.rfind("box", least, end)) >= 0:
        if text.startswith("\\boxed", end - 1):
            return end - 1
        if text.startswith("\\fbox", end - 2):
            return end - 2
    return -1


def last_box(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}`, or None.

    Several boxes are values of one answer if the text between them is empty, a connective such as "and", "or" or
    "maybe", punctuation, numbering ("Option 2:") or a name (`x = `). Their contents are then joined by commas; if one
    of the boxes is empty, the answer is empty. A box that follows other words replaces the earlier boxes.
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
    r"""True when the last `\boxed{` is never closed. Then no other text may count as the answer."""
    openings = list(_BOX.finditer(text, max(_box_before(text, len(text)), 0)))
    return bool(openings) and _closing(text, openings[-1].end()) < 0


def _with_neighbours(text: str, start: int, content: str) -> str:
    """Join to `content` the boxes directly before `start` that are values of the same answer."""
    values, names = [content], []
    while len(values) < _MOST_JOINED:
        # Values of one answer are near each other, so only a short distance is searched.
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
    """True for values of one answer: `x = [2], y = [3]`, or values joined by a word.

    `2x = [6], x = [3]` are two steps.
    """
    return not joined.name or joined.worded or bool(name_before(before[-40:]))


def answer_tag(text: str) -> str | None:
    """The stripped content of the last complete `<answer>...</answer>`, or None; see `tagged_answer`."""
    tagged = tagged_answer(text)
    return tagged[0] if tagged is not None else None


def tagged_answer(text: str) -> tuple[str, int] | None:
    """The stripped content of the last complete `<answer>...</answer>`, and the index of its closing tag; or None.

    As with boxes, tagged answers that only a connective, punctuation or numbering separates are values of one answer,
    and are joined by commas. A repeated value counts once.
    """
    # Do not search text.lower(): its result may be longer than the text, so its indices may differ.
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
    """The text after the last `####` at the start of a line (the mark of the answer in GSM8K), or None."""
    at = len(text)
    while (at := text.rfind("####", 0, at)) >= 0:
        at = text.rfind("\n", 0, at) + 1
        end = text.find("\n", at)
        line = text[at : end if end >= 0 else None].strip()
        if line.startswith("####") and not line.startswith("#####"):
            return line[4:].strip()
    return None


def marked_answer(reference: str) -> str:
    """Return the answer of a worked solution: the text after its last `####`, or in its last box, or the whole text."""
    if "####" not in reference and "box" not in reference:
        return reference
    marked = hash_mark(reference) if "####" in reference else last_box(reference)
    return reference if marked is None else marked


def last_number(text: str) -> str | None:
    """The last number written in the text, with its sign, its separators and a word that scales it; or None.

    A denied number ("it is not 5") is returned together with the denial, so that the caller cannot read it as a number.
    """
    # Only the tail is read: a number far from the end is not a final answer.
    tail = text[-2000:]
    numbers = list(_NUMBER.finditer(tail))
    if not numbers:
        return None
    match = numbers[-1]
    before, number = tail[max(0, match.start() - 24) : match.start()], match.group()
    scale = _SCALE.match(tail, match.end())
    number += scale.group() if scale is not None else ""
    if negated(tail, match.start()) and number[0].isdigit():
        return "-" + number
    return "not " + number if _DENIED.search(before) else number
