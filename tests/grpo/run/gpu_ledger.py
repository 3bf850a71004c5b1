"""Fake engines that book the bytes of one GPU: whoever needs more than the GPU has left fails the test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fake_engines import FakeCluster, FakeGenerators, FakeLearner

from grpo.algorithm.minibatches import TrainBatch

# In GiB, about what a policy of four billion parameters needs on a GPU of 80 GiB.
CARD, WEIGHTS, STATES, ACTIVATIONS, SHARE = 80, 16, 48, 14, 60


@dataclass
class Gpu:
    """What each side holds. While vLLM starts, it measures the free memory, so nobody else may move any."""

    held: dict[str, int] = field(default_factory=dict)
    measuring: bool = False

    def hold(self, side: str, size: int) -> None:
        assert not self.measuring or side == "generator", f"the {side} moves memory while vLLM measures it"
        self.held[side] = size
        assert sum(self.held.values()) <= CARD, self.held


@dataclass
class BookingLearner(FakeLearner):
    """Adam's states exist after the first step, or after a checkpoint was loaded."""

    gpu: Gpu = field(default_factory=Gpu)
    states: int = 0

    def sleep(self) -> None:
        super().sleep()
        self.gpu.hold("learner", WEIGHTS)

    def wake(self) -> None:
        super().wake()
        self.gpu.hold("learner", WEIGHTS + self.states)

    def step(self, batch: TrainBatch) -> dict[str, float]:
        metrics = super().step(batch)
        self.states = STATES
        self.gpu.hold("learner", WEIGHTS + STATES + ACTIVATIONS)
        return metrics

    def load(self, folder: str) -> None:
        assert self.awake
        super().load(folder)
        self.states = STATES
        self.gpu.hold("learner", WEIGHTS + STATES)


@dataclass
class BookingGenerators(FakeGenerators):
    gpu: Gpu = field(default_factory=Gpu)

    def sleep(self) -> None:
        super().sleep()
        self.gpu.hold("generator", 0)

    def wake(self) -> None:
        super().wake()
        self.gpu.hold("generator", SHARE)


@dataclass
class BookingCluster(FakeCluster):
    gpu: Gpu = field(default_factory=Gpu)

    def start_learner(self, setups: Sequence[Any]) -> Callable[[], FakeLearner]:
        def join() -> FakeLearner:
            self.gpu.hold("learner", WEIGHTS)
            return self.learner

        return join

    def start_generators(self, *_: Any) -> Callable[[], FakeGenerators]:
        self.gpu.measuring = True

        def join() -> FakeGenerators:
            assert self.generators is not None
            self.gpu.hold("generator", SHARE)
            self.gpu.measuring = False
            return self.generators

        return join


def booking_cluster(max_sequence_tokens: int) -> BookingCluster:
    """A cluster whose learner and generators share one GPU."""
    gpu = Gpu()
    generators = BookingGenerators(max_sequence_tokens, gpu=gpu)
    return BookingCluster(BookingLearner(gpu=gpu), generators, device="cuda", gpu=gpu)
