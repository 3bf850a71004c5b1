"""Answers that must be a given text: exact, apart from what people do not mean to be a difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rewards.answers import find as places
from rewards.answers.last_sentence import last_sentence
from rewards.answers.stated import stated
from rewards.answers.thinking import Tags, final_text, thinking_tags
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


def first_place(
    completion: str, find: Sequence[str], tags: Tags, places: Mapping[str, Callable[[str], str | None]] = PLACES
) -> tuple[str, str | None]:
    """The first place of `find` that is present after the thinking, with its content; None when none is."""
    text = final_text(completion, tags)
    for place in find if text is not None else ():
        content = places[place](text or "")
        if content is not None:
            return place, content
    return "", None


def check_places(find: Sequence[str], places: Iterable[str] = PLACES) -> tuple[str, ...]:
    """`find` as a tuple.

    Raises:
        ValueError: it is empty or names an unknown place.
    """
    known = tuple(places)
    if not find or isinstance(find, str) or any(place not in known for place in find):
        raise ValueError(f"find must name one or more of {', '.join(known)}; got {find!r}")
    return tuple(find)


class Exact:
    """The answer is the reference's text (a number's as Python writes it), or one of its texts where it is a list.

    Args:
        find: the places to look, in order; the first one present decides: `answer_tag`, `boxed`, `hash`, `stated`
            ("answer is"), `last_sentence`, `whole` (all that follows the thinking).
        case_sensitive: upper and lower case differ.
        strict: do not even ignore outer and repeated white space, quotes and a final period.
        thinking: the tags that the model's reasoning stands in, by name (`think`) or as pairs (`["[THINK]",
            "[/THINK]"]`); only what follows the last closing tag is read. By default those that are known
            (`rewards.answers.thinking`); an empty list for none.

    A reference that is a worked solution (`... #### 18`) is the answer that it marks.
    """

    def __init__(
        self,
        find: Sequence[str] = ("answer_tag", "boxed", "stated"),
        case_sensitive: bool = False,
        strict: bool = False,
        thinking: Sequence[str | Sequence[str]] | None = None,
    ) -> None:
        self.find, self.case_sensitive, self.strict = check_places(find), case_sensitive, strict
        self.tags = thinking_tags(thinking)

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """The verdict; `error` when the reference is empty."""
        problem = self.reference_problem(reference, prompt)
        if problem:
            return error(problem)
        accepted = [_marked(str(text)) for text in _texts(reference)]
        answer = self.find_answer(completion)
        if answer is None or not answer.strip():
            return unparseable(f"no answer found in {', '.join(self.find)}")
        if self._plain(answer) in {self._plain(text) for text in accepted}:
            return correct("exact")
        return wrong(f"{answer[:60]!r} is not {accepted[0][:60]!r}")

    def reference_problem(self, reference: Any, prompt: Mapping[str, Any]) -> str:
        """Why the reference cannot be used; empty when it can."""
        texts = _texts(reference)
        if texts and all(text is not None and _marked(str(text)).strip() for text in texts):
            return ""
        return f"the reference {reference!r:.60} is empty"

    def find_answer(self, completion: str) -> str | None:
        """The final answer's text; None when there is none."""
        return first_place(completion, self.find, self.tags)[1]

    def _plain(self, text: str) -> str:
        if not self.strict:
            text = " ".join(text.split()).strip("\"'`.").strip()
        return text if self.case_sensitive else text.casefold()


def _texts(reference: Any) -> list[Any]:
    return list(reference) if isinstance(reference, (list, tuple)) else [reference]


def _marked(reference: str) -> str:
    """What a worked solution marks by `####` in a line of its own below others; any other reference as it is."""
    marked = places.hash_mark(reference) if "\n####" in reference else None
    return reference if marked is None else marked
