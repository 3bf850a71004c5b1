"""The check of a dataset before a run: gold answers must be judged `correct`, and answers of other rows must not."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rewards.checks.gold_forms import Answering, Call, GoldRow, OwnCompletions, Stated, answers_of, nested_too_deep
from rewards.checks.gold_judges import CheckStopped, Judge
from rewards.checks.gold_questions import GOLD_COMPLETIONS, NO_ANSWER, NONE_LEFT, Ask
from rewards.verdict import Status, Verdict, error

FIRST_OFFENDERS = 10
# Number of rows that are judged together: large enough to keep a pool's workers busy, small enough to show progress.
_ROWS_AT_A_TIME = 256
# The check gives up if this number of gold answers were judged and none was `correct`.
_HOPELESS = 64

# Different texts may mean the same (120 and 120 degrees), so it is normal that one wrong answer in a hundred is
# accepted.
_MAY_BE_EQUAL = 0.01


@dataclass(frozen=True, slots=True)
class Offender:
    """A row that failed the check: the completion that was tried, and its verdict.

    The completion is empty if it came from the verifier's `gold_completions`.
    """

    row: GoldRow
    completion: str
    verdict: Verdict


@dataclass(slots=True)
class GoldReport:
    """The result of the check.

    Attributes:
        rows: number of rows checked.
        accepted: number of rows whose gold answer was `correct`.
        scrambled: number of accepted rows for which a wrong answer was judged too: the answer of another row or, if all
            rows have the same answer, the row's answer with a changed digit or letter.
        scrambled_accepted: number of these rows for which the wrong answer was judged `correct` too.
        failed: number of verdicts of status `timeout` or `error`.
        unreadable: number of rows whose gold answer the math parser cannot read. Only a completion with the same text
            equals such an answer.
        refused: the first rows whose gold answer was not `correct`.
        fooled: the first rows for which the wrong answer was judged `correct`.
        first_unreadable: the first unreadable rows, with the parser's reason.
        stopped: why the check ended before the last row; empty if it reached the last row.
        no_answer: number of rows without a gold completion, because the verifier says that the reference is not an
            answer.
        graded: number of rows whose gold answer got the status `scored`, but never `correct`.
    """

    rows: int = 0
    accepted: int = 0
    scrambled: int = 0
    scrambled_accepted: int = 0
    failed: int = 0
    unreadable: int = 0
    refused: list[Offender] = field(default_factory=list)
    fooled: list[Offender] = field(default_factory=list)
    first_unreadable: list[tuple[GoldRow, str]] = field(default_factory=list)
    stopped: str = ""
    no_answer: int = 0
    graded: int = 0

    @property
    def tried(self) -> int:
        """Rows whose gold answer was judged."""
        return self.rows - self.no_answer

    @property
    def sound(self) -> bool:
        """True when all rows were checked, every gold answer was accepted, and hardly any wrong answer was."""
        few = self.scrambled_accepted <= _MAY_BE_EQUAL * self.scrambled
        return self.accepted == self.tried and few and not self.stopped

    @property
    def only_failed(self) -> bool:
        """True when all verdicts on the first gold answers failed.

        The data may be good, but the verifier may not work.
        """
        return not self.accepted and all(offender.verdict.status.failed for offender in self.refused)

    @property
    def failure(self) -> str:
        """Why no completion could earn a reward; empty if some completion could."""
        if not self.tried:
            return ""
        if not self.accepted and not self.graded:
            if self.refused and self.only_failed:
                first = self.refused[0].verdict
                late = first.status is Status.TIMEOUT
                what = "came in time" if late else f"said anything about the answer (the first: {first.reason})"
                return f"none of {self.tried:,} verdicts on gold answers {what}"
            return f"none of {self.tried:,} gold answers is `correct`"
        if self.unreadable == self.tried:
            return f"none of {self.tried:,} gold answers can be read as mathematics: only the same text is `correct`"
        return ""


def check_gold(
    judge: Judge,
    rows: Sequence[GoldRow],
    *,
    mathematical: bool = True,
    seed: int = 0,
    rows_at_a_time: int = _ROWS_AT_A_TIME,
    on_rows: Callable[[int], None] = lambda count: None,
) -> GoldReport:
    """Judge every row's gold answer, and then the answer of another row as a wrong answer.

    Each gold answer is judged in the `FORMS`, one after another, until the verifier accepts it. The form that was
    accepted last is tried first. If the verifier has `gold_completions`, these are judged instead.

    Args:
        judge: judges a batch of calls of `questioned` verifiers; see `rewards.checks.gold_judges`.
        rows: rows of the dataset, all with the same verifier.
        mathematical: whether the math parser tries to read each gold answer.
        seed: seed for the random choice of the other row.
        rows_at_a_time: number of rows that are judged together.
        on_rows: called with the number of rows checked, after each batch.
    """
    check = _Check(judge, rows, mathematical, seed)
    report = check.report
    try:
        check.learn_methods()
        for first in range(0, len(rows), rows_at_a_time):
            batch = rows[first : first + rows_at_a_time]
            check.take(batch)
            on_rows(len(batch))
            if not report.accepted + report.graded and report.tried >= _HOPELESS and report.rows < len(rows):
                report.stopped = f"none of the first {report.tried} gold answers was accepted"
                break
    except CheckStopped as reason:
        report.stopped = str(reason)
    return report


class _Check:
    def __init__(self, judge: Judge, rows: Sequence[GoldRow], mathematical: bool, seed: int) -> None:
        self._judge, self._rows, self._mathematical = judge, rows, mathematical
        self._source = random.Random(seed)
        self._answering: Answering = Stated()
        self._favourite = 0
        self.report = GoldReport()

    def learn_methods(self) -> None:
        """Ask the verifier whether it has `gold_completions`."""
        if not self._rows:
            return
        (methods,) = self._judge([(self._rows[0].verifier, Ask.METHODS, None, {})])
        if GOLD_COMPLETIONS not in methods.parts and not methods.status.failed:
            raise ValueError(
                "check_gold needs `questioned` verifiers; wrap them with rewards.checks.gold_questions.questioned"
            )
        if methods.parts.get(GOLD_COMPLETIONS):
            self._answering = OwnCompletions()

    def take(self, batch: Sequence[GoldRow]) -> None:
        """Judge the next rows.

        Raises:
            CheckStopped: the judge gave up. The rows that were judged before that are counted.
        """
        too_deep = {at: Offender(row, "", _TOO_DEEP) for at, row in enumerate(batch) if nested_too_deep(row.reference)}
        self.report.failed += len(too_deep)
        ways: dict[int, int] = {}
        first: dict[int, Offender] = {}
        unanswered: set[int] = set()
        graded: set[int] = set()
        open_rows = [at for at in range(len(batch)) if at not in too_deep]
        stop: CheckStopped | None = None
        for way in self._ways(batch):
            calls = {at: call for at in open_rows if (call := self._answering.gold(batch[at], way)) is not None}
            try:
                verdicts: Sequence[Verdict | None] = self._ask(list(calls.values()))
            except CheckStopped as problem:
                stop, verdicts = problem, problem.verdicts or [None] * len(calls)
            for (at, call), verdict in zip(calls.items(), verdicts, strict=True):
                if verdict is None or verdict.parts.get(NONE_LEFT):
                    continue
                if verdict.parts.get(NO_ANSWER):
                    unanswered.add(at)
                    continue
                first.setdefault(at, _offender(batch[at], call, verdict))
                if verdict.status is Status.SCORED:
                    graded.add(at)
                if verdict.status is Status.CORRECT:
                    ways[at], self._favourite = way, way
            open_rows = [at for at in open_rows if at not in ways and at not in unanswered]
            if stop or not open_rows:
                break
        if stop and not stop.verdicts:
            raise stop  # this batch was judged only in part, so none of its rows counts
        # If the judge gave up before all forms of a row were tried, the row does not count as refused.
        closed = [at for at in open_rows if not stop or (at in first and first[at].verdict.status.failed)]
        offenders = too_deep | {at: first[at] for at in closed if at in first}
        self.report.rows += len(ways) + len(unanswered) + len(closed) + len(too_deep)
        self.report.accepted += len(ways)
        self.report.no_answer += len(unanswered)
        self.report.graded += len(graded - ways.keys())
        _keep(self.report.refused, [offenders[at] for at in sorted(offenders)])
        if stop:
            raise stop
        if self._mathematical:
            self._read(batch)
        self._try_others([(batch[at], way) for at, way in sorted(ways.items())])

    def _ways(self, batch: Sequence[GoldRow]) -> list[int]:
        favourite = self._favourite
        return [favourite, *(way for way in range(self._answering.tries(batch)) if way != favourite)]

    def _try_others(self, rows: Sequence[tuple[GoldRow, int]]) -> None:
        others = [(row, self._answering.other(row, way, self._rows, self._source)) for row, way in rows]
        known = [(row, call) for row, call in others if call is not None]
        verdicts = self._ask([call for _, call in known])
        tried = [_offender(row, call, verdict) for (row, call), verdict in zip(known, verdicts, strict=True)]
        judged = [each for each in tried if not each.verdict.parts.keys() & {NO_ANSWER, NONE_LEFT}]
        fooled = [each for each in judged if each.verdict.status is Status.CORRECT]
        self.report.scrambled += len(judged)
        self.report.scrambled_accepted += len(fooled)
        _keep(self.report.fooled, fooled)

    def _ask(self, calls: Sequence[Call]) -> Sequence[Verdict]:
        verdicts: Sequence[Verdict | None] = ()
        try:
            verdicts = answers = self._judge(calls) if calls else ()
        except CheckStopped as stop:
            verdicts = stop.verdicts
            raise
        finally:
            self.report.failed += sum(verdict is not None and verdict.status.failed for verdict in verdicts)
        return answers

    def _read(self, batch: Sequence[GoldRow]) -> None:
        calls: list[Call] = [(row.verifier, Ask.READING, answers_of(row.reference)[0], {}) for row in batch]
        for row, verdict in zip(batch, self._judge(calls), strict=True):
            if verdict.status is not Status.CORRECT:
                self.report.unreadable += 1
                _keep(self.report.first_unreadable, [(row, verdict.reason)])


_TOO_DEEP = error("the reference is nested in too many lists to be sent to a verifier")


def _offender(row: GoldRow, call: Call, verdict: Verdict) -> Offender:
    return Offender(row, "" if isinstance(call[1], Ask) else call[1], verdict)


def _keep(kept: list[Any], more: Sequence[Any]) -> None:
    kept += more[: FIRST_OFFENDERS - len(kept)]
