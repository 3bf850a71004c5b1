"""The processes of a job's actors: their names, their Python stacks when they hang, and the causes of their deaths."""

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
from grpo.cluster.ready import ready_of, values_of
from grpo.cluster.session import actor_table
from grpo.report.logs import present_place, see_log

# Errors of processes and nodes, not of the run. The run itself is correct and may continue in other processes.
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.ActorUnschedulableError,
)
# A peer of a dead process may fail before Ray reports the death. Ray reports it within a second.
_NOTICE_S = 3.0
_REMOTE_S = 60.0


@dataclass(frozen=True, slots=True)
class ActorProcess:
    """An actor of this job.

    Attributes:
        actor: Ray's id of the actor.
        name: the actor's name in messages, such as `learner rank 1`.
        pid: process id; 0 before the process exists.
        node: Ray's id of the actor's node.
        address: the node's IP address.
        alive: whether the actor has started and has not died.
        died_at: time of death, in seconds since the epoch; 0 if the actor has not died.
        cause: cause of death, in one line.
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
    def description(self) -> str:
        """Name, process and node."""
        return f"{self.name} (pid {self.pid} on {self.address})"


def actors_of_job() -> list[ActorProcess]:
    """Return every actor that this driver has started, including dead actors; the list is empty if Ray does not run."""
    if not ray.is_initialized():
        return []
    job = ray.get_runtime_context().get_job_id()
    try:
        rows = actor_table()
    except ray.exceptions.RayError:
        return []
    return [_process(row) for row in rows if row.job_id.hex() == job]


def describe_death(failure: Exception) -> str:
    """Describe in one line which process died and how."""
    actor = getattr(failure, "actor_id", None)
    known = [process for process in actors_of_job() if actor and process.actor == actor]
    if known and known[0].pid:
        # Ray reports a node's broken connections before the node's death, so the cause may still be unknown.
        unreached = "its process or its node cannot be reached any more"
        gone = isinstance(failure, ray.exceptions.ActorUnavailableError)
        cause = known[0].cause or (unreached if gone else _first_line(str(failure)))
        return f"{known[0].description} died: {cause}{see_log(known[0].name)}"
    return f"a process or node was lost: {_first_line(str(failure))}"


def dead_peer(references: Sequence[Any]) -> str | None:
    """Say in one line which called actor has just died; None if no actor died. Wait a few seconds for Ray's report."""
    called = {_actor_of(reference) for reference in references}
    until = time.monotonic() + _NOTICE_S
    while ray.is_initialized():
        dead = [process for process in actors_of_job() if process.died_at and process.actor in called]
        if dead:
            first = min(dead, key=lambda process: process.died_at)
            return f"{first.description} died: {first.cause}{see_log(first.name)}"
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return None


def holding_up(references: Sequence[Any]) -> set[str]:
    """Return the ids of the actors whose results have not arrived."""
    tasks = [
        reference.completed() if isinstance(reference, ray.ObjectRefGenerator) else reference
        for reference in references
    ]
    _, late = ready_of(tasks, 0.0, fetch=False)
    return {_actor_of(task) for task in late}


def see_logs(references: Sequence[Any]) -> str:
    """Return `; see LOG`, the end of a message about the actors whose results have not arrived."""
    late = holding_up(references) if present_place() else set()
    return see_log(*(process.name for process in actors_of_job() if process.actor in late))


def _actor_of(reference: Any) -> str:
    return str(reference.task_id().actor_id().hex())


def stacks_of(actors: Iterable[ActorProcess]) -> dict[str, str]:
    """Return the Python stacks of actors on any node, by actor name; or, instead of a missing stack, the reason."""
    actors = list(actors)
    stack_texts = _on_their_nodes(actors, stacks.dump)
    return {
        actor.description: stack_texts.get((actor.node, actor.pid), f"no answer from node {actor.address}")
        for actor in actors
    }


def kill(actors: Iterable[ActorProcess]) -> None:
    """End actors' processes by SIGKILL, because a stopped or stuck process ignores other signals."""
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
    """Call `do` on each node with that node's process ids; return the answers by node and process."""
    if not actors:
        return {}
    here = ray.get_runtime_context().get_node_id()
    by_node: dict[str, list[int]] = {}
    for actor in actors:
        by_node.setdefault(actor.node, []).append(actor.pid)
    remote: Any = ray.remote(do)
    references = {
        node: remote.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(pids)
        for node, pids in by_node.items()
        if node != here
    }
    answers_by_node = {here: do(by_node[here])} if here in by_node else {}
    ready_of(list(references.values()), _REMOTE_S)
    for node, reference in references.items():
        try:
            (answers_by_node[node],) = values_of([reference], 0.0)
        except (ray.exceptions.RayError, TimeoutError) as failure:
            answers_by_node[node] = dict.fromkeys(
                by_node[node], f"no answer from this node: {_first_line(str(failure))}"
            )
    return {(node, pid): text for node, answers in answers_by_node.items() for pid, text in answers.items()}


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
    # Ray adds the same list of possible causes to every broken connection, so a short text replaces it.
    if "connection error code 2" in message:
        return "its process ended unexpectedly: killed, out of memory, or crashed (`dmesg`, Ray's logs)"
    return _first_line(message.replace("\n", " "))


def _first_line(text: str) -> str:
    return " ".join((text.strip().splitlines() or [""])[0].split())[:300]
