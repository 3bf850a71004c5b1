"""Answers that stand in prose: after "answer is", "####" or in `<answer>`, or at the end of the last sentence."""

from __future__ import annotations

import re

from rewards.find import tagged_answer
from rewards.spelled import number_of

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
    r"[$\u20ac\u00a3]?\s?[-+\u2212]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?::\d+)*"
    r"(?:\s*/\s*\d+(?:\.\d+)?)?(?:\s(?:hundred|thousand|[mbtr]+illion)\b)*\s?(?:\\?%)?"
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
# A sentence that names a second value as well: all its values are candidates.
_DOUBT = re.compile(
    r"\b(?:may(?:\s+also)?\s+be|might|maybe|perhaps|possibly|also possible|(?:un|not )sure)\b", re.IGNORECASE
)
# What before a number makes it part of something larger: an operator behind a value, an index, a bound, a function.
_BOUND = re.compile(r"(?:[\w)\]%]\s*[-+/\u2212\u00d7\u00b7\u00f7]|[\w)]\s*\*|[\^_<>\u2264\u2265]|[A-Za-z]\()\s*$")
# A remark behind the value of a statement: "10, as desired", "10 (see above)", "10 since 5 + 5 = 10".
_REASON = re.compile(r"(?<=[\d$)}\]%]),?\s{1,3}(?:since|because)\b")
_REMARK = re.compile(r"(?<=[\d$)}\]%])\s{0,3}(?:[,;(]|\band\b)")
_NO_WORDS = re.compile(r"[^\sA-Za-z,()'.-]")
_WORD = re.compile(r"[A-Za-z]+")
_NO_REMARK = re.compile(
    r"\b(?:or|not|no|never|maybe|perhaps|possibly|if|unless|when|where|either|but|modulo?|more|less|fewer|over|above|below"
    r"|under|up|down|infinity|negative|plus|minus|times|half|percent|hundred|thousand|[mbtr]+illion|[B-HJ-Zb-z])\b|n't\b"
)
_ASSIGNED = re.compile(r"\s*[A-Za-z](?:_\w|_\{\w+\})?\s*=[^=]+")
_MOST_LISTED = 32


def stated(text: str) -> str | None:
    """What the last mark of an answer states; None where there is no mark.

    A mark's statement goes to the end of its sentence, or to the next mark; where the rest of its line is empty, the
    next line that is not is the statement. In `<answer>` tags what they hold is, and of it what a mark in it states.
    """
    tail = text[-_TAIL:]
    tagged = tagged_answer(tail)
    marks = [mark for mark in _MARK.finditer(tail) if tagged is None or mark.start() >= tagged[1]]
    least = 1 if tagged is None else 0
    while len(marks) > least and _APPROVAL.match(tail, marks[-1].end()):
        marks.pop()
    if marks:
        return _statement(tail, marks[-1])
    if tagged is None:
        return None
    inner = list(_MARK.finditer(tagged[0]))
    return _statement(tagged[0], inner[-1]) if inner else tagged[0]


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
    sentence = _without_remark(_SENTENCE_END.split(rest.strip(), maxsplit=1)[0].strip().strip("*").strip())
    formulas = [next(part for part in found if part) for found in _MATHS.findall(sentence)]
    if len(formulas) == 1 and not re.search(r"\b(?:or|not|and|maybe|perhaps)\b|,", _MATHS.sub("", sentence)):
        return str(formulas[0]).strip()
    return sentence.rstrip(".\u3002")


def _without_remark(sentence: str) -> str:
    reason = _REASON.search(sentence)
    sentence = sentence[: reason.start()] if reason is not None else sentence
    last = max((match.end() for match in _NO_WORDS.finditer(sentence)), default=0)
    remark = next((match for match in _REMARK.finditer(sentence) if match.end() >= last), None)
    if remark is None:
        return sentence
    words = _WORD.findall(sentence[remark.end() :])
    plain = len(words) > 1 and not _NO_REMARK.search(sentence, remark.end())
    return sentence[: remark.start()] if plain and all(number_of(word) is None for word in words) else sentence


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
    found = sorted(places + outside)
    listed = found if _DOUBT.search(sentence) else _list_around(sentence, found, places[-1] if places else values[-1])
    if any(_is_part(sentence, span) for span in listed if span not in places):
        return None
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


def _is_part(sentence: str, span: tuple[int, int]) -> bool:
    """True for a number that is only part of what stands there: of a sum, a power, a bound."""
    before = sentence[: span[0]] + (sentence[span[0]] if sentence[span[0]] in "-+\u2212" else "")
    return _BOUND.search(before) is not None


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
