"""The data that an evaluation and its sampler exchange."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from grpo.types import FinishReason, Prompt, SamplingParams

SampleEnd = FinishReason | Literal["refused"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A completion.

    Attributes:
        text: text of the completion. It starts with a reasoning model's thoughts, in `<think>` tags.
        tokens: length in tokens, with the end-of-sequence token.
        finish_reason: `stop` if the model ended the completion, `length` if the limit ended it, `refused` if a server
            gave no usable completion.
        refusal: what the server said instead of a completion; None if there is a completion.
    """

    text: str
    tokens: int
    finish_reason: SampleEnd
    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A request for a completion.

    Attributes:
        text: text of the question, before any chat template.
        system: system message; None if there is no system message.
        prompt: question as tokens of the policy; None if a server makes the tokens.
        seed: seed of this sample.
    """

    text: str
    system: str | None
    prompt: Prompt | None
    seed: int


class Sampler(Protocol):
    """The interface of a sampler: the project's engines, or a server."""

    def sample(
        self, questions: Sequence[Question], sampling: SamplingParams, deadline_s: float
    ) -> Iterator[tuple[int, Sample]]:
        """Yield (index of the question, completion) once for each question, in the order of arrival."""
        ...
