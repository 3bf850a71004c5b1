"""Verifier pools on all nodes of the Ray cluster, behind the interface of a single pool.

The driver's node may have too few cores to judge programs or long proofs. Each node gets an actor with a
`VerifierPool`. A batch of calls goes to the node with the fewest unfinished calls.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grpo.cluster.ready import ready_of, values_of
from grpo.cluster.verifiers.actor import VerifierActor
from grpo.cluster.waiting import wait_for
from grpo.report.logs import present_place
from grpo.types import ActorId, ActorKind
from rewards.build import VerifierSpec
from rewards.pool.busy_clock import Busy, BusyClock
from rewards.pool.pool import Call
from rewards.pool.stats import Tally
from rewards.verdict import Verdict, error

# Maximum number of unfinished batches in an actor. A batch is a coroutine that only waits for workers.
_CONCURRENCY = 100_000
_STATS_S = 30.0

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Batch:
    """Calls that were submitted together. They are on one node at a time, until their futures are resolved.

    Attributes:
        ask: function that takes a node's actor, sends it the calls, and returns Ray's reference for the verdicts.
        futures: one future for each verdict.
        losses: number of actors that died while they held the batch.
    """

    ask: Callable[[Any], Any]
    futures: list[Future[Verdict]]
    losses: int = 0

    def finish(self, verdicts: Sequence[Verdict]) -> None:
        for future, verdict in zip(self.futures, verdicts, strict=True):
            if future.set_running_or_notify_cancel():
                future.set_result(verdict)


@dataclass(eq=False)
class _Node:
    """A node's actor and its unfinished calls."""

    identity: str
    actor: Any
    in_flight: int = 0
    batches: set[_Batch] = field(default_factory=set)


class NodePool:
    """Runs verifiers on every node of a Ray cluster; futures and verdicts are the same as in `VerifierPool`.

    If an actor or its node dies, the actor's calls go to another node, at most `replays` times. After that, or if no
    node is left, the calls get the verdict `error`. If the actor died but its node did not, the actor is restarted, at
    most `replays` times.

    Args:
        verifiers: specs; every node must be able to build each verifier.
        workers: number of worker processes on each node.
        deadline_s: longest time of one call, in seconds; see `VerifierPool`.
        memory_mib: address space of one worker in MiB; None for no limit.
        overlap: maximum number of simultaneous calls of async verifiers in one worker.
        replays: how often a call may move to another node, and how often an actor may restart.
        start_s: longest wait for the actors' start, in seconds.

    Raises:
        ValueError: a node cannot build a verifier.
        TimeoutError: an actor did not start within `start_s`.
    """

    def __init__(
        self,
        verifiers: Iterable[VerifierSpec],
        *,
        workers: int,
        deadline_s: float,
        memory_mib: int | None = 2048,
        overlap: int = 64,
        replays: int = 2,
        start_s: float = 120.0,
    ) -> None:
        specs = tuple(verifiers)
        self._names = frozenset(spec.name for spec in specs)
        settings = {"workers": workers, "deadline_s": deadline_s, "memory_mib": memory_mib, "overlap": overlap}
        self._start_with = (specs, os.getcwd(), settings)
        self._replays = replays
        self._lock = threading.Lock()
        self._nodes: list[_Node] = []
        self._restarts: dict[str, int] = {}
        self._starting: list[_Node] = []
        self._waiting: list[_Batch] = []
        self._busy: dict[ActorId, BusyClock] = {}
        self._closed = False
        started = [self._create(identity) for identity in _living_nodes()]
        try:
            waited = f"{len(started)} verifier pools to start"
            # Every node builds the same verifiers.
            self._groups: frozenset[str] = wait_for([reference for _, reference in started], start_s, waited)[0]
        except (ValueError, TimeoutError, RuntimeError):
            for node, _ in started:
                ray.kill(node.actor)
            raise
        self._nodes = [node for node, _ in started]
        # Ray's threads run the callbacks and must not call Ray again. This thread may do so, so it handles the results.
        self._landed: queue.SimpleQueue[tuple[_Node, _Batch | None, Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="verifier-nodes", daemon=True)
        self._thread.start()

    def submit_many(self, calls: Iterable[Call]) -> list[Future[Verdict]]:
        """Queue calls `(name, completion, reference, prompt)` on one node; return a future for each call, in order.

        Raises:
            ValueError: the pool has no verifier of that name.
            RuntimeError: the pool is closed.
        """
        listed = list(calls)
        return self._submit([name for name, *_ in listed], lambda actor: actor.verify.remote(listed), len(listed))

    def judges_groups(self, name: str) -> bool:
        """Whether the verifier needs all completions of a prompt in one call of `submit_group`."""
        return name in self._groups

    def submit_group(
        self,
        name: str,
        completions: Sequence[str],
        reference: Any,
        prompt: Mapping[str, Any],
        lists: Mapping[str, Sequence[Any]] | None = None,
    ) -> list[Future[Verdict]]:
        """Queue one call of a group verifier on one node; see `VerifierPool`.

        Raises:
            ValueError: the pool has no verifier of that name, or the verifier judges completions one by one.
            RuntimeError: the pool is closed.
        """
        if name in self._names and name not in self._groups:
            raise ValueError(f"verifier {name!r} judges completions one by one, not groups; use submit_many")
        call = (name, tuple(completions), reference, prompt, lists)
        return self._submit([name], lambda actor: actor.verify_group.remote(*call), len(completions))

    def _submit(self, names: Iterable[str], ask: Callable[[Any], Any], count: int) -> list[Future[Verdict]]:
        for name in names:
            if name not in self._names:
                raise ValueError(f"no verifier {name!r} in this pool; it has {', '.join(sorted(self._names))}")
        batch = _Batch(ask, [Future() for _ in range(count)])
        with self._lock:
            if self._closed:
                raise RuntimeError("the verifier pool is closed")
            self._send(batch)
        return batch.futures

    def take_recent(self) -> dict[str, Tally]:
        """Return the counts of the living nodes since the last call, by verifier."""
        with self._lock:
            identities = {node.actor.take_recent.remote(): node.identity for node in self._nodes}
        ready, _ = ready_of(list(identities), _STATS_S)
        total: dict[str, Tally] = {}
        for reference in ready:
            try:
                ((counted, busy),) = values_of([reference], _STATS_S)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                continue  # The counts of this node are lost.
            # The first twelve digits distinguish nodes, and Ray's tools show these digits too.
            lane = ActorId(ActorKind.VERIFIERS, identities[reference][:12])
            self._busy.setdefault(lane, BusyClock()).merge(busy)
            for name, tally in counted.items():
                total.setdefault(name, Tally()).add(tally)
        return total

    def take_busy(self) -> dict[ActorId, Busy]:
        """Return the busy times of each node's workers that `take_recent` has collected since the last call."""
        return {lane: clock.take() for lane, clock in self._busy.items()}

    @property
    def nodes(self) -> int:
        """Number of nodes that take calls."""
        with self._lock:
            return len(self._nodes)

    def close(self) -> None:
        """Kill the actors and their workers; unfinished calls get the verdict `error`. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            open_batches = [*self._waiting, *(batch for node in self._nodes for batch in node.batches)]
            for node in (*self._nodes, *self._starting):
                ray.kill(node.actor)
            self._nodes, self._starting, self._waiting = [], [], []
        self._landed.put(None)
        self._thread.join()
        for batch in open_batches:
            batch.finish([error("the verifier pool was closed before this verdict")] * len(batch.futures))

    def __enter__(self) -> NodePool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _create(self, identity: str) -> tuple[_Node, Any]:
        remote: Any = ray.remote(VerifierActor)
        actor = remote.options(
            # The actor only waits for its workers, so it reserves no core. The workers use any free cores.
            num_cpus=0,
            max_concurrency=_CONCURRENCY,
            scheduling_strategy=NodeAffinitySchedulingStrategy(identity, soft=False),
            runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        ).remote()
        return _Node(identity, actor), actor.start.remote(*self._start_with, present_place())

    def _send(self, batch: _Batch) -> None:
        """Give a batch to a node, or keep it until a node is up. The caller holds the lock."""
        if self._nodes:
            node = min(self._nodes, key=lambda each: each.in_flight)
            node.in_flight += len(batch.futures)
            node.batches.add(batch)
            self._when_done(node, batch, batch.ask(node.actor))
        elif self._starting:
            self._waiting.append(batch)
        else:
            batch.finish([error("the verifier pools of all nodes have died")] * len(batch.futures))

    def _when_done(self, node: _Node, batch: _Batch | None, reference: Any) -> None:
        reference.future().add_done_callback(lambda done: self._landed.put((node, batch, done)))

    def _run(self) -> None:
        while (landed := self._landed.get()) is not None:
            node, batch, done = landed
            failure = done.exception()
            with self._lock:
                if self._closed:
                    continue  # `close` finishes all open batches
                if batch is None:
                    self._settle_start(node, failure)
                    continue
                node.batches.discard(batch)
                node.in_flight -= len(batch.futures)
                if failure is not None:
                    self._lose(node)
                    self._resend(batch, failure)
            if failure is None:
                batch.finish(done.result())

    def _resend(self, batch: _Batch, failure: BaseException) -> None:
        batch.losses += 1
        if batch.losses <= self._replays:
            self._send(batch)
            return
        reason = f"the verifier pool that held this call died {batch.losses} times: {str(failure).splitlines()[0]}"
        batch.finish([error(reason)] * len(batch.futures))

    def _lose(self, node: _Node) -> None:
        """Remove a lost node and restart its actor. The other batches of the node fail one by one later."""
        if node not in self._nodes:
            return
        self._nodes.remove(node)
        logger.warning("the verifier pool of node %s is lost", node.identity[:12])
        ray.kill(node.actor)
        restarts = self._restarts.get(node.identity, 0)
        if restarts < self._replays and node.identity in _living_nodes():
            self._restarts[node.identity] = restarts + 1
            again, reference = self._create(node.identity)
            self._starting.append(again)
            self._when_done(again, None, reference)

    def _settle_start(self, node: _Node, failure: BaseException | None) -> None:
        self._starting.remove(node)
        if failure is None:
            self._nodes.append(node)
        if failure is None or not self._starting:
            waiting, self._waiting = self._waiting, []
            for batch in waiting:
                self._send(batch)


def _living_nodes() -> list[str]:
    """Return the living nodes that have CPUs, or all living nodes if no node has CPUs. A head node may have no CPUs."""
    living = [node for node in ray.nodes() if node["Alive"]]
    with_cpus = [node for node in living if node["Resources"].get("CPU")]
    return [str(node["NodeID"]) for node in with_cpus or living]
