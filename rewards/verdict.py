"""What a verifier says of one completion."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class Status(StrEnum):
    """How a verdict came about.

    `correct`, `wrong` and `unparseable` are the model's doing and carry a score. `timeout` and `error` are the
    machinery's: such a verdict has no score, stays out of its group's statistics and carries no gradient.
    """

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSEABLE = "unparseable"
    TIMEOUT = "timeout"
    ERROR = "error"

    @property
    def failed(self) -> bool:
        """True where the machinery failed, so that nothing is known of the completion."""
        return self in (Status.TIMEOUT, Status.ERROR)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One verifier's word on one completion.

    Attributes:
        score: a finite number, usually in [0, 1]; None exactly where `status.failed`.
        status: how the verdict came about.
        reason: one short line for a person who reads the report.
        parts: named components of the score (for example `{"tags": 1.0, "order": 0.0}`), each logged by its name.

    Raises:
        ValueError: the score is not a finite number, or its presence contradicts the status.
    """

    score: float | None
    status: Status
    reason: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status.failed != (self.score is None):
            raise ValueError(
                f"a verdict has a score exactly when its status is not timeout or error; "
                f"got score={self.score!r} with status={self.status.value!r}"
            )
        if self.score is not None and not math.isfinite(self.score):
            raise ValueError(f"a score must be a finite number, got {self.score!r}")
        object.__setattr__(self, "parts", MappingProxyType(dict(self.parts)))

    def __reduce__(self) -> tuple[type[Verdict], tuple[object, ...]]:
        # A mapping proxy cannot be pickled, and verdicts cross process borders.
        return Verdict, (self.score, self.status, self.reason, dict(self.parts))


def correct(reason: str = "", score: float = 1.0, **parts: float) -> Verdict:
    """A verdict of status `correct`, worth 1 unless told otherwise."""
    return Verdict(score, Status.CORRECT, reason, parts)


def wrong(reason: str = "", score: float = 0.0, **parts: float) -> Verdict:
    """A verdict of status `wrong`, worth 0 unless told otherwise."""
    return Verdict(score, Status.WRONG, reason, parts)


def unparseable(reason: str = "", score: float = 0.0, **parts: float) -> Verdict:
    """A verdict of status `unparseable`: no answer could be read, which is the model's fault."""
    return Verdict(score, Status.UNPARSEABLE, reason, parts)


def timeout(reason: str) -> Verdict:
    """A verdict of status `timeout`: undecided within the deadline, hence without a score."""
    return Verdict(None, Status.TIMEOUT, reason)


def error(reason: str) -> Verdict:
    """A verdict of status `error`: the verifier failed, hence without a score."""
    return Verdict(None, Status.ERROR, reason)
