"""Answers that are a ranked list, such as "rank the genes that may cause these symptoms"."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rewards.exact import check_places, find_text
from rewards.verdict import Status, Verdict, error, unparseable

# More items than this are read no further: a list of everything is no ranking.
_MAX_ITEMS = 200
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|\(?\d{1,3}[.):])\s*")
_LATEX = re.compile(r"\\(?:text|textbf|mathrm|textit)\s*\{([^{}]*)\}")


class OrderedList:
    """A list compared with the reference list, best first.

    Args:
        score: `exact`: 1 for the same items in the same order, else 0; `f1`: the F1 of the two sets; `rank`: the
            discounted gain of the answer's first `cutoff` items over that of the reference, where the reference's
            item at place i of n is worth n - i and place j of the answer counts 1 / log2(j + 2) (nDCG, Jarvelin and
            Kekalainen 2002).
        cutoff: how many items of the answer count for `rank`; default: as many as the reference has, so that
            listing everything gains nothing.
        find: the places to look; see `rewards.exact.Exact`.

    Items are separated by commas, semicolons, `>` or lines; numbering, bullets and case are ignored; an item that is
    repeated counts once. The status is `correct` for a score of 1, `wrong` for 0 and `scored` between. All three scores
    are in the verdict's parts.
    """

    def __init__(
        self,
        score: Literal["exact", "f1", "rank"] = "exact",
        cutoff: int | None = None,
        find: Sequence[str] = ("answer_tag", "boxed", "stated"),
    ) -> None:
        if score not in ("exact", "f1", "rank"):
            raise ValueError(f"score must be 'exact', 'f1' or 'rank', got {score!r}")
        if cutoff is not None and cutoff < 1:
            raise ValueError(f"cutoff must be at least 1, got {cutoff!r}")
        self.score, self.cutoff, self.find = score, cutoff, check_places(find)

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """The verdict; `error` where the reference has no items."""
        gold = split_items(reference) if isinstance(reference, str) else _distinct(map(str, reference or ()))
        if not gold:
            return error("the reference list is empty")
        text = find_text(completion, self.find)
        answer = split_items(text) if text is not None else []
        if not answer:
            return unparseable("no list found")
        shared = len(set(gold) & set(answer))
        parts = {
            "exact": float(answer == gold),
            "f1": 2 * shared / (len(gold) + len(answer)),
            "rank": _gain(answer[: self.cutoff or len(gold)], gold) / _gain(gold[: self.cutoff or len(gold)], gold),
        }
        value = parts[self.score]
        status = Status.CORRECT if value > 1 - 1e-12 else Status.SCORED if value > 0 else Status.WRONG
        return Verdict(value, status, f"{shared} of {len(gold)} items found", parts)


def split_items(text: str) -> list[str]:
    """The distinct items of a written list, in order, in lower case."""
    plain = _LATEX.sub(r" \1 ", text).strip().strip("[](){}$").replace("\\", " ")
    lines = [line for line in plain.splitlines() if line.strip()]
    pieces = [piece for line in lines for piece in re.split(r"[,;>]", _BULLET.sub("", line))]
    return _distinct(_BULLET.sub("", piece) for piece in pieces[:_MAX_ITEMS])


def _distinct(items: Any) -> list[str]:
    plain = (" ".join(str(item).split()).strip("\"'`.*").casefold() for item in items)
    return list(dict.fromkeys(item for item in plain if item))


def _gain(items: Sequence[str], gold: Sequence[str]) -> float:
    worth = {item: len(gold) - place for place, item in enumerate(gold)}
    return sum(worth.get(item, 0) / math.log2(place + 2) for place, item in enumerate(items))
