"""The calls by which a check sends a row's gold answer, or another row's answer, to the verifier."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rewards.checks.gold_questions import Ask
from rewards.selection import place_of
from rewards.verifiers.numeric import rational

# One call of a pool: (name of the verifier, completion, reference, other columns of the row).
Call = tuple[str, str, Any, Mapping[str, Any]]

# Forms in which a completion may state an answer. Most verifiers read the first form. A verifier's options decide
# whether it reads the other forms.
FORMS: tuple[Callable[[str], str], ...] = (
    lambda answer: f"<think>Let me see.</think>\n<answer>$\\boxed{{{answer}}}$</answer>",
    lambda answer: f"<think>Let me see.</think>\n<answer>{answer}</answer>",
    lambda answer: f"Let me see.\n#### {answer}",
    lambda answer: f"The answer is {answer}",
    lambda answer: answer,
)
# Greatest number of gold completions that are tried for a row. It is above 1, because some published solutions are
# wrong.
MOST_COMPLETIONS = 3
# Number of rows that are drawn at random to find an answer that differs from a row's answer.
_DRAWS = 8
# Greatest depth of nested lists in a value that is sent to another process.
_MOST_NESTED = 50


@dataclass(frozen=True, slots=True)
class GoldRow:
    """One row of a dataset: its reference answer, its other columns, its name, and the name of its verifier."""

    reference: Any
    prompt: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    verifier: str = ""

    @property
    def place(self) -> str:
        """The name for messages."""
        return place_of(self.name)


class Answering(Protocol):
    """The ways to send gold answers to a verifier."""

    def tries(self, rows: Sequence[GoldRow]) -> int:
        """The greatest number of ways for any of these rows."""
        ...

    def gold(self, row: GoldRow, way: int) -> Call | None:
        """The call that sends a row's gold answer in way number `way`; None if the row has no such way."""
        ...

    def other(self, row: GoldRow, way: int, rows: Sequence[GoldRow], source: random.Random) -> Call | None:
        """The call that sends another row's answer in way number `way`; None if there is no other answer."""
        ...


class Stated:
    """The reference is the answer, and a completion states it in one of `FORMS`."""

    def tries(self, rows: Sequence[GoldRow]) -> int:
        """The number of forms, times the number of texts that answer a reference."""
        return len(FORMS) * max(len(answers_of(row.reference)) for row in rows)

    def gold(self, row: GoldRow, way: int) -> Call | None:
        """The completion that states the reference."""
        answers, variant = answers_of(row.reference), way // len(FORMS)
        if variant >= len(answers):
            return None
        return row.verifier, FORMS[way % len(FORMS)](answers[variant]), row.reference, row.prompt

    def other(self, row: GoldRow, way: int, rows: Sequence[GoldRow], source: random.Random) -> Call | None:
        """The completion that states a wrong answer.

        This is an answer of another row that certainly differs. If none is found, it is this row's answer with a
        changed character.
        """
        answer = self._other_answer(row, way // len(FORMS), rows, source)
        return None if answer is None else (row.verifier, FORMS[way % len(FORMS)](answer), row.reference, row.prompt)

    def _other_answer(
        self, row: GoldRow, variant: int, rows: Sequence[GoldRow], source: random.Random
    ) -> str | None:  # fmt: skip
        answers = answers_of(row.reference)
        for _ in range(_DRAWS):
            other = answers_of(source.choice(rows).reference)
            if variant < len(other) and not any(_same(other[variant], each) for each in answers):
                return other[variant]
        return scramble(answers[variant], source)


class OwnCompletions:
    """The verifier has completions that must be `correct` (`gold_completions`)."""

    def tries(self, rows: Sequence[GoldRow]) -> int:
        """The number of completions of a row that are tried."""
        return MOST_COMPLETIONS

    def gold(self, row: GoldRow, way: int) -> Call | None:
        """The question whether the row's gold completion number `way` is correct."""
        return row.verifier, Ask.GOLD, (row.reference, way), row.prompt

    def other(self, row: GoldRow, way: int, rows: Sequence[GoldRow], source: random.Random) -> Call | None:
        """The question whether another row's gold completion number `way`, or its last one, is correct for this row."""
        for _ in range(_DRAWS):
            other = source.choice(rows)
            if other.name != row.name and not nested_too_deep(other.reference):
                return row.verifier, Ask.OTHER, (row.reference, way, other.reference, other.prompt), row.prompt
        return None


def answers_of(reference: Any) -> list[str]:
    """Return texts that state a reference: all items and the first item of a list, or otherwise the marked answer."""
    if isinstance(reference, (list, tuple)):
        return [", ".join(map(as_text, reference)), as_text(reference[0]) if reference else ""]
    if isinstance(reference, float) and reference.is_integer():
        return [as_text(int(reference))]
    # GSM8K's reference is the whole worked solution, which ends with `#### N`.
    return [as_text(reference).rpartition("####")[2].strip()]


def as_text(value: Any) -> str:
    """Any value of a row as text."""
    try:
        return str(value)
    except ValueError:
        # Python refuses to write an integer of more than 4,300 digits in decimal.
        return hex(value) if isinstance(value, int) else f"a {type(value).__name__} that cannot be written out"
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deep to be written out"


def nested_too_deep(value: Any) -> bool:
    """True when a value is nested in too many lists to be sent to a verifier."""
    level = [value]
    for _ in range(_MOST_NESTED):
        level = [
            part
            for outer in level
            if isinstance(outer, (list, tuple, Mapping))
            for part in (outer.values() if isinstance(outer, Mapping) else outer)
            if isinstance(part, (list, tuple, Mapping))
        ]
        if not level:
            return False
    return True


def _same(first: str, second: str) -> bool:
    """True when two answers may mean the same, by their texts or as plain numbers."""
    if first.strip().casefold() == second.strip().casefold():
        return True
    value = rational(first)
    return value is not None and value == rational(second)


def scramble(answer: str, source: random.Random) -> str | None:
    """A wrong answer of the same form: a digit is changed, or a letter if there is no digit. None if there is neither.

    No digit is changed to 0, because a leading 0 would shorten the number.
    """
    digits = [match.start() for match in re.finditer(r"\d", answer)]
    if digits:
        at = source.choice(digits)
        others = [digit for digit in "123456789" if digit != answer[at]]
        return answer[:at] + source.choice(others) + answer[at + 1 :]
    # Letters in the name of a macro do not belong to the answer.
    protected = {at for match in re.finditer(r"\\[A-Za-z]+", answer) for at in range(*match.span())}
    letters = [at for at, character in enumerate(answer) if character.isalpha() and at not in protected]
    if not letters:
        return None
    at = source.choice(letters)
    alphabet = "ABCDE" if answer[at].isupper() else "abcdeknpqrstuvwxyz"
    return answer[:at] + source.choice([c for c in alphabet if c != answer[at]]) + answer[at + 1 :]
