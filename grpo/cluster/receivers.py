"""Generators as receivers of a push: load buckets on several replicas or on one replica."""

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
    """The replicas lost during a series of calls, and the causes. Further calls to a lost replica are skipped."""

    def __init__(self, deadline_s: float) -> None:
        """Begin with no lost replica; a call may take `deadline_s` seconds."""
        self.reasons: dict[Replica, Lost] = {}
        self._deadline_s = deadline_s

    def settle(self, what: str, calls: Mapping[Replica, ObjectRef[Result]]) -> dict[Replica, Result]:
        """Return the results of replicas that are not lost; a replica whose call fails becomes lost."""
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
    """Load all buckets on these replicas as version `policy_version`; return the names of the loaded tensors."""
    names: list[str] = []

    def settle(what: str, calls: Mapping[Replica, ObjectRef[list[str]]]) -> None:
        loaded = list(losses.settle(what, calls).values())
        names.extend(loaded[0] if loaded else ())

    def running() -> list[Replica]:
        return [replica for replica in replicas if replica not in losses.reasons]

    # An actor runs its calls in order, so the driver need not wait for each answer. But too many buckets would fill the
    # object store, so the driver takes a bucket only after the bucket before the previous one is loaded.
    begun = {
        replica: replica.remote.start(lambda generator: generator.begin_update(), Phase.SYNC) for replica in replicas
    }
    loading: collections.deque[dict[Replica, ObjectRef[list[str]]]] = collections.deque()
    # The learner waits until all buckets are taken, so the loop takes all buckets even if no replica remains.
    for bucket in buckets:
        loading.append(
            {
                replica: replica.remote.start(lambda generator, part: generator.update(part), Phase.SYNC, bucket)
                for replica in running()
            }
        )
        if len(loading) > 1:
            settle("load a bucket of weights", loading.popleft())
    finished = {
        replica: replica.remote.start(lambda generator: generator.finish_update(policy_version), Phase.SYNC)
        for replica in running()
    }
    busy = {replica: replica.remote.handle.take_busy.remote() for replica in finished}
    losses.settle("begin a weight update", begun)
    for calls in loading:
        settle("load a bucket of weights", calls)
    losses.settle("finish a weight update", finished)
    for replica, activities in losses.settle("report its activities", busy).items():
        replica.busy.merge(activities)
    return names


def start_scoring(replica: Replica, sequences: Sequence[Sequence[int]]) -> ObjectRef[Scores]:
    """Begin to score tokens on a replica."""
    return replica.remote.start(lambda generator: generator.score(sequences), Phase.SCORE)


@dataclass(frozen=True, slots=True)
class OneReplica:
    """A single replica. It has those methods of a group that load weights and check that they arrived.

    Attributes:
        replica: the replica.
        deadline_s: longest wait for one part of a weight update.
    """

    replica: Replica
    deadline_s: float

    @property
    def actors(self) -> list[RemoteActor[Generator]]:
        """The replica's actor, as a list."""
        return [self.replica.remote]

    def load_weights(self, buckets: Iterable[Any], policy_version: int) -> list[str]:
        """Load all buckets; return the names of the loaded tensors.

        Raises:
            Lost: the replica died while it loaded the weights.
        """
        losses = Losses(self.deadline_s)
        names = load_buckets([self.replica], buckets, policy_version, losses)
        for reason in losses.reasons.values():
            raise reason
        return names

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[Scores]]:
        """Start scoring tokens; call the returned function to wait for the scores."""
        reference = start_scoring(self.replica, sequences)
        return lambda: [result_of(reference, self.deadline_s, "score the probe")]
