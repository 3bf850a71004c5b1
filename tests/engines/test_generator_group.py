"""Replicas as one group: who gets what, and what happens when one is lost. Ray is real, the engines only count."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
import ray
from conversations.counting_turns import three_turns, token_of

from grpo.cluster.generator_actor import CONCURRENCY_GROUPS, GeneratorActor
from grpo.cluster.generator_group import GeneratorGroup
from grpo.cluster.learner_actor import CONCURRENCY_GROUPS as LEARNER_GROUPS
from grpo.cluster.learner_actor import LearnerActor
from grpo.cluster.replica import GeneratorLimits
from grpo.cluster.waiting import RemoteActor
from grpo.generator.loop import EngineLoop
from grpo.messages import ConversationEnd
from grpo.rollout.plays import turn_seed
from grpo.types import (
    ActorId,
    ActorKind,
    Completion,
    EngineDied,
    EngineFinished,
    Finished,
    Request,
    RequestId,
    SamplingParams,
    VersionSpan,
)

pytestmark = [pytest.mark.slow, pytest.mark.long]

SAMPLING = SamplingParams(2, 8)
QUICK, ENDLESS, REFUSED, FATAL, BLOCKS = range(5)


class CountingEngine:
    """Finishes a request in its next step, unless its prompt says otherwise."""

    def __init__(self) -> None:
        self.version = 0
        self.alive = True
        self.left: list[Request] = []
        self.samples: dict[RequestId, int] = {}

    @property
    def busy(self) -> bool:
        return bool(self.left)

    def submit(self, requests: Sequence[Request], sampling: SamplingParams) -> None:
        if any(request.token_ids[0] == REFUSED for request in requests):
            raise ValueError("the prompt is too long")
        self.left += requests
        self.samples |= dict.fromkeys((request.id for request in requests), sampling.samples)

    def step(self) -> EngineFinished:
        time.sleep(0.005)
        if any(request.token_ids[0] == FATAL for request in self.left):
            raise EngineDied("gone")
        # Only in the process that it names: whoever gets it next goes on.
        while (BLOCKS, os.getpid()) in [request.token_ids for request in self.left]:
            time.sleep(1)
        done = [request for request in self.left if request.token_ids[0] == QUICK]
        self.left = [request for request in self.left if request.token_ids[0] != QUICK]
        return [(request.id, (self.completion(request),) * self.samples.pop(request.id)) for request in done]

    def completion(self, request: Request) -> Completion:
        return Completion((request.seed,), (-1.0,), str(os.getpid()), "stop", (VersionSpan(0, 1, self.version),))

    def begin_update(self) -> None:
        pass

    def update(self, bucket: str) -> list[str]:
        return [bucket]

    def finish_update(self, policy_version: int) -> None:
        self.version = policy_version

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[float(self.version)] * (len(ids) - 1) for ids in sequences]


class CountingActor(GeneratorActor):
    def __init__(self, after: object) -> None:
        self._id, self._log = ActorId(ActorKind.GENERATOR, 0), ""
        self._loop = EngineLoop(CountingEngine)


@dataclass
class Started:
    """A group and what it told."""

    group: GeneratorGroup
    actors: list[Any]
    told: list[str] = field(default_factory=list)
    updated: list[bool] = field(default_factory=list)

    def pid(self, index: int) -> int:
        processes = self.group._replicas[index]._processes
        assert processes is not None
        return processes.created[0][0]

    def wait_for_restarts(self, count: int) -> None:
        began = time.monotonic()
        while len(self.told) < count:
            self.group._hear(1.0)
            assert time.monotonic() - began < 120, self.told


@pytest.fixture
def start(ray_running: None) -> Iterator[Callable[..., Started]]:
    actors: list[Any] = []
    # Ray's workers cannot import this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    def start(replicas: int, *, hang_s: float = 60.0, group_s: float = 60.0, max_restarts: int = 3) -> Started:
        def place(index: int, after: Any, updated: bool) -> Any:
            given_newer.append(updated)
            actors.append(ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(CountingActor).remote(after))
            return actors[-1]

        told: list[str] = []
        given_newer: list[bool] = []
        group = GeneratorGroup(
            place, replicas, GeneratorLimits(120.0, group_s, 60.0, hang_s, max_restarts), told.append
        )
        group.wait_started()
        group.on_restart(lambda index: _push(group, index))
        return Started(group, actors, told, given_newer)

    yield start
    for actor in actors:
        ray.kill(actor)


def _push(group: GeneratorGroup, index: int, version: int = 7) -> None:
    group.only(index).load_weights(["weight"], version)


def asked(kind: int, *indices: int) -> list[Request]:
    return [Request(index, (kind,), 100 + index) for index in indices]


def all_of(stream: Any) -> dict[int, tuple[Completion, ...]]:
    found: Finished = []
    while stream.unfinished:
        found += stream.finished()
    assert len({index for index, _ in found}) == len(found), "no group twice"
    return dict(found)


def test_streams_share_the_replicas_and_keep_their_numbers_apart(start: Callable[..., Started]) -> None:
    started = start(2)
    one, other = started.group.stream(SAMPLING), started.group.stream(SamplingParams(1, 8))
    with pytest.raises(RuntimeError, match="this stream has no unfinished request"):
        one.finished()
    assert one.finished(wait=False) == []
    one.submit(asked(QUICK, *range(10)))
    other.submit(asked(QUICK, 0, 5))
    with pytest.raises(ValueError, match="request 5 is unfinished"):
        other.submit(asked(QUICK, 5))
    assert (one.unfinished, other.unfinished) == (10, 2)
    groups = all_of(one)
    assert sorted(groups) == list(range(10))
    assert all(len(group) == 2 and group[0].token_ids == (100 + index,) for index, group in groups.items())
    assert {group[0].text for group in groups.values()} == {str(started.pid(0)), str(started.pid(1))}
    assert sorted(all_of(other)) == [0, 5] and other.unfinished == 0
    other.submit(asked(QUICK, 5))
    assert sorted(all_of(other)) == [5], "a number may be used again"
    assert not started.told


def test_a_request_goes_to_who_owes_the_fewest_completions_and_who_owes_is_told(start: Callable[..., Started]) -> None:
    started = start(2, group_s=1.0)
    wide, narrow = started.group.stream(SamplingParams(6, 8)), started.group.stream(SAMPLING)
    wide.submit(asked(ENDLESS, 0))
    narrow.submit(asked(ENDLESS, 0, 1, 2, 3))
    assert [len(replica.work) for replica in started.group._replicas] == [2, 3]
    assert [replica.load for replica in started.group._replicas] == [8, 6]
    with pytest.raises(TimeoutError, match=r"rollout\.deadline_s=1.*generator 0 \(2\), generator 1 \(3\)"):
        wide.finished()
    assert narrow.finished(wait=False) == [] and narrow.unfinished == 4


def test_what_an_engine_refuses_is_raised(start: Callable[..., Started]) -> None:
    started = start(1)
    stream = started.group.stream(SAMPLING)
    stream.submit(asked(REFUSED, 0))
    with pytest.raises(ValueError, match="the prompt is too long"):
        stream.finished()
    assert not started.told


def test_dead_stopped_and_blocked_replicas_are_replaced_and_their_work_replayed(start: Callable[..., Started]) -> None:
    """All three at once: one is killed, one stopped (it answers nothing), and the engine of one blocks."""
    started = start(3, hang_s=1.5)
    group = started.group
    assert group.load_weights(["weight"], 7) == ["weight"]
    before = [started.pid(index) for index in range(3)]
    stream = group.stream(SAMPLING)
    stream.submit(asked(QUICK, 0, 1, 2))
    kept = all_of(stream)
    stream.submit([*asked(ENDLESS, 0, 1), Request(2, (BLOCKS, before[2]), 0)])
    assert [len(replica.work) for replica in group._replicas] == [1, 1, 1]
    os.kill(before[0], signal.SIGKILL)
    os.kill(before[1], signal.SIGSTOP)
    started.wait_for_restarts(3)
    reasons = sorted(line.split(": ")[1].split(";")[0][:27] for line in started.told[:3])
    assert reasons == ["its engine did not finish a", "its process did not answer ", "its process died"], started.told
    assert all(line.split()[1] in "012" and "replayed" in line and line.endswith(" s") for line in started.told)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in before)
    assert started.updated == [False] * 3 + [True] * 3, "successors begin from what is never deleted"
    assert sorted(kept) == [0, 1, 2] and stream.unfinished == 3
    assert sum(len(replica.work) for replica in group._replicas) == 3


def test_replayed_groups_come_once_and_from_the_present_weights(start: Callable[..., Started]) -> None:
    started = start(1)
    started.group.load_weights(["weight"], 7)
    stream = started.group.stream(SAMPLING)
    os.kill(started.pid(0), signal.SIGKILL)
    stream.submit(asked(QUICK, *range(6)))
    groups = all_of(stream)
    assert sorted(groups) == list(range(6))
    assert {one.spans[0].policy_version for group in groups.values() for one in group} == {7}
    assert len(started.told) == 1 and "6 requests were replayed" in started.told[0]
    assert started.group.score([[1, 2, 3]])() == [[[7.0, 7.0]]]
    os.kill(started.pid(0), signal.SIGKILL)
    assert started.group.score([[1, 2]])() == [[[7.0]]], "with nobody left it waits for the first to be back"
    os.kill(started.pid(0), signal.SIGKILL)
    started.group._push = None
    stream.submit(asked(QUICK, 0))
    with pytest.raises(RuntimeError, match="was restarted but cannot get its weights; call `on_restart` first"):
        stream.finished()


def test_a_generator_that_dies_in_the_middle_of_conversations_loses_none(start: Callable[..., Started]) -> None:
    """It dies between two turns. The turns that it had or gets are sampled elsewhere, with the same seeds."""
    started = start(2)
    stream = started.group.stream(SamplingParams(1, 8))
    playing = three_turns(stream, QUICK, lambda: os.kill(started.pid(0), signal.SIGKILL), groups=4)
    groups = all_of(playing)
    started.wait_for_restarts(1)
    assert sorted(groups) == [0, 1, 2, 3] and stream.unfinished == 0
    for index, group in groups.items():
        for member, completion in enumerate(group):
            sampled = [token for token, value in zip(completion.token_ids, completion.logprobs, strict=True) if value]
            assert sampled == [token_of(turn_seed(100 * index, member, turn)) for turn in range(3)]
            assert completion.dialogue is not None and completion.dialogue.ended is ConversationEnd.TURNS
    assert len(started.told) == 1 and "its process died" in started.told[0]


def test_a_replica_lost_during_an_update_gets_the_weights_when_it_is_back(start: Callable[..., Started]) -> None:
    started = start(2)
    os.kill(started.pid(1), signal.SIGKILL)
    assert started.group.load_weights(["a", "b"], 3) == ["a", "b"]
    assert started.group.score([[1, 2]])() == [[[3.0]]], "those that are up"
    started.group.on_restart(lambda index: _push(started.group, index, version=3))
    started.wait_for_restarts(1)
    assert started.group.score([[1, 2]])() == [[[3.0]], [[3.0]]]


def test_a_replica_lost_inside_a_push_ends_it_and_all_its_replicas_get_the_weights_anew(
    start: Callable[..., Started],
) -> None:
    """As over gloo or NCCL: the learner's end waits for all receivers, and fails if one is lost."""
    started = start(2)
    started.group.on_restart(lambda index: _push(started.group, index, version=3))

    def buckets() -> Iterator[str]:
        yield "a"
        assert started.group.lost_in_push() is None
        os.kill(started.pid(1), signal.SIGKILL)
        yield "b"
        until = time.monotonic() + 30
        while not (lost := started.group.lost_in_push()):
            assert time.monotonic() < until
            time.sleep(0.05)
        raise RuntimeError(f"the push was ended, because {lost}")

    assert started.group.load_weights(buckets(), 3) == []
    assert started.group.lost_in_push() is None
    started.wait_for_restarts(2)
    assert started.group.score([[1, 2]])() == [[[3.0]], [[3.0]]]
    (first,) = [line for line in started.told if line.startswith("generator 0 ")]
    assert "its push was ended, because generator 1 was lost: its process died" in first


def test_a_replica_lost_before_a_push_takes_no_part_in_it(start: Callable[..., Started]) -> None:
    started = start(2)
    ray.kill(started.actors[1])

    def buckets() -> Iterator[str]:
        assert [one.handle for one in started.group.actors] == started.actors[:1]
        yield "a"

    assert started.group.load_weights(buckets(), 3) == ["a"]
    started.group.on_restart(lambda index: _push(started.group, index, version=3))
    started.wait_for_restarts(1)
    for actor in [one.handle for one in started.group.actors]:
        ray.kill(actor)
        with pytest.raises(ray.exceptions.RayActorError):
            while True:
                ray.get(actor.ready.remote(), timeout=30)

    def nobody() -> Iterator[str]:
        raise AssertionError("there is nobody to push to")
        yield ""

    started.group.on_restart(lambda index: _push(started.group, index, version=4))
    assert started.group.load_weights(nobody(), 4) == []
    assert started.group.score([[1, 2]])()[0] == [[4.0]]


def test_an_error_of_a_push_without_a_loss_is_raised(start: Callable[..., Started]) -> None:
    def buckets() -> Iterator[str]:
        yield "a"
        raise RuntimeError("another tensor than the learner's")

    with pytest.raises(RuntimeError, match="another tensor"):
        start(1).group.load_weights(buckets(), 3)


class WaitingLearner(LearnerActor):
    """A learner rank that waits until another thread of its process ends the wait."""

    def __init__(self) -> None:
        self._id = ActorId(ActorKind.LEARNER, 0)
        self._rank: Any = threading.Event()


def test_a_learner_s_second_thread_is_reached_while_the_first_one_waits(ray_running: None) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    handle = ray.remote(concurrency_groups=LEARNER_GROUPS)(WaitingLearner).remote()
    learner: RemoteActor[Any] = RemoteActor(handle)
    waiting = learner.start(lambda rank: rank.wait(60), None)
    ray.get(learner.start_aside(lambda rank: rank.set()), timeout=50)
    assert ray.get(waiting, timeout=5)
    ray.kill(handle)


def test_beyond_max_restarts_the_run_stops_saying_why(start: Callable[..., Started]) -> None:
    started = start(1, max_restarts=1)
    stream = started.group.stream(SAMPLING)
    stream.submit(asked(FATAL, 0))
    with pytest.raises(RuntimeError, match=r"generator 0 was lost: the process of its engine died; .*max_restarts=1"):
        stream.finished()
    assert len(started.told) == 1 and "the process of its engine died; 1 requests were replayed" in started.told[0]
