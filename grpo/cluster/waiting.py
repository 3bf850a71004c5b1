"""How the driver calls actors and waits for them: every wait has a deadline and says what it waits for.

Part of the Ray room. A verb of a learner rank or a generator is written where it is done, and nowhere else: the actor
around it has one method, `call`, and the driver says `start(lambda rank: rank.sleep(), Phase.SWAP)`. The function
travels to the actor; what it does is checked by the types of both sides.
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
from grpo.types import Phase

Subject = TypeVar("Subject")
Result = TypeVar("Result")
More = TypeVarTuple("More")
# How often the driver looks after the generators while it waits for the learner.
MEANWHILE_S = 0.1


@dataclass(frozen=True, slots=True)
class RemoteActor(Generic[Subject]):
    """An actor that holds a `Subject` and does what it is given with it; see `LearnerActor`, `GeneratorActor`."""

    handle: Any

    def start(
        self, verb: Callable[[Subject, *More], Result], doing: Phase | None, *arguments: *More
    ) -> ObjectRef[Result]:
        """Start `verb(subject, *arguments)` in the actor's process.

        Args:
            verb: what to do; it is called there.
            doing: what the actor counts as busy with meanwhile; None where it is not worth a lane.
            arguments: values or Ray's references to them; a reference inside another value stays one.
        """
        return self.handle.call.remote(verb, doing, *arguments)  # type: ignore[no-any-return]

    def stream(self, verb: Callable[[Subject, *More], Iterator[object]], doing: Phase, *arguments: *More) -> Any:
        """Start to iterate over `verb(subject, *arguments)` there: Ray's stream of references to the items."""
        # Two items wait at most: a large policy must not fill the object store while generators still load.
        options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 2}
        return self.handle.stream.options(**options).remote(verb, doing, *arguments)


def free_address() -> tuple[str, int]:
    """This node's address and a port that is free on it."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def write_timeline(path: Path) -> None:
    """Write Ray's own record of which process did what when, for chrome://tracing or ui.perfetto.dev."""
    ray.timeline(str(path))


def wait_for(
    references: Sequence[ObjectRef[Result]], deadline_s: float, what: str, meanwhile: Callable[[], None] | None = None
) -> list[Result]:
    """The results of `references`, or an error that says what did not come; `meanwhile` is done again and again.

    Raises:
        TimeoutError: they did not all come within `deadline_s`.
        ProcessDied: an actor, its node, or something that it needed of them was lost.
        Exception: what an actor raised.
    """
    give_up_at = time.monotonic() + deadline_s
    try:
        with activity.current().waiting(what, references):
            while meanwhile and time.monotonic() < give_up_at:
                if not ray.wait(list(references), num_returns=len(references), timeout=MEANWHILE_S)[1]:
                    break
                meanwhile()
            return list(ray.get(list(references), timeout=max(0.0, give_up_at - time.monotonic())))
    except ray.exceptions.GetTimeoutError:
        _, late = ray.wait(list(references), num_returns=len(references), timeout=0)
        which = ", ".join(str(number) for number, one in enumerate(references) if one in late)
        raise TimeoutError(
            f"{len(late)} of {len(references)} did not come within {deadline_s:.0f} s (number {which}): {what}"
            f"{see_logs(late)}"
        ) from None
    except LOST as failure:
        if isinstance(failure, ray.exceptions.RayActorError) and failure.actor_init_failed:
            raise RuntimeError(f"a process could not start while the run waited for {what}: {failure}") from failure
        raise ProcessDied(f"{describe_death(failure)}; the run waited for {what}") from failure
    except ray.exceptions.RayTaskError as failure:
        cause = raised_by(failure)
        # Who exchanges tensors with a rank that dies fails too, and may be heard first.
        if isinstance(cause, RuntimeError) and (died := dead_peer(references)):
            raise ProcessDied(f"{died}; the run waited for {what}") from failure
        raise cause from failure


def raised_by(failure: Any) -> Exception:
    """What an actor raised, not Ray's wrapping of it; keep the wrapping as its cause, it has the remote traceback."""
    return failure.cause if isinstance(failure.cause, Exception) else failure
