"""Engines whose work takes its time on a counted clock, for the real training loop to be driven by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fake_engines import FakeCluster, FakeGenerators, FakeLearner
from fake_run import silent_progress
from virtual_engines import VirtualReplica, VirtualReplicas

from grpo.algorithm.minibatches import TrainBatch
from grpo.config import TrainConfig
from grpo.config.file import load
from grpo.planning.simulation.lengths import Floats
from grpo.planning.simulation.loop import Deployment, Speeds
from grpo.rollout.staleness import OpenGroups
from grpo.train_loop import train
from grpo.types import Completion, Finished, Prompt, Request, SamplingParams, VersionSpan
from rewards import verdict
from rewards.verdict import Verdict


class PromptVerifiers:
    """A pool whose verdicts are there at once, so that the order of groups is that of their sampling."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> PromptVerifiers:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def judges_groups(self, name: str) -> bool:
        return False

    def submit_many(self, calls: Sequence[tuple[str, str, Any, Any]]) -> list[Future[Verdict]]:
        futures: list[Future[Verdict]] = [Future() for _ in calls]
        for future, (_, text, _, _) in zip(futures, calls, strict=True):
            future.set_result(verdict.correct() if text == "0" else verdict.wrong())
        return futures

    def take_recent(self) -> dict[str, Any]:
        return {}

    def take_busy(self) -> dict[str, Any]:
        return {}


def completion_of(tokens: int, number: int, begun: Iterable[tuple[int, int]]) -> Completion:
    """Of so many tokens, from pairs (first token, the version that sampled from there on)."""
    starts = {start: version for start, version in begun if start < tokens}
    bounds = [*sorted(starts), tokens]
    spans = tuple(VersionSpan(bounds[i], bounds[i + 1], starts[bounds[i]]) for i in range(len(starts)))
    return Completion((5,) * tokens, (-1.0,) * tokens, str(number), "stop", spans)


@dataclass
class VirtualStream:
    """A request's index is its row in the lengths."""

    generators: VirtualGenerators
    sampling: SamplingParams
    asked: set[int] = field(default_factory=set)

    @property
    def unfinished(self) -> int:
        return len(self.asked)

    def submit(self, requests: Sequence[Request], prompts: Sequence[Prompt] = ()) -> None:
        fakes = self.generators
        for request in requests:
            self.asked.add(request.index)
            lengths = fakes.lengths_NG[request.index]
            assert len(lengths) == self.sampling.samples
            fakes.engines.submit(request.index, lengths.tolist())
            for number in range(len(lengths)):
                fakes.begun[request.index, number] = {0: fakes.versions[-1]}

    def finished(self, wait: bool = True) -> Finished:
        engines = self.generators.engines
        while wait and not self.asked & engines.ended_s().keys():
            engines.run_to_next_end()
        ended_s = engines.ended_s()
        ended = sorted(self.asked & ended_s.keys(), key=lambda group: (ended_s[group], group))
        self.asked.difference_update(ended)
        return [(group, self.generators.completions(group)) for group in ended]


@dataclass
class VirtualGenerators(FakeGenerators):
    engines: VirtualReplicas = field(default_factory=lambda: VirtualReplicas([]))
    lengths_NG: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    push_s: float = 0.0
    # (group, number of the completion) -> first token -> the version that sampled from there on.
    begun: dict[tuple[int, int], dict[int, int]] = field(default_factory=dict)
    pushed_s: list[float] = field(default_factory=list)

    def stream(self, sampling: SamplingParams) -> VirtualStream:  # type: ignore[override]
        return VirtualStream(self, sampling)

    def load_weights(self, buckets: Iterable[Any], policy_version: int) -> list[str]:
        names = super().load_weights(buckets, policy_version)
        # The clock begins with the first version in place.
        self.engines.hold(self.push_s if self.pushed_s else 0.0)
        self.pushed_s.append(self.engines.now_s)
        for replica in self.engines.replicas:
            for one in replica.sequences:
                self.begun[one.group, one.number][int(one.length - one.left)] = policy_version
        return names

    def completions(self, group: int) -> tuple[Completion, ...]:
        lengths = self.lengths_NG[group]
        return tuple(
            completion_of(int(length), number, self.begun[group, number].items())
            for number, length in enumerate(lengths.tolist())
        )


@dataclass
class VirtualLearner(FakeLearner):
    """Every step takes as long as any other: what a batch holds depends on which rewards differ."""

    engines: VirtualReplicas = field(default_factory=lambda: VirtualReplicas([]))
    step_s: float = 0.0
    ready_s: list[float] = field(default_factory=list)

    def steps(self, batches: Iterable[TrainBatch]) -> list[dict[str, float]]:
        self.ready_s.append(self.engines.now_s)
        self.engines.run_until(self.engines.now_s + self.step_s)
        return super().steps(batches)


def rows(count: int) -> Iterable[dict[str, str]]:
    for number in range(count):
        yield {"prompt": f"{number}+{number}=?", "answer": "1"}


def settings_of(folder: Path, policy: Path, prompts: int, lag: int, lengths_NG: Floats, steps: int) -> TrainConfig:
    """A run that spends no time on anything beside sampling, learning and pushing."""
    path = folder.parent / f"{folder.name}.yaml"
    longest = int(lengths_NG.max())
    sections = {
        "run": {"folder": str(folder)},
        "policy": {"path": str(policy)},
        "data": {"generator": f"{__name__}:rows", "options": {"count": 10 * prompts}},
        "verifiers": [{"name": "answer", "use": "numeric"}],
        "rollout": {
            "prompts_per_step": prompts,
            "group_size": lengths_NG.shape[1],
            "max_prompt_tokens": 8,
            "max_completion_tokens": longest,
            "max_policy_lag": lag,
        },
        "learner": {"microbatch_tokens": 8 * (8 + longest)},
        "train": {"steps": steps, "checkpoint_every": 10_000},
        "report": {"trackers": [], "rollouts_every": 10_000},
    }
    path.write_text(yaml.safe_dump(sections))
    return load(TrainConfig, path)


@dataclass(frozen=True)
class Driven:
    """What the real loop did.

    Attributes:
        taken: the groups of each step.
        ready_s: when the learner got them.
        pushed_s: when each version had arrived, from version 0.
        busy_s: of all replicas together.
    """

    taken: list[list[int]]
    ready_s: list[float]
    pushed_s: list[float]
    busy_s: float


def spy_on_takes(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The groups that each step of the real loop takes from now on."""
    taken: list[list[int]] = []
    take: Callable[[OpenGroups, int], list[int]] = OpenGroups.take

    def spy(open_groups: OpenGroups, count: int) -> list[int]:
        taken.append(take(open_groups, count))
        return taken[-1]

    monkeypatch.setattr(OpenGroups, "take", spy)
    return taken


def drive_virtually(
    settings: TrainConfig,
    deployment: Deployment,
    speeds: Speeds,
    lengths_NG: Floats,
    monkeypatch: pytest.MonkeyPatch,
) -> Driven:
    """Run the real `grpo train` on the counted clock."""
    replicas = [
        VirtualReplica(deployment.max_sequences, speeds.decode_base_s, speeds.decode_sequence_s)
        for _ in range(deployment.replicas)
    ]
    engines = VirtualReplicas(replicas)
    generators = VirtualGenerators(
        settings.max_sequence_tokens, engines=engines, lengths_NG=lengths_NG, push_s=speeds.push_s
    )
    learner = VirtualLearner(engines=engines, step_s=speeds.learn_base_s)
    monkeypatch.setattr("grpo.run.training.Cluster", FakeCluster(learner, generators))
    monkeypatch.setattr("grpo.run.verification.VerifierPool", PromptVerifiers)
    taken = spy_on_takes(monkeypatch)
    train(settings, silent_progress())
    return Driven(taken, learner.ready_s, generators.pushed_s, engines.busy_s)
