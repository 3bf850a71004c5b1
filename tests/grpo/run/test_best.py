"""`train.keep_best`: which policies stay in a run's folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from grpo.config.schedule import ScheduleConfig
from grpo.run.best import BestPolicies, kept_policies


def test_after_a_death_the_best_policy_is_of_a_step_that_the_run_has(tmp_path: Path) -> None:
    schedule = ScheduleConfig(steps=9, keep_best="eval/accuracy")

    def opened(step: int, **changed: Any) -> BestPolicies:
        return BestPolicies(tmp_path, schedule.model_copy(update=changed), step)

    def offer(best: BestPolicies, step: int, value: float) -> bool:
        return best.offer(step, {"eval/accuracy": value}, lambda folder: Path(folder).mkdir(parents=True))

    def steps() -> list[int]:
        return [kept.step for kept in kept_policies(tmp_path)]

    best = opened(-1)
    assert offer(best, 0, 0.2) and not offer(best, 1, 0.2) and not best.offer(2, {"reward/mean": 9.0}, fail)
    best.checkpointed(2)
    assert offer(best, 3, 0.4) and offer(best, 4, 0.6) and not offer(best, 5, math.nan)
    # The run may die now and go on from step 2, so its best policy stays beside the best of all.
    assert steps() == [0, 4]
    best = opened(2)
    assert steps() == [0] and offer(best, 3, 0.3) and steps() == [0, 3]
    best.checkpointed(4)
    assert steps() == [3]
    # Another measure of the best cannot be compared with what was kept.
    assert offer(opened(4, best_is="lowest"), 5, 0.9) and steps() == [5]
    assert opened(9, keep_best=None).offer(6, {"eval/accuracy": 1.0}, fail) is False and steps() == [5]


def fail(folder: str) -> None:
    raise AssertionError("nothing is exported")


@pytest.mark.parametrize(
    ("metric", "evaluated", "said"),
    [
        ("reward/mean", True, "does not measure the policy after a step; give eval/accuracy"),
        ("eval/accuracy", False, "needs a section evaluation"),
    ],
)
def test_a_metric_that_cannot_choose_the_best_policy_is_refused(metric: str, evaluated: bool, said: str) -> None:
    (problem,) = ScheduleConfig(steps=1, keep_best=metric).problems(evaluated=evaluated)
    assert said in problem
    assert ScheduleConfig(steps=1, keep_best="custom/score").problems(evaluated=False) == []
