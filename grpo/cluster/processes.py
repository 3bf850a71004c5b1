"""The processes of a job's actors: which they are, what they do when they hang, and how they died."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from grpo.cluster import stacks
from grpo.cluster.session import actor_table
from grpo.report.logs import present_place, see_log

# What only the machinery can do to an actor: the run is sound and may go on elsewhere.
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.ActorUnschedulableError,
)
# A peer of a dead process may fail first; Ray notices the death itself within a second.
_NOTICE_S = 3.0
_REMOTE_S = 60.0


@dataclass(frozen=True, slots=True)
class ActorProcess:
    """An actor of this job.

    Attributes:
        actor: Ray's id of it.
        name: what it calls itself, such as `learner rank 1`.
        pid: of its process; 0 before it has one.
        node: Ray's id of its node.
        address: the node's IP address.
        alive: it has started, and has not died.
        died_at: seconds since the epoch, 0 where it has not.
        cause: how it died, in one line.
    """

    actor: str
    name: str
    pid: int
    node: str
    address: str
    alive: bool
    died_at: float
    cause: str

    @property
    def told(self) -> str:
        """Name, process and node."""
        return f"{self.name} (pid {self.pid} on {self.address})"


def actors_of_job() -> list[ActorProcess]:
    """Every actor that this driver has started, the dead ones too; none where Ray does not run, or not any more."""
    if not ray.is_initialized():
        return []
    job = ray.get_runtime_context().get_job_id()
    try:
        rows = actor_table()
    except ray.exceptions.RayError:
        return []
    return [_process(row) for row in rows if row.job_id.hex() == job]


def describe_death(failure: Exception) -> str:
    """In one line, which process died and how."""
    actor = getattr(failure, "actor_id", None)
    known = [one for one in actors_of_job() if actor and one.actor == actor]
    if known and known[0].pid:
        # Ray tells of the death of a node later than of the connections that end with it.
        unreached = "its process or its node cannot be reached any more"
        gone = isinstance(failure, ray.exceptions.ActorUnavailableError)
        cause = known[0].cause or (unreached if gone else _first_line(str(failure)))
        return f"{known[0].told} died: {cause}{see_log(known[0].name)}"
    return f"a process or node was lost: {_first_line(str(failure))}"


def dead_peer(references: Sequence[Any]) -> str | None:
    """In one line, which of the actors that were called died just now, if one did: waits a moment for Ray to notice."""
    called = {_actor_of(one) for one in references}
    until = time.monotonic() + _NOTICE_S
    while ray.is_initialized():
        dead = [one for one in actors_of_job() if one.died_at and one.actor in called]
        if dead:
            first = min(dead, key=lambda one: one.died_at)
            return f"{first.told} died: {first.cause}{see_log(first.name)}"
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return None


def holding_up(references: Sequence[Any]) -> set[str]:
    """The actors whose results have not come."""
    tasks = [one.completed() if isinstance(one, ray.ObjectRefGenerator) else one for one in references]
    if not tasks:
        return set()
    _, late = ray.wait(tasks, num_returns=len(tasks), timeout=0, fetch_local=False)
    return {_actor_of(one) for one in late}


def see_logs(references: Sequence[Any]) -> str:
    """`; see LOG` for the end of a message about the actors whose results have not come."""
    late = holding_up(references) if present_place() else set()
    return see_log(*(one.name for one in actors_of_job() if one.actor in late))


def _actor_of(reference: Any) -> str:
    return str(reference.task_id().actor_id().hex())


def stacks_of(actors: Iterable[ActorProcess]) -> dict[str, str]:
    """The Python stacks of actors, on whichever node they are, under their names; why there is none, otherwise."""
    actors = list(actors)
    found = _on_their_nodes(actors, stacks.dump)
    return {one.told: found.get((one.node, one.pid), f"no answer from node {one.address}") for one in actors}


def kill(actors: Iterable[ActorProcess]) -> None:
    """End actors' processes by SIGKILL: one that is stopped or stuck would not hear anything else."""
    _on_their_nodes(list(actors), _kill)


def _kill(pids: Sequence[int]) -> dict[int, str]:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return dict.fromkeys(pids, "killed")


def _on_their_nodes(
    actors: Sequence[ActorProcess], do: Callable[[Sequence[int]], dict[int, str]]
) -> dict[tuple[str, int], str]:
    """Call `do` with the processes of each node, on that node; what came back by node and process."""
    if not actors:
        return {}
    here = ray.get_runtime_context().get_node_id()
    by_node: dict[str, list[int]] = {}
    for one in actors:
        by_node.setdefault(one.node, []).append(one.pid)
    remote: Any = ray.remote(do)
    asked = {
        node: remote.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(pids)
        for node, pids in by_node.items()
        if node != here
    }
    found = {here: do(by_node[here])} if here in by_node else {}
    if asked:
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=_REMOTE_S)
    for node, reference in asked.items():
        try:
            found[node] = ray.get(reference, timeout=0)
        except (ray.exceptions.RayError, TimeoutError) as failure:
            found[node] = dict.fromkeys(by_node[node], f"no answer from this node: {_first_line(str(failure))}")
    return {(node, pid): text for node, answers in found.items() for pid, text in answers.items()}


def _process(row: Any) -> ActorProcess:
    state = type(row).ActorState
    dead = row.state == state.Value("DEAD")
    return ActorProcess(
        actor=row.actor_id.hex(),
        name=row.repr_name or row.class_name.rpartition(".")[2],
        pid=row.pid,
        node=row.address.node_id.hex(),
        address=row.address.ip_address,
        alive=row.state == state.Value("ALIVE"),
        died_at=row.end_time / 1000 if dead else 0.0,
        cause=_cause(row.death_cause) if dead else "",
    )


def _cause(cause: Any) -> str:
    kind = cause.WhichOneof("context")
    if kind == "oom_context":
        return f"out of memory: {_first_line(cause.oom_context.error_message)}"
    context = getattr(cause, kind) if kind else None
    message = getattr(context, "error_message", "") or getattr(context, "formatted_exception_string", "")
    # What Ray adds to the end of a connection is the same each time: a list of what may have been the matter.
    if "connection error code 2" in message:
        return "its process ended unexpectedly: killed, out of memory, or crashed (`dmesg`, Ray's logs)"
    return _first_line(message.replace("\n", " "))


def _first_line(text: str) -> str:
    return " ".join((text.strip().splitlines() or [""])[0].split())[:300]
