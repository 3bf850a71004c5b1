"""What travels between an evaluation and whoever samples for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from grpo.types import FinishReason, Prompt, SamplingParams


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion.

    Attributes:
        text: what was said; a reasoning model's thoughts stand before it, in `<think>` tags.
        tokens: its length, the end-of-sequence token included.
        finish_reason: `stop` where the model ended it, `length` where the limit did.
    """

    text: str
    tokens: int
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Question:
    """One completion to ask for.

    Attributes:
        text: the question, before any chat template.
        system: a system message, if any.
        prompt: the question as the policy's tokens; None where a server makes them.
        seed: of this very sample.
    """

    text: str
    system: str | None
    prompt: Prompt | None
    seed: int


class Sampler(Protocol):
    """Whoever samples: engines of our own, or a server."""

    def sample(
        self, questions: Sequence[Question], sampling: SamplingParams, deadline_s: float
    ) -> Iterator[tuple[int, Sample]]:
        """(index of the question, its completion) as they come, in any order; one for each question."""
        ...
