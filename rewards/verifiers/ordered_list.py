"""Answers that are a ranked list, such as "rank the genes that may cause these symptoms"."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from rewards.answers.stated import line_stated
from rewards.answers.thinking import final_text, thinking_tags
from rewards.mathematics.reading.latex_text import FONT
from rewards.verdict import Status, Verdict, error, unparseable
from rewards.verifiers.exact import check_places, first_place

# Items after this number are not read, because a list of everything is not a ranking.
_MAX_ITEMS = 200
_TAIL = 20_000
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\(?\d{1,3}[.):])\s*")
_NUMBERED = re.compile(r"(?:(?<=\s)|^)\(?(\d{1,3})[.):]\s+(?=\S)")
_AND = re.compile(r"\s+(?:and|&|then)\s+", re.IGNORECASE)
_LEADING_AND = re.compile(r"^\s*(?:and|&|then)\s+", re.IGNORECASE)


class OrderedList:
    """Compares a ranked list, with the best item first, with the reference list.

    Args:
        score: kind of score. `exact`: 1 for the same items in the same order, else 0. `f1`: the F1 score of the two
            sets. `rank`: discounted gain of the answer's first `cutoff` items, divided by the same gain of the
            reference (nDCG, Jarvelin and Kekalainen 2002). Places count from 0. The item at place i of the n places
            of the reference has the gain n - i. If it is at place j of the answer, this gain is multiplied by
            1 / log2(j + 2).
        cutoff: number of items of the answer that count for `rank`. By default this is the length of the reference, so
            that a longer list gains nothing.
        find: places to look in; see `rewards.verifiers.exact.Exact`.
        thinking: reasoning tags; see `rewards.verifiers.exact.Exact`.

    Items are separated by commas, semicolons, `>`, "and", line breaks or the numbers of the items (`1. A 2. B`).
    Numbering, bullets and case are ignored. An item of the reference that contains "and" is not split. A repeated item
    counts once, and `exact` does not accept it. A list whose first line follows "Answer:" is read to its end. The
    status is `correct` for a score of 1, `wrong` for 0 and `scored` for scores between them. The verdict's parts
    contain all three scores.
    """

    def __init__(
        self,
        score: Literal["exact", "f1", "rank"] = "exact",
        cutoff: int | None = None,
        find: Sequence[str] = ("answer_tag", "boxed", "stated"),
        thinking: Sequence[str | Sequence[str]] | None = None,
    ) -> None:
        if score not in ("exact", "f1", "rank"):
            raise ValueError(f"score must be 'exact', 'f1' or 'rank', got {score!r}")
        if cutoff is not None and cutoff < 1:
            raise ValueError(f"cutoff must be at least 1, got {cutoff!r}")
        self.score, self.cutoff, self.find, self.tags = score, cutoff, check_places(find), thinking_tags(thinking)

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return the verdict. It is an `error` if the reference has no items."""
        problem = self.reference_problem(reference, prompt)
        if problem:
            return error(problem)
        gold = _gold(reference)
        text = self._list_text(completion)
        answer = split_items(text, frozenset(gold)) if text is not None else []
        if not answer:
            return unparseable("no list found")
        shared = len(set(gold) & set(answer))
        parts = {
            "exact": float(answer == gold),
            "f1": 2 * shared / (len(gold) + len(set(answer))),
            "rank": _gain(answer[: self.cutoff or len(gold)], gold) / _gain(gold[: self.cutoff or len(gold)], gold),
        }
        value = parts[self.score]
        status = Status.CORRECT if value > 1 - 1e-12 else Status.SCORED if value > 0 else Status.WRONG
        return Verdict(value, status, f"{shared} of {len(gold)} items found", parts)

    def reference_problem(self, reference: Any, prompt: Mapping[str, Any]) -> str:
        """Why the reference cannot be used; empty when it can be used."""
        if reference is not None and not isinstance(reference, (str, Sequence)):
            return f"the reference {reference!r:.60} is neither a list nor text"
        return "" if _gold(reference) else "the reference list is empty"

    def _list_text(self, completion: str) -> str | None:
        """The text of the list; all lines under "Answer:" if the first line belongs to a list."""
        place, content = first_place(completion, self.find, self.tags)
        if place != "stated" or content is None:
            return content
        text = final_text(completion, self.tags) or ""
        if len(_at_numbers(line := line_stated(text))) > 1:
            return line
        below = _lines_below(text)
        return below if below and content.strip() in below else content


def _lines_below(text: str) -> str:
    """The bulleted or numbered lines under the last line that ends with a colon; empty if there are fewer than two."""
    lines = text[-_TAIL:].splitlines()
    heads = [at for at, line in enumerate(lines) if line.rstrip(" \t*").endswith(":")]
    items: list[str] = []
    for line in lines[heads[-1] + 1 :] if heads else ():
        if line.strip() and not _BULLET.match(line):
            break
        items += [line] if line.strip() else []
    return "\n".join(items) if len(items) > 1 else ""


def split_items(text: str, whole: frozenset[str] = frozenset()) -> list[str]:
    """The items of a written list, in order and in lower case. The items in `whole` are not cut at an "and"."""
    plain = FONT.sub(r" \1 ", text).strip().strip("[](){}$").replace("\\", " ")
    lines = [line for line in plain.splitlines() if line.strip()]
    pieces: list[str] = []
    for line in lines:
        numbered = _at_numbers(line)
        parts = numbered if len(numbered) > 1 else re.split(r"[,;>\u2192]", _BULLET.sub("", line))
        pieces += [_BULLET.sub("", _LEADING_AND.sub("", part)) for part in parts]
        if len(pieces) > _MAX_ITEMS:
            break
    return _plain(item for piece in pieces[:_MAX_ITEMS] for item in _parted(piece, whole))


def _at_numbers(line: str) -> list[str]:
    """Cut a line such as `1. A 2. B` before its numbers, if these are 1, 2, 3 and so on."""
    marks: list[re.Match[str]] = []
    for mark in _NUMBERED.finditer(line):
        if int(mark[1]) == len(marks) + 1:
            marks.append(mark)
    if not marks:
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(line)]
    return [line[mark.end() : end].strip().rstrip(",;") for mark, end in zip(marks, ends, strict=True)]


def _parted(piece: str, whole: frozenset[str]) -> list[str]:
    return [piece] if set(_plain([piece])) <= whole else _AND.split(piece)


def _gold(reference: Any) -> list[str]:
    items = split_items(reference) if isinstance(reference, str) else _plain(map(str, reference or ()))
    return list(dict.fromkeys(items))


def _plain(items: Iterable[str]) -> list[str]:
    plain = (" ".join(item.split()).strip("\"'`.*").casefold() for item in items)
    return [item for item in plain if item]


def _gain(items: Sequence[str], gold: Sequence[str]) -> float:
    worth = {item: len(gold) - place for place, item in enumerate(gold)}
    return sum(worth.pop(item, 0) / math.log2(place + 2) for place, item in enumerate(items))
