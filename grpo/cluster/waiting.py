"""How the driver waits for actors: every wait has a deadline and says what it waits for. Part of the Ray room."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from grpo.cluster.activity import ACTIVITY
from grpo.cluster.failures import ProcessDied
from grpo.cluster.processes import LOST, dead_peer, describe_death, see_logs

# How often the driver looks after the generators while it waits for the learner.
MEANWHILE_S = 0.1


def free_address() -> tuple[str, int]:
    """This node's address and a port that is free on it."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def write_timeline(path: Path) -> None:
    """Write Ray's own record of which process did what when, for chrome://tracing or ui.perfetto.dev."""
    ray.timeline(str(path))


def wait_for(
    references: Sequence[Any], deadline_s: float, what: str, meanwhile: Callable[[], None] | None = None
) -> list[Any]:
    """The results of `references`, or an error that says what did not come; `meanwhile` is done again and again.

    Raises:
        TimeoutError: they did not all come within `deadline_s`.
        ProcessDied: an actor, its node, or something that it needed of them was lost.
        Exception: what an actor raised.
    """
    give_up_at = time.monotonic() + deadline_s
    try:
        with ACTIVITY.waiting(what, references):
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
