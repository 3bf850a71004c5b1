"""The check of a dataset before a run: every gold answer must verify, another row's must not."""

from __future__ import annotations

import concurrent.futures
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rewards.latex_text import normalise
from rewards.nodes import Unreadable
from rewards.numeric import rational
from rewards.parse_answer import parse
from rewards.verdict import Status, Verdict
from rewards.verifier import Verifier

FIRST_OFFENDERS = 10
# Rows that are judged together: enough to keep a pool's workers busy, few enough that the display moves.
_ROWS_AT_A_TIME = 256
# Gold answers without a single `correct` after which the verifier is taken for one that cannot be checked so.
_HOPELESS = 64

# Two rows' answers that differ as texts may mean the same (120 and 120 degrees): one in a hundred is no alarm.
_MAY_BE_EQUAL = 0.01

# (verifier's name, completion, reference, the row's other columns), as a pool takes it.
Call = tuple[str, str, Any, Mapping[str, Any]]
Judge = Callable[[Sequence[Call]], Sequence[Verdict]]

# How a completion may state an answer; which of these a verifier reads hangs on its options. A form that states no
# more than it must comes after one that most verifiers read.
FORMS: tuple[Callable[[str], str], ...] = (
    lambda answer: f"<think>Let me see.</think>\n<answer>$\\boxed{{{answer}}}$</answer>",
    lambda answer: f"<think>Let me see.</think>\n<answer>{answer}</answer>",
    lambda answer: f"Let me see.\n#### {answer}",
    lambda answer: f"The answer is {answer}",
    lambda answer: answer,
)


@dataclass(frozen=True, slots=True)
class GoldRow:
    """One row of a dataset: its reference answer, its other columns, a name to find it by, and its verifier's name."""

    reference: Any
    prompt: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    verifier: str = ""


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
        scrambled: of those, rows that another answer was tried on: another row's, or the row's own with a digit or
            letter changed where all rows have the same.
        scrambled_accepted: of those, rows on which it was `correct` as well.
        failed: verdicts of status `timeout` or `error`.
        unreadable: rows whose gold answer is nothing that the math parser reads; only the same text matches them.
        refused: the first rows whose gold answer was not `correct`.
        fooled: the first rows on which another answer was.
        first_unreadable: the first unreadable rows, with the parser's reason.
        stopped: why the check ended before the last row; empty where it did not.
    """

    rows: int
    accepted: int
    scrambled: int
    scrambled_accepted: int
    failed: int
    unreadable: int
    refused: tuple[Offender, ...]
    fooled: tuple[Offender, ...]
    first_unreadable: tuple[tuple[GoldRow, str], ...]
    stopped: str = ""

    @property
    def sound(self) -> bool:
        """True where all rows were checked, every gold answer verified, and hardly any other one did."""
        few = self.scrambled_accepted <= _MAY_BE_EQUAL * self.scrambled
        return self.accepted == self.rows and few and not self.stopped


class CheckStopped(Exception):
    """A judge gives up; the message says why."""


class Pool(Protocol):
    """What `through` needs of a pool."""

    def submit_many(self, calls: Sequence[Call], /) -> list[concurrent.futures.Future[Verdict]]:
        """Start the calls."""
        ...

    def stats(self) -> Any:
        """The pool's record."""
        ...


def one_by_one(verifier: Verifier) -> Judge:
    """Judge by calling a verifier here, for verifiers that are known to come back."""
    return lambda calls: [verifier(completion, reference, prompt) for _, completion, reference, prompt in calls]


def through(pool: Pool, *, most_killed: int = 5, most_s: float = 300.0) -> Judge:
    """Judge in a pool's killable workers.

    Raises:
        CheckStopped: by the judge, once `most_killed` calls did not end before the pool's deadline, or after
            `most_s` seconds.
    """
    begun = time.monotonic()

    def judge(calls: Sequence[Call]) -> list[Verdict]:
        futures = pool.submit_many(calls)
        while concurrent.futures.wait(futures, timeout=0.5).not_done:
            killed = pool.stats().killed
            if killed >= most_killed:
                raise CheckStopped(f"{killed} calls of the verifier hung until their deadline")
            if time.monotonic() - begun > most_s:
                raise CheckStopped(f"the check took longer than {most_s:g} s")
        return [future.result() for future in futures]

    return judge


def check_gold(
    judge: Judge,
    rows: Sequence[GoldRow],
    *,
    mathematical: bool = True,
    seed: int = 0,
    on_rows: Callable[[int], None] = lambda count: None,
) -> GoldReport:
    """Judge every gold answer, and then another row's.

    A gold answer is stated in each of `FORMS` until one is accepted, beginning with the form that was accepted last.

    Args:
        judge: judges a batch of calls; see `one_by_one` and `through`.
        rows: the dataset's rows, all of one verifier.
        mathematical: also look whether the math parser can read each gold answer.
        seed: of the choice of the other row.
        on_rows: told how many rows were checked, as they are.
    """
    check = _Check(judge, rows, mathematical, seed)
    stopped = ""
    try:
        for first in range(0, len(rows), _ROWS_AT_A_TIME):
            batch = rows[first : first + _ROWS_AT_A_TIME]
            check.take(batch)
            on_rows(len(batch))
            if not check.accepted and check.rows >= _HOPELESS and check.rows < len(rows):
                stopped = f"none of the first {check.rows} gold answers was accepted"
                break
    except CheckStopped as reason:
        stopped = str(reason)
    return check.report(stopped)


def answers_of(reference: Any) -> list[str]:
    """The texts that answer a reference: of a list all together and the first, of a worked solution what it marks."""
    if isinstance(reference, (list, tuple)):
        return [", ".join(map(str, reference)), str(reference[0]) if reference else ""]
    if isinstance(reference, float) and reference.is_integer():
        return [str(int(reference))]
    # GSM8K's reference is the whole worked solution, which ends with `#### N`.
    return [str(reference).rpartition("####")[2].strip()]


class _Check:
    def __init__(self, judge: Judge, rows: Sequence[GoldRow], mathematical: bool, seed: int) -> None:
        self._judge, self._rows, self._mathematical = judge, rows, mathematical
        self._source = random.Random(seed)
        self._form = 0
        self.rows = self.accepted = 0
        self._scrambled = self._scrambled_accepted = self._failed = self._unreadable = 0
        self._refused: list[Offender] = []
        self._fooled: list[Offender] = []
        self._first_unreadable: list[tuple[GoldRow, str]] = []

    def take(self, batch: Sequence[GoldRow]) -> None:
        """Judge the next rows."""
        forms: dict[int, int] = {}
        first: dict[int, Offender] = {}
        open_rows = list(range(len(batch)))
        for form in self._forms_to_try(batch):
            tried = [at for at in open_rows if _stated(form, batch[at].reference) is not None]
            for at, found in zip(tried, self._ask([(batch[at], form, None) for at in tried]), strict=True):
                first.setdefault(at, found)
                if found.verdict.status is Status.CORRECT:
                    forms[at], self._form = form, form
            open_rows = [at for at in open_rows if at not in forms]
            if not open_rows:
                break
        self.rows += len(batch)
        self.accepted += len(forms)
        _keep(self._refused, [first[at] for at in open_rows if at in first])
        if self._mathematical:
            self._read(batch)
        self._try_others([(batch[at], form) for at, form in sorted(forms.items())])

    def _forms_to_try(self, batch: Sequence[GoldRow]) -> Iterator[int]:
        yield self._form
        favourite, most = self._form, max(len(answers_of(row.reference)) for row in batch)
        yield from (form for form in range(len(FORMS) * most) if form != favourite)

    def _try_others(self, rows: Sequence[tuple[GoldRow, int]]) -> None:
        asked = [(row, form, self._other(row, form)) for row, form in rows]
        known = [(row, form, other) for row, form, other in asked if other is not None]
        found = self._ask(known)
        fooled = [one for one in found if one.verdict.status is Status.CORRECT]
        self._scrambled += len(found)
        self._scrambled_accepted += len(fooled)
        _keep(self._fooled, fooled)

    def _other(self, row: GoldRow, form: int) -> str | None:
        """Another answer for a row: another row's that surely differs, else the own one scrambled."""
        own = answers_of(row.reference)[form // len(FORMS)]
        all_of_own = answers_of(row.reference)
        for _ in range(8):
            other = answers_of(self._source.choice(self._rows).reference)
            if form // len(FORMS) < len(other) and not any(_same(other[form // len(FORMS)], one) for one in all_of_own):
                return other[form // len(FORMS)]
        return scramble(own, self._source)

    def _ask(self, asked: Sequence[tuple[GoldRow, int, str | None]]) -> list[Offender]:
        calls: list[Call] = []
        for row, form, answer in asked:
            completion = _stated(form, row.reference) if answer is None else FORMS[form % len(FORMS)](answer)
            assert completion is not None
            calls.append((row.verifier, completion, row.reference, row.prompt))
        verdicts = self._judge(calls) if calls else []
        self._failed += sum(verdict.status.failed for verdict in verdicts)
        return [
            Offender(row, call[1], verdict)
            for (row, _, _), call, verdict in zip(asked, calls, verdicts, strict=True)
        ]  # fmt: skip

    def _read(self, batch: Sequence[GoldRow]) -> None:
        for row in batch:
            problem = _unreadable(answers_of(row.reference)[0])
            self._unreadable += bool(problem)
            if problem:
                _keep(self._first_unreadable, [(row, problem)])

    def report(self, stopped: str) -> GoldReport:
        return GoldReport(
            self.rows,
            self.accepted,
            self._scrambled,
            self._scrambled_accepted,
            self._failed,
            self._unreadable,
            tuple(self._refused),
            tuple(self._fooled),
            tuple(self._first_unreadable),
            stopped,
        )


def _keep(kept: list[Any], found: Sequence[Any]) -> None:
    kept += found[: FIRST_OFFENDERS - len(kept)]


def _stated(form: int, reference: Any) -> str | None:
    """A completion that states the reference in a form; None where the reference has no such variant."""
    answers = answers_of(reference)
    variant = form // len(FORMS)
    return FORMS[form % len(FORMS)](answers[variant]) if variant < len(answers) else None


def _same(one: str, other: str) -> bool:
    """True where two answers may well mean the same, by their texts or as plain numbers."""
    if one.strip().casefold() == other.strip().casefold():
        return True
    value = rational(one)
    return value is not None and value == rational(other)


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


def _unreadable(text: str) -> str:
    try:
        parse(normalise(text))
    except Unreadable as problem:
        return str(problem)
    return ""
