"""One generator in a Ray process. If the process dies, a new process replaces it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import ray
from ray import ObjectRef
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grpo.cluster.generator_actor import Processes
from grpo.cluster.ready import SLICE_S, ready_of, values_of
from grpo.cluster.slow_generators import GeneratorThroughput
from grpo.cluster.waiting import RemoteActor, raised_by
from grpo.types import (
    ActorId,
    ActorKind,
    Completion,
    EngineDied,
    GeneratorReport,
    Request,
    RequestId,
    SamplingParams,
)
from rewards.pool.busy_clock import BusyClock

if TYPE_CHECKING:
    from grpo.generator.engine import Generator

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class Lost(RuntimeError):
    """A replica must be replaced; the message names the cause, as the end of a sentence about the replica."""


@dataclass(frozen=True, slots=True)
class Work:
    """An unfinished request of a replica, and the function that is called with the completions."""

    request: Request
    sampling: SamplingParams
    hand_out: Callable[[tuple[int, tuple[Completion, ...]]], None]


class Replica:
    """A replica: its current actor and its unfinished work."""

    def __init__(self, index: int, place: Callable[[int, Any], Any]) -> None:
        """Start the replica's actor.

        Args:
            index: number of the replica.
            place: function that starts an actor in the replica's place in the cluster and returns the actor. Its
                arguments: number of the replica, and Ray reference that the actor waits for.
        """
        self.id = ActorId(ActorKind.GENERATOR, index)
        self.index = index
        self.work: dict[RequestId, Work] = {}
        self.load = 0
        self.restarted_for = ""
        self.replayed = 0
        self.busy = BusyClock()
        self._place = place
        self._processes: Processes | None = None
        self._start(None)

    def _start(self, after: Any) -> None:
        self.began = time.monotonic()
        self.remote: RemoteActor[Generator] = RemoteActor(self._place(self.index, after))
        self._take = self.remote.handle.take.options(concurrency_group="reports")
        self.starting: Any = self.remote.handle.ready.remote()
        self.report: Any = None
        self._asked_at = 0.0
        self._tokens = 0
        self._busy_s = 0.0
        # Start of the current busy time, in seconds; None if the replica has no work or is not up.
        self._busy_since: float | None = None

    @property
    def up(self) -> bool:
        """Whether the replica has started and has its weights."""
        return self.starting is None

    def started(self, processes: Processes) -> None:
        """Note that the engine has started."""
        self._processes = processes
        pid = processes.created[0][0]
        logger.info("generator %d is up (pid %d on %s); its log: %s", self.index, pid, processes.address, processes.log)

    def admit(self) -> None:
        """Let the replica sample: send the work that arrived during its start."""
        self.starting = None
        self._send(self.work)

    def ask(self, work: Mapping[RequestId, Work]) -> None:
        """Begin to sample for these requests; if the replica is not up yet, begin when it is up."""
        self.work.update(work)
        self.load += sum(item.sampling.samples for item in work.values())
        if self.up:
            self._send(work)

    def _send(self, work: Mapping[RequestId, Work]) -> None:
        if work and self._busy_since is None:
            self._busy_since = time.monotonic()
        # A message costs the driver more than a request in it.
        by_sampling: dict[SamplingParams, list[Request]] = {}
        for item in work.values():
            by_sampling.setdefault(item.sampling, []).append(item.request)
        for sampling, requests in by_sampling.items():
            self.remote.handle.submit.remote(requests, sampling)

    def listen(self, beat_s: float) -> None:
        """Request the next report, if there is work and no request is pending."""
        if self.up and self.work and self.report is None:
            self.report = self._take.remote(beat_s)
            self._asked_at = time.monotonic()

    def silent_s(self) -> float:
        """Return the seconds since the pending report was requested; 0 if no report is pending."""
        return 0.0 if self.report is None else time.monotonic() - self._asked_at

    def hear(self, hang_deadline_s: float) -> int:
        """Give the groups of the arrived report to their streams; return the number of groups.

        Raises:
            Lost: the replica's process is gone, or its engine has not finished a step for `hang_deadline_s`.
        """
        reference, self.report = self.report, None
        report: GeneratorReport = result_of(reference, hang_deadline_s, "hand over finished groups")
        self.busy.merge(report.busy)
        for identity, completions in report.finished:
            work = self.work.pop(identity)
            self.load -= work.sampling.samples
            self._tokens += sum(len(completion.token_ids) for completion in completions)
            work.hand_out((work.request.index, completions))
        if not self.work and self._busy_since is not None:
            self._busy_s += time.monotonic() - self._busy_since
            self._busy_since = None
        if report.stalled_s > hang_deadline_s:
            raise Lost(f"its engine did not finish a step for {report.stalled_s:.0f} s")
        return len(report.finished)

    def take_sampled(self) -> GeneratorThroughput:
        """Return the throughput of the current process since the last call; earlier processes do not count."""
        now = time.monotonic()
        if self._busy_since is not None:
            self._busy_s += now - self._busy_since
            self._busy_since = now
        assert self._processes is not None, "a running replica has reported its processes"
        process, address = self._processes.created[0][0], self._processes.address
        sampled = GeneratorThroughput(self.id, process, address, self._tokens, self._busy_s)
        self._tokens, self._busy_s = 0, 0.0
        return sampled

    def replace(self, reason: str) -> list[Work]:
        """End the replica's processes and start new processes; return the unfinished work."""
        logger.warning("%s is lost and started again: %s", self.id, reason)
        ray.kill(self.remote.handle, no_restart=True)
        ended = None
        if self._processes:
            # A stopped process ignores Ray, and the engine's processes survive a killed actor. So all of
            # these processes are killed.
            where = NodeAffinitySchedulingStrategy(self._processes.node, soft=True)
            ended = _end_processes.options(scheduling_strategy=where).remote(self._processes)
            self._processes = None
        unfinished, self.work, self.load = list(self.work.values()), {}, 0
        self.restarted_for, self.replayed = reason, len(unfinished)
        self._start(ended)
        return unfinished


@ray.remote(num_cpus=0)
def _end_processes(processes: Processes) -> None:
    import psutil

    if ray.get_runtime_context().get_node_id() != processes.node:
        return  # The node has died, so its processes have ended too.
    for pid, created in processes.created:
        try:
            process = psutil.Process(pid)
            # The process id may belong to a newer process, so the creation time is compared.
            if abs(process.create_time() - created) < 0.1:
                process.kill()
        except psutil.NoSuchProcess:
            continue


def result_of(reference: ObjectRef[Result], deadline_s: float, what: str) -> Result:
    """Return the result of a call to a replica.

    Raises:
        Lost: the replica itself failed.
        Exception: the error that the call raised in the actor.
    """
    try:
        ready_of([reference], deadline_s)
        return values_of([reference], SLICE_S)[0]
    except ray.exceptions.GetTimeoutError:
        raise Lost(f"it did not {what} within {deadline_s:.0f} s") from None
    except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError) as failure:
        raise loss_in(failure) or raised_by(failure) from failure


def loss_in(failure: Exception) -> Lost | None:
    """Return the loss that Ray's error means; None if the call itself raised an error."""
    if isinstance(failure, ray.exceptions.RayActorError):
        if failure.actor_init_failed:
            return Lost(f"it could not start: {str(failure).strip().splitlines()[-1]}")
        return Lost("its process died")
    return Lost("the process of its engine died") if isinstance(raised_by(failure), EngineDied) else None


@dataclass(frozen=True, slots=True)
class GeneratorLimits:
    """Deadlines of a group of generators, in seconds, and its maximum number of restarts.

    Attributes:
        start_s: longest wait for a replica to start.
        group_s: longest wait for the next finished group.
        update_s: longest wait for one part of a weight update.
        hang_s: longest time that an engine may take for one step.
        max_restarts: maximum number of restarts of all replicas together.
    """

    start_s: float
    group_s: float
    update_s: float
    hang_s: float
    max_restarts: int
