"""Generators as receivers of a push: load buckets on several replicas or on one replica."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray import ObjectRef

from grpo.cluster.failures import ProcessDied
from grpo.cluster.ready import ready_of, values_of
from grpo.cluster.replica import Lost, Replica, loss_in, result_of
from grpo.types import Phase

if TYPE_CHECKING:
    from grpo.cluster.waiting import RemoteActor
    from grpo.generator.engine import Generator

Result = TypeVar("Result")
Scores = list[list[float]]
# A push has at most so many calls under way: two buckets, and the end of the update.
_CALLS_UNDER_WAY = 3
# Seconds between two looks at the calls.
_LOOK_S = 0.1
# A peer of a dead process may fail before Ray reports the death. An engine's thread notices the death of the engine's
# process within a second.
_NOTICE_S = 5.0


class Losses:
    """The replicas lost during a series of calls, and the causes. Further calls to a lost replica are skipped."""

    def __init__(self, deadline_s: float) -> None:
        """Begin with no lost replica; a call may take `deadline_s` seconds."""
        self.reasons: dict[Replica, Lost] = {}
        self._deadline_s = deadline_s
        self._begun: collections.deque[Mapping[Replica, ObjectRef[Any]]] = collections.deque(maxlen=_CALLS_UNDER_WAY)

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

    def begun(self, calls: Mapping[Replica, ObjectRef[Any]]) -> None:
        """Remember calls that have begun, so that `look` notices their failures before `settle`."""
        self._begun.append(calls)

    def look(self, wait_s: float = 0.0) -> str | None:
        """Look whether a replica was lost, and describe the first loss, for example `generator 1 was lost: ...`.

        Args:
            wait_s: longest wait for the report of a loss, in seconds.
        """
        until = time.monotonic() + wait_s
        while True:
            for calls in self._begun:
                for replica, reference in calls.items():
                    if replica not in self.reasons and (reason := _loss_of(reference)):
                        self.reasons[replica] = reason
            for replica, reason in self.reasons.items():
                return f"{replica.id} was lost: {reason}"
            if time.monotonic() >= until:
                return None
            time.sleep(_LOOK_S)


class PushUnderWay:
    """The losses of the push that runs now. The learner's side of a push looks at them while it sends."""

    def __init__(self) -> None:
        self._losses: Losses | None = None

    def lost(self) -> str | None:
        """Describe the generator that the present push has lost; None if there is no push or no loss."""
        return self._losses.look() if self._losses else None

    @contextlib.contextmanager
    def push(self, losses: Losses) -> Iterator[None]:
        """Inside the context, `lost` looks at these losses.

        If the learner or a replica fails because another replica was lost, its error ends here: the losses are the
        result. Any other error is raised.
        """
        self._losses = losses
        try:
            yield
        except ProcessDied:
            raise
        except (RuntimeError, TimeoutError):
            if not losses.look(_NOTICE_S):
                raise
        finally:
            self._losses = None


def _loss_of(reference: ObjectRef[Any]) -> Lost | None:
    """Return the loss with which a call has ended; None if the call runs, succeeded or raised another error."""
    if not ready_of([reference], 0.0, fetch=False)[0]:
        return None
    try:
        values_of([reference], _NOTICE_S)
    except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError) as failure:
        return loss_in(failure)
    return None


def begin_update(replicas: Sequence[Replica], losses: Losses) -> list[Replica]:
    """Pause these replicas for new weights; return the replicas that are not lost."""
    calls = {
        replica: replica.remote.start(lambda generator: generator.begin_update(), Phase.SYNC) for replica in replicas
    }
    return list(losses.settle("begin a weight update", calls))


def load_buckets(replicas: Sequence[Replica], buckets: Iterable[Any], policy_version: int, losses: Losses) -> list[str]:
    """Load all buckets on these replicas as version `policy_version`; return the names of the loaded tensors.

    `begin_update` comes before this.
    """
    names: list[str] = []

    def settle(what: str, calls: Mapping[Replica, ObjectRef[list[str]]]) -> None:
        loaded = list(losses.settle(what, calls).values())
        names.extend(loaded[0] if loaded else ())

    def running() -> list[Replica]:
        return [replica for replica in replicas if replica not in losses.reasons]

    # An actor runs its calls in order, so the driver need not wait for each answer. But too many buckets would fill the
    # object store, so the driver takes a bucket only after the bucket before the previous one is loaded.
    loading: collections.deque[Mapping[Replica, ObjectRef[list[str]]]] = collections.deque()
    # The learner waits until all buckets are taken, so the loop takes all buckets even if no replica remains.
    for bucket in buckets:
        updating: Mapping[Replica, ObjectRef[list[str]]] = {
            replica: replica.remote.start(lambda generator, part: generator.update(part), Phase.SYNC, bucket)
            for replica in running()
        }
        losses.begun(updating)
        loading.append(updating)
        if len(loading) > 1:
            settle("load a bucket of weights", loading.popleft())
    finished = {
        replica: replica.remote.start(lambda generator: generator.finish_update(policy_version), Phase.SYNC)
        for replica in running()
    }
    losses.begun(finished)
    busy = {replica: replica.remote.handle.take_busy.remote() for replica in finished}
    for updating in loading:
        settle("load a bucket of weights", updating)
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
        under_way: where the push is noted, so that the learner notices a loss while it sends.
    """

    replica: Replica
    deadline_s: float
    under_way: PushUnderWay

    @property
    def actors(self) -> list[RemoteActor[Generator]]:
        """The replica's actor, as a list."""
        return [self.replica.remote]

    def load_weights(self, buckets: Iterable[Any], policy_version: int) -> list[str]:
        """Load all buckets; return the names of the loaded tensors.

        Raises:
            Lost: the replica died while it loaded the weights.
        """
        losses, names = Losses(self.deadline_s), list[str]()
        if taking := begin_update([self.replica], losses):
            with self.under_way.push(losses):
                names = load_buckets(taking, buckets, policy_version, losses)
        for reason in losses.reasons.values():
            raise reason
        return names

    def score(self, sequences: Sequence[Sequence[int]]) -> Callable[[], list[Scores]]:
        """Start scoring tokens; call the returned function to wait for the scores."""
        reference = start_scoring(self.replica, sequences)
        return lambda: [result_of(reference, self.deadline_s, "score the probe")]
