"""Answers that must be a given text: exact, apart from what people do not mean to be a difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rewards import find as places
from rewards.stated import last_sentence, stated
from rewards.verdict import Verdict, correct, error, unparseable, wrong


def _whole(text: str) -> str | None:
    return text.strip() or None


PLACES: Mapping[str, Callable[[str], str | None]] = {
    "answer_tag": places.answer_tag,
    "boxed": places.last_box,
    "hash": places.hash_mark,
    "stated": stated,
    "last_sentence": last_sentence,
    "whole": _whole,
}


def find_text(completion: str, find: Sequence[str]) -> str | None:
    """The content of the first place of `find` that is present after the thinking; None where none is."""
    text = places.after_thinking(completion)
    if text is None:
        return None
    return next((answer for answer in (PLACES[place](text) for place in find) if answer is not None), None)


def check_places(find: Sequence[str]) -> tuple[str, ...]:
    """`find` as a tuple.

    Raises:
        ValueError: it is empty or names an unknown place.
    """
    unknown = [place for place in find if place not in PLACES]
    if unknown or not find:
        raise ValueError(f"find must name one or more of {', '.join(PLACES)}; got {list(find)}")
    return tuple(find)


class Exact:
    """The answer is the reference's text (a number's as Python writes it), or one of its texts where it is a list.

    Args:
        find: the places to look, in order; the first one present decides: `answer_tag`, `boxed`, `hash`, `stated`
            ("answer is"), `last_sentence`, `whole` (all that follows the thinking).
        case_sensitive: upper and lower case differ.
        strict: do not even ignore outer and repeated white space, quotes and a final period.
    """

    def __init__(
        self,
        find: Sequence[str] = ("answer_tag", "boxed", "stated"),
        case_sensitive: bool = False,
        strict: bool = False,
    ) -> None:
        self.find, self.case_sensitive, self.strict = check_places(find), case_sensitive, strict

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """The verdict; `error` where the reference is empty."""
        accepted = list(reference) if isinstance(reference, (list, tuple)) else [reference]
        if not accepted or any(text is None or not str(text).strip() for text in accepted):
            return error(f"the reference {reference!r:.60} is empty")
        answer = find_text(completion, self.find)
        if answer is None or not answer.strip():
            return unparseable(f"no answer found in {', '.join(self.find)}")
        if self._plain(answer) in {self._plain(str(text)) for text in accepted}:
            return correct("exact")
        return wrong(f"{answer[:60]!r} is not {str(accepted[0])[:60]!r}")

    def _plain(self, text: str) -> str:
        if not self.strict:
            text = " ".join(text.split()).strip("\"'`.").strip()
        return text if self.case_sensitive else text.casefold()
