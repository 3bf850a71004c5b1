"""The learning rate over the optimizer steps."""

from __future__ import annotations

from typing import Any

import pytest

from grpo.config import LearnerConfig
from grpo.learner.schedule import learning_rate


def rates(total: int = 10, **settings: Any) -> list[float]:
    learner = LearnerConfig(learning_rate=2.0, **settings)
    return [learning_rate(learner, step, total) for step in range(total)]


def test_constant_after_the_warm_up() -> None:
    assert rates(total=6, warmup_steps=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert rates(total=3) == [2.0] * 3


def test_linear_and_cosine_begin_whole_and_end_near_nothing() -> None:
    assert rates(total=4, schedule="linear") == pytest.approx([2.0, 1.5, 1.0, 0.5])
    assert rates(total=4, schedule="cosine") == pytest.approx([2.0, 1 + 0.5**0.5, 1.0, 1 - 0.5**0.5])
    warmed = rates(total=6, schedule="linear", warmup_steps=2)
    assert warmed == pytest.approx([1.0, 2.0, 2.0, 1.5, 1.0, 0.5])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_never_negative_and_never_above_the_configured_one(schedule: str) -> None:
    for warmup in (0, 1, 9, 10, 50):
        found = rates(schedule=schedule, warmup_steps=warmup)
        assert all(0.0 < rate <= 2.0 for rate in found)


def test_steps_beyond_the_planned_ones_do_not_raise_the_rate_again() -> None:
    for schedule in ("linear", "cosine"):
        learner = LearnerConfig(learning_rate=2.0, schedule=schedule)
        assert [learning_rate(learner, step, 10) for step in (10, 11, 25)] == pytest.approx([0.0, 0.0, 0.0])
