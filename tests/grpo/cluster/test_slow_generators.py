"""Which generator is told to be slow, when, and how often."""

from __future__ import annotations

import pytest

from grpo.cluster.slow_generators import STEPS, GeneratorThroughput, SlowGenerators
from grpo.types import ActorId, ActorKind


def step_of(*tokens: int, busy_s: float = 2.0) -> list[GeneratorThroughput]:
    return [of_generator(n, n, count, busy_s) for n, count in enumerate(tokens)]


def of_generator(number: int, process: int, tokens: int, busy_s: float) -> GeneratorThroughput:
    return GeneratorThroughput(ActorId(ActorKind.GENERATOR, number), process, f"10.0.0.{number}", tokens, busy_s)


def test_the_slow_one_is_named_once_with_how_much_slower_it_is() -> None:
    slow = SlowGenerators()
    for _ in range(STEPS - 1):
        assert slow.step(step_of(400, 100, 420)) == ({}, [])
    metrics, (line,) = slow.step(step_of(400, 100, 420))
    assert metrics == {"throughput/slowest_generator": pytest.approx(4.1)}
    assert line.startswith("generator 1 (pid 1 on 10.0.0.1) is slow: it samples 50 tokens/s")
    assert "4.1 times fewer than the median of the others (205 tokens/s" in line
    metrics, lines = slow.step(step_of(400, 100, 420))
    assert metrics and not lines


def test_a_single_odd_step_is_nothing_and_a_share_of_the_work_is_no_measure() -> None:
    slow = SlowGenerators()
    for _ in range(2 * STEPS):
        # Half the tokens in half the time.
        metrics, lines = slow.step([*step_of(400), *step_of(0, 200, busy_s=1.0)[1:]])
        assert not lines
    assert metrics == {"throughput/slowest_generator": pytest.approx(1.0)}
    metrics, lines = slow.step(step_of(400, 10))
    assert not lines and 1 < metrics["throughput/slowest_generator"] < 2


def test_one_that_finishes_nothing_is_slow_and_one_that_was_started_again_is_another() -> None:
    slow = SlowGenerators()
    for _ in range(STEPS):
        metrics, lines = slow.step(step_of(400, 0))
    assert metrics["throughput/slowest_generator"] == pytest.approx(400 * STEPS) and len(lines) == 1
    anew = of_generator(1, 77, 20, 2.0)
    for _ in range(STEPS - 1):
        assert slow.step([*step_of(400), anew]) == ({}, [])
    _, (line,) = slow.step([*step_of(400), anew])
    assert "pid 77" in line and "20.0 times fewer" in line


def test_alone_or_without_work_there_is_nothing_to_compare() -> None:
    slow = SlowGenerators()
    for _ in range(2 * STEPS):
        assert slow.step(step_of(400)) == ({}, [])
        assert slow.step(step_of(0, 0, busy_s=0.0)) == ({}, [])
