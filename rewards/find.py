"""Where a completion states its final answer: the stage before any parsing.

Every search here is linear in the text and knows nothing of mathematics. A place that is present but unreadable is
still the place: callers must not go on looking elsewhere, or a policy learns to hide a second answer there.
"""

from __future__ import annotations

import re

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s+(\\?[A-Za-z]+\b(?!\s*\{)|[-+]?[\d.,/]*\d|[A-Za-z])")
# What may stand between boxes that are values of one answer, or candidates for it: nothing, connectives, numbering.
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$.,;/&|*]|\\(?:[,;: ()\[\]]|q?quad)|\\text\s*\{\s*(?:and|or)\s*\}"
    r"|\b(?:and|or|else|either|also|maybe|perhaps|possibly|alternatively|otherwise)\b"
    r"|(?:\b(?:option|case|answer|solution|possibility|candidate|part)s?\s*)?\(?\b(?:\d{1,2}|[a-z])\)?\s*[:.)]"
    r"|(?<=\n)[-*])*",
    re.IGNORECASE,
)
# Words within one sentence that make the boxes around them candidates.
_DOUBT = re.compile(
    r"[^.!?\n]{0,80}\b(?:or(?!\s+rather)|vs|versus|maybe|perhaps|possibly|might|may\s+(?:also\s+)?be|alternatively)\b[^.!?\n]{0,80}",
    re.IGNORECASE,
)
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_HASH = re.compile(r"^[ \t]*####[ \t]*(.*?)[ \t]*$", re.MULTILINE)
_NUMBER = re.compile(
    r"[-+\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+(?![\d.]))?|[-+\u2212]?\.\d+"
)
# A box further back than this many unclosed ones is not looked for, so that a text of nothing but "\boxed{" stays
# linear.
_UNCLOSED_BOXES_TRIED = 4
# Values of one answer are near each other, and few.
_NEAR, _MOST_JOINED = 300, 16


def after_thinking(text: str) -> str | None:
    """The text after the last `</think>`; the whole text where there are no tags; None where thinking never ended."""
    closed = text.rfind(THINK_CLOSE)
    if closed >= 0:
        text = text[closed + len(THINK_CLOSE) :]
    return None if THINK_OPEN in text else text


def _closing(text: str, start: int) -> int:
    """Index of the brace that closes the group opened just before `start`, or -1."""
    depth = 1
    for match in _BRACE.finditer(text, start):
        token = match.group()
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return -1


def last_box(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}`, or None.

    Boxes that nothing, a connective such as "and", "or" or "maybe", punctuation or numbering ("Option 2:") stands
    between are one answer with several values and come back joined by commas, an empty one among them as the empty
    text; a box that follows other words replaces the earlier ones.
    """
    end = len(text)
    for _ in range(_UNCLOSED_BOXES_TRIED):
        start = max(text.rfind("\\boxed", 0, end), text.rfind("\\fbox", 0, end))
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
    r"""True where the last `\boxed{` is never closed: an answer was begun there, and nothing else stands for it."""
    openings = list(_BOX.finditer(text, max(text.rfind("\\boxed"), text.rfind("\\fbox"), 0)))
    return bool(openings) and _closing(text, openings[-1].end()) < 0


def _with_neighbours(text: str, start: int, content: str) -> str:
    """Join to `content` the boxes directly before `start` that only a connective separates from it."""
    values = [content]
    while len(values) < _MOST_JOINED:
        previous = text.rfind("\\boxed", 0, start)
        opening = _BOX.match(text, previous) if previous >= 0 else None
        # Only a short distance is looked at: neighbours are neighbours.
        if opening is None or start - previous > _NEAR:
            break
        close = _closing(text[:start], opening.end())
        if close < 0 or not _joined(text[close + 1 : start]):
            break
        values.append(text[opening.end() : close])
        start = previous
    return ", ".join(reversed(values)) if all(value.strip() for value in values) else ""


def _joined(between: str) -> bool:
    return _BETWEEN_BOXES.fullmatch(between) is not None or _DOUBT.fullmatch(between) is not None


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
    marks = list(_ANSWER_TAG.finditer(text))
    contents: list[str] = []
    begin = end = 0
    for at in range(len(marks) - 1, 0, -1):
        if not marks[at].group(1) or marks[at - 1].group(1):
            continue
        if contents and (begin - marks[at].end() > _NEAR or not _joined(text[marks[at].end() : begin])):
            break
        end, begin = end or marks[at].start(), marks[at - 1].start()
        contents.append(text[marks[at - 1].end() : marks[at].start()].strip())
        if len(contents) == _MOST_JOINED:
            break
    distinct = list(dict.fromkeys(reversed(contents)))
    return (", ".join(distinct) if all(distinct) else "", end) if contents else None


def hash_mark(text: str) -> str | None:
    """What follows the last `####` at the start of a line (GSM8K's mark), or None."""
    if "####" not in text:
        return None
    found = _HASH.findall(text)
    return found[-1] if found else None


def last_number(text: str) -> str | None:
    """The last number written in the text, with its sign and separators, or None."""
    # Only the tail is read: a number further from the end than this is not a final answer.
    found = _NUMBER.findall(text, max(0, len(text) - 2000))
    return found[-1] if found else None
