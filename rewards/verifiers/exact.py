"""Answers that must equal a given text, apart from differences without a meaning, such as outer blanks."""

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
    """Find the first place of `find` that occurs after the thinking.

    Return the place and its content; None if no place occurs.
    """
    text = final_text(completion, tags)
    for place in find if text is not None else ():
        content = places[place](text or "")
        if content is not None:
            return place, content
    return "", None


def check_places(find: Sequence[str], places: Iterable[str] = PLACES) -> tuple[str, ...]:
    """Return `find`, which may be a single name, as a tuple.

    Raises:
        ValueError: `find` is empty or names an unknown place.
    """
    known = tuple(places)
    find = (find,) if isinstance(find, str) else find
    if not find or any(place not in known for place in find):
        raise ValueError(f"find must name one or more of {', '.join(known)}; got {find!r}")
    return tuple(find)


class Exact:
    """The answer must equal the text of the reference. If the reference is a number, its text is as Python writes it.

    If the reference is a list, the answer must equal one of its items.

    Args:
        find: places to look in, in order. The first that occurs in the completion decides. The places are `answer_tag`,
            `boxed`, `hash`, `stated` ("answer is"), `last_sentence` and `whole` (all text after the thinking).
        case_sensitive: whether upper and lower case differ.
        strict: whether differences in outer and repeated white space, in quotes and in a final period count too.
        thinking: tags around the model's reasoning, by name (`think`) or as pairs (`["[THINK]", "[/THINK]"]`). Only the
            text after the last closing tag is read. By default all known tags count (`rewards.answers.thinking`); an
            empty list means no tags.

    If the reference is a worked solution (`... #### 18`), the answer must equal its marked answer.
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
        """Return the verdict. It is an `error` if the reference is empty."""
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
        """Why the reference cannot be used; empty when it can be used."""
        texts = _texts(reference)
        if texts and all(text is not None and _marked(str(text)).strip() for text in texts):
            return ""
        return f"the reference {reference!r:.60} is empty"

    def find_answer(self, completion: str) -> str | None:
        """The text of the final answer; None when there is no answer."""
        return first_place(completion, self.find, self.tags)[1]

    def _plain(self, text: str) -> str:
        if not self.strict:
            text = " ".join(text.split()).strip("\"'`.").strip()
        return text if self.case_sensitive else text.casefold()


def _texts(reference: Any) -> list[Any]:
    return list(reference) if isinstance(reference, (list, tuple)) else [reference]


def _marked(reference: str) -> str:
    """The answer that a worked solution marks by `####` on a separate last line; any other reference unchanged."""
    marked = places.hash_mark(reference) if "\n####" in reference else None
    return reference if marked is None else marked
