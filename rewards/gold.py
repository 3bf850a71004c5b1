"""The check of a dataset before a run: every gold answer must verify, a scrambled one must not."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rewards.latex_text import normalise
from rewards.nodes import Unreadable
from rewards.parse_answer import parse
from rewards.verdict import Status, Verdict
from rewards.verifier import Verifier

FIRST_OFFENDERS = 10


@dataclass(frozen=True, slots=True)
class GoldRow:
    """One row of a dataset: its reference answer, its other columns, and a name to find it by."""

    reference: Any
    prompt: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True, slots=True)
class Offender:
    """A row that did not behave: the completion that was tried, and what the verifier said of it."""

    row: GoldRow
    completion: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class GoldReport:
    """What came out.

    Attributes:
        rows: rows checked.
        accepted: rows whose gold answer was `correct`.
        scrambled: rows whose answer could be scrambled into another one.
        scrambled_accepted: of those, rows whose scrambled answer was `correct` as well.
        refused: the first rows whose gold answer was not `correct`.
        fooled: the first rows whose scrambled answer was.
        unreadable: the first rows whose gold answer is nothing that the math parser reads, with its reason; only
            the same text can match them.
    """

    rows: int
    accepted: int
    scrambled: int
    scrambled_accepted: int
    refused: tuple[Offender, ...]
    fooled: tuple[Offender, ...]
    unreadable: tuple[tuple[GoldRow, str], ...]

    @property
    def sound(self) -> bool:
        """True where every gold answer verified and no scrambled one did."""
        return self.accepted == self.rows and self.scrambled_accepted == 0


def boxed(answer: str) -> str:
    """A completion that gives the answer in a box, after thinking and inside answer tags, for most verifiers."""
    return f"<think>Let me see.</think>\n<answer>$\\boxed{{{answer}}}$</answer>"


def check_gold(
    verifier: Verifier,
    rows: Iterable[GoldRow],
    completion_of: Callable[[str], str] = boxed,
    mathematical: bool = True,
    seed: int = 0,
) -> GoldReport:
    """Run every gold answer, and a scrambled one, through the verifier.

    Args:
        verifier: what is checked.
        rows: the dataset's rows.
        completion_of: how a completion states an answer.
        mathematical: also look whether the math parser can read each gold answer.
        seed: of the scrambling.
    """
    source = random.Random(seed)
    count = accepted = scrambled_count = scrambled_accepted = 0
    refused: list[Offender] = []
    fooled: list[Offender] = []
    unreadable: list[tuple[GoldRow, str]] = []
    for row in rows:
        count += 1
        text = _as_text(row.reference)
        problem = _unreadable(text) if mathematical else ""
        if problem and len(unreadable) < FIRST_OFFENDERS:
            unreadable.append((row, problem))
        verdict = verifier(completion_of(text), row.reference, row.prompt)
        if verdict.status is Status.CORRECT:
            accepted += 1
        elif len(refused) < FIRST_OFFENDERS:
            refused.append(Offender(row, completion_of(text), verdict))
        other = scramble(text, source)
        if other is None:
            continue
        scrambled_count += 1
        verdict = verifier(completion_of(other), row.reference, row.prompt)
        if verdict.status is Status.CORRECT:
            scrambled_accepted += 1
            if len(fooled) < FIRST_OFFENDERS:
                fooled.append(Offender(row, completion_of(other), verdict))
    return GoldReport(
        count, accepted, scrambled_count, scrambled_accepted, tuple(refused), tuple(fooled), tuple(unreadable)
    )


def scramble(answer: str, source: random.Random) -> str | None:
    """Another answer of the same form: a digit is changed, else a letter; None where it has neither.

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
    letters = [at for at, character in enumerate(answer) if character.isalpha() and at not in set(names)]
    if not letters:
        return None
    at = source.choice(letters)
    alphabet = "ABCDE" if answer[at].isupper() else "abcdeknpqrstuvwxyz"
    return answer[:at] + source.choice([c for c in alphabet if c != answer[at]]) + answer[at + 1 :]


def _as_text(reference: Any) -> str:
    if isinstance(reference, float) and reference.is_integer():
        return str(int(reference))
    return str(reference)


def _unreadable(text: str) -> str:
    try:
        parse(normalise(text))
    except Unreadable as problem:
        return str(problem)
    return ""
