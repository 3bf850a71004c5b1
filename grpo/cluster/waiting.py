"""Calls to actors, and waits for their results: every wait has a deadline and names the expected result.

`LearnerRank` and `Generator` define the operations. The actor that holds a `LearnerRank` or a `Generator` has one
method, `call`, which runs a function. The driver calls, for example, `start(lambda rank: rank.sleep(), Phase.SWAP)`:
this call sends the function to the actor, and the type checker checks the function against the class.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, TypeVarTuple

import ray
from ray import ObjectRef

from grpo.cluster import activity
from grpo.cluster.failures import ProcessDied
from grpo.cluster.processes import LOST, dead_peer, describe_death, see_logs
from grpo.cluster.ready import SLICE_S, ready_of, values_of
from grpo.types import Phase

Subject = TypeVar("Subject")
Result = TypeVar("Result")
More = TypeVarTuple("More")
# Ray's name for the group of an actor's second thread, for calls that must not wait for the first thread.
ASIDE = "aside"


@dataclass(frozen=True, slots=True)
class RemoteActor(Generic[Subject]):
    """An actor that holds a `Subject` and calls functions with it; see `LearnerActor`, `GeneratorActor`."""

    handle: Any

    def start(
        self, verb: Callable[[Subject, *More], Result], doing: Phase | None, *arguments: *More
    ) -> ObjectRef[Result]:
        """Start `verb(subject, *arguments)` in the actor's process.

        Args:
            verb: function to call in the actor's process.
            doing: phase under which the actor records the time of the call; None if the time is not recorded.
            arguments: values, or Ray's references to values; a reference inside another value stays a reference.
        """
        return self.handle.call.remote(verb, doing, *arguments)  # type: ignore[no-any-return]

    def start_aside(self, verb: Callable[[Subject, *More], Result], *arguments: *More) -> ObjectRef[Result]:
        """Start `verb(subject, *arguments)` in the actor's second thread, beside a call that has not ended."""
        aside = self.handle.call.options(concurrency_group=ASIDE)
        return aside.remote(verb, None, *arguments)  # type: ignore[no-any-return]

    def stream(self, verb: Callable[[Subject, *More], Iterator[object]], doing: Phase, *arguments: *More) -> Any:
        """Start to iterate over `verb(subject, *arguments)` in the actor; return Ray's stream of item references."""
        # At most two items wait to be read, so a large policy cannot fill the object store while generators load.
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 2}
        return self.handle.stream.options(**options).remote(verb, doing, *arguments)


def free_address() -> tuple[str, int]:
    """Return this node's address, and a free port of this node."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def write_timeline(path: Path) -> None:
    """Write Ray's timeline of all processes, for chrome://tracing or ui.perfetto.dev."""
    ray.timeline(str(path))


def wait_for(
    references: Sequence[ObjectRef[Result]], deadline_s: float, what: str, meanwhile: Callable[[], None] | None = None
) -> list[Result]:
    """Return the results of `references`, or raise an error that names the missing results.

    Until the results arrive, call `meanwhile` every `SLICE_S` seconds. An error does not wait for the other results.

    Raises:
        TimeoutError: a result did not arrive within `deadline_s`.
        ProcessDied: an actor, its node, or an object on this node was lost.
        Exception: the error that an actor raised.
    """
    give_up_at = time.monotonic() + deadline_s
    results: dict[ObjectRef[Result], Result] = {}
    late = list(references)
    try:
        with activity.current().waiting(what, references):
            while late:
                remaining_s = max(0.0, give_up_at - time.monotonic())
                ready, late = ready_of(late, min(SLICE_S, remaining_s))
                results.update(zip(ready, values_of(ready, remaining_s), strict=True))
                if late and not remaining_s:
                    break
                if late and meanwhile:
                    meanwhile()
    except ray.exceptions.GetTimeoutError:
        late = [reference for reference in references if reference not in results]
    except LOST as failure:
        if isinstance(failure, ray.exceptions.RayActorError) and failure.actor_init_failed:
            raise RuntimeError(f"a process could not start while the run waited for {what}: {failure}") from failure
        raise ProcessDied(f"{describe_death(failure)}; the run waited for {what}") from failure
    except ray.exceptions.RayTaskError as failure:
        cause = raised_by(failure)
        # If a rank dies, its peers in a collective fail too, and their error may arrive before the report of the death.
        if isinstance(cause, RuntimeError) and (died := dead_peer(references)):
            raise ProcessDied(f"{died}; the run waited for {what}") from failure
        raise cause from failure
    if late:
        which = ", ".join(str(number) for number, reference in enumerate(references) if reference in late)
        raise TimeoutError(
            f"{len(late)} of {len(references)} did not come within {deadline_s:.0f} s (number {which}): {what}"
            f"{see_logs(late)}"
        )
    return [results[reference] for reference in references]


def raised_by(failure: Any) -> Exception:
    """Return the actor's error without Ray's wrapper. Raise it from the wrapper, which has the remote traceback."""
    return failure.cause if isinstance(failure.cause, Exception) else failure
