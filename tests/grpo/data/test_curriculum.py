"""Prompts by measured difficulty: the draws of a curriculum against their shares, and its state."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from pydantic import ValidationError

from grpo.config.inputs import TrainingDataConfig, training_data_problems
from grpo.config.signals.curriculum import CurriculumConfig
from grpo.data.drawing.curriculum import Curriculum
from grpo.data.drawing.cursor import Cursor, shuffled

EVEN = {"unseen": 1, "easy": 1, "normal": 1, "hard": 1}


def curriculum(count: int, without: frozenset[int] = frozenset(), **settings: Any) -> Curriculum[int]:
    return Curriculum(range(count), 7, CurriculumConfig.model_validate(settings), without)


def test_pools_follow_solve_rates_and_give_their_shares() -> None:
    drawn = curriculum(8, groups=2, easy_from=0.75, hard_to=0.25, shares={**EVEN, "unseen": 0, "normal": 2})
    order = drawn.next(8)
    assert order == shuffled(8, 7)
    # Rates 0, 1/4, 1/2, 3/4, 1 in groups of four; of the sixth, two completions have no verdict.
    solved = [0, 1, 2, 3, 4, 1, 2, 2]
    known = [4, 4, 4, 4, 4, 2, 4, 4]
    metrics = drawn.observe(list(zip(order, solved, known, strict=True)))
    assert {name: value for name, value in metrics.items() if value} == {
        "unseen_groups": 8.0,
        "hard_prompts": 2.0,
        "normal_prompts": 4.0,
        "easy_prompts": 2.0,
    }
    hard, normal, easy = order[:2], [order[2], *order[5:]], order[3:5]
    first = drawn.next(4)
    assert Counter("hard" if at in hard else "easy" if at in easy else "normal" for at in first) == {
        "normal": 2,
        "hard": 1,
        "easy": 1,
    }
    assert [at for at in first if at in normal] == normal[:2], "a pool is a queue"
    # The mean of two groups counts: 0 of 4, then 4 of 4, is normal; a third group pushes the first out.
    again = hard[0]
    assert drawn.observe([(again, 4, 4)])["normal_prompts"] == 3.0
    assert drawn.observe([(again, 4, 4)])["easy_prompts"] == 2.0


def test_an_empty_pool_leaves_its_share_to_the_others_and_nothing_stops_a_run() -> None:
    drawn = curriculum(3, shares={"unseen": 0, "easy": 0, "normal": 1, "hard": 0}, set_aside_solved=1)
    order = drawn.next(3)
    assert sorted(order) == [0, 1, 2]
    assert drawn.next(1) == order[:1], "all are under way, so the first is drawn again"
    drawn.observe([(at, 2, 2) for at in order])
    metrics = drawn.observe([])
    assert metrics["solved_prompts"] == 3.0
    assert drawn.next(2) == order[:2], "all are set aside, so the first to be set aside is drawn again"
    # A group whose verdicts all failed measures nothing, and the prompt stays where it was.
    assert drawn.observe([(order[0], 0, 0)])["solved_prompts"] == 2.0


def test_prompts_solved_always_or_never_are_set_aside_and_return() -> None:
    settings = {"groups": 1, "set_aside_solved": 2, "set_aside_unsolved": 1, "return_after": 2}
    drawn = curriculum(4, **settings)
    always, never, mixed, other = drawn.next(4)
    metrics = drawn.observe([(always, 2, 2), (never, 0, 2), (mixed, 1, 2), (other, 2, 2)])
    assert (metrics["easy_prompts"], metrics["normal_prompts"], metrics["unsolved_prompts"]) == (2.0, 1.0, 1.0)
    metrics = drawn.observe([(always, 2, 2), (other, 1, 2)])
    assert (metrics["solved_prompts"], metrics["easy_prompts"], metrics["normal_prompts"]) == (1.0, 0.0, 2.0)
    assert sorted(drawn.next(2)) == sorted([mixed, other]), "what is set aside is drawn only if nothing else is left"
    metrics = drawn.observe([])
    assert (metrics["hard_prompts"], metrics["unsolved_prompts"], metrics["solved_prompts"]) == (1.0, 0.0, 1.0)
    assert drawn.observe([])["solved_prompts"] == 0.0


def steps(drawn: Curriculum[int], count: int, seed: int) -> list[list[int]]:
    chance, trained = random.Random(seed), []
    for _ in range(count):
        trained.append(drawn.next(5))
        drawn.observe([(at, chance.randint(0, at % 5), 4) for at in trained[-1]])
    return trained


def test_a_restored_curriculum_draws_as_the_whole_run() -> None:
    settings = {"set_aside_unsolved": 2, "return_after": 3}
    whole, first = curriculum(40, **settings), curriculum(40, **settings)
    steps(first, 6, 1)
    first.next(2)
    resumed = curriculum(40, **settings)
    resumed.load_state_dict(first.state_dict())
    steps(whole, 6, 1)
    whole.next(2)
    assert steps(resumed, 20, 2) == steps(whole, 20, 2)
    assert resumed.state_dict() == whole.state_dict()


def test_rows_that_are_left_out_change_between_two_starts() -> None:
    first = curriculum(6, frozenset({0}))
    drawn = first.next(5)
    assert sorted(drawn) == [1, 2, 3, 4, 5]
    first.observe([(at, 1, 2) for at in drawn])
    resumed = curriculum(6, frozenset({1}))
    resumed.load_state_dict(first.state_dict())
    assert sorted(resumed.next(5)) == [0, 2, 3, 4, 5]


def test_a_state_of_other_data_or_of_another_kind_of_draws_is_refused() -> None:
    state = curriculum(4).state_dict()
    with pytest.raises(ValueError, match=r"written with 4 rows, but the data has 5 now"):
        curriculum(5).load_state_dict(state)
    with pytest.raises(ValueError, match=r"written without data\.curriculum"):
        curriculum(4).load_state_dict(Cursor(range(4), 7).state_dict())
    with pytest.raises(ValueError, match=r"written with data\.curriculum"):
        Cursor(range(4), 7).load_state_dict(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"easy_from": 0.2}, r"hard_to=0\.2 must be smaller than data\.curriculum\.easy_from=0\.2"),
        ({"shares": dict.fromkeys(EVEN, 0)}, r"shares are all 0"),
        ({"return_after": 3}, r"return_after=3 returns prompts that were set aside, but none are"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    data = TrainingDataConfig.model_validate({"path": "rows.jsonl", "curriculum": settings})
    (problem,) = training_data_problems(data)
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem)


def test_a_share_below_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"greater than or equal to 0"):
        CurriculumConfig.model_validate({"shares": {"easy": -1}})
