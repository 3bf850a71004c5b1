"""A server that answers as it is told, to evaluate without engines and without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from grpo.config.evaluation import EvalConfig, TaskConfig
from grpo.config.file import resolve
from grpo.evaluation import evaluate as module
from grpo.evaluation import jobs
from grpo.evaluation.metrics import TaskMetrics
from grpo.evaluation.questions import Question, Sample
from grpo.types import SamplingParams

Answer = Callable[[Question], str]


class Stopped(Exception):
    """What a test stops an evaluation with."""


@dataclass
class FakeSampler:
    """Stands in for `EndpointSampler(url, settings)` and for what it returns."""

    answer: Answer
    stop_after: int | None = None
    tokens: int = 7
    model: str = "fake"
    asked: list[int] = field(default_factory=list)
    said: dict[str, Any] = field(default_factory=dict)
    sampling: SamplingParams | None = None

    def __call__(self, *_: Any) -> FakeSampler:
        return self

    @property
    def context(self) -> int | None:
        return self.said.get("max_model_len")

    def served(self) -> dict[str, Any]:
        return self.said

    def sample(
        self, questions: Sequence[Question], sampling: SamplingParams, deadline_s: float
    ) -> Iterator[tuple[int, Sample]]:
        self.sampling = sampling
        for count, index in enumerate(reversed(range(len(questions)))):
            if count == self.stop_after:
                raise Stopped
            self.asked.append(questions[index].seed)
            yield index, Sample(self.answer(questions[index]), self.tokens, "stop")


def evaluate(
    monkeypatch: pytest.MonkeyPatch, sampler: FakeSampler, folder: Path, tasks: Sequence[TaskConfig], **settings: Any
) -> dict[str, TaskMetrics]:
    """Run the job on what `sampler` says."""
    monkeypatch.setattr(jobs, "EndpointSampler", sampler)
    data = {"model": "http://fake/v1", "folder": str(folder), **settings}
    return module.evaluate(resolve(EvalConfig, data, [], "a test"), tasks, Console(file=StringIO(), width=200))
