"""The check of every row's reference before a run: it finds the references that the verifiers cannot use."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from rewards.checks.gold_forms import Call, GoldRow, as_text, nested_too_deep
from rewards.checks.gold_judges import Patience
from rewards.checks.gold_questions import REFERENCE_PROBLEM, Ask
from rewards.pool import VerifierPool
from rewards.verdict import Status, Verdict

# Number of rows that are checked together: large enough to keep a pool busy, and small enough that a large dataset is
# not copied at once.
_ROWS_AT_A_TIME = 4096
_SHOWN_CHARACTERS = 80
_TOO_DEEP = "it is nested in too many lists to be sent to a verifier"


@dataclass(frozen=True, slots=True)
class UnusableReference:
    """A row whose reference cannot judge any completion.

    Attributes:
        row: the row.
        problem: why its verifier cannot use the reference.
    """

    row: GoldRow
    problem: str

    def __str__(self) -> str:
        return f"{self.row.place}: {shown(self.row.reference)}: {self.problem}"


@dataclass(frozen=True, slots=True)
class ReferenceReport:
    """The result of the check.

    Attributes:
        rows: number of rows that were checked.
        unusable: rows whose reference cannot be used, in the order of the data. Each row appears once.
        stopped: why the check ended before the last row; empty if it reached the last row.
    """

    rows: int
    unusable: tuple[UnusableReference, ...]
    stopped: str = ""

    @property
    def share(self) -> float:
        """Share of the checked references that are unusable."""
        return len(self.unusable) / max(1, self.rows)


def check_references(
    pool: VerifierPool, rows: Iterable[GoldRow], *, most_killed: int = 20, most_s: float = 60.0
) -> ReferenceReport:
    """Ask the verifiers whether they can use the rows' references (`reference_problem`).

    `rows` has an entry for each pair of a row and a verifier that judges the row. If a verifier does not have the
    method, the references of its rows count as usable. If a question ends in `timeout` or `error`, the reference counts
    as unusable, because verdicts that use this reference would fail too.

    Args:
        pool: pool of `questioned` verifiers.
        rows: rows of the dataset.
        most_killed: number of questions that may hang until the pool's deadline before the check ends.
        most_s: longest time of the check, in seconds; rows that were not checked count as usable.
    """
    listed = list(rows)
    names = dict.fromkeys(row.verifier for row in listed)
    methods = [future.result() for future in pool.submit_many([(name, Ask.METHODS, None, {}) for name in names])]
    knowing = {name for name, verdict in zip(names, methods, strict=True) if verdict.parts.get(REFERENCE_PROBLEM)}
    patience = Patience(pool, most_killed, most_s)
    problems: dict[str, UnusableReference] = {}
    checked: set[str] = set()
    stopped = ""
    for first in range(0, len(listed), _ROWS_AT_A_TIME):
        batch = listed[first : first + _ROWS_AT_A_TIME]
        answers, stopped = _answers(pool, batch, knowing, patience)
        for row, answer in zip(batch, answers, strict=True):
            if answer is not None:
                checked.add(row.name)
            if answer:
                problems.setdefault(row.name, UnusableReference(row, answer))
        if stopped:
            break
    return ReferenceReport(len(checked), tuple(problems.values()), stopped)


def _answers(
    pool: VerifierPool, rows: Sequence[GoldRow], knowing: Collection[str], patience: Patience
) -> tuple[list[str | None], str]:
    """Return the problem of each row, and why the check ended early.

    A problem is empty if the reference can be used, and None if it was not checked.
    """
    answers: list[str | None] = [_TOO_DEEP if nested_too_deep(row.reference) else "" for row in rows]
    open_rows = [at for at, row in enumerate(rows) if row.verifier in knowing and not answers[at]]
    calls: list[Call] = [(rows[at].verifier, Ask.REFERENCE, rows[at].reference, rows[at].prompt) for at in open_rows]
    futures = pool.submit_many(calls)
    stopped = patience.wait(futures)
    # Running calls cannot be cancelled. Wait until they end, at the latest at the pool's deadline, so that the pool is
    # free for other calls.
    concurrent.futures.wait(futures)
    for at, future in zip(open_rows, futures, strict=True):
        answers[at] = _problem(future)
    return answers, stopped


def _problem(future: concurrent.futures.Future[Verdict]) -> str | None:
    if future.cancelled():
        return None
    verdict = future.result()
    if verdict.status.failed:
        return f"the verifier fails on it: {verdict.status.value}: {verdict.reason}"
    return verdict.reason if verdict.status is Status.WRONG else ""


def shown(value: object) -> str:
    """Return a reference for one line of a terminal: shortened, and escaped because of control characters."""
    text = as_text(value)
    half = _SHOWN_CHARACTERS // 2
    return ascii(text if len(text) <= 2 * half else text[:half] + " ... " + text[-half:])
