"""Engines that do nothing but keep count, to run whole jobs without Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from grpo.algorithm.minibatches import TrainBatch
from grpo.algorithm.rescoring import ScoringBatch, Source
from grpo.cluster.slow_generators import GeneratorThroughput
from grpo.types import Completion, Finished, Prompt, Request, SamplingParams, VersionSpan
from rewards.pool.busy_clock import Busy

ANSWERS = ("<answer>1</answer>", "<answer>2</answer>", "nothing")


@dataclass
class FakeLearner:
    """Its weights are the number of its optimizer steps."""

    ranks: int = 1
    optimizer_steps: int = 0
    denominators: list[float] = field(default_factory=list)
    exports: list[str] = field(default_factory=list)
    proximal: list[float] = field(default_factory=list)
    refreshed: list[int] = field(default_factory=list)
    awake: bool = True
    turns: list[str] = field(default_factory=list)
    work: Callable[[], None] = lambda: None
    connected: list[str] = field(default_factory=list)

    def meanwhile(self, work: Callable[[], None]) -> None:
        self.work = work

    def connect(
        self, generators: FakeGenerators, transport: str, workers_each: int, deadline_s: float, *, sparse: bool = False
    ) -> None:
        self.connected.append(transport)

    def sleep(self) -> None:
        assert self.awake
        self.awake = False
        self.turns.append("learner sleeps")

    def wake(self) -> None:
        assert not self.awake
        self.awake = True
        self.turns.append("learner wakes")

    def steps(self, batches: Iterable[TrainBatch]) -> list[dict[str, float]]:
        return [self.step(batch) for batch in batches]

    def step(self, batch: TrainBatch) -> dict[str, float]:
        assert self.awake
        assert len(batch.ranks) == self.ranks
        self.work()
        self.optimizer_steps += 1
        self.denominators.append(batch.ranks[0].denominator)
        for microbatch in batch.ranks[0].microbatches:
            if microbatch.proximal_logprobs_T is not None:
                self.proximal += microbatch.proximal_logprobs_T[microbatch.weights_T > 0].tolist()
        return {"loss": 0.5, "entropy": 1.0, "ratio_max": 1.0, "gradient_norm": 0.1, "learning_rate": 1e-4}

    @property
    def scores_aside(self) -> bool:
        return self.ranks > 1

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[list[float]]]:
        return lambda: [[-float(self.optimizer_steps)] * (len(ids) - 1) for ids in sequences]

    def logprobs(self, batch: ScoringBatch, source: Source) -> list[list[Tensor]]:
        value = -1.5 if source == "reference" else -2.0 - self.optimizer_steps
        return [[torch.full_like(one.weights_T, value) for one in rank] for rank in batch.ranks]

    def refresh_reference(self) -> None:
        self.refreshed.append(self.optimizer_steps)

    def tensor_names(self) -> list[str]:
        return ["weight"]

    def export_buckets(self, bucket_bytes: int) -> Iterator[int]:
        yield self.optimizer_steps

    def save(self, folder: str) -> None:
        assert self.awake
        self.export(f"{folder}/policy")
        (Path(folder) / "learner").write_text(str(self.optimizer_steps))

    def load(self, folder: str) -> None:
        self.optimizer_steps = int((Path(folder) / "learner").read_text())

    def take_busy(self) -> dict[str, Busy]:
        return {f"learner rank {rank}": {} for rank in range(self.ranks)}

    def export(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text("{}")
        self.exports.append(folder)


@dataclass
class Sampling:
    """A request on its way: it is finished after `ticks`, and its tokens come evenly over them."""

    request: Request
    ticks: int
    done: int = 0
    # Of each tick that is done, the version that sampled.
    versions: list[int] = field(default_factory=list)


@dataclass
class FakeStream:
    """`finished` is the clock: each call is a tick, and one that waits ticks until something is finished."""

    generators: FakeGenerators
    sampling: SamplingParams
    running: list[Sampling] = field(default_factory=list)

    @property
    def unfinished(self) -> int:
        return len(self.running)

    def submit(self, requests: Sequence[Request], prompts: Sequence[Prompt] = ()) -> None:
        fakes = self.generators
        assert fakes.awake
        assert not {request.index for request in requests} & {one.request.index for one in self.running}
        fakes.asked.append((self.sampling.samples, tuple(request.token_ids for request in requests)))
        fakes.seeds += [(self.sampling.samples, request.seed) for request in requests]
        fakes.on_sampled(fakes.versions[-1], self.sampling.samples)
        self.running += [Sampling(request, fakes.latency(request.seed)) for request in requests]

    def finished(self, wait: bool = True) -> Finished:
        if wait and not self.running:
            raise RuntimeError("this stream has no unfinished request")
        assert self.generators.awake or not self.running
        found: list[Sampling] = []
        while not found:
            for one in self.running:
                one.done += 1
                one.versions.append(self.generators.versions[-1])
            found = [one for one in self.running if one.done >= one.ticks]
            self.running = [one for one in self.running if one.done < one.ticks]
            if not wait:
                break
        return [(one.request.index, self._completions(one)) for one in reversed(found)]

    def restart(self) -> None:
        for one in self.running:
            one.done, one.versions = 0, []

    def _completions(self, one: Sampling) -> tuple[Completion, ...]:
        count = self.sampling.max_tokens
        # As long as may be, which is when limits matter.
        sampled = [one.versions[token * len(one.versions) // count] for token in range(count)]
        spans, begin = [], 0
        for version, tokens in itertools.groupby(sampled):
            end = begin + len(list(tokens))
            spans.append(VersionSpan(begin, end, version))
            begin = end
        return tuple(
            Completion((5,) * count, (-1.0,) * count, ANSWERS[(one.request.seed + i) % 3], "length", tuple(spans))
            for i in range(self.sampling.samples)
        )


@dataclass
class FakeGenerators:
    """Answers by the seed; `on_sampled(policy version, samples)` is called when requests come.

    `latency(seed)` is after how many ticks a request is finished; `restarts` begins unfinished ones again at a push.
    """

    max_sequence_tokens: int
    weights: int = 0
    versions: list[int] = field(default_factory=list)
    asked: list[tuple[int, tuple[tuple[int, ...], ...]]] = field(default_factory=list)
    seeds: list[tuple[int, int]] = field(default_factory=list)
    on_sampled: Callable[[int, int], None] = lambda version, samples: None
    latency: Callable[[int], int] = lambda seed: 1
    restarts: bool = False
    deaf: bool = False
    awake: bool = True
    turns: list[str] = field(default_factory=list)
    streams: list[FakeStream] = field(default_factory=list)

    def sleep(self) -> None:
        assert self.awake
        assert not any(stream.running for stream in self.streams)
        self.awake = False
        self.turns.append("generators sleep")

    def wake(self) -> None:
        assert not self.awake
        self.awake = True
        self.turns.append("generators wake")

    def stream(self, sampling: SamplingParams) -> FakeStream:
        self.streams.append(FakeStream(self, sampling))
        return self.streams[-1]

    def take_busy(self) -> dict[str, Busy]:
        return {"generator 0": {}}

    def take_sampled(self) -> list[GeneratorThroughput]:
        return []

    def on_restart(self, push: Callable[[int], None]) -> None:
        pass

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[list[list[float]]]]:
        # vLLM refuses a prompt after which no token fits.
        assert all(len(ids) < self.max_sequence_tokens for ids in sequences)
        return lambda: [[[-float(self.weights)] * (len(ids) - 1) for ids in sequences]]

    def load_weights(self, buckets: Iterable[Any], policy_version: int) -> list[str]:
        assert self.awake
        for weights in buckets:
            self.weights = self.weights if self.deaf else weights
        self.versions.append(policy_version)
        if self.restarts:
            for stream in self.streams:
                stream.restart()
        return ["weight"]


@dataclass
class FakeCluster:
    """Stands in for `Cluster(settings, plan)` and for what it returns."""

    learner: FakeLearner
    generators: FakeGenerators | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    nodes: int = 1
    closed: bool = False

    def __call__(self, *_: Any) -> FakeCluster:
        return self

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def start_learner(self, setups: Sequence[Any]) -> Callable[[], FakeLearner]:
        assert len(setups) == self.learner.ranks
        return lambda: self.learner

    def start_generators(self, *_: Any) -> Callable[[], FakeGenerators]:
        assert self.generators is not None
        generators = self.generators
        return lambda: generators
