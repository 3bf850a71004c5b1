"""How a row's gold answer is put to its verifier, and another row's answer in its place."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rewards.checks.gold_questions import Ask
from rewards.verifiers.numeric import rational

# (verifier's name, completion, reference, the row's other columns), as a pool takes it.
Call = tuple[str, str, Any, Mapping[str, Any]]

# How a completion may state an answer; which of these a verifier reads hangs on its options. A form that states no
# more than it must comes after one that most verifiers read.
FORMS: tuple[Callable[[str], str], ...] = (
    lambda answer: f"<think>Let me see.</think>\n<answer>$\\boxed{{{answer}}}$</answer>",
    lambda answer: f"<think>Let me see.</think>\n<answer>{answer}</answer>",
    lambda answer: f"Let me see.\n#### {answer}",
    lambda answer: f"The answer is {answer}",
    lambda answer: answer,
)
# Gold completions of one row that are tried: published solutions of a program are sometimes wrong.
MOST_COMPLETIONS = 3
# Rows that are drawn for an answer that differs from a row's own.
_DRAWS = 8
# A value in more lists than this cannot be sent to another process.
_MOST_NESTED = 50


@dataclass(frozen=True, slots=True)
class GoldRow:
    """One row of a dataset: its reference answer, its other columns, a name to find it by, and its verifier's name."""

    reference: Any
    prompt: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    verifier: str = ""


class Answering(Protocol):
    """How a verifier's gold answers are put to it."""

    def tries(self, rows: Sequence[GoldRow]) -> int:
        """The most ways in which the answer of one of these rows can be put."""
        ...

    def gold(self, row: GoldRow, way: int) -> Call | None:
        """The call that puts a row's gold answer in one way; None when the row has no such way."""
        ...

    def other(self, row: GoldRow, way: int, rows: Sequence[GoldRow], source: random.Random) -> Call | None:
        """The call that puts another answer in the same way; None when there is no other answer."""
        ...


class Stated:
    """The reference is the answer, and a completion states it in one of `FORMS`."""

    def tries(self, rows: Sequence[GoldRow]) -> int:
        """Every form of every text that answers a reference."""
        return len(FORMS) * max(len(answers_of(row.reference)) for row in rows)

    def gold(self, row: GoldRow, way: int) -> Call | None:
        """The completion that states the reference."""
        answers, variant = answers_of(row.reference), way // len(FORMS)
        if variant >= len(answers):
            return None
        return row.verifier, FORMS[way % len(FORMS)](answers[variant]), row.reference, row.prompt

    def other(self, row: GoldRow, way: int, rows: Sequence[GoldRow], source: random.Random) -> Call | None:
        """Another row's answer that surely differs, else the row's answer with a character changed."""
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
    """The verifier says itself which completions must be `correct` (`gold_completions`)."""

    def tries(self, rows: Sequence[GoldRow]) -> int:
        """As many completions of a row as are tried."""
        return MOST_COMPLETIONS

    def gold(self, row: GoldRow, way: int) -> Call | None:
        """The question for the verdict on the row's completion of this number."""
        return row.verifier, Ask.GOLD, (row.reference, way), row.prompt

    def other(self, row: GoldRow, way: int, rows: Sequence[GoldRow], source: random.Random) -> Call | None:
        """The question for the verdict on another row's completion of this number, or its last."""
        for _ in range(_DRAWS):
            other = source.choice(rows)
            if other.name != row.name and not nested_too_deep(other.reference):
                return row.verifier, Ask.OTHER, (row.reference, way, other.reference, other.prompt), row.prompt
        return None


def answers_of(reference: Any) -> list[str]:
    """The texts that answer a reference: of a list all together and the first, of a worked solution what it marks."""
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
        # Python writes no integer of more than 4,300 digits in decimal.
        return hex(value) if isinstance(value, int) else f"a {type(value).__name__} that cannot be written out"
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deep to be written out"


def nested_too_deep(value: Any) -> bool:
    """True when a value is in so many lists that no verifier could be handed it."""
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
    """True when two answers may well mean the same, by their texts or as plain numbers."""
    if first.strip().casefold() == second.strip().casefold():
        return True
    value = rational(first)
    return value is not None and value == rational(second)


def scramble(answer: str, source: random.Random) -> str | None:
    """Another answer of the same form: a digit is changed, else a letter; None when it has neither.

    The digit is not a leading one of several, so that the answer keeps its length, and never the last of a repeated
    or trailing run of decimals that leaves the value as it was.
    """
    digits = [match.start() for match in re.finditer(r"\d", answer)]
    if digits:
        at = source.choice(digits)
        others = [digit for digit in "123456789" if digit != answer[at]]
        return answer[:at] + source.choice(others) + answer[at + 1 :]
    # Letters of a macro's name are not the answer's.
    names = [span for match in re.finditer(r"\\[A-Za-z]+", answer) for span in range(*match.span())]
    protected = set(names)
    letters = [at for at, character in enumerate(answer) if character.isalpha() and at not in protected]
    if not letters:
        return None
    at = source.choice(letters)
    alphabet = "ABCDE" if answer[at].isupper() else "abcdeknpqrstuvwxyz"
    return answer[:at] + source.choice([c for c in alphabet if c != answer[at]]) + answer[at + 1 :]
