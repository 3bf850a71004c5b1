"""The verdict of a verifier on one completion."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any


class Status(StrEnum):
    """The result of a verification.

    `correct`, `scored`, `wrong` and `unparseable` depend on the completion, and their verdicts have a score. `scored`
    is a grade that does not claim that the answer is right: the score counts in the reward but not in accuracy. If a
    verifier with `gate: true` gives this status, the scores of the verifiers without a gate are taken as 0. `timeout`
    and `error` mean that the verification failed: the verdict has no score. The completion does not enter the
    statistics of the group and gives no gradient.

    >>> grpo.correct().status is grpo.Status.CORRECT, grpo.Status.TIMEOUT.failed
    (True, True)
    """

    CORRECT = "correct"
    WRONG = "wrong"
    SCORED = "scored"
    UNPARSEABLE = "unparseable"
    TIMEOUT = "timeout"
    ERROR = "error"

    @property
    def failed(self) -> bool:
        """True when the verification failed, so that nothing is known about the completion."""
        return self in (Status.TIMEOUT, Status.ERROR)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one verifier on one completion.

    >>> verdict = grpo.Verdict(0.5, grpo.Status.SCORED, "half of the tests passed", {"tests": 0.5})
    >>> verdict.score, verdict.parts["tests"]
    (0.5, 0.5)

    Attributes:
        score: finite number, usually in [0, 1]; None if and only if `status.failed`. Any real number is accepted (see
            `as_number`) and stored as a float.
        status: result of the verification.
        reason: one short line for a person who reads the report.
        parts: named parts of the score, such as `{"tags": 1.0, "order": 0.0}`; each is logged under its name.
        spans: scores of steps, for process supervision: (start, stop, score) with a range of characters [start, stop)
            of the completion. The ranges ascend and do not overlap.

    Raises:
        TypeError: the score is not a number.
        ValueError: the score is not finite, its presence contradicts the status, or the spans are not valid.
    """

    score: float | None
    status: Status
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    # Most verdicts have no spans, and a person reads the others as numbers of characters.
    spans: Sequence[tuple[int, int, float]] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.status.failed != (self.score is None):
            raise ValueError(
                f"a verdict has a score exactly when its status is not timeout or error; "
                f"got score={self.score!r} with status={self.status.value!r}"
            )
        if self.score is not None:
            if type(self.score) is not float:
                object.__setattr__(self, "score", float(as_number(self.score)))
            if not math.isfinite(self.score):
                raise ValueError(f"a score must be a finite number, got {self.score!r}")
        object.__setattr__(self, "parts", MappingProxyType(dict(self.parts)))
        object.__setattr__(self, "spans", checked_spans(self.spans) if len(self.spans) else ())
        if self.spans and self.status.failed:
            raise ValueError(
                f"a verdict with status={self.status.value!r} has no scores, but got {len(self.spans)} spans"
            )

    def __reduce__(self) -> tuple[type[Verdict], tuple[object, ...]]:
        # Verdicts are sent between processes, and a mapping proxy cannot be pickled.
        return Verdict, (self.score, self.status, self.reason, dict(self.parts), self.spans)


def checked_spans(spans: Sequence[Any]) -> tuple[tuple[int, int, float], ...]:
    """Return scores of steps as plain numbers.

    Raises:
        TypeError: a score is not a number.
        ValueError: a span is not (start, stop, score), its score is not finite, or the spans do not ascend.
    """
    checked: list[tuple[int, int, float]] = []
    for number, span in enumerate(spans):
        try:
            start, stop, score = span
            start, stop, score = operator.index(start), operator.index(stop), float(as_number(score))
        except (TypeError, ValueError) as problem:
            raise ValueError(
                f"span {number} must be (start, stop, score), got {str(span)[:80]!r}: {problem}"
            ) from problem
        if not math.isfinite(score):
            raise ValueError(f"the score of span {number} must be a finite number, got {score!r}")
        after = checked[-1][1] if checked else 0
        if not after <= start < stop:
            raise ValueError(
                f"span {number} covers the characters [{start}, {stop}) after a span that ends at {after}; spans must "
                "ascend, must not overlap, and must not be empty"
            )
        checked.append((start, stop, score))
    return tuple(checked)


def within(verdict: Verdict, text: str) -> Verdict:
    """Return the verdict; an `error` if a span lies outside the completion's text."""
    if not verdict.spans or verdict.spans[-1][1] <= len(text):
        return verdict
    start, stop, _ = verdict.spans[-1]
    return error(f"returned a span [{start}, {stop}) of a completion that has {len(text)} characters")


def as_number(value: Any) -> float | bool:
    """A real number of any kind as a float, or a truth value as a bool.

    Python's numbers, `Fraction`, `Decimal`, numpy's scalars, and arrays and tensors without dimensions are numbers.
    They are recognised by `numbers.Real`, `item()` or `__float__`, so that no library needs to be imported.

    Raises:
        TypeError: the value is not a number. Text is never a number, and neither is an array with one dimension or
            more.
        OverflowError: the number is too large for a float.
    """
    if isinstance(value, (bool, float)):
        return value
    if isinstance(value, numbers.Real):
        return float(value)
    shape = getattr(value, "shape", None)
    if isinstance(value, (str, bytes, type)):
        pass
    elif shape is not None:
        if tuple(shape) != ():
            raise TypeError(f"{_type_name(value)} of shape {tuple(shape)}")
        element = value.item()
        if not hasattr(element, "shape"):
            return as_number(element)
    elif hasattr(value, "__float__"):
        return float(value)
    raise TypeError(f"{_type_name(value)} {str(value)[:80]!r}")


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def correct(reason: str = "", score: float = 1.0, **parts: float) -> Verdict:
    """A verdict of status `correct`, with the score 1 by default.

    >>> grpo.correct("5 = 5").score
    1.0
    """
    return Verdict(score, Status.CORRECT, reason, parts)


def scored(score: float, reason: str = "", **parts: float) -> Verdict:
    """A verdict of status `scored`: a grade that does not claim that the answer is right.

    >>> grpo.scored(0.3, "three of ten steps").status.value
    'scored'
    """
    return Verdict(score, Status.SCORED, reason, parts)


def wrong(reason: str = "", score: float = 0.0, **parts: float) -> Verdict:
    """A verdict of status `wrong`, with the score 0 by default.

    >>> grpo.wrong("4 is not 5").score
    0.0
    """
    return Verdict(score, Status.WRONG, reason, parts)


def unparseable(reason: str = "", score: float = 0.0, **parts: float) -> Verdict:
    """A verdict of status `unparseable`: the completion has no answer that can be read.

    >>> grpo.unparseable("no <answer> tag").score
    0.0
    """
    return Verdict(score, Status.UNPARSEABLE, reason, parts)


def timeout(reason: str) -> Verdict:
    """A verdict of status `timeout`: the verifier had not decided at the deadline. The verdict has no score."""
    return Verdict(None, Status.TIMEOUT, reason)


def error(reason: str) -> Verdict:
    """A verdict of status `error`: the verifier failed. The verdict has no score."""
    return Verdict(None, Status.ERROR, reason)


def best(verdicts: Sequence[Verdict]) -> Verdict:
    """The best of several verdicts, one for each accepted answer: the first `correct`, else `error`, else `wrong`."""
    for status in (Status.CORRECT, Status.ERROR, Status.WRONG):
        for verdict in verdicts:
            if verdict.status is status:
                return verdict
    return verdicts[0]
