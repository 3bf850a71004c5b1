"""Generators as the receivers of a push: buckets for several replicas, or for one alone. Part of the Ray room."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from ray import ObjectRef

from grpo.cluster.replica import Lost, Replica, result_of
from grpo.types import Phase

if TYPE_CHECKING:
    from grpo.cluster.waiting import RemoteActor
    from grpo.generator.engine import Generator

Result = TypeVar("Result")
Scores = list[list[float]]


class Losses:
    """Which replicas were lost in a series of calls, and why; their further calls are not waited for."""

    def __init__(self, deadline_s: float) -> None:
        """None is lost yet; a call may take `deadline_s`."""
        self.reasons: dict[Replica, Lost] = {}
        self._deadline_s = deadline_s

    def settle(self, what: str, calls: Mapping[Replica, ObjectRef[Result]]) -> dict[Replica, Result]:
        """Results of the calls to replicas that are not lost; a replica that does not `what` is lost from now on."""
        results: dict[Replica, Result] = {}
        for replica, reference in calls.items():
            if replica in self.reasons:
                continue
            try:
                results[replica] = result_of(reference, self._deadline_s, what)
            except Lost as reason:
                self.reasons[replica] = reason
        return results


def load_buckets(replicas: Sequence[Replica], buckets: Iterable[Any], policy_version: int, losses: Losses) -> list[str]:
    """Load all buckets on these replicas and stamp them as `policy_version`; the names of the tensors that came."""
    names: list[str] = []

    def settle(what: str, calls: Mapping[Replica, ObjectRef[list[str]]]) -> None:
        loaded = list(losses.settle(what, calls).values())
        names.extend(loaded[0] if loaded else ())

    def those_left() -> list[Replica]:
        return [replica for replica in replicas if replica not in losses.reasons]

    # An actor takes its calls in order, so none waits for the answer to the one before it; but a bucket is only
    # asked for when the one before the last is loaded, or they would fill the object store.
    begun = {
        replica: replica.remote.start(lambda generator: generator.begin_update(), Phase.SYNC) for replica in replicas
    }
    loading: collections.deque[dict[Replica, ObjectRef[list[str]]]] = collections.deque()
    # Without any replica the buckets are still taken: the learner waits until they are.
    for bucket in buckets:
        loading.append(
            {
                replica: replica.remote.start(lambda generator, it: generator.update(it), Phase.SYNC, bucket)
                for replica in those_left()
            }
        )
        if len(loading) > 1:
            settle("load a bucket of weights", loading.popleft())
    finished = {
        replica: replica.remote.start(lambda generator: generator.finish_update(policy_version), Phase.SYNC)
        for replica in those_left()
    }
    busy = {replica: replica.remote.handle.take_busy.remote() for replica in finished}
    losses.settle("begin a weight update", begun)
    for calls in loading:
        settle("load a bucket of weights", calls)
    losses.settle("finish a weight update", finished)
    for replica, told in losses.settle("say what it has done", busy).items():
        replica.busy.merge(told)
    return names


def start_scoring(replica: Replica, sequences: Sequence[Sequence[int]]) -> ObjectRef[Scores]:
    """Begin to score tokens on a replica."""
    return replica.remote.start(lambda generator: generator.score(sequences), Phase.SCORE)


@dataclass(frozen=True, slots=True)
class OneReplica:
    """The interface of a group by which weights are given and proven, for one of its replicas.

    Attributes:
        replica: the replica.
        deadline_s: longest wait for one part of a weight update.
    """

    replica: Replica
    deadline_s: float

    @property
    def actors(self) -> list[RemoteActor[Generator]]:
        """Its actor, alone."""
        return [self.replica.remote]

    def load_weights(self, buckets: Iterable[Any], policy_version: int) -> list[str]:
        """Load all buckets; the names of the tensors that came.

        Raises:
            Lost: the replica died meanwhile.
        """
        losses = Losses(self.deadline_s)
        names = load_buckets([self.replica], buckets, policy_version, losses)
        for reason in losses.reasons.values():
            raise reason
        return names

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[Scores]]:
        """Start scoring tokens; call the result to wait."""
        reference = start_scoring(self.replica, sequences)
        return lambda: [result_of(reference, self.deadline_s, "score the probe")]
