"""Calls of every verifier before a run: a verifier that fails on all of them would stop the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewards.adapt import OUTSIDE
from rewards.checks.gold_forms import FORMS, Call, GoldRow, answers_of, nested_too_deep
from rewards.checks.gold_judges import CheckStopped, Judge
from rewards.verdict import Status, Verdict

# Number of rows of each verifier, and a completion without any answer.
_ROWS = 4
_WITHOUT_ANSWER = "I do not know."


@dataclass(frozen=True, slots=True)
class AlwaysFails:
    """A verifier whose verdict was `error` for every completion that was tried.

    Attributes:
        name: name of the verifier.
        tried: number of completions.
        reason: reason of the first verdict, for example the exception with file and line.
    """

    name: str
    tried: int
    reason: str

    def __str__(self) -> str:
        return (
            f"verifier {self.name!r} failed on all {self.tried} completions that were tried, so a run would stop: "
            f"{self.reason}. {remedy_of(self.reason)}"
        )


def remedy_of(reason: str) -> str:
    """Return what to do about a verdict of status `error`, by its reason."""
    if OUTSIDE in reason:
        return (
            "Return a number from 0 to 1, or widen the bounds with the verifier's options: {bounds: [least, greatest]}"
        )
    return "Correct the verifier or its options"


def failing_verifiers(judge: Judge, rows: Sequence[GoldRow]) -> dict[str, AlwaysFails]:
    """Call every verifier on some rows; return those that always fail, by name.

    Each row is judged with a completion that states its reference, and with a completion that states nothing. Verdicts
    that did not come in time say nothing about a verifier.

    Args:
        judge: judges a batch of calls of `questioned` verifiers; see `rewards.checks.gold_judges`.
        rows: rows with the name of their verifier, one for each pair of a row and a verifier that judges it.
    """
    tried: dict[str, list[GoldRow]] = {}
    for row in rows:
        chosen = tried.setdefault(row.verifier, [])
        if len(chosen) < _ROWS and not nested_too_deep(row.reference):
            chosen.append(row)
    calls: list[Call] = [
        (name, completion, row.reference, row.prompt)
        for name, chosen in tried.items()
        for row in chosen
        for completion in (FORMS[0](answers_of(row.reference)[0]), _WITHOUT_ANSWER)
    ]
    verdicts: Sequence[Verdict | None]
    try:
        verdicts = judge(calls)
    except CheckStopped as stop:
        verdicts = stop.verdicts or [None] * len(calls)
    by_name: dict[str, list[Verdict | None]] = {}
    for call, verdict in zip(calls, verdicts, strict=True):
        by_name.setdefault(call[0], []).append(verdict)
    return {
        name: AlwaysFails(name, len(errors), errors[0].reason)
        for name, each in by_name.items()
        if len(errors := [verdict for verdict in each if verdict and verdict.status is Status.ERROR]) == len(each)
    }
