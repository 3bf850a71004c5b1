"""The check of a dataset before a run: every gold answer must verify, another row's must not."""

from __future__ import annotations

import concurrent.futures
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rewards.adapt import Adapted
from rewards.gold_forms import FORMS as FORMS
from rewards.gold_forms import Answering, OwnCompletions, Stated, nested_too_deep
from rewards.gold_forms import Call as Call
from rewards.gold_forms import GoldRow as GoldRow
from rewards.gold_forms import answers_of as answers_of
from rewards.gold_forms import scramble as scramble
from rewards.gold_questions import GOLD_COMPLETIONS, NO_ANSWER, NONE_LEFT, Ask, Questioned, reading
from rewards.verdict import Status, Verdict, error
from rewards.verifier import Verifier

FIRST_OFFENDERS = 10
# Rows that are judged together: enough to keep a pool's workers busy, few enough that the display moves.
_ROWS_AT_A_TIME = 256
# Gold answers without a single `correct` after which the verifier is taken for one that cannot be checked so.
_HOPELESS = 64

# Two rows' answers that differ as texts may mean the same (120 and 120 degrees): one in a hundred is no alarm.
_MAY_BE_EQUAL = 0.01

Judge = Callable[[Sequence[Call]], Sequence[Verdict]]


@dataclass(frozen=True, slots=True)
class Offender:
    """A row that did not behave: the completion that was tried, and what the verifier said of it.

    The completion is empty where it was the verifier's `gold_completions` that made it.
    """

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
        no_answer: rows whose reference is no answer, as the verifier says, and that have no gold completion either.
        graded: rows whose gold answer earned a grade, of a verifier that does not say whether it is `correct`.
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
    no_answer: int = 0
    graded: int = 0

    @property
    def tried(self) -> int:
        """Rows whose gold answer was judged."""
        return self.rows - self.no_answer

    @property
    def sound(self) -> bool:
        """True where all rows were checked, every gold answer verified, and hardly any other one did."""
        few = self.scrambled_accepted <= _MAY_BE_EQUAL * self.scrambled
        return self.accepted == self.tried and few and not self.stopped

    @property
    def only_failed(self) -> bool:
        """True where the verifier decided none of the first gold answers: it may be down, and the data good."""
        return not self.accepted and all(offender.verdict.status.failed for offender in self.refused)

    @property
    def failure(self) -> str:
        """Why no completion could earn its reward, for whoever reads it; empty where some could."""
        if not self.tried:
            return ""
        if not self.accepted and not self.graded:
            return f"none of {self.tried:,} gold answers is `correct`"
        if self.unreadable == self.tried:
            return f"none of {self.tried:,} gold answers can be read as mathematics: only the same text is `correct`"
        return ""


class CheckStopped(Exception):
    """A judge gives up; the message says why.

    Attributes:
        verdicts: those of the calls that came to an end, None for the others; empty where they are not to be counted.
    """

    def __init__(self, why: str, verdicts: Sequence[Verdict | None] = ()) -> None:
        super().__init__(why)
        self.verdicts = verdicts


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
    asked = Adapted(Questioned.of(verifier))
    return lambda calls: [asked(completion, reference, prompt) for _, completion, reference, prompt in calls]


def through(pool: Pool, *, most_killed: int = 5, most_s: float = 300.0) -> Judge:
    """Judge in a pool's killable workers; of a pool of `questioned` verifiers, their methods are used too.

    Raises:
        CheckStopped: by the judge, once `most_killed` calls did not end before the pool's deadline, or after
            `most_s` seconds.
    """
    begun, killed_before = time.monotonic(), pool.stats().killed

    def judge(calls: Sequence[Call]) -> list[Verdict]:
        futures = pool.submit_many(calls)
        while concurrent.futures.wait(futures, timeout=0.5).not_done:
            killed = pool.stats().killed - killed_before
            if killed < most_killed and time.monotonic() - begun <= most_s:
                continue
            for future in futures:
                future.cancel()
            if killed >= most_killed:
                done = [future.result() if future.done() and not future.cancelled() else None for future in futures]
                raise CheckStopped(f"{killed} calls of the verifier hung until their deadline", done)
            raise CheckStopped(f"the check took longer than {most_s:g} s")
        return [future.result() for future in futures]

    return judge


def check_gold(
    judge: Judge,
    rows: Sequence[GoldRow],
    *,
    mathematical: bool = True,
    seed: int = 0,
    rows_at_a_time: int = _ROWS_AT_A_TIME,
    on_rows: Callable[[int], None] = lambda count: None,
) -> GoldReport:
    """Judge every gold answer, and then another row's.

    A gold answer is stated in each of `FORMS` until one is accepted, beginning with the form that was accepted last;
    where the verifier has `gold_completions`, those are judged instead.

    Args:
        judge: judges a batch of calls; see `one_by_one` and `through`.
        rows: the dataset's rows, all of one verifier.
        mathematical: also look whether the math parser can read each gold answer.
        seed: of the choice of the other row.
        rows_at_a_time: rows that are judged together.
        on_rows: told how many rows were checked, as they are.
    """
    check = _Check(judge, rows, mathematical, seed)
    stopped = ""
    try:
        check.learn_methods()
        for first in range(0, len(rows), rows_at_a_time):
            batch = rows[first : first + rows_at_a_time]
            check.take(batch)
            on_rows(len(batch))
            if not check.useful and check.tried >= _HOPELESS and check.rows < len(rows):
                stopped = f"none of the first {check.tried} gold answers was accepted"
                break
    except CheckStopped as reason:
        stopped = str(reason)
    return check.report(stopped)


class _Check:
    def __init__(self, judge: Judge, rows: Sequence[GoldRow], mathematical: bool, seed: int) -> None:
        self._judge, self._rows, self._mathematical = judge, rows, mathematical
        self._source = random.Random(seed)
        self._answering: Answering = Stated()
        self._questioned = False
        self._favourite = 0
        self.rows = self.accepted = 0
        self._no_answer = self._graded = self._scrambled = self._scrambled_accepted = self._failed = (
            self._unreadable
        ) = 0
        self._refused: list[Offender] = []
        self._fooled: list[Offender] = []
        self._first_unreadable: list[tuple[GoldRow, str]] = []

    @property
    def tried(self) -> int:
        return self.rows - self._no_answer

    @property
    def useful(self) -> bool:
        """Some gold answer was `correct`, or graded."""
        return self.accepted + self._graded > 0

    def learn_methods(self) -> None:
        """Ask the verifier whether it makes gold completions itself."""
        if self._rows:
            (verdict,) = self._judge([(self._rows[0].verifier, Ask.METHODS, None, {})])
            self._questioned = GOLD_COMPLETIONS in verdict.parts
            if verdict.parts.get(GOLD_COMPLETIONS):
                self._answering = OwnCompletions()

    def take(self, batch: Sequence[GoldRow]) -> None:
        """Judge the next rows.

        Raises:
            CheckStopped: the judge gives up; what it had judged before is counted.
        """
        ways: dict[int, int] = {}
        first: dict[int, Offender] = {}
        unanswered: set[int] = set()
        graded: set[int] = set()
        open_rows = list(range(len(batch)))
        stop: CheckStopped | None = None
        for way in self._ways(batch):
            calls = {at: call for at in open_rows if (call := self._answering.gold(batch[at], way)) is not None}
            try:
                found: Sequence[Verdict | None] = self._ask(list(calls.values()))
            except CheckStopped as problem:
                stop, found = problem, problem.verdicts or [None] * len(calls)
            for (at, call), verdict in zip(calls.items(), found, strict=True):
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
            raise stop  # the rows of this batch are looked at in part: none of them counts
        refused = [first[at] for at in open_rows if at in first]
        if stop:  # a row whose other forms were not tried is not refused yet
            refused = [offender for offender in refused if offender.verdict.status.failed]
        self.rows += len(ways) + len(unanswered) + (len(refused) if stop else len(open_rows))
        self.accepted += len(ways)
        self._no_answer += len(unanswered)
        self._graded += len(graded - ways.keys())
        _keep(self._refused, refused)
        if stop:
            raise stop
        if self._mathematical:
            self._read(batch)
        self._try_others([(batch[at], way) for at, way in sorted(ways.items())])

    def _ways(self, batch: Sequence[GoldRow]) -> list[int]:
        favourite = self._favourite
        return [favourite, *(way for way in range(self._answering.tries(batch)) if way != favourite)]

    def _try_others(self, rows: Sequence[tuple[GoldRow, int]]) -> None:
        asked = [(row, self._answering.other(row, way, self._rows, self._source)) for row, way in rows]
        known = [(row, call) for row, call in asked if call is not None]
        verdicts = self._ask([call for _, call in known])
        found = [_offender(row, call, verdict) for (row, call), verdict in zip(known, verdicts, strict=True)]
        judged = [each for each in found if not each.verdict.parts.keys() & {NO_ANSWER, NONE_LEFT}]
        fooled = [each for each in judged if each.verdict.status is Status.CORRECT]
        self._scrambled += len(judged)
        self._scrambled_accepted += len(fooled)
        _keep(self._fooled, fooled)

    def _ask(self, calls: Sequence[Call]) -> Sequence[Verdict]:
        if not calls:
            return []
        deep = [nested_too_deep(reference) for _, _, reference, _ in calls]
        asked = [call for call, is_deep in zip(calls, deep, strict=True) if not is_deep]
        try:
            verdicts = iter(self._judge(asked) if asked else ())
        except CheckStopped as stop:
            if any(deep) and stop.verdicts:
                kept = iter(stop.verdicts)
                stop.verdicts = [_TOO_DEEP if is_deep else next(kept) for is_deep in deep]
            self._failed += sum(verdict is not None and verdict.status.failed for verdict in stop.verdicts)
            raise
        answered = [_TOO_DEEP if is_deep else next(verdicts) for is_deep in deep]
        self._failed += sum(verdict.status.failed for verdict in answered)
        return answered

    def _read(self, batch: Sequence[GoldRow]) -> None:
        texts = [answers_of(row.reference)[0] for row in batch]
        calls: list[Call] = [(row.verifier, Ask.READING, text, {}) for row, text in zip(batch, texts, strict=True)]
        verdicts = self._judge(calls) if self._questioned else [reading(text) for text in texts]
        for row, verdict in zip(batch, verdicts, strict=True):
            if verdict.status is not Status.CORRECT:
                self._unreadable += 1
                _keep(self._first_unreadable, [(row, verdict.reason)])

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
            self._no_answer,
            self._graded,
        )


_TOO_DEEP = error("the reference is nested in too many lists to be handed to a verifier")


def _offender(row: GoldRow, call: Call, verdict: Verdict) -> Offender:
    return Offender(row, "" if isinstance(call[1], Ask) else call[1], verdict)


def _keep(kept: list[Any], found: Sequence[Any]) -> None:
    kept += found[: FIRST_OFFENDERS - len(kept)]
