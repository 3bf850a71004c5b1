"""Multiple choice, by letter or by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.choices import letter_of
from rewards.exact import check_places, find_text
from rewards.verdict import Verdict, correct, error, unparseable, wrong

_LETTERS = "ABCDEFGHIJ"


class Choice:
    """One of several options: the letter decides, and without a letter the option's text does.

    Args:
        find: the places to look, in order; see `rewards.exact.Exact`.
        choices_column: the prompt's column with the options, a list or a mapping from letter to text; without it
            only letters are understood.

    The reference is a letter, an index from 0, or an option's text. Several letters are no answer.
    """

    def __init__(
        self,
        find: Sequence[str] = ("answer_tag", "boxed", "stated", "last_sentence"),
        choices_column: str = "choices",
    ) -> None:
        self.find, self.choices_column = check_places(find), choices_column

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """The verdict; `error` where the reference is none of the options."""
        options = _options(prompt.get(self.choices_column))
        gold = _gold_letter(reference, options)
        if gold is None:
            return error(f"the reference {reference!r:.60} is no letter, index or text of the options {options!r:.80}")
        answer = find_text(completion, self.find)
        if answer is None or not answer.strip():
            return unparseable(f"no answer found in {', '.join(self.find)}")
        named = letter_of(answer)
        if named is not None:
            letter = named[0]
        else:
            matching = [each for each, text in options.items() if _plain(text) == _plain(answer)]
            if len(matching) != 1:
                return unparseable(f"no single option: {answer[:60]!r}")
            letter = matching[0]
        return correct(letter) if letter == gold else wrong(f"{letter} is not {gold}")


def _options(column: object) -> dict[str, str]:
    if isinstance(column, Mapping):
        if isinstance(column.get("label"), Sequence) and isinstance(column.get("text"), Sequence):
            return {str(k).upper(): str(v) for k, v in zip(column["label"], column["text"], strict=True)}
        return {str(letter).upper(): str(text) for letter, text in column.items()}
    if isinstance(column, Sequence) and not isinstance(column, str):
        return {letter: str(text) for letter, text in zip(_LETTERS, column, strict=False)}
    return {}


def _gold_letter(reference: Any, options: Mapping[str, str]) -> str | None:
    if isinstance(reference, int) and not isinstance(reference, bool):
        return _LETTERS[reference] if 0 <= reference < (len(options) or len(_LETTERS)) else None
    named = letter_of(str(reference))
    if named is not None:
        return named[0]
    return next((letter for letter, text in options.items() if _plain(text) == _plain(str(reference))), None)


def _plain(text: str) -> str:
    return " ".join(text.split()).strip("\"'`.$").casefold()
