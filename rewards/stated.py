"""Answers that stand in prose: after "answer is", "####" or in `<answer>`, or at the end of the last sentence."""

from __future__ import annotations

import re

from rewards.find import answer_tag_span

# Prose is read from its end; a final answer further from it than this is none.
_TAIL = 3000
_MARK = re.compile(
    r"^[ \t]*(?P<hash>####)[ \t]*"
    r"|\banswers?(?:[ \t]*\*\*)?[ \t]*(?:[:=]|\b(?:is|are)\b[ \t]*:?|\bwould be\b)[ \t]*(?:\*\*)?[ \t]*"
    r"|\u7b54\u6848[ \t]*(?:\u662f|\u4e3a|\u70ba)?[:\uff1a]?[ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
# "This answer is correct" states nothing; "this answer is wrong" takes back what was stated before.
_APPROVAL = re.compile(
    r"(?:indeed |also |therefore |thus )?(?:correct|right|reasonable|consistent|plausible|verified|confirmed|helpful)\b"
    r"(?![ \t]*[:=])",
    re.IGNORECASE,
)
_DISPLAY = re.compile(r"\s*(?:\$\$(?P<dollars>.+?)\$\$|\\\[(?P<brackets>.+?)\\\])", re.DOTALL)
# A dollar sign before an amount opens no formula: "$5 and got $3" has none.
_MATHS = re.compile(
    r"\$\$([^$]+)\$\$|\$(\s[^$]*|[^$\s](?:[^$]*[^$\s])?)\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)
_SENTENCE_END = re.compile(r"(?<=[^\d\s.][.!?\u3002])(?:\s|$)|(?<=\d[.!?\u3002])(?:\s|$)|\u3002")
_VALUE = re.compile(
    r"[$\u20ac\u00a3]?\s?[-+\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?\s?(?:\\?%)?"
)
_REFUSAL = re.compile(r"\b(?:not|no|cannot|can't|could not|couldn't|unknown|unable|sorry)\b", re.IGNORECASE)
# What may stand between the values of a list: nothing, commas, connectives, and a name for the next value. Between
# two candidates, other words may stand as well: "5 apples or 6 apples".
_LISTED = re.compile(
    r"\s+|(?:\s*(?:[,;/&]|\b(?:and|or|either|maybe|perhaps|possibly|also|else|then)\b))+"
    r"\s*(?:(?:[A-Za-z](?:_?\d)?|it|the other|another)\s*(?:=|\bis\b|\bbe\b)\s*)?",
    re.IGNORECASE,
)
_CANDIDATE = re.compile(
    r"(?:[^\w=]+[A-Za-z]+){0,3}[^\w=]+or\b(?!\s+(?:more|less|fewer))(?:[^\w=]+[A-Za-z]+){0,3}[^\w=]+"
)
_ASSIGNED = re.compile(r"\s*[A-Za-z](?:_\w|_\{\w+\})?\s*=[^=]+")
_MOST_LISTED = 32


def stated(text: str) -> str | None:
    """What the last mark of an answer states; None where there is no mark.

    A mark's statement goes to the end of its sentence, or to the next mark; where the rest of its line is empty, the
    next line that is not is the statement. In `<answer>` tags what they hold is, and of it what a mark in it states.
    """
    tail = text[-_TAIL:]
    span = answer_tag_span(tail)
    begin = span[1] if span is not None else 0
    marks = list(_MARK.finditer(tail, begin)) if begin == 0 else [m for m in _MARK.finditer(tail) if m.start() >= begin]
    while len(marks) > 1 - (span is not None) and _APPROVAL.match(tail, marks[-1].end()):
        marks.pop()
    if marks:
        return _statement(tail, marks[-1])
    if span is None:
        return None
    held = tail[span[0] : span[1]]
    inner = list(_MARK.finditer(held))
    return _statement(held, inner[-1]) if inner else held.strip()


def _statement(text: str, mark: re.Match[str]) -> str:
    """What follows the last mark."""
    rest = text[mark.end() :]
    line, _, after = rest.partition("\n")
    if mark["hash"] and line.strip():
        return line.strip()
    if not line.strip(" \t*:") or line.rstrip(" \t*").endswith(":"):
        if line.strip(" \t*:"):
            rest = after
        shown = _DISPLAY.match(rest.lstrip(" \t*:"))
        if shown is not None:
            return (shown["dollars"] or shown["brackets"]).strip()
        line = next((each for each in rest.splitlines() if each.strip(" \t*:")), "")
    return _of_sentence(line)


def _of_sentence(rest: str) -> str:
    """The statement up to its end; a single formula in it stands for the whole, words around it being prose."""
    sentence = _SENTENCE_END.split(rest.strip(), maxsplit=1)[0].strip().strip("*").strip()
    formulas = [next(part for part in found if part) for found in _MATHS.findall(sentence)]
    if len(formulas) == 1 and not re.search(r"\b(?:or|not|and|maybe|perhaps)\b|,", _MATHS.sub("", sentence)):
        return str(formulas[0]).strip()
    return sentence.rstrip(".\u3002")


def last_sentence(text: str) -> str | None:
    """The last value of the last sentence: the last formula's last side, else the last number.

    Values that commas or connectives join with it are one answer, a list. None where the sentence has no value, asks,
    or says that there is no answer.
    """
    lines = [line for line in text[-_TAIL:].splitlines() if line.strip()]
    if not lines:
        return None
    sentences = [piece for piece in _SENTENCE_END.split(lines[-1].strip()) if piece and piece.strip()]
    sentence = sentences[-1] if sentences else lines[-1]
    if _REFUSAL.search(sentence) or sentence.rstrip(" *").endswith("?"):
        return None
    formulas = list(_MATHS.finditer(sentence))
    places = [match.span() for match in formulas]
    values = [match.span() for match in _VALUE.finditer(sentence)]
    if not places and not values:
        return None
    outside = [span for span in values if not any(start <= span[0] < end for start, end in places)]
    listed = _list_around(sentence, sorted(places + outside), places[-1] if places else values[-1])
    named = len(listed) > 1 and bool(formulas)
    texts = [_value_at(sentence[start:end], named) for start, end in listed]
    return ", ".join(texts) if all(texts) else None


def _list_around(sentence: str, places: list[tuple[int, int]], chosen: tuple[int, int]) -> list[tuple[int, int]]:
    """The places that a list joins with the chosen one, itself among them."""
    first = last = places.index(chosen)
    while first > 0 and last - first < _MOST_LISTED and _joined(sentence[places[first - 1][1] : places[first][0]]):
        first -= 1
    while last + 1 < len(places) and _joined(sentence[places[last][1] : places[last + 1][0]]):
        last += 1
    return places[first : last + 1]


def _joined(between: str) -> bool:
    between = f" {between[:80]} "
    return _LISTED.fullmatch(between) is not None or _CANDIDATE.fullmatch(between) is not None


def _value_at(found: str, named: bool) -> str:
    """A value's text: of a formula its last side, or the whole equation where several name their values."""
    formula = _MATHS.fullmatch(found)
    if formula is None:
        return found.strip()
    inside = str(next(part for part in formula.groups() if part))
    return inside.strip() if named and _ASSIGNED.fullmatch(inside) else inside.rpartition("=")[2].strip()
