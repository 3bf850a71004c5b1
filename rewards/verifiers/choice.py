"""Multiple choice, by letter or by content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.answers.find import marked_answer
from rewards.answers.thinking import final_text, thinking_tags
from rewards.verdict import Verdict, correct, error, unparseable, wrong
from rewards.verifiers.choices import LETTERS, chosen_in, last_chosen, letter_of, plain_text
from rewards.verifiers.exact import PLACES, check_places


class Choice:
    """An answer that is one of several options. If the answer has a letter, the letter decides, otherwise the text.

    Args:
        find: places to look in, in order; see `rewards.verifiers.exact.Exact`. Here `last_sentence` means the whole
            completion, its last line, or its last sentence that chooses a letter ("Option D is correct").
        choices_column: column of the row with the options: a list, or a mapping from letter to text. If there is no
            such column, only letters are understood.
        thinking: reasoning tags; see `rewards.verifiers.exact.Exact`.

    The reference is a letter, an index from 0, the text of an option, or a worked solution that marks one of these.
    A completion that names several letters has no answer.
    """

    def __init__(
        self,
        find: Sequence[str] = ("answer_tag", "boxed", "stated", "last_sentence"),
        choices_column: str = "choices",
        thinking: Sequence[str | Sequence[str]] | None = None,
    ) -> None:
        self.find, self.choices_column, self.tags = check_places(find), choices_column, thinking_tags(thinking)

    def __call__(self, completion: str, reference: Any, prompt: Mapping[str, Any]) -> Verdict:
        """Return the verdict. It is an `error` if the reference is not one of the options."""
        options = _options(prompt.get(self.choices_column))
        gold = _gold_letter(reference, options)
        if gold is None:
            return error(self.reference_problem(reference, prompt))
        letter, answer = self._chosen(completion, options)
        if letter is None or (options and letter not in options):
            return unparseable(
                f"no single option: {answer[:60]!r}" if answer else f"no answer found in {', '.join(self.find)}"
            )
        return correct(letter) if letter == gold else wrong(f"{letter} is not {gold}")

    def reference_problem(self, reference: Any, prompt: Mapping[str, Any]) -> str:
        """Why the reference cannot be used; empty when it can be used."""
        options = _options(prompt.get(self.choices_column))
        if _gold_letter(reference, options) is not None:
            return ""
        return f"the reference {reference!r:.60} is not a letter, an index or a text of the options {options!r:.80}"

    def find_answer(self, completion: str) -> str | None:
        """The letter that the completion chooses, or the text of its answer; None when there is no answer."""
        letter, answer = self._chosen(completion, {})
        return letter or plain_text(answer) or None

    def _chosen(self, completion: str, options: Mapping[str, str]) -> tuple[str | None, str]:
        """The letter that the completion chooses, and the text that the letter was read from."""
        text = final_text(completion, self.tags)
        for place in self.find if text is not None else ():
            assert text is not None
            if place == "last_sentence":
                letter = last_chosen(text, options)
                if letter is not None:
                    return letter, text
                continue
            statement = PLACES[place](text)
            if statement is not None:
                return chosen_in(statement, options) if statement.strip() else None, statement
        return None, ""


def _options(column: object) -> dict[str, str]:
    if isinstance(column, Mapping):
        if isinstance(column.get("label"), Sequence) and isinstance(column.get("text"), Sequence):
            return {str(k).upper(): str(v) for k, v in zip(column["label"], column["text"], strict=True)}
        return {str(letter).upper(): str(text) for letter, text in column.items()}
    if isinstance(column, Sequence) and not isinstance(column, str):
        return {letter: str(text) for letter, text in zip(LETTERS, column, strict=False)}
    return {}


def _gold_letter(reference: Any, options: Mapping[str, str]) -> str | None:
    if isinstance(reference, int) and not isinstance(reference, bool):
        return LETTERS[reference] if 0 <= reference < (len(options) or len(LETTERS)) else None
    text = str(reference)
    named = letter_of(text)
    if named is not None:
        return named[0]
    same = next((letter for letter, content in options.items() if plain_text(content) == plain_text(text)), None)
    marked = marked_answer(text)
    return _gold_letter(marked, options) if same is None and marked != text else same
