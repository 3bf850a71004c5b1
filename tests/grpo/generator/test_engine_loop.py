"""The thread that owns an engine, with an engine that only counts."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from grpo.generator.loop import HAND_ON_S, EngineLoop
from grpo.types import Completion, EngineDied, Finished, Request, SamplingParams, VersionSpan

SAMPLING = SamplingParams(1, 8)
DONE = (Completion((1,), (-1.0,), "x", "stop", (VersionSpan(0, 1, 0),)),)


class Counter:
    """Finishes request i in its step i of that request; `step_s` is what a step takes."""

    def __init__(self, step_s: float = 0.001) -> None:
        self.step_s = step_s
        self.steps = 0
        self.left: dict[int, int] = {}
        self.held = False
        self.alive = True
        self.thread = threading.get_ident()
        self.block: threading.Event | None = None

    @property
    def busy(self) -> bool:
        return bool(self.left) and not self.held

    def submit(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        if any(request.index < 0 for request in requests):
            raise ValueError("request -1 is too long")
        self.left |= {request.index: request.index for request in requests}

    def step(self) -> Finished:
        assert self.thread == threading.get_ident(), "an engine is used by the thread that made it"
        if self.block:
            self.block.wait()
        time.sleep(self.step_s)
        self.steps += 1
        self.left = {index: left - 1 for index, left in self.left.items()}
        finished = [index for index, left in self.left.items() if left <= 0]
        self.left = {index: left for index, left in self.left.items() if left > 0}
        return [(index, DONE) for index in finished]


def requests(*indices: int) -> list[Request]:
    return [Request(index, (1,), 0) for index in indices]


def taken(loop: EngineLoop, count: int) -> Iterator[list[int]]:
    """Indices as they are handed on, until there were so many."""
    while count > 0:
        finished = loop.take(5.0).finished
        assert finished, "nothing came in five seconds"
        count -= len(finished)
        yield [index for index, _ in finished]


def test_groups_are_handed_on_together_and_the_last_at_once() -> None:
    loop = EngineLoop(Counter)
    loop.submit(requests(*range(1, 121)), SAMPLING)
    handed = list(taken(loop, 120))
    assert sorted(itertools.chain(*handed)) == list(range(1, 121)), "each once"
    # 120 steps of about a millisecond: the first alone, then those of HAND_ON_S together.
    assert handed[0][0] == 1 and len(handed[0]) < 20
    steps = loop.call(lambda engine: engine.steps)
    assert len(handed) < 3 + steps * 0.003 / HAND_ON_S + 10, handed
    began = time.monotonic()
    loop.submit(requests(1), SAMPLING)
    assert list(taken(loop, 1)) == [[1]]
    assert time.monotonic() - began < HAND_ON_S, "an engine with nothing left to do does not wait for more"


def test_an_idle_engine_is_not_stepped_and_uses_no_processor() -> None:
    loop = EngineLoop(Counter)
    loop.submit(requests(3), SAMPLING)
    list(taken(loop, 1))
    used = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - used < 0.1
    assert loop.call(lambda engine: engine.steps) == 3
    assert loop.take(0.0).stalled_s == 0.0


def test_calls_and_requests_come_between_steps() -> None:
    loop = EngineLoop(Counter)
    loop.submit(requests(10_000), SAMPLING)
    first = loop.call(lambda engine: engine.steps)
    loop.submit(requests(2), SAMPLING)
    assert list(taken(loop, 1)) == [[2]]
    assert first < loop.call(lambda engine: engine.steps) < 10_000
    loop.call(lambda engine: setattr(engine, "held", True))
    held_at = loop.call(lambda engine: engine.steps)
    time.sleep(0.05)
    assert loop.call(lambda engine: engine.steps) == held_at, "a held engine is not stepped"
    assert loop.take(0.0).stalled_s == 0.0, "and is not stalled"


def test_an_engine_that_blocks_is_said_to_stall() -> None:
    loop = EngineLoop(Counter)
    block = threading.Event()
    loop.call(lambda engine: setattr(engine, "block", block))
    loop.submit(requests(1), SAMPLING)
    assert loop.take(0.3).finished == []
    assert 0.25 < loop.take(0.1).stalled_s < 5
    block.set()
    assert list(taken(loop, 1)) == [[1]]
    assert loop.take(0.0).stalled_s == 0.0


@pytest.mark.parametrize(
    "use", [lambda loop: loop.take(10.0), lambda loop: loop.call(lambda engine: engine.steps)], ids=["take", "call"]
)
def test_what_ends_the_loop_is_raised_by_every_call(use: Callable[[EngineLoop], object]) -> None:
    loop = EngineLoop(Counter)
    loop.submit(requests(-1), SAMPLING)
    for _ in range(2):
        with pytest.raises(ValueError, match="request -1 is too long"):
            use(loop)


def test_what_the_engine_did_and_when_comes_with_the_groups() -> None:
    loop = EngineLoop(lambda: Counter(step_s=0.002))
    loop.call(lambda engine: time.sleep(0.05), "sync")
    loop.call(lambda engine: time.sleep(0.05))
    began = time.time()
    loop.submit(requests(100), SAMPLING)
    report = loop.take(30.0)
    ended = time.time()
    assert [index for index, _ in report.finished] == [100] and set(report.busy) == {"sync", "generate"}
    ((from_s, to_s),) = report.busy["sync"]
    assert 0.05 <= to_s - from_s < 0.1 + 0.05 and to_s <= began
    sampled = report.busy["generate"]
    assert began <= sampled[0][0] and sampled[-1][1] <= ended
    assert sum(end - begin for begin, end in sampled) >= 100 * 0.002
    assert loop.take_busy() == {}


def test_an_engine_that_dies_without_a_word_is_missed() -> None:
    loop = EngineLoop(Counter)
    block = threading.Event()
    loop.call(lambda engine: setattr(engine, "block", block))
    engine = loop._engine
    loop.submit(requests(1), SAMPLING)
    assert isinstance(engine, Counter)
    engine.alive = False
    with pytest.raises(EngineDied):
        loop.take(30.0)
    with pytest.raises(EngineDied):
        loop.call(lambda engine: None)
    block.set()


def test_groups_that_finished_before_the_end_are_still_handed_on() -> None:
    loop = EngineLoop(Counter)
    loop.submit(requests(1), SAMPLING)
    while not loop._outbox:
        time.sleep(0.001)
    loop.submit(requests(-1), SAMPLING)
    time.sleep(0.05)
    assert list(taken(loop, 1)) == [[1]]
    with pytest.raises(ValueError, match="too long"):
        loop.take(1.0)


def test_an_engine_that_cannot_be_made_says_why() -> None:
    def make() -> Counter:
        raise OSError("no such policy")

    with pytest.raises(OSError, match="no such policy"):
        EngineLoop(make)
